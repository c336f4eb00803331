"""Dictionaries in sae-lens' folder format load with the same numbers as sae-lens itself; misfits are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.close import assert_close
from support.sae_lens_files import D_SAE, D, save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated", "transcoder", "jumprelu_transcoder"])
def test_encode_and_decode_equal_sae_lens(tiny_model, tmp_path, architecture):
    from sae_lens import SAE

    hooks = (
        {"hook": "blocks.0.ln2.hook_normalized", "hook_out": "blocks.0.hook_mlp_out"}
        if "transcoder" in architecture
        else {}
    )
    folder = save(tmp_path / "one", architecture=architecture, **hooks)
    ours = load_dictionaries(folder, tiny_model)[Site("mlp_out", 0)]
    theirs = SAE.load_from_disk(folder)
    x = torch.randn(7, D)
    acts = ours.encode(x.double())
    assert 0 < int((acts != 0).sum()) < acts.numel()
    assert_close(acts.float(), theirs.encode(x))
    assert_close(ours.decode(acts).float(), theirs.decode(theirs.encode(x)))


def test_a_folder_of_folders_loads_in_forward_order(tiny_model, tmp_path):
    save(tmp_path / "b", hook="blocks.1.attn.hook_z")
    save(
        tmp_path / "a", hook="blocks.1.ln2.hook_normalized", hook_out="blocks.1.hook_mlp_out", architecture="transcoder"
    )
    save(tmp_path / "c", hook="blocks.0.hook_mlp_out")
    found = load_dictionaries(tmp_path, tiny_model)
    assert list(map(str, found)) == ["mlp_out.0", "z.1", "mlp_out.1"]
    assert found[Site("mlp_out", 1)].reads == Site("ln2_normalized", 1)
    assert all(d.weights.W_dec.dtype == torch.float64 for d in found.values())


def test_a_registered_name_loads_through_the_hub_cache(tiny_model, tmp_path):
    """sae-lens' own registry, offline, from a cache folder laid out as the hub client leaves it."""
    import subprocess
    import sys

    commit = "0" * 40
    repository = tmp_path / "hub" / "models--jbloom--GPT2-Small-SAEs-Reformatted"
    folder = save(
        repository / "snapshots" / commit / "blocks.0.hook_resid_pre",
        hook="blocks.0.hook_resid_pre",
        hook_point="blocks.0.hook_resid_pre",
    )
    (folder / "cfg.json").write_text(
        json.dumps({"hook_point": "blocks.0.hook_resid_pre", "model_name": "gpt2-small", "hook_point_layer": 0, "d_in": D, "d_sae": D_SAE,
                    "dtype": "torch.float32", "device": "cpu", "activation_fn_str": "relu", "apply_b_dec_to_input": True,
                    "prepend_bos": True, "context_size": 16, "dataset_path": "none", "finetuning_scaling_factor": False, "normalize_activations": "none"})
    )  # fmt: skip
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = (
        "import sys; from circuitgraph.models.load import load_model; from circuitgraph.dictionaries.load import load_dictionaries;"
        "model = load_model(sys.argv[1]); found = load_dictionaries('gpt2-small-res-jb/blocks.0.hook_resid_pre', model);"
        "d = next(iter(found.values())); print(d.name, d.writes, d.d_sae, float(d.weights.W_dec.abs().sum()) > 1)"
    )
    import os

    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model.library.cfg.model_name)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.strip() == "gpt2-small-res-jb/blocks.0.hook_resid_pre resid_pre.0 24 True", done.stderr[-2000:]


def _rewrite(folder, change):
    weights = load_file(folder / "sae_weights.safetensors")
    change(weights)
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


MISFITS = {
    "another size": (lambda f: save(f, d=32), "reads vectors of size 32 at mlp_out.0, where tiny has 16"),
    "another depth": (lambda f: save(f, hook="blocks.9.hook_mlp_out"), "reads mlp_out.9, but tiny has layers 0-1"),
    "unknown hook": (lambda f: save(f, hook="blocks.0.hook_nonsense"), "hook 'blocks.0.hook_nonsense' is no site"),
    "no hook": (lambda f: save(f, metadata={}), "names no hook_name"),
    "unknown architecture": (
        lambda f: save(f, architecture="no_such"),
        "has architecture 'no_such'; supported are standard",
    ),
    "unfolded norm": (
        lambda f: save(f, normalize_activations="expected_average_only_in"),
        "was not folded into the weights",
    ),
    "unfolded whitening": (
        lambda f: save(f, normalize_activations="covariance_whitening"),
        "was not folded into the weights",
    ),
    "odd normalisation": (
        lambda f: save(f, normalize_activations="constant_scalar_rescale"),
        "normalize_activations is 'constant_scalar_rescale'; expected none, layer_norm",
    ),
    "normalised transcoder": (
        lambda f: save(f, architecture="transcoder", normalize_activations="layer_norm"),
        "is a transcoder that normalises its inputs by 'layer_norm' and does not undo it",
    ),
    "a transcoder with an input bias": (
        lambda f: save(f, architecture="transcoder", apply_b_dec_to_input=True),
        "is a transcoder with apply_b_dec_to_input, which none has",
    ),
    "one head": (
        lambda f: save(f, metadata={"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 1}),
        "reads head 1 alone",
    ),
    "odd arguments": (
        lambda f: save(f, metadata={"hook_name": "blocks.0.hook_mlp_out", "model_from_pretrained_kwargs": [1]}),
        r"model_from_pretrained_kwargs is \[1\]; expected an object",
    ),
    "not an object": (
        lambda f: (save(f) / "cfg.json").write_text("[1]") and f,
        "cfg.json holds list; expected an object",
    ),
    "odd metadata": (lambda f: save(f, metadata="x"), "metadata in cfg.json is 'x'; expected an object"),
    "odd architecture": (lambda f: save(f, architecture=["topk"]), "has architecture"),
    "NaN": (lambda f: _rewrite(save(f), lambda w: w["W_dec"][3].fill_(torch.nan)), "weight W_dec contains NaN or Inf"),
    "missing weight": (lambda f: _rewrite(save(f), lambda w: w.pop("b_dec")), "'b_dec' is missing from its weights"),
    "skip": (
        lambda f: _rewrite(save(f), lambda w: w.update(W_skip=torch.eye(D))),
        "has a skip connection, which its architecture 'standard' has not",
    ),
    "broken json": (lambda f: (save(f) / "cfg.json").write_text("{") and f, "Expecting property name"),
    "broken weights": (lambda f: (save(f) / "sae_weights.safetensors").write_bytes(b"PK\x03\x04") and f, "dictionary "),
    "no weights": (lambda f: (save(f) / "sae_weights.safetensors").unlink() or f, "sae_weights.safetensors is missing"),
    "empty folder": (lambda f: f.mkdir() or f, "holds no dictionary"),
    "no folder": (lambda f: f, "does not exist; give a folder"),
}


@pytest.mark.parametrize(("make", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_in_one_line(tiny_model, tmp_path, make, message):
    folder = tmp_path / "one"
    make(folder)
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(folder, tiny_model)
    assert "\n" not in str(caught.value)


def test_two_dictionaries_for_one_site_are_refused(tiny_model, tmp_path):
    with pytest.raises(DictionaryError, match="dictionaries a and b both write mlp_out.0"):
        load_dictionaries([save(tmp_path / "a"), save(tmp_path / "b")], tiny_model)


def test_no_dictionaries_are_refused(tiny_model):
    with pytest.raises(DictionaryError, match="no dictionaries were given"):
        load_dictionaries([], tiny_model)

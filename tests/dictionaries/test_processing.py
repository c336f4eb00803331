"""A dictionary trained on a model with processed weights gives the same activations on the raw model, at every site."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.close import assert_close
from support.sae_lens_files import save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.dictionaries.processing import Parts, translation
from circuitgraph.dictionaries.sources import PROCESSINGS, DictionarySite
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site

PROCESSED_IN = torch.float32  # by TransformerLens, whatever the dtype of the weights
TOKENS = torch.tensor([[1, 3, 4, 5, 6, 7], [1, 8, 6, 3, 9, 4]])
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "ln2_normalized": "ln2.hook_normalized",
    "mlp_in": "mlp.hook_in",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
SETTINGS = [(), *((name,) for name in PROCESSINGS), PROCESSINGS, ("fold_ln", "fold_value_biases")]


def load_processed(folder, settings):
    """The checkpoint as a HookedTransformer with these weight processings, in float64."""
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM

    local = Path(tempfile.mkdtemp()) / "localmodel"  # TransformerLens guesses families from names
    local.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (local / "config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}))
    cfg = loading.get_pretrained_model_config(
        str(local), device="cpu", dtype=torch.float64, fold_ln="fold_ln" in settings
    )
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    state = loading.get_pretrained_state_dict(str(local), cfg, weights, dtype=torch.float64)
    model = HookedTransformer(cfg, move_to_device=False)
    model.load_and_process_state_dict(state, **{name: name in settings for name in PROCESSINGS})
    return model.eval()


def activations(model, layer):
    """{kind of site: activation at that layer} of a HookedTransformer on TOKENS."""
    read = {}
    model.blocks[layer].mlp.register_forward_pre_hook(lambda module, args: read.update({"mlp_in": args[0]}))
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    found = {kind: cache[f"blocks.{layer}.{hook}"] for kind, hook in HOOKS.items() if kind != "mlp_in"} | read
    return found | {"z": found["z"].flatten(2)}


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda settings: "+".join(settings) or "raw")
def processed(request, tiny_folder):
    return request.param, activations(load_processed(tiny_folder, request.param), 1)


KINDS = {
    "relu": {},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "topk": {"architecture": "topk"},
    "no b_dec": {"apply_b_dec_to_input": False},
    "layer_norm": {"normalize_activations": "layer_norm"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", HOOKS)
def test_activations_are_those_of_the_processed_model(tiny_model, tmp_path, processed, site, kind):
    settings, theirs = processed
    arguments = dict.fromkeys(settings, True)
    hook = f"blocks.1.{HOOKS[site]}"
    size = 64 if site == "mlp_post" else 16
    metadata = {"hook_name": hook, "model_from_pretrained_kwargs": arguments}
    folder = save(tmp_path / "one", hook=hook, d=size, metadata=metadata, **KINDS[kind])
    if kind == "layer_norm" and site == "z" and "fold_value_biases" in settings:
        with pytest.raises(DictionaryError, match="was trained on a model with fold_value_biases"):
            load_dictionaries(folder, tiny_model)
        return
    (ours,) = load_dictionaries(folder, tiny_model).values()
    (plain,) = load_dictionaries(f"{folder}?processing=none", tiny_model).values()
    _, raw = tiny_model.run(TOKENS, record=[ours.reads, ours.writes])
    expected = plain.encode(theirs[site])
    assert 0 < int((expected != 0).sum()) < expected.numel()
    assert_close(ours.encode(raw[ours.reads]), expected, dtype=PROCESSED_IN)
    # what is decoded is the processed model's activation; in z it comes with the biases that were folded away
    decoded, aim = ours.decode(expected, raw[ours.reads]), plain.decode(expected, theirs[site])
    if site == "z" and "fold_value_biases" in settings:
        aim = aim + tiny_model.value_bias(ours.reads, norm="fold_ln" in settings)
    if kind == "layer_norm":  # it adds the mean of its input again, which the processed model does not have
        aim = aim + (raw[ours.reads] - theirs[site]).mean(-1, keepdim=True)
    assert_close(decoded, aim, dtype=PROCESSED_IN)


def test_the_processed_model_differs_where_something_is_translated(tiny_model, processed):
    """The table above would prove nothing if the sites were the same in both models."""
    settings, theirs = processed
    _, raw = tiny_model.run(TOKENS, record=[Site(kind, 1) for kind in HOOKS])
    moved = {kind for kind in HOOKS if float((raw[Site(kind, 1)] - theirs[kind]).abs().max()) > 1e-3}
    expected = set()
    if "center_writing_weights" in settings:
        expected |= {"resid_pre", "attn_out", "mlp_out", "resid_post"}
    if "fold_ln" in settings:
        expected |= {"mlp_in"}
    if "fold_value_biases" in settings:
        expected |= {"z"}
    assert moved == expected


def test_a_transcoder_with_a_skip_connection_is_translated(tiny_model, tiny_folder, tmp_path):
    from safetensors.torch import load_file

    theirs = activations(load_processed(tiny_folder, PROCESSINGS), 1)
    for number, (reads, writes) in enumerate([("resid_pre", "mlp_out"), ("z", "attn_out"), ("mlp_in", "mlp_out")]):
        hooks = {"hook_name": f"blocks.1.{HOOKS[reads]}", "hook_name_out": f"blocks.1.{HOOKS[writes]}"}
        metadata = hooks | {"model_from_pretrained_kwargs": dict.fromkeys(PROCESSINGS, True)}
        folder = save(tmp_path / str(number), architecture="skip_transcoder", metadata=metadata)
        tensors = load_file(folder / "sae_weights.safetensors") | {"W_skip": 0.1 * torch.randn(16, 16)}
        save_file(tensors, folder / "sae_weights.safetensors")
        (ours,) = load_dictionaries(folder, tiny_model).values()
        (lazy,) = load_dictionaries(folder, tiny_model, lazy=True).values()
        (plain,) = load_dictionaries(f"{folder}?processing=none", tiny_model).values()
        _, raw = tiny_model.run(TOKENS, record=[ours.reads, plain.reads])
        x = raw[ours.reads]
        acts = plain.encode(theirs[reads])
        expected = plain.decode(acts, theirs[reads])
        assert (
            float((plain.skipped(theirs[reads]) - plain.skipped(raw[plain.reads])).abs().max()) > 1e-3
        )  # reading x as it is were wrong
        for dictionary in (ours, lazy):
            assert_close(dictionary.encode(x), acts, dtype=PROCESSED_IN)
            assert_close(dictionary.decode(acts, x), expected, dtype=PROCESSED_IN)
        assert ours.reads.kind == {"mlp_in": "ln2_normalized"}.get(reads, reads)


@pytest.mark.parametrize(
    ("site", "normalize", "name"),
    [
        ("resid_post", "constant_norm_rescale", "center_writing_weights"),
        ("z", "constant_norm_rescale", "fold_value_biases"),
        ("z", "layer_norm", "fold_value_biases"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_a_norm_of_another_input_is_refused(tiny_model, tmp_path, site, normalize, name, lazy):
    metadata = {"hook_name": f"blocks.1.{HOOKS[site]}", "model_from_pretrained_kwargs": {name: True}}
    folder = save(tmp_path / "one", metadata=metadata, normalize_activations=normalize)
    with pytest.raises(DictionaryError, match=f"was trained on a model with {name}") as caught:
        load_dictionaries(folder, tiny_model, lazy=lazy)
    assert "\n" not in str(caught.value)
    assert load_dictionaries(f"{folder}?processing=none", tiny_model, lazy=lazy)


class Loaded:
    """A model that was loaded with processed weights, as far as a dictionary asks."""

    centres = True
    dtype = torch.float32

    def __init__(self, *processing):
        self.processing = frozenset(processing)

    def value_bias(self, site, *, norm):
        return torch.full((2,), 3.0 if norm else 1.0)


def _translated(site, wanted, model):
    place, translate = translation("one", frozenset(wanted), DictionarySite(Site(site, 0), Site(site, 0)), model)
    parts = Parts(
        {"W_enc": torch.eye(2) * 2, "b_enc": torch.zeros(2), "W_dec": torch.eye(2), "b_dec": torch.zeros(2)}, {}
    )
    return place, translate(parts).tensors


def test_a_model_processed_alike_needs_no_translation():
    for site in ("resid_post", "z", "mlp_in"):
        place, tensors = _translated(site, PROCESSINGS, Loaded(*PROCESSINGS))
        assert place.reads == Site(site, 0) and torch.equal(tensors["W_enc"], torch.eye(2) * 2)
        assert not tensors["b_enc"].any() and not tensors["b_dec"].any()


def test_only_what_the_model_lacks_is_translated():
    """A dictionary of a fully processed model on one whose norms alone are folded, and whose value biases alone are."""
    _, tensors = _translated("z", PROCESSINGS, Loaded("fold_ln"))
    assert tensors["b_enc"].tolist() == [-2.0, -2.0] and tensors["b_dec"].tolist() == [1.0, 1.0]
    _, tensors = _translated("z", PROCESSINGS, Loaded("fold_value_biases"))
    assert tensors["b_enc"].tolist() == [-6.0, -6.0] and tensors["b_dec"].tolist() == [3.0, 3.0]


LOST = {
    "center_writing_weights": ("resid_post", {"center_writing_weights"}, set()),
    "fold_ln": ("mlp_in", {"fold_ln"}, set()),
    "fold_value_biases": ("z", {"fold_value_biases"}, set()),
    "fold_ln at z": ("z", {"fold_ln"}, {"fold_value_biases"}),
}


@pytest.mark.parametrize(("site", "has", "wanted"), LOST.values(), ids=LOST)
def test_what_a_processed_model_has_lost_is_refused(site, has, wanted):
    with pytest.raises(DictionaryError, match=f"was trained on a model without {sorted(has)[0]}, but this model"):
        _translated(site, wanted, Loaded(*has))
    for other in {"resid_post", "mlp_in", "z", "ln2_normalized"} - {site}:
        if not (other == "mlp_in" and "fold_ln" in has):
            assert _translated(other, wanted, Loaded(*has))


def test_rms_models_are_never_centred(loaded, tmp_path):
    model = loaded("llama")
    metadata = {
        "hook_name": "blocks.1.hook_resid_post",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    (ours,) = load_dictionaries(save(tmp_path / "one", metadata=metadata), model).values()
    (plain,) = load_dictionaries(save(tmp_path / "two", hook="blocks.1.hook_resid_post"), model).values()
    assert torch.equal(ours.weights.W_enc, plain.weights.W_enc)
    bias = model.value_bias(Site("z", 1), norm=True)
    assert bias.shape == (model.n_heads * model.d_head,) and not bias.any()  # fewer value heads than query heads


BAD = {
    "misspelt": ("fold_lm", "processing 'fold_lm' is unknown; .* Did you mean 'fold_ln'"),
    "empty": ("", "processing '' is unknown; expected 'none' or some of fold_ln"),
    "none and another": ("none,fold_ln", "processing 'none' is unknown"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_an_unknown_processing_is_refused(tiny_model, tmp_path, text, message):
    with pytest.raises(DictionaryError, match=message):
        load_dictionaries(f"{save(tmp_path / 'one')}?processing={text}", tiny_model)


def test_refactored_heads_are_refused(tiny_model, tmp_path):
    arguments = {"refactor_factored_attn_matrices": True}
    metadata = {"hook_name": "blocks.1.attn.hook_z", "model_from_pretrained_kwargs": arguments}
    with pytest.raises(DictionaryError, match="refactor_factored_attn_matrices, whose z is another"):
        load_dictionaries(save(tmp_path / "one", metadata=metadata), tiny_model)

"""A .pt with a .json beside it, transcoders with b_dec_out, and neurons: their formulas, places and what is refused."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch
from support.close import assert_close
from support.published_files import Canary, attention, cut, randn, rows, weights

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site

D, D_SAE, D_MLP = 16, 24, 64
TRANSCODER = "final_sparse_autoencoder_gpt2-small_blocks.1.ln2.hook_normalized_24.pt"


def stories(folder, tensors=None, **cfg):
    """The TinyStories study: NAME.pt, NAME.json."""
    values = {
        "layer": 1,
        "act": "mlp.hook_post",
        "expansion_factor": 4,
        "l1_coeff": [1e-4],
        "reg": "sqrt",
        "head_idx": None,
    }
    torch.save(weights(D_MLP) if tensors is None else tensors, folder / "189_giddy_water.pt")
    (folder / "189_giddy_water.json").write_text(json.dumps(values | cfg))
    return folder / "189_giddy_water.pt"


def transcoder(folder, tensors=None, name=TRANSCODER):
    torch.save(weights(b_dec_out=randn(D, seed=2)) if tensors is None else tensors, folder / name)
    return folder / name


def numbers(x, tensors, out="b_dec"):
    """relu((x - b_dec) W_enc + b_enc) and its product with W_dec plus the bias of the output."""
    t = {key: value.double() for key, value in tensors.items()}
    acts = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    assert 0 < int((acts != 0).sum()) < acts.numel()
    return acts, acts @ t["W_dec"] + t[out]


@pytest.mark.parametrize("lazy", [False, True])
def test_the_tinystories_study(tiny_model, tmp_path, lazy):
    (ours,) = load_dictionaries(stories(tmp_path), tiny_model, lazy=lazy).values()
    assert ours.reads == ours.writes == Site("mlp_post", 1)
    x = randn(5, D_MLP, seed=4).double()
    acts, x_hat = numbers(x, weights(D_MLP))
    assert_close(ours.encode(x), acts)
    assert_close(ours.decode(acts), x_hat)


@pytest.mark.parametrize("lazy", [False, True])
def test_attention_saes_were_trained_without_value_biases(tiny_model, tmp_path, lazy):
    path = attention(tmp_path)
    (plain,) = load_dictionaries(f"{path}?processing=none", tiny_model, lazy=lazy).values()
    (ours,) = load_dictionaries(path, tiny_model, lazy=lazy).values()
    assert ours.reads == ours.writes == Site("z", 1)
    acts, x_hat = numbers(rows(), weights())
    assert_close(plain.encode(rows()), acts)
    assert_close(plain.decode(acts), x_hat)
    bias = tiny_model.value_bias(Site("z", 1), norm=True)
    assert float(bias.abs().max()) > 0.1
    assert_close(ours.encode(rows() + bias), acts)
    assert_close(ours.decode(acts), x_hat + bias)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "with its settings"])
def test_transcoders_with_a_bias_for_each_end(tiny_model, tmp_path, monkeypatch, nested, lazy):
    """As trained, the file holds an object of settings too; it is read as an empty shell, without its class."""
    tensors = weights(b_dec_out=randn(D, seed=2))
    if nested:
        module = types.ModuleType("sae_training.config")
        module.LanguageModelSAERunnerConfig = type("LanguageModelSAERunnerConfig", (), {"__module__": module.__name__})
        settings = module.LanguageModelSAERunnerConfig()
        settings.hook_point, settings.dtype, settings.d_in = "blocks.1.ln2.hook_normalized", torch.float32, D
        settings.device = torch.device("cpu")
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "sae_training", types.ModuleType("sae_training"))
            patch.setitem(sys.modules, "sae_training.config", module)
            path = transcoder(tmp_path, {"cfg": settings, "state_dict": tensors})
        assert "sae_training" not in sys.modules
    else:
        path = transcoder(tmp_path)
    (ours,) = load_dictionaries(path, tiny_model, lazy=lazy).values()
    assert (str(ours.reads), str(ours.writes)) == ("ln2_normalized.1", "mlp_out.1")
    acts, y = numbers(rows(), tensors, "b_dec_out")
    assert_close(ours.encode(rows()), acts, dtype=torch.float32)  # b_dec goes into b_enc in the dtype of the file
    assert_close(ours.decode(acts), y)


# what does not fit -----------------------------------------------------------------------------------------------


BAD = {
    "hook": (lambda p: attention(p, act_name="blocks.1.hook_x"), "act_name in gpt2-small_L1_Hcat_z_cfg.json is 'blocks.1.hook_x'"),
    "no hook": (lambda p: attention(p, act_name=None), "act_name in .* is None; expected the hook"),
    "act": (lambda p: stories(p, act="mlp.hook_pos"), "act in 189_giddy_water.json is 'mlp.hook_pos' in layer 1; expected"),
    "layer": (lambda p: stories(p, layer="one"), "is 'mlp.hook_post' in layer 'one'"),
    "head": (lambda p: stories(p, head_idx=3), "reads head 3 alone"),
    "another depth": (lambda p: stories(p, layer=7), "reads mlp_post.7, but tiny has layers 0-1"),
    "another size": (lambda p: stories(p, weights(D)), "reads vectors of size 16 at mlp_post.1, where tiny has 64"),
    "broken json": (lambda p: attention(p) and (p / "gpt2-small_L1_Hcat_z_cfg.json").write_text("{") and attention_path(p), "is no JSON"),
    "truncated": (lambda p: cut(attention(p)), "is broken or no dictionary"),
    "transposed": (lambda p: attention(p, weights(W_enc=randn(D_SAE, D))), r"W_enc has shape \(24, 16\).*looks transposed"),
    "wrong shape": (lambda p: attention(p, weights(W_dec=randn(D_SAE, D - 1))), r"W_dec has shape \(24, 15\)"),
    "missing": (lambda p: attention(p, weights(b_enc=None)), "'b_enc' is missing"),
    "another key": (lambda p: attention(p, weights(threshold=randn(D_SAE))), "holds threshold, which its kind"),
    "NaN": (lambda p: attention(p, weights(b_dec=randn(D) * torch.nan)), "weight b_dec contains NaN or Inf"),
    "transcoder without its bias": (lambda p: transcoder(p, weights()), "'b_dec_out' is missing"),
    "transcoder, transposed": (lambda p: transcoder(p, weights(W_dec=randn(D, D_SAE), b_dec_out=randn(D))), "W_dec has shape .* looks transposed"),
    "transcoder, truncated": (lambda p: cut(transcoder(p)), "is broken or no dictionary"),
    "transcoder of another depth": (lambda p: transcoder(p, name=TRANSCODER.replace("blocks.1", "blocks.11")), "reads ln2_normalized.11, but tiny"),
}  # fmt: skip


def attention_path(folder):
    return folder / "gpt2-small_L1_Hcat_z.pt"


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_in_one_line(tiny_model, tmp_path, make, message):
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(make(tmp_path), tiny_model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("make", [attention, stories, transcoder])
def test_another_place_is_refused_and_the_same_accepted(tiny_model, tmp_path, make):
    path = make(tmp_path)
    place = next(iter(load_dictionaries(path, tiny_model).values()))
    sites = f"{place.reads}>{place.writes}" if place.reads != place.writes else f"{place.reads}"
    assert load_dictionaries(f"{sites}={path}", tiny_model)
    with pytest.raises(DictionaryError, match=f"was trained for {sites}, but resid_post.0 was given"):
        load_dictionaries(f"resid_post.0={path}", tiny_model)


@pytest.mark.parametrize("make", [attention, stories, transcoder])
def test_code_in_a_pickle_is_not_executed(tiny_model, tmp_path, make):
    canary = tmp_path / "canary"
    path = make(tmp_path, {"state_dict": weights(), "cfg": Canary(canary)})
    with pytest.raises(DictionaryError, match="so nothing of it was loaded or executed"):
        load_dictionaries(path, tiny_model)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary itself works
    assert canary.exists()


def test_settings_may_not_bring_code_along(tiny_model, tmp_path):
    """An object of the class that is let in as a shell, whose contents are not."""
    module = types.ModuleType("sae_training.config")
    module.LanguageModelSAERunnerConfig = type("LanguageModelSAERunnerConfig", (), {"__module__": module.__name__})
    settings = module.LanguageModelSAERunnerConfig()
    settings.inner = Canary(tmp_path / "canary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sae_training", types.ModuleType("sae_training"))
        patch.setitem(sys.modules, "sae_training.config", module)
        path = transcoder(tmp_path, {"cfg": settings, "state_dict": weights(b_dec_out=randn(D))})
    with pytest.raises(DictionaryError, match="so nothing of it was loaded or executed"):
        load_dictionaries(path, tiny_model)
    assert not (tmp_path / "canary").exists()


# neurons ---------------------------------------------------------------------------------------------------------


def test_neurons_are_their_own_features(tiny_model):
    (one,) = load_dictionaries("mlp_post.1=identity", tiny_model).values()
    x = randn(5, D_MLP).double()
    assert one.d_sae == D_MLP and torch.equal(one.encode(x), x) and torch.equal(one.decode(x), x)
    features = torch.tensor([3, 60])
    assert torch.equal(one.input_directions(features), torch.eye(D_MLP, dtype=torch.float64)[features])


@pytest.mark.parametrize("lazy", [False, True])
def test_neurons_of_every_layer_share_one_matrix(tiny_model, lazy):
    found = load_dictionaries(["mlp_post=identity", "resid_post=identity", "z.0=identity"], tiny_model, lazy=lazy)
    assert [str(site) for site in found] == ["z.0", "mlp_post.0", "resid_post.0", "mlp_post.1", "resid_post.1"]
    by_size = {}
    for dictionary in found.values():
        by_size.setdefault(dictionary.d_sae, set()).add(id(dictionary.weights))
    assert {size: len(ids) for size, ids in by_size.items()} == {D: 1, D_MLP: 1}
    weights = found[Site("z", 0)].weights
    assert weights.W_enc.data_ptr() == weights.W_dec.data_ptr()


BAD_NEURONS = {
    "kind": ("mlp_pots=identity", "site 'mlp_pots' is no place .* Did you mean 'mlp_post'"),
    "layer": ("mlp_post.5=identity", "reads mlp_post.5, but tiny has layers 0-1"),
    "no site": (
        "identity",
        "dictionary identity does not say where it reads; expected for instance mlp_post.3=identity",
    ),
    "two sites": ("mlp_in.0>mlp_out.0=identity", "reads and writes different sites"),
}


@pytest.mark.parametrize(("text", "message"), BAD_NEURONS.values(), ids=BAD_NEURONS)
def test_neurons_of_no_site_are_refused(tiny_model, text, message):
    with pytest.raises(DictionaryError, match=message):
        load_dictionaries(text, tiny_model)

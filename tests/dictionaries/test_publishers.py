"""Gemma Scope and dictionary_learning files, written as their publishers write them, give their publishers' numbers;
broken files of every kind are refused in one line, and none of their code runs."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.close import assert_close
from support.published_files import Canary, cut, gemma_tensors, learned, randn, rows, save_gemma, save_learned
from support.sae_lens_files import save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site

D, D_SAE, K = 16, 24, 5
SITE = Site("resid_post", 1)


def assert_the_publishers_numbers(dictionary, acts, x_hat):
    """The dictionary's own numbers on rows() are the publisher's, and neither is trivial."""
    assert 0 < int((acts != 0).sum()) < acts.numel() and float(x_hat.abs().min()) > 0
    ours = dictionary.encode(rows())
    assert_close(ours, acts)
    assert_close(dictionary.decode(ours), x_hat)


# Gemma Scope ---------------------------------------------------------------------------------------------------


def gemma_formula(t, x):
    """JumpReLU as in Gemma Scope's tutorial: b_dec is not subtracted from the input."""
    pre = x @ t["W_enc"] + t["b_enc"]
    acts = (pre > t["threshold"]) * pre.relu()
    return acts, acts @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("whole", [True, False], ids=["file", "folder"])
def test_gemma_scope(tiny_model, tmp_path, whole):
    path = save_gemma(tmp_path)
    found = load_dictionaries(f"resid_post.1={path if whole else path.parent}", tiny_model)
    tensors = {key: torch.from_numpy(value).double() for key, value in gemma_tensors().items()}
    assert list(found) == [SITE]
    assert_the_publishers_numbers(found[SITE], *gemma_formula(tensors, rows()))


# dictionary_learning -------------------------------------------------------------------------------------------


def formula(class_name, state, x):
    """What `encode` and `decode` of that class compute."""
    s = {key: value.double() for key, value in state.items()}
    if class_name == "AutoEncoder":
        acts = torch.relu((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"])
        return acts, acts @ s["decoder.weight"].T + s["bias"]
    if class_name == "GatedAutoEncoder":
        pre = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        acts = (pre + s["gate_bias"] > 0) * torch.relu(s["r_mag"].exp() * pre + s["mag_bias"])
        return acts, acts @ s["decoder.weight"].T + s["decoder_bias"]
    if class_name == "JumpReluAutoEncoder":
        pre = x @ s["W_enc"] + s["b_enc"]
        acts = torch.relu(pre * (pre > s["threshold"]))
        return acts, acts @ s["W_dec"] + s["b_dec"]
    if class_name == "MatryoshkaBatchTopKSAE":
        acts = torch.relu((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"])
        acts = acts * (acts > s["threshold"])
        return acts, acts @ s["W_dec"] + s["b_dec"]
    acts = torch.relu((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"])
    if class_name == "BatchTopKSAE":
        acts = acts * (acts > s["threshold"])
    else:
        values, indices = acts.topk(K, sorted=False, dim=-1)
        acts = torch.zeros_like(acts).scatter_(-1, indices, values)
    return acts, acts @ s["decoder.weight"].T + s["b_dec"]


CLASSES = (
    "AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
)  # fmt: skip


@pytest.mark.parametrize("class_name", CLASSES)
def test_dictionary_learning_with_its_config(tiny_model, tmp_path, class_name):
    state = learned(class_name)
    folder = save_learned(tmp_path / "10_32768", state, class_name)
    found = load_dictionaries([f"resid_post.1={folder}"], tiny_model)
    assert list(found) == [SITE]
    assert_the_publishers_numbers(found[SITE], *formula(class_name, state, rows()))


@pytest.mark.parametrize(
    "class_name", ["AutoEncoder", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"]
)
def test_dictionary_learning_without_config(tiny_model, tmp_path, class_name):
    state = learned(class_name)
    folder = save_learned(tmp_path / "10_32768", state)
    assert_the_publishers_numbers(
        load_dictionaries(f"resid_post.1={folder / 'ae.pt'}", tiny_model)[SITE], *formula(class_name, state, rows())
    )


def test_k_of_an_older_file_stands_in_its_config(tiny_model, tmp_path):
    state = learned("AutoEncoderTopK")
    del state["k"], state["threshold"]
    folder = save_learned(tmp_path / "trainer_0", state, "AutoEncoderTopK")
    assert_the_publishers_numbers(
        load_dictionaries(f"resid_post.1={folder}", tiny_model)[SITE], *formula("AutoEncoderTopK", state, rows())
    )


def test_effects_are_the_same_with_and_without_renormalised_decoders(tiny_model, tmp_path):
    """Later versions of dictionary_learning rescale decoders to norm 1 on loading; rows are used as they are stored."""
    state = learned("AutoEncoder")
    norm = state["decoder.weight"].norm(dim=0)
    assert float((norm - 1).abs().min()) > 0.1
    unit = state | {
        "encoder.weight": state["encoder.weight"] * norm[:, None],
        "encoder.bias": state["encoder.bias"] * norm,
        "decoder.weight": state["decoder.weight"] / norm,
    }
    folders = [save_learned(tmp_path / name, s) for name, s in (("stored", state), ("unit", OrderedDict(unit)))]
    plain, scaled = (load_dictionaries(f"resid_post.1={folder}", tiny_model)[SITE] for folder in folders)
    assert torch.equal(plain.weights.W_dec, state["decoder.weight"].T.double())
    gradient = randn(D, seed=9).double()
    effects = [d.encode(rows()) * (d.weights.W_dec @ gradient) for d in (plain, scaled)]
    assert float(effects[0].abs().max()) > 0.1
    assert_close(effects[1], effects[0], dtype=torch.float32)  # the weights were rescaled in that
    assert_close(scaled.encode(rows()), plain.encode(rows()) * norm, dtype=torch.float32)


# broken files --------------------------------------------------------------------------------------------------


def changed(tensors, **changes):
    """A copy with tensors replaced, or dropped where None is given."""
    new = OrderedDict({**tensors, **changes})
    return OrderedDict((key, value) for key, value in new.items() if value is not None)


def sae_lens(tmp_path, change):
    """A folder of sae-lens with changed weights."""
    folder = save(tmp_path / "one", hook="blocks.1.hook_resid_post")
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(change(weights), folder / "sae_weights.safetensors")
    return folder


def auto_encoder(tmp_path, **changes):
    return save_learned(tmp_path / "one", changed(learned("AutoEncoder"), **changes), "AutoEncoder")


def another_kind(tmp_path, class_name, **changes):
    return save_learned(tmp_path / "one", changed(learned("AutoEncoder"), **changes), class_name)


def ambiguous(tmp_path):
    return save_learned(tmp_path / "one", learned("AutoEncoderTopK"))


def truncated_safetensors(tmp_path):
    folder = sae_lens(tmp_path, dict)
    cut(folder / "sae_weights.safetensors")
    return folder


def truncated_pt(tmp_path):
    folder = auto_encoder(tmp_path)
    cut(folder / "ae.pt")
    return folder


def plain_file(tmp_path, name, content=b"hello"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def single_array(tmp_path):
    with (tmp_path / "params.npz").open("wb") as file:
        np.save(file, np.ones(3))
    return tmp_path / "params.npz"


def not_a_state_dict(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "ae.pt")
    return tmp_path


def embeddings(tmp_path):
    path = tmp_path / "embedding" / "width_4k" / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **gemma_tensors())
    return path


def gemma_with(tmp_path, **changes):
    return save_gemma(tmp_path, changed(gemma_tensors(), **changes))


NAN = np.full((D_SAE, D), np.nan, dtype=np.float32)
BROKEN = {
    "safetensors, truncated": (truncated_safetensors, "sae_weights.safetensors is broken or no dictionary"),
    "safetensors, transposed": (
        lambda p: sae_lens(p, lambda w: w | {"W_enc": w["W_enc"].T.contiguous()}),
        r"W_enc has shape \(24, 16\); expected \(16, 24\) by its biases; it looks transposed",
    ),
    "safetensors, wrong shape": (
        lambda p: sae_lens(p, lambda w: w | {"W_dec": w["W_dec"][:-1]}),
        r"W_dec has shape \(23, 16\); expected \(24, 16\) by its biases; the file is broken",
    ),
    "safetensors, bias of two dimensions": (
        lambda p: sae_lens(p, lambda w: w | {"b_enc": w["b_enc"][None]}),
        r"encoder bias has shape \(1, 24\); expected one dimension",
    ),
    "npz, truncated": (lambda p: cut(save_gemma(p)), "params.npz is broken or no dictionary"),
    "npz, not one": (lambda p: plain_file(p, "params.npz"), "params.npz is broken or no dictionary"),
    "npz, a single array": (single_array, "it holds a single array; expected an .npz file"),
    "npz, transposed": (
        lambda p: gemma_with(p, W_dec=gemma_tensors()["W_dec"].T),
        r"W_dec has shape \(16, 24\); expected \(24, 16\) by its biases; it looks transposed",
    ),
    "npz, wrong threshold": (
        lambda p: gemma_with(p, threshold=np.ones(3, dtype=np.float32)),
        r"threshold has shape \(3,\), expected \(24,\)",
    ),
    "npz, missing keys": (lambda p: gemma_with(p, threshold=None, b_enc=None), "'b_enc', 'threshold' is missing"),
    "npz, NaN": (lambda p: gemma_with(p, W_dec=NAN), "weight W_dec contains NaN or Inf"),
    "npz, text": (lambda p: gemma_with(p, b_enc=np.array(["a"])), "params.npz is broken or no dictionary"),
    "npz, complex": (lambda p: gemma_with(p, b_enc=np.ones(D_SAE) * 1j), "expected plain floating-point numbers"),
    "npz, a skip connection": (
        lambda p: gemma_with(p, affine_skip_connection=np.eye(D)),
        r"holds affine_skip_connection, which its kind \(Gemma Scope\) does not have",
    ),
    "npz, another width": (
        lambda p: save_gemma(p, gemma_tensors(d=32)),
        "reads vectors of size 32 at resid_post.1, where tiny has 16; it was trained for another model",
    ),
    "npz, another layer": (
        lambda p: save_gemma(p, layer=0),
        "was trained for layer 0, but resid_post.1 was given; expected a site of layer 0",
    ),
    "npz, embeddings": (embeddings, "Gemma Scope's for embeddings"),
    "pt, truncated": (truncated_pt, "ae.pt is broken or no dictionary"),
    "pt, not a state dict": (not_a_state_dict, "it holds list with other values; expected a state dict"),
    "pt, transposed": (
        lambda p: auto_encoder(p, **{"encoder.weight": randn(D, D_SAE)}),
        r"W_enc has shape \(24, 16\); expected \(16, 24\) by its biases; it looks transposed",
    ),
    "pt, missing key": (lambda p: auto_encoder(p, bias=None), "'bias' is missing from its weights, which hold decoder"),
    "pt, NaN": (lambda p: auto_encoder(p, bias=torch.full((D,), torch.nan)), "weight b_dec contains NaN or Inf"),
    "pt, float8": (
        lambda p: auto_encoder(p, bias=randn(D).to(torch.float8_e4m3fn)),
        "weight b_dec is torch.float8_e4m3fn, torch.strided; expected plain floating-point numbers",
    ),
    "pt, odd class": (lambda p: another_kind(p, ["x"]), r"is a \['x'\]; supported are AutoEncoder"),
    "pt, sparse": (lambda p: auto_encoder(p, bias=randn(D).to_sparse()), "expected plain floating-point numbers"),
    "pt, another layer": (
        lambda p: save_learned(p / "one", learned("AutoEncoder"), "AutoEncoder", layer=0),
        "was trained for layer 0, but resid_post.1 was given",
    ),
    "pt, another kind": (
        lambda p: another_kind(p, "CrossCoder"),
        "is a CrossCoder; supported are AutoEncoder, GatedAutoEncoder",
    ),
    "pt, a jump": (lambda p: another_kind(p, "AutoEncoder", jump=randn(D_SAE)), "holds jump, which its kind"),
    "pt, two kinds": (ambiguous, "may be AutoEncoderTopK or BatchTopKSAE; .* put its config.json"),
    "pt, no kind": (
        lambda p: another_kind(p, None, **{"decoder.bias": randn(D)}),
        "holds bias, decoder.bias, decoder.weight, encoder.bias, encoder.weight; expected one of AutoEncoder",
    ),
    "pt, odd k": (
        lambda p: save_learned(p / "one", changed(learned("AutoEncoderTopK"), k=torch.ones(2)), "AutoEncoderTopK"),
        r"k is \[1.0, 1.0\]; expected the number of active features",
    ),
    "pt, odd config": (
        lambda p: plain_file(auto_encoder(p), "config.json", b"{") and p / "one",
        "config.json is no JSON",
    ),
    "another file": (
        lambda p: plain_file(p, "sae.bin"),
        "is a .bin file; expected one of .npz, .pt, .safetensors, or a folder",
    ),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_in_one_line(tiny_model, tmp_path, make, message):
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(f"resid_post.1={make(tmp_path)}", tiny_model)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_files_that_name_no_place_need_one(tiny_model, tmp_path):
    for source in (save_gemma(tmp_path), auto_encoder(tmp_path)):
        with pytest.raises(DictionaryError, match="does not say where it reads; expected SITE=PATH"):
            load_dictionaries(source, tiny_model)


def test_one_broken_file_leaves_nothing_loaded(tiny_model, tmp_path):
    good, bad = save(tmp_path / "good"), truncated_pt(tmp_path)
    result = None
    with pytest.raises(DictionaryError, match="ae.pt is broken"):
        result = load_dictionaries([good, f"resid_post.1={bad}"], tiny_model)
    assert result is None


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_not_executed(tiny_model, tmp_path, zipped):
    canary, path = tmp_path / "canary", tmp_path / "one" / "ae.pt"
    path.parent.mkdir()
    torch.save(learned("AutoEncoder") | {"x": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DictionaryError, match="so nothing of it was loaded or executed"):
        load_dictionaries(f"resid_post.1={path.parent}", tiny_model)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary itself works
    assert canary.exists()


def test_code_in_an_npz_is_not_executed(tiny_model, tmp_path):
    canary = tmp_path / "canary"
    path = gemma_with(tmp_path, b_enc=np.array([Canary(canary)], dtype=object))
    with pytest.raises(DictionaryError, match="allow_pickle=False"):
        load_dictionaries(f"resid_post.1={path}", tiny_model)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_values_that_the_model_cannot_hold_are_refused(tiny_model, tiny_folder, tmp_path, kind):
    from circuitgraph.models.load import load_model

    if kind == "npz":
        path = gemma_with(tmp_path, b_dec=np.full(D, 1e200))
    else:
        path = auto_encoder(tmp_path, bias=torch.full((D,), 1e200, dtype=torch.float64))
    with pytest.raises(DictionaryError, match=r"weight b_dec holds 1e\+200, more than torch.float32 can hold"):
        load_dictionaries(f"resid_post.1={path}", load_model(tiny_folder, dtype=torch.float32))
    assert load_dictionaries(f"resid_post.1={path}", tiny_model)

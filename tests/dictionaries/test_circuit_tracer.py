"""circuit-tracer's sets, written as it writes them, give its numbers; sets that do not fit are refused in one line."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.circuit_tracer_files import config, cross_layer, per_layer, randn, save_clt, save_set
from support.close import assert_close
from support.sae_lens_files import save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.nodes import Site

D, D_SAE, N = 16, 24, 2


def rows():
    return randn(9, D, seed=3).double()


def encoded(x, W_enc, b_enc, threshold=None):
    pre = x @ W_enc.double().T + b_enc.double()
    acts = pre.relu() if threshold is None else pre * (pre > threshold.double())
    assert 0 < int((acts != 0).sum()) < acts.numel()
    return acts


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_per_layer_transcoders(tiny_model, tmp_path, threshold, skip, lazy):
    folder = save_set(tmp_path / "one", threshold=threshold, skip=skip)
    found = load_dictionaries(folder, tiny_model, lazy=lazy)
    assert [(str(d.reads), str(d.writes), d.name) for d in found.values()] == [
        (f"mlp_in.{layer}", f"mlp_out.{layer}", f"one/layer_{layer}") for layer in range(N)
    ]
    for layer, dictionary in enumerate(found.values()):
        t = per_layer(layer, threshold=threshold, skip=skip)
        acts = encoded(rows(), t["W_enc"], t["b_enc"], t.get("activation_function.threshold"))
        y = acts @ t["W_dec"].double() + t["b_dec"].double()
        assert_close(dictionary.encode(rows()), acts)
        assert_close(dictionary.decode(acts, rows()), y + rows() @ t["W_skip"].double().T if skip else y)


def test_a_set_with_a_fixed_number_of_features(tiny_model, tmp_path):
    """As facebook/crv-8b-instruct-transcoders."""
    folder = save_set(tmp_path / "one", activation="topk", k=4)
    dictionary = load_dictionaries(folder, tiny_model)[Site("mlp_out", 1)]
    t = per_layer(1)
    pre = rows() @ t["W_enc"].double().T + t["b_enc"].double()
    kept = torch.zeros_like(pre).scatter(-1, pre.topk(4).indices, 1.0)
    assert_close(dictionary.encode(rows()), pre.relu() * kept)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [False, True])
def test_a_cross_layer_transcoder(tiny_model, tmp_path, threshold, skip, lazy):
    """Layer l reconstructs what all layers up to l write to it, plus its own b_dec, plus its own skip connection."""
    found = load_dictionaries(save_clt(tmp_path / "one", threshold=threshold, skip=skip), tiny_model, lazy=lazy)
    first, second = found.values()
    assert first.sites == (Site("mlp_out", 0), Site("mlp_out", 1)) and second.sites == (Site("mlp_out", 1),)
    assert first.d_out == 2 * D and second.d_out == D
    files = [cross_layer(layer, threshold=threshold, skip=skip) for layer in range(N)]
    expected = torch.zeros(N, 9, D, dtype=torch.float64)
    ours = torch.zeros_like(expected)
    for layer, ((e, d), dictionary) in enumerate(zip(files, (first, second), strict=True)):
        x = rows() + layer
        acts = encoded(x, e[f"W_enc_{layer}"], e[f"b_enc_{layer}"], e.get(f"threshold_{layer}"))
        assert_close(dictionary.encode(x), acts)
        expected[layer:] += torch.einsum("nf,fld->lnd", acts, d[f"W_dec_{layer}"].double())
        expected[layer] += e[f"b_dec_{layer}"].double()
        if skip:
            expected[layer] += x @ e[f"W_skip_{layer}"].double()
        decoded = dictionary.decode(acts, x)
        for site in dictionary.sites:
            ours[site.layer] += decoded[:, dictionary.columns(site)]
    assert_close(ours, expected)


def test_hooks_decide_where_it_reads(tiny_model, tmp_path):
    folder = save_set(tmp_path / "one", feature_input_hook="ln2.hook_normalized", feature_output_hook="mlp.hook_out")
    assert [str(d.reads) for d in load_dictionaries(folder, tiny_model).values()] == [
        "ln2_normalized.0",
        "ln2_normalized.1",
    ]
    folder = save_set(tmp_path / "two", feature_input_hook="blocks.{layer}.hook_resid_pre")
    assert [str(d.reads) for d in load_dictionaries(folder, tiny_model).values()] == ["resid_pre.0", "resid_pre.1"]


def gemma_2(layer, *, cross=False):
    """One file of Gemma Scope 2; a cross-layer one has decoders for every layer, those before it unused."""
    shape = (D_SAE, N, D) if cross else (D_SAE, D)
    return {
        "w_enc": randn(D, D_SAE, seed=layer), "w_dec": randn(*shape, seed=layer), "b_enc": randn(D_SAE, seed=layer),
        "b_dec": randn(D, seed=layer + 5), "threshold": randn(D_SAE, seed=layer + 3).abs(),
        "affine_skip_connection": randn(D, D, seed=layer + 20),
    }  # fmt: skip


def test_a_set_lists_files_of_gemma_scope(tiny_model, tmp_path):
    import numpy as np

    folder = tmp_path / "one"
    (folder / "a").mkdir(parents=True)
    save_file(gemma_2(0), folder / "a" / "params.safetensors")
    t = {key: gemma_2(1)[key] for key in ("b_enc", "b_dec", "threshold")}
    t |= {"W_enc": gemma_2(1)["w_enc"], "W_dec": gemma_2(1)["w_dec"]}
    np.savez(folder / "b.npz", **{key: value.numpy() for key, value in t.items()})
    config(folder, transcoders=["a/params.safetensors", "b.npz"])
    first, second = load_dictionaries(folder, tiny_model).values()
    for dictionary, layer in ((first, 0), (second, 1)):
        t = gemma_2(layer)
        acts = encoded(rows(), t["w_enc"].T, t["b_enc"], t["threshold"])
        y = acts @ t["w_dec"].double() + t["b_dec"].double()
        assert_close(dictionary.encode(rows()), acts)
        assert_close(dictionary.decode(acts, rows()), y if layer else y + rows() @ t["affine_skip_connection"].double())


def test_a_cross_layer_set_lists_files_of_gemma_scope_2(tiny_model, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    for layer in range(N):
        save_file(gemma_2(layer, cross=True), folder / f"p{layer}.safetensors")
    config(folder, model_kind="cross_layer_transcoder", transcoders=["p0.safetensors", "p1.safetensors"])
    first, second = load_dictionaries(folder, tiny_model).values()
    acts = first.encode(rows())
    assert_close(
        first.decode(acts, rows())[:, D:],
        torch.einsum("nf,fd->nd", acts, gemma_2(0, cross=True)["w_dec"][:, 1].double()),
    )
    assert_close(second.weights.W_dec, gemma_2(1, cross=True)["w_dec"][:, 1].double())


def test_params_of_gemma_scope_2_are_placed_by_their_config(tiny_model, tmp_path):
    folder = tmp_path / "layer_1_width_16k_l0_small_affine"
    folder.mkdir()
    save_file(gemma_2(1), folder / "params.safetensors")
    with pytest.raises(DictionaryError, match="does not say where it reads"):
        load_dictionaries(folder, tiny_model)
    modules = {
        f"hf_hook_point_{end}": f"model.layers.1.{norm}_feedforward_layernorm.output"
        for end, norm in (("in", "pre"), ("out", "post"))
    }
    (folder / "config.json").write_text(json.dumps(modules | {"architecture": "jump_relu"}))
    (dictionary,) = load_dictionaries(folder, tiny_model, lazy=True).values()
    assert (str(dictionary.reads), str(dictionary.writes)) == (
        "mlp_in.1",
        "mlp_out.1",
    ) and dictionary.W_skip is not None
    with pytest.raises(DictionaryError, match="was trained for mlp_in.1>mlp_out.1, but mlp_in.0>mlp_out.0 was given"):
        load_dictionaries(f"mlp_in.0>mlp_out.0={folder}", tiny_model)


def test_a_set_for_another_model_says_so(tiny_model, tmp_path):
    with pytest.warns(UserWarning, match="one was trained on google/gemma-2-2b and is loaded for tiny"):
        load_dictionaries(save_set(tmp_path / "one", model_name="google/gemma-2-2b"), tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dictionaries(save_set(tmp_path / "two", model_name="Org/TINY"), tiny_model)


# what does not fit -----------------------------------------------------------------------------------------------


def rewrite(folder, file, change):
    tensors = change(load_file(folder / file))
    save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / file)
    return folder


def cut(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:200])
    return folder


def without(folder, file):
    (folder / file).unlink()
    return folder


def edited(folder, text):
    (folder / "config.yaml").write_text(text)
    return folder


LAYER, ENC, DEC = "layer_1.safetensors", "W_enc_0.safetensors", "W_dec_0.safetensors"
BAD = {
    "a missing layer": (lambda p: without(save_set(p), LAYER), r"one \(made for org/tiny\) lacks layer 1; expected files for layers 0-1"),
    "a missing first layer": (lambda p: without(save_set(p), "layer_0.safetensors"), "lacks layer 0"),
    "another depth": (lambda p: save_set(p, n_layers=3), r"has layers 0-2, but tiny has layers 0-1; it was trained for another"),
    "a missing decoder": (lambda p: without(save_clt(p), "W_dec_1.safetensors"), "lacks layer 1"),
    "no layers": (lambda p: p.mkdir() or config(p), "lacks layer 0, 1"),
    "no config": (lambda p: edited(save_set(p), ""), "config.yaml holds NoneType; expected a mapping"),
    "broken config": (lambda p: edited(save_set(p), "a: [1"), "config.yaml is no YAML of plain values"),
    "an odd kind": (lambda p: save_set(p, model_kind="transcoder_sets"), "model_kind is 'transcoder_sets'.*Did you mean 'transcoder_set'"),
    "no hook": (lambda p: save_set(p, feature_input_hook=None), "has feature_input_hook None; expected a hook"),
    "an odd hook": (lambda p: save_set(p, feature_output_hook="hook_x"), "feature_output_hook 'hook_x' is no site"),
    "resid_mid": (lambda p: save_set(p, feature_input_hook="hook_resid_mid"), "'hook_resid_mid' is the residual stream between"),
    "an odd list": (lambda p: save_set(p, transcoders=[1, 2]), r"transcoders in config.yaml is \[1, 2\]; expected paths"),
    "a path out of the folder": (lambda p: save_set(p, transcoders=["../a", "../b"]), r"\.\./a in config.yaml leads out of the folder"),
    "an absolute path": (lambda p: save_set(p, transcoders=["/etc/hosts", "/b"]), "/etc/hosts in config.yaml leads out of the folder"),
    "truncated": (lambda p: cut(save_set(p), LAYER), "layer_1.safetensors is broken or no dictionary"),
    "truncated decoder": (lambda p: cut(save_clt(p), DEC), "W_dec_0.safetensors is broken or no dictionary"),
    "transposed": (lambda p: rewrite(save_set(p), LAYER, lambda t: t | {"W_enc": t["W_enc"].T}), r"one/layer_1: W_enc has shape \(24, 16\).*looks transposed"),
    "wrong shape": (lambda p: rewrite(save_set(p), LAYER, lambda t: t | {"W_dec": t["W_dec"][:-1]}), r"W_dec has shape \(23, 16\)"),
    "wrong skip": (lambda p: rewrite(save_set(p, skip=True), LAYER, lambda t: t | {"W_skip": t["W_skip"][:3]}), r"W_skip has shape \(16, 3\)"),
    "missing key": (lambda p: rewrite(save_set(p), LAYER, lambda t: t | {"b_dec": None}), "'b_dec' is missing from its weights"),
    "missing clt key": (lambda p: rewrite(save_clt(p), ENC, lambda t: t | {"b_dec_0": None}), "'b_dec_0' is missing from its weights"),
    "another key": (lambda p: rewrite(save_set(p), LAYER, lambda t: t | {"log_thresholds": torch.ones(D_SAE)}), "holds log_thresholds, which its kind"),
    "another layer's file": (lambda p: rewrite(save_clt(p), ENC, lambda t: cross_layer(1)[0]), "'W_enc_0', 'b_enc_0', 'b_dec_0' is missing"),
    "too few decoders": (lambda p: rewrite(save_clt(p), DEC, lambda t: {"W_dec_0": t["W_dec_0"][:, :1]}), r"W_dec has shape \(24, 1, 16\); expected \[features, 2, d_model\]"),
    "a decoder of two dimensions": (lambda p: rewrite(save_clt(p), DEC, lambda t: {"W_dec_0": t["W_dec_0"][:, 0]}), r"W_dec has shape \(24, 16\); expected \[features, 2"),
    "relu with a threshold": (lambda p: save_set(p, threshold=True, activation="relu"), "activation is 'relu' with a threshold"),
    "jumprelu without": (lambda p: save_set(p, activation="jump_relu"), "activation is 'jump_relu' without a threshold"),
    "topk without k": (lambda p: save_set(p, activation="topk"), "k is None; expected the number of active features"),
}  # fmt: skip
VALUES = {
    "NaN": (lambda t: t | {"W_dec": t["W_dec"] * torch.nan}, "weight W_dec contains NaN or Inf"),
    "NaN in the skip connection": (
        lambda t: t | {"W_skip": t["W_skip"] * torch.nan},
        "weight W_skip contains NaN or Inf",
    ),
}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_a_set_that_does_not_fit_is_refused_in_one_line(tiny_model, tmp_path, make, message, lazy):
    folder = make(tmp_path / "one")
    with pytest.raises(DictionaryError, match=message) as caught:
        load_dictionaries(folder, tiny_model, lazy=lazy)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(("change", "message"), VALUES.values(), ids=VALUES)
def test_values_are_refused_when_they_are_read(tiny_model, tmp_path, change, message):
    folder = rewrite(save_set(tmp_path / "one", skip=True), LAYER, change)
    with pytest.raises(DictionaryError, match=message):
        load_dictionaries(folder, tiny_model)
    found = load_dictionaries(folder, tiny_model, lazy=True)[Site("mlp_out", 1)]
    with pytest.raises(DictionaryError, match=message):
        found.decode(found.encode(rows()), rows())


def test_nothing_else_writes_where_a_cross_layer_transcoder_does(tiny_model, tmp_path):

    crossing, other = save_clt(tmp_path / "one"), save(tmp_path / "two", hook="blocks.1.hook_mlp_out")
    for sources in ([crossing, other], [other, crossing]):
        with pytest.raises(DictionaryError, match="both write mlp_out.1; give one per site"):
            load_dictionaries(sources, tiny_model)
    assert len(load_dictionaries([crossing, save(tmp_path / "three", hook="blocks.1.attn.hook_z")], tiny_model)) == 3


def test_a_set_takes_no_site(tiny_model, tmp_path):
    folder = save_set(tmp_path / "one")
    with pytest.raises(DictionaryError, match="is a set with a transcoder for every layer, but mlp_out.1 was given"):
        load_dictionaries(f"mlp_out.1={folder}", tiny_model)

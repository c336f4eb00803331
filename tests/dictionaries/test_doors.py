"""What callers may hand in as dictionaries, and what is known of a dictionary before its weights are read."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from support.circuit_tracer_files import save_clt, save_set
from support.dictionary_kinds import random_dictionary
from support.published_files import gemma_tensors, learned, save_gemma, save_learned
from support.sae_lens_files import D_SAE, D, save

from circuitgraph.dictionaries import Dictionaries, Dictionary, load_dictionaries
from circuitgraph.doors import as_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site

MLP_OUT, Z = Site("mlp_out", 0), Site("z", 1)


def sae(folder, **settings):
    from sae_lens import SAE

    return SAE.load_from_disk(save(folder, **settings))


def transcoder(folder):
    return sae(folder, architecture="transcoder", hook="blocks.0.ln2.hook_normalized", hook_out="blocks.0.hook_mlp_out")


# nothing, and nonsense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_dictionaries, as_dictionaries])
@pytest.mark.parametrize("source", ["", "  ", 5, ["z.0=identity", 5], {Z: 5}, b"z"], ids=str)
def test_nonsense_is_refused_in_one_line(tiny_model, source, load):
    with pytest.raises(DictionaryError, match="is unknown; expected a folder|is empty; expected a folder") as caught:
        load(source, tiny_model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [[], (), {}, Dictionaries(), iter([])], ids=lambda source: type(source).__name__)
def test_no_source_at_all_is_one_line(tiny_model, source):
    with pytest.raises(DictionaryError, match=r"^no dictionaries were given; expected at least one folder"):
        load_dictionaries(source, tiny_model)


@pytest.mark.parametrize("none", [None, [], (), {}, Dictionaries()], ids=str)
def test_a_model_may_go_without_dictionaries(tiny_model, none):
    assert isinstance(as_dictionaries(none, tiny_model), Dictionaries) and not as_dictionaries(none, tiny_model)


# lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_dictionaries, as_dictionaries])
def test_objects_dictionaries_folders_and_names_may_be_mixed(tiny_model, tmp_path, load):
    given = random_dictionary("z.1", "z.1")
    sources = [
        given,
        sae(tmp_path / "a"),
        str(save(tmp_path / "b", hook="blocks.1.hook_mlp_out")),
        save(tmp_path / "c", hook="blocks.0.attn.hook_z"),
        "resid_post.1=identity",
    ]
    found = load(sources, tiny_model)
    assert isinstance(found, Dictionaries) and found[Z] is given
    assert list(map(str, found)) == ["z.0", "mlp_out.0", "z.1", "mlp_out.1", "resid_post.1"]


def test_loaded_layers_of_a_cross_layer_transcoder_are_a_list_like_any_other(tiny_model, tmp_path):
    layers = load_dictionaries(save_clt(tmp_path / "one"), tiny_model)
    assert [d.name for d in layers.writers(Site("mlp_out", 1))] == ["one/layer_0", "one/layer_1"]
    assert dict(load_dictionaries(list(layers.values()), tiny_model)) == dict(layers)
    with pytest.raises(DictionaryError, match="one/layer_1 and mlp_out.1-relu both write mlp_out.1"):
        load_dictionaries([*layers.values(), random_dictionary("mlp_out.1", "mlp_out.1")], tiny_model)


def test_a_dictionary_of_another_size_is_refused_at_every_door(tiny_model):
    wrong = random_dictionary("z.0", "z.0", d=8)
    for given in (wrong, [wrong], {Site("z", 0): wrong}, Dictionaries([wrong])):
        with pytest.raises(DictionaryError, match="reads vectors of size 8 at z.0, where tiny has 16"):
            as_dictionaries(given, tiny_model)


# mappings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_dictionaries, as_dictionaries])
def test_a_mapping_gives_the_site_that_each_source_writes(tiny_model, tmp_path, load):
    gemma = save_gemma(tmp_path)
    sources = {
        Z: sae(tmp_path / "a", metadata={}),  # names no hook
        MLP_OUT: transcoder(tmp_path / "b"),  # says itself what it reads
        "resid_post.1": gemma,
        "mlp_post.1": "identity",
        Site("z", 0): random_dictionary("z.0", "z.0"),
    }
    found = load(sources, tiny_model)
    assert {str(d.writes): str(d.reads) for d in found.values()} == {
        "z.0": "z.0",
        "mlp_out.0": "ln2_normalized.0",
        "z.1": "z.1",
        "mlp_post.1": "mlp_post.1",
        "resid_post.1": "resid_post.1",
    }
    x = torch.randn(5, D, dtype=torch.float64)
    again = load_dictionaries(f"resid_post.1={gemma}", tiny_model)
    assert bool(found[Site("resid_post", 1)].encode(x).any())
    assert torch.equal(found[Site("resid_post", 1)].encode(x), again[Site("resid_post", 1)].encode(x))


def test_a_wrong_site_in_a_mapping_is_refused_in_one_line(tiny_model, tmp_path):
    named, pair = sae(tmp_path / "a"), transcoder(tmp_path / "b")
    folder = save_set(tmp_path / "set")
    for given, message in (
        ({Z: named}, "was trained for mlp_out.0, but z.1 was given"),
        ({Z: pair}, "was trained for ln2_normalized.0>mlp_out.0, but z.1 was given"),
        ({Z: random_dictionary("z.0", "z.0")}, "writes z.0, but is given as z.1"),
        ({Z: "mlp_post.1=identity"}, "writes mlp_post.1, but is given as z.1"),
        ({Site("mlp_out", 0): folder}, "is a set with a transcoder for every layer, but mlp_out.0 was given"),
        ({"mlp_outt.0": named}, "site 'mlp_outt.0' is no place for a dictionary; .* Did you mean 'mlp_out'"),
    ):
        with pytest.raises(DictionaryError, match=message) as caught:
            load_dictionaries(given, tiny_model)
        assert "\n" not in str(caught.value)


# names ---------------------------------------------------------------------------------------------------------


def test_demo_names_the_embedded_dictionaries():
    from circuitgraph.embedded import MODEL, circuit_dictionaries

    model = load_model(MODEL)
    found = load_dictionaries("demo", model, lazy=True)
    assert list(found) == list(load_dictionaries(circuit_dictionaries(), model, lazy=True)) and len(found) == 8
    with pytest.raises(DictionaryError, match="demo is a set for every layer, but z.0 was given; expected no site"):
        load_dictionaries("z.0=demo", model)


@pytest.mark.parametrize("package", ["dictionaries", "corpus", "studies"])
def test_a_package_costs_nothing_until_a_name_is_used(package):
    program = (
        f"import sys, circuitgraph.{package} as p; assert 'torch' not in sys.modules;"
        "assert p.__all__ and set(p.__all__) <= set(dir(p)); [getattr(p, name) for name in p.__all__];"
        "assert 'torch' in sys.modules; p.no_such_name"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert f"module 'circuitgraph.{package}' has no attribute 'no_such_name'" in done.stderr, done.stderr


# before reading ------------------------------------------------------------------------------------------------


def test_settings_are_known_without_reading_weights(tiny_model, tmp_path, monkeypatch):
    folder = save(tmp_path / "one", architecture="topk", normalize_activations="layer_norm")
    (lazy,) = load_dictionaries(folder, tiny_model, lazy=True).values()
    (eager,) = load_dictionaries(folder, tiny_model).values()
    monkeypatch.setattr(Dictionary, "weights", property(lambda self: pytest.fail("weights were read")))
    assert (lazy.activation, lazy.normalize, lazy.skips) == ("topk", "layer_norm", False)
    assert (eager.activation, eager.normalize, eager.skips) == ("topk", "layer_norm", False)


def test_a_dictionary_shows_what_it_is(tiny_model, tmp_path):
    (one,) = load_dictionaries(save(tmp_path / "one", architecture="topk"), tiny_model, lazy=True).values()
    assert repr(one) == f"<Dictionary 'one': SAE at mlp_out.0, {D_SAE} topk features>"
    first, _ = load_dictionaries(save_clt(tmp_path / "clt"), tiny_model).values()
    assert "cross-layer transcoder mlp_in.0 -> mlp_out.0 to mlp_out.1, 24 relu features>" in repr(first)
    pair, _ = load_dictionaries(save_set(tmp_path / "set", skip=True), tiny_model).values()
    assert "transcoder mlp_in.0 -> mlp_out.0, 24 relu features, linear skip>" in repr(pair)
    both = load_dictionaries(["z.0=identity", tmp_path / "one"], tiny_model)
    assert repr(both).splitlines() == ["Dictionaries(2)", *(f"  {dictionary!r}" for dictionary in both.values())]
    assert "neurons at z.0, 16 identity features" in repr(both) and repr(Dictionaries()) == "Dictionaries(0)"


def spoil(path, member):
    """Change one byte in the middle of a member of a zip file, so that reading all of it fails."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member)
        with archive.open(entry) as file:
            length = len(file.read())
    data = bytearray(path.read_bytes())
    start = data.index(member.encode()) + len(member)
    start += int.from_bytes(data[start - len(member) - 2 : start - len(member)], "little")  # the extra field
    data[start + length // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_an_npz_is_outlined_by_its_headers(tiny_model, tmp_path):
    generator, n = np.random.default_rng(0), 400  # zip files are read in pieces of 4,096 bytes
    shapes = {"W_enc": (D, n), "W_dec": (n, D), "b_enc": (n,), "b_dec": (D,), "threshold": (n,)}
    path = save_gemma(tmp_path, {key: generator.random(shape, dtype=np.float32) for key, shape in shapes.items()})
    spoil(path, "W_enc.npy")
    with pytest.raises(DictionaryError, match="params.npz is broken"):
        load_dictionaries(f"resid_post.1={path}", tiny_model)
    (lazy,) = load_dictionaries(f"resid_post.1={path}", tiny_model, lazy=True).values()
    assert (lazy.d_in, lazy.d_sae, lazy.d_out) == (D, n, D)
    with pytest.raises(DictionaryError, match="params.npz is broken"):
        lazy.encode(torch.zeros(1, D, dtype=torch.float64))


def test_an_npz_of_objects_or_of_wrong_shapes_is_refused_by_its_headers(tiny_model, tmp_path):
    for number, (change, message) in enumerate(
        [
            ({"W_dec": np.zeros((D, D_SAE), np.float32)}, "W_dec has shape .* it looks transposed"),
            ({"b_dec": np.zeros(D, dtype=object)}, "params.npz is broken or no dictionary"),
            ({"b_dec": np.zeros(D, dtype=np.int64)}, "weight b_dec is torch.int64"),
        ]
    ):
        path = save_gemma(tmp_path / str(number), gemma_tensors() | change)
        with pytest.raises(DictionaryError, match=message):
            load_dictionaries(f"resid_post.1={path}", tiny_model, lazy=True)


def test_a_pt_is_outlined_without_its_numbers(tiny_model, tmp_path, monkeypatch):
    folder = save_learned(tmp_path, learned("AutoEncoderTopK"), "AutoEncoderTopK")
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(k.get("mmap", False)) or load(*a, **k))
    (lazy,) = load_dictionaries(f"resid_post.1={folder}", tiny_model, lazy=True).values()
    assert (lazy.d_sae, lazy.weights.k) == (D_SAE, 5)
    assert calls == [True, False]
    torch.save(learned("AutoEncoderTopK"), next(tmp_path.rglob("ae.pt")), _use_new_zipfile_serialization=False)
    (lazy,) = load_dictionaries(f"resid_post.1={folder}", tiny_model, lazy=True).values()
    assert (lazy.d_sae, lazy.weights.k) == (D_SAE, 5)
    assert calls[2:] == [False, False], "files of before torch 1.6 cannot be mapped"

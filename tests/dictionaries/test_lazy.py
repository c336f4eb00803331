"""Lazy dictionaries: the same numbers as eager ones, sizes known without reading, at most one layer in memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.circuit_tracer_files import save_clt, save_set
from support.families import save_tiny_gpt2
from support.published_files import learned, save_gemma, save_learned
from support.sae_lens_files import save

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.errors import DictionaryError
from circuitgraph.models.load import load_model
from circuitgraph_kernels import SaeWeights

D = 16


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Six layers, in float32."""

    return load_model(save_tiny_gpt2(tmp_path_factory.mktemp("models") / "deep", n_layers=6), dtype=torch.float32)


@pytest.fixture
def living(monkeypatch):
    """Every SaeWeights that is made, as weak references."""
    made = []
    original = SaeWeights.__post_init__

    def note(self):
        original(self)
        made.append(weakref.ref(self))

    monkeypatch.setattr(SaeWeights, "__post_init__", note)
    gc.collect()
    gc.freeze()  # what was there before need not be looked through again
    yield made
    gc.unfreeze()


def alive(made):
    gc.collect()
    return sum(reference() is not None for reference in made)


SOURCES = {
    "sae-lens": lambda p, n: [save(p / f"{i}", hook=f"blocks.{i}.hook_mlp_out", seed=i) for i in range(n)],
    "circuit-tracer": lambda p, n: [save_set(p / "one", n_layers=n, threshold=True, skip=True)],
    "cross-layer": lambda p, n: [save_clt(p / "one", n_layers=n)],
    "dictionary_learning": lambda p, n: [
        f"mlp_out.{i}={save_learned(p / str(i), learned('AutoEncoderTopK'), 'AutoEncoderTopK', layer=i)}"
        for i in range(n)
    ],
    "Gemma Scope": lambda p, n: [f"mlp_out.{i}={save_gemma(p / str(i), layer=i)}" for i in range(n)],
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_at_most_one_layer_is_in_memory_and_the_numbers_are_the_same(deep_model, tmp_path, living, make):
    sources = make(tmp_path, 6)
    eager = load_dictionaries(sources, deep_model)
    assert len(living) == len(eager) == 6
    living.clear()
    lazy = load_dictionaries(sources, deep_model, lazy=True)
    assert not living and list(lazy) == list(eager)
    x = torch.randn(5, D)
    for site, dictionary in lazy.items():
        other = eager[site]
        assert (dictionary.d_in, dictionary.d_sae, dictionary.d_out) == (other.d_in, other.d_sae, other.d_out)
        assert (dictionary.name, dictionary.sites, dictionary.reads) == (other.name, other.sites, other.reads)
        assert not alive(living)
        expected = other.encode(x)
        assert bool(expected.any()) and torch.equal(dictionary.encode(x), expected)
        assert torch.equal(dictionary.decode(expected, x), other.decode(expected, x))
        assert torch.equal(dictionary.bias(x), other.bias(x)) and not alive(living)
        weights = dictionary.weights
        assert dictionary.weights is weights and alive(living) == 1
        del weights
    assert not alive(living) and len(living) >= 4 * 6


def test_what_is_held_is_not_read_again(tiny_model, tmp_path, living):
    (lazy,) = load_dictionaries(save(tmp_path / "one"), tiny_model, lazy=True).values()
    weights = lazy.weights
    lazy.encode(torch.randn(3, D).double())
    assert len(living) == 1 and lazy.weights is weights


def test_showing_a_dictionary_reads_nothing(tiny_model, tmp_path, living):
    lazy, _ = load_dictionaries(save_set(tmp_path / "one", skip=True), tiny_model, lazy=True).values()
    assert "one/layer_0" in repr(lazy) and not living


def test_sizes_and_places_are_checked_before_anything_is_read(tiny_model, tmp_path, living):
    for make, message in [
        (lambda: save(tmp_path / "a", d=32), "reads vectors of size 32"),
        (lambda: save(tmp_path / "b", hook="blocks.7.hook_mlp_out"), "reads mlp_out.7, but tiny has layers 0-1"),
    ]:
        with pytest.raises(DictionaryError, match=message):
            load_dictionaries(make(), tiny_model, lazy=True)
    assert not living


def test_wrong_values_are_named_when_they_are_used(tiny_model, tmp_path):
    folder = save(tmp_path / "one")
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][3, 2] = torch.nan
    save_file(tensors, folder / "sae_weights.safetensors")
    (lazy,) = load_dictionaries(folder, tiny_model, lazy=True).values()
    with pytest.raises(DictionaryError, match="dictionary one: weight W_dec contains NaN or Inf"):
        lazy.encode(torch.randn(3, D).double())


def test_a_file_that_went_away_is_named(tiny_model, tmp_path):
    folder = save(tmp_path / "one")
    (lazy,) = load_dictionaries(folder, tiny_model, lazy=True).values()
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(DictionaryError, match="sae_weights.safetensors is broken or no dictionary"):
        lazy.encode(torch.randn(3, D).double())


# dtypes ----------------------------------------------------------------------------------------------------------


def stored(folder, dtype, **changes):
    save(folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors = {key: value.to(changes.get(key, dtype)) for key, value in tensors.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_narrow_matrices_stay_narrow_and_are_computed_with_in_float32(deep_model, tiny_model, tmp_path, dtype):
    folder = stored(tmp_path / "one", dtype)
    (lazy,) = load_dictionaries(folder, deep_model, lazy=True).values()
    (eager,) = load_dictionaries(folder, deep_model).values()
    kept = torch.float32 if dtype == torch.float64 else dtype
    assert lazy.weights.W_enc.dtype == lazy.weights.W_dec.dtype == kept
    assert eager.weights.W_enc.dtype == kept
    assert lazy.weights.b_enc.dtype == eager.weights.b_dec.dtype == torch.float32
    x = torch.randn(5, D)
    acts = eager.encode(x)
    assert bool(acts.any()) and torch.equal(lazy.encode(x), acts) and torch.equal(lazy.decode(acts), eager.decode(acts))
    assert lazy.input_directions(torch.tensor([0, 3])).dtype == torch.float32
    (wide,) = load_dictionaries(folder, tiny_model, lazy=True).values()
    assert wide.weights.W_enc.dtype == torch.float64


def test_matrices_of_two_dtypes_take_the_wider(deep_model, tmp_path):
    for number, (first, second, wide) in enumerate(
        [(torch.float16, torch.bfloat16, torch.float32), (torch.bfloat16, torch.float32, torch.float32)]
    ):
        folder = stored(tmp_path / str(number), first, W_dec=second)
        (lazy,) = load_dictionaries(folder, deep_model, lazy=True).values()
        assert lazy.weights.W_enc.dtype == lazy.weights.W_dec.dtype == wide


@pytest.mark.parametrize("lazy", [False, True])
def test_numbers_that_float32_cannot_hold_are_refused(deep_model, tmp_path, lazy):
    folder = stored(tmp_path / "one", torch.float64)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][0, 0] = 1e200
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(DictionaryError, match=r"weight W_dec holds 1e\+200, more than torch.float32 can hold"):
        next(iter(load_dictionaries(folder, deep_model, lazy=lazy).values())).encode(torch.randn(2, D))


def test_a_circuit_is_the_same_with_lazy_dictionaries(tiny_model, tiny_pairs, tmp_path):
    from circuitgraph.discovery import discover

    sources = [save(tmp_path / f"z{i}", hook=f"blocks.{i}.attn.hook_z", seed=i) for i in range(2)]
    hooks = [(f"blocks.{i}.mlp.hook_in", f"blocks.{i}.hook_mlp_out") for i in range(2)]
    sources += [
        save(tmp_path / f"m{i}", architecture="transcoder", hook=reads, hook_out=writes, seed=i + 2)
        for i, (reads, writes) in enumerate(hooks)
    ]
    eager, lazy = (
        discover(tiny_pairs, tiny_model, load_dictionaries(sources, tiny_model, lazy=lazy)) for lazy in (False, True)
    )
    assert eager.number_of_edges() > 20
    assert dict(lazy.nodes(data="attribution")) == dict(eager.nodes(data="attribution"))
    assert set(lazy.edges(keys=True)) == set(eager.edges(keys=True))

"""The listing of sae-lens's registry: true to the packaged file, and every named set is whole. Nothing is downloaded."""

from __future__ import annotations

import fnmatch
import importlib.resources
from types import SimpleNamespace

import pytest
import yaml

from circuitgraph.dictionaries.registry import list_releases, list_sets, ranges, read_registry, registry_text
from circuitgraph.errors import CircuitGraphError


@pytest.fixture(scope="module")
def registry():
    return read_registry()


@pytest.fixture(scope="module")
def packaged():
    """The file itself, read without sae-lens's code."""
    text = importlib.resources.files("sae_lens").joinpath("pretrained_saes.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def test_every_release_is_listed_with_its_model_and_number(registry, packaged):
    found = {r.name: (r.model, r.n_dictionaries) for r in list_releases(registry)}
    assert len(found) > 100
    assert found == {name: (entry["model"], len({s["id"] for s in entry["saes"]})) for name, entry in packaged.items()}


@pytest.mark.parametrize(
    ("name", "hooks", "widths", "complete"),
    [
        ("gpt2-small-hook-z-kk", {"z": range(12)}, ("24576", "49152"), True),
        ("gpt2-small-res-jb", {"resid_post": [11], "resid_pre": range(12)}, (), True),
        ("gpt2-small-attn-out-v5-32k", {"attn_out": range(12)}, ("32k",), True),
        ("pythia-70m-deduped-res-sm", {"resid_post": range(6), "resid_pre": [0]}, (), True),
        ("gemma-scope-2b-pt-att-canonical", {"z": range(26)}, ("16k", "65k"), True),
        ("gemma-scope-2b-pt-transcoders", {"transcoder": range(26)}, ("16k",), True),
        ("gemma-2-2b-res-matryoshka-dc", {"resid_post": range(25)}, (), False),
        ("gemma-scope-27b-pt-res-canonical", {"resid_post": [10, 22, 34]}, ("131k",), None),
        ("gemma-scope-2-1b-pt-att-all", {"z": range(26)}, ("16k", "262k"), None),
        ("llama_scope_lxm_8x", {"mlp_out": range(32)}, ("8x",), True),
        ("qwen-scope-3-1.7b-base-w32k-l50", {"resid_post": range(28)}, ("32k",), None),
        ("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", {"resid_post": [5, 12, 19]}, ("4096",), False),
    ],
)
def test_hooks_layers_and_widths_are_read_from_the_names(registry, name, hooks, widths, complete):
    release = next(r for r in list_releases(registry) if r.name == name)
    assert release.hooks == {hook: tuple(layers) for hook, layers in hooks.items()}
    assert (release.widths, release.complete) == (widths, complete)


def test_every_release_has_a_hook_and_every_dictionary_but_embeddings_a_layer(registry):
    for release in list_releases(registry):
        assert release.hooks and "?" not in release.hooks, release.name
        assert all(layers for hook, layers in release.hooks.items() if hook != "embed"), release.name


def test_every_named_set_is_in_the_registry_with_one_dictionary_for_each_layer(registry, packaged):
    releases = {r.name: r for r in list_releases(registry)}
    sets = list_sets(registry)
    assert len(sets) > 10 and len({s.name for s in sets}) == len(sets)
    for found in sets:
        by_pattern = []
        for pattern in found.patterns:
            release, _, ids = pattern.partition("/")
            assert packaged[release]["model"] == found.model and releases[release].complete, pattern
            matching = [s["id"] for s in packaged[release]["saes"] if fnmatch.fnmatch(s["id"], ids)]
            n_layers = max(len(layers) for layers in releases[release].hooks.values())
            numbers = sorted(
                int("".join(filter(str.isdigit, key.partition("/")[0].partition("_8x")[0]))) for key in matching
            )
            assert numbers == list(range(n_layers)), pattern
            by_pattern += [f"{release}/{key}" for key in matching]
        assert sorted(found.sources) == sorted(by_pattern) and len(set(by_pattern)) == len(by_pattern)
    two = next(s for s in sets if s.name == "gpt2-small/z").sources
    assert two == tuple(f"gpt2-small-hook-z-kk/blocks.{layer}.hook_z" for layer in range(12))


def test_a_model_filters_and_a_typo_gets_the_nearest(registry):
    releases = list_releases(registry, model="pythia-70m-deduped")
    assert len(releases) >= 3 and {r.model for r in releases} == {"pythia-70m-deduped"}
    assert {s.model for s in list_sets(registry, model="pythia-70m-deduped")} == {"pythia-70m-deduped"}
    for typo, hint in {
        "gpt2-smal": "Did you mean 'gpt2-small'?",
        "pythia-70m-dedupd": "Did you mean 'pythia-70m-deduped'?",
        "Lama-3.1-8b": "Did you mean 'meta-llama/Llama-3.1-8B' or 'meta-llama/Llama-3.1-8B-Instruct'?",
        "Llma-3.1-8B": "Did you mean 'meta-llama/Llama-3.1-8B'?",
    }.items():
        with pytest.raises(CircuitGraphError, match="has no dictionaries of model") as error:
            list_releases(registry, model=typo)
        assert str(error.value).endswith(hint)
    with pytest.raises(CircuitGraphError, match=r"of model 'zzzzzz'\.$"):
        list_releases(registry, model="zzzzzz")


def test_the_text_says_which_layers_and_whether_they_are_all(registry):
    text = registry_text(list_releases(registry, model="gemma-2-2b"), list_sets(registry, model="gemma-2-2b"))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert (
        "resid_post 0-24" in lines["gemma-2-2b-res-matryoshka-dc"] and " no " in lines["gemma-2-2b-res-matryoshka-dc"]
    )
    assert " yes " in lines["gemma-scope-2b-pt-mlp"] and "mlp_out 0-25" in lines["gemma-scope-2b-pt-mlp"]
    assert "gemma-scope-2b-pt-res-canonical/layer_*/width_16k/canonical" in lines["gemma-2-2b/res"]
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8" and ranges([]) == ""


def test_names_that_say_nothing_are_unknown_and_gaps_are_not_complete():
    entry = SimpleNamespace(model="gpt2-small", conversion_func=None, saes_map={"one": "x", "two": "y"})
    gap = {f"blocks.{i}.hook_z": "p" for i in range(12) if i != 4}
    registry = {"odd": entry, "gap": SimpleNamespace(model="gpt2-small", conversion_func=None, saes_map=gap)}
    first, second = list_releases(registry)
    assert (second.name, second.hooks, second.widths, second.complete) == ("odd", {"?": ()}, (), False)
    assert (first.hooks, first.complete) == ({"z": (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11)}, False)
    assert all(not s.sources for s in list_sets(registry))

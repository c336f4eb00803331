"""Sums over positions are the edges of single positions added up, before any is selected."""

from __future__ import annotations

import functools
from collections import defaultdict

import pytest
import torch
from support.aligned_pairs import EVERYTHING, FIRST, SECOND
from support.close import assert_close
from support.dictionary_kinds import dictionary_set

from circuitgraph.discovery import discover
from circuitgraph.edges.trace import trace_edges
from circuitgraph.graphs.schema import check_graph
from circuitgraph.nodes import Node
from circuitgraph.prompts import PromptPair

SUMMED = {"positions": "sum", **EVERYTHING}
CASES = [
    ("gpt2", "transcoders", {}),
    ("gpt2", "transcoders", {"baseline": "zero", "qk": "ablate"}),
    ("gpt2", "output_saes", {"baseline": "zero"}),
    ("llama", "transcoders", {"method": "integrated", "steps": 3}),
    ("llama", "transcoders", {"targets": [" c", " d"], "mlp": "frozen"}),
    ("gemma2", "cross_layer", {}),
    ("gpt2", "residual", {"errors_as_targets": True, "baseline": "zero"}),
]


def name(key):
    return key.rpartition("@")[0]


def added_up(graph):
    """(source, target, kind) -> weight and node -> attribution of a graph of single positions, by names without positions."""
    weights, attributions = defaultdict(float), defaultdict(float)
    for u, v, kind, weight in graph.edges(keys=True, data="weight"):
        weights[name(u), name(v), kind] += weight
    for key, attribution in graph.nodes(data="attribution"):
        attributions[name(key)] += attribution
    return weights, attributions


@pytest.mark.parametrize(("family", "dictionaries", "settings"), CASES)
def test_every_edge_is_the_sum_over_positions_and_its_absolute_that_of_each_examples_sum(
    loaded, family, dictionaries, settings
):
    model = loaded(family)
    graph_of = functools.partial(discover, model=model, dictionaries=dictionary_set(model, dictionaries), **settings)
    parts = [added_up(graph_of([pair], **EVERYTHING)) for pair in (FIRST, SECOND)]
    graph = graph_of([FIRST, SECOND], align="role", **SUMMED)
    check_graph(graph)
    found = {(name(u), name(v), kind): data for u, v, kind, data in graph.edges(keys=True, data=True)}
    assert len(found) == graph.number_of_edges() > 100
    assert set(found) == set(parts[0][0]) | set(parts[1][0])
    rows = found.values()
    sums = [[part[0].get(key, 0.0) for part in parts] for key in found]
    assert_close([data["weight"] for data in rows], [sum(each) / 2 for each in sums])
    assert_close([data["weight_abs"] for data in rows], [sum(map(abs, each)) / 2 for each in sums])
    assert sum(data["weight_abs"] > 1.01 * abs(data["weight"]) for data in rows) > 10
    local = [data["local_weight"] for data in rows]
    assert_close([sum(data.get("heads", [data["local_weight"]])) for data in rows], local)
    assert {Node.parse(key).pos for key in graph} == {0}
    features = [key for key, kind in graph.nodes(data="kind") if kind == "feature"]
    both = {key: [part[1][name(key)] for part in parts] for key in features}
    both = {key: each for key, each in both.items() if all(each)}
    assert_close([graph.nodes[key]["attribution"] for key in both], [sum(each) / 2 for each in both.values()])
    assert graph.graph["tokens"] == {"clean": ["all positions"], "corrupted": ["all positions"]}


def test_what_sums_read_of_all_sources_is_what_they_read_of_the_stream(loaded, monkeypatch):
    model, traced = loaded("gpt2"), []

    def trace(*arguments, **settings):
        traced.append(trace_edges(*arguments, **settings))
        return traced[-1]

    monkeypatch.setattr("circuitgraph.discovery.trace_edges", trace)
    found = dictionary_set(model, "transcoders")
    graph = discover([FIRST, SECOND], model, found, align="role", baseline="zero", **SUMMED)
    stream, total_input = (
        torch.tensor([each[i] for i in traced[0].stream_input], dtype=torch.float64)
        for each in (traced[0].stream_input, traced[0].total_input)
    )
    assert len(stream) > 25 and int((stream.abs() > 1e-2).sum()) > 25
    assert_close(total_input, stream)
    ids = {str(traced[0].table.nodes[i]): value for i, value in traced[0].stream_input.items()}
    shown = dict(graph.nodes(data="stream_input"))
    assert {key: shown[key] for key in ids if key in shown} == {key: v for key, v in ids.items() if key in shown}


def test_opposite_weights_at_two_positions_cancel_before_the_threshold(loaded):
    """The threshold is one of sums: what passes alone at two positions may not pass together, and the other way round."""
    model = loaded("gpt2")
    graph_of = functools.partial(discover, [FIRST], model, dictionary_set(model, "transcoders"))
    everything, _ = added_up(graph_of(**EVERYTHING))
    metric = graph_of().graph["metric"]
    unit = abs(metric["clean"] - metric["corrupted"])
    graph = graph_of(positions="sum", edge_threshold=0.02, max_nodes=100_000)
    kept = {(name(u), name(v), kind) for u, v, kind in graph.edges(keys=True)}
    into_kept = {key for key in everything if key[1] in {name(node) for node in graph}}
    assert kept == {key for key in into_kept if abs(everything[key]) > 0.02 * unit} and 30 < len(kept) < len(into_kept)


@pytest.mark.parametrize("settings", [{"memory": 1e-6}, {"max_traced": 100_000}])
def test_memory_and_the_order_of_tracing_change_no_sum(loaded, settings):
    model = loaded("llama")
    graph_of = functools.partial(discover, [FIRST, SECOND], model, dictionary_set(model, "transcoders"))
    one, other = graph_of(align="role", **SUMMED), graph_of(align="role", **SUMMED, **settings)
    assert set(one.edges(keys=True)) == set(other.edges(keys=True)) and one.number_of_edges() > 100
    for key in ("weight", "local_weight", "weight_abs"):
        assert_close(*([graph.edges[edge][key] for edge in one.edges(keys=True)] for graph in (other, one)))


def test_few_traced_sums_are_the_most_influential(loaded):
    model = loaded("gpt2")
    graph_of = functools.partial(discover, [FIRST], model, dictionary_set(model, "transcoders"))
    graph = graph_of(max_traced=5, **SUMMED)
    traced = {v for _, v in graph.edges() if graph.nodes[v]["kind"] == "feature"}
    assert len(traced) == 5


def test_top_k_and_max_nodes_count_sums(loaded):
    model = loaded("gpt2")
    graph_of = functools.partial(discover, [FIRST], model, dictionary_set(model, "transcoders"))
    graph = graph_of(positions="sum", edge_threshold=0.0, max_nodes=20, top_k=3)
    assert graph.graph["reports"][0].startswith("max_nodes 20: 20 of ")
    assert max(d for _, d in graph.in_degree()) == 3 and 4 < len(graph) <= 21


def test_a_prompt_of_one_token_at_each_position_sums_to_itself(tiny_model, tiny_dictionaries):
    """Nothing is added up where the metric reads one position: its edges are those of the end."""
    pair = PromptPair("a b", "a c", (" g",), (" h",))
    each = discover([pair], tiny_model, tiny_dictionaries, **EVERYTHING)
    total = discover([pair], tiny_model, tiny_dictionaries, **SUMMED)
    into, summed = (
        {name(u): weight for u, v, weight in graph.edges(data="weight") if v.startswith("metric")}
        for graph in (each, total)
    )
    assert summed.keys() == into.keys() and len(into) > 20
    assert_close([summed[source] for source in into], list(into.values()))


def test_prompts_that_are_the_same_make_a_stated_empty_graph(tiny_model, tiny_dictionaries):
    pair = PromptPair("a b c", "a b c", (" g",), (" h",))
    graph = discover([pair], tiny_model, tiny_dictionaries, **SUMMED)
    assert list(graph) == ["metric@0"] and graph.graph["reports"][-1].startswith("the graph is empty: no node changes")


@pytest.mark.parametrize(
    "settings",
    [{"errors_as_targets": True}, {"errors_as_targets": True, "baseline": "zero"}, {"targets": ["mlp_out.0/f1@7"]}],
)
def test_errors_and_features_that_are_targets_are_added_up_like_any_other(loaded, settings):
    model = loaded("gpt2")
    graph_of = functools.partial(discover, [FIRST], model, dictionary_set(model, "residual"), **settings)
    expected, _ = added_up(graph_of(**EVERYTHING))
    graph = graph_of(**SUMMED)
    check_graph(graph)
    found = {(name(u), name(v), kind): w for u, v, kind, w in graph.edges(keys=True, data="weight")}
    into = {v for _, v, _ in found if v.endswith("error") or "/p" in v}
    assert set(found) == set(expected) and len(found) > 10 and into
    assert_close(list(found.values()), [expected[key] for key in found])

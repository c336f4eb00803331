"""The presets from end to end, with the dictionaries that each is for and with those that a user happens to have."""

from __future__ import annotations

import math

import pytest
from support.close import assert_close
from support.dictionary_kinds import SETS, dictionary_set, random_kind
from support.families import FAMILIES
from support.traced_edges import assert_explained

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.graphs.schema import check_graph
from circuitgraph.nodes import Site
from circuitgraph.presets import PRESETS, find_preset

EVERYTHING = {"max_nodes": 10**6, "edge_threshold": 0.0, "node_influence": None, "edge_influence": None}


def some(model):
    """A dictionary here and there."""
    kinds = (("ln2_normalized.0", "mlp_out.0", "relu"), ("attn_out.1", "attn_out.1", "topk"))
    return Dictionaries(random_kind(model, *kind) for kind in kinds)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["transcoders", "cross_layer", "residual", "some"])
def test_a_preset_builds_a_graph_that_explains_what_its_targets_read(loaded, tiny_pairs, family, preset, name):
    """With every node a candidate and baseline zero nothing is left."""
    model = loaded(family)
    dictionaries = some(model) if name == "some" else dictionary_set(model, name)
    settings = EVERYTHING | {"baseline": "zero"}
    graph = discover(tiny_pairs[:1], model, dictionaries, preset=preset, **settings)
    check_graph(graph)
    rows = {node: d for node, d in graph.nodes(data=True) if "stream_input" in d}
    assert len(rows) > 5 and max(abs(d["stream_input"]) for d in rows.values()) > 0.1
    assert_explained(rows.values(), dtype=FAMILIES[family].precision)
    kinds = {d["kind"] for d in rows.values()}
    assert ("error" in kinds) == (preset == "sparse-feature-circuit")
    assert ("logit" in kinds) == (preset == "attribution-graph")
    frozen = {d["site"] for _, d in graph.nodes(data=True) if d["kind"] == "error"} & {"z.0", "mlp_out.1"}
    if name == "some":
        assert frozen == {
            "mixed": set(), "attribution-graph": {"mlp_out.1"}, "leap": {"z.0", "mlp_out.1"},
            "sparse-feature-circuit": {"z.0", "mlp_out.1"},
        }[preset]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_own_graph_is_evaluated(tiny_model, tiny_pairs, preset):
    dictionaries = dictionary_set(tiny_model, "residual" if preset == "sparse-feature-circuit" else "transcoders")
    graph = discover(tiny_pairs, tiny_model, dictionaries, preset=preset)
    check_graph(graph)
    assert graph.number_of_edges() > 20
    found = evaluate(graph, tiny_model, dictionaries, n_patched=5, n_dropped=0, curves=False, baselines=())
    assert found.faithfulness is not None and math.isfinite(found.faithfulness)
    assert found.n_patched == 5 and any(abs(effect) > 1e-6 for effect in found.effects.values())


def test_errors_read_only_what_stands_below_them_and_only_when_asked(tiny_model, tiny_pairs):
    dictionaries = dictionary_set(tiny_model, "residual")
    with_errors, without = (
        discover(tiny_pairs, tiny_model, dictionaries, errors_as_targets=flag, max_nodes=10**6, edge_threshold=0.0)
        for flag in (True, False)
    )
    into = [(u, v) for u, v in with_errors.edges() if with_errors.nodes[v]["kind"] == "error"]
    assert len(into) > 50 and not any(without.nodes[v]["kind"] == "error" for _, v in without.edges())
    assert all(
        Site.parse(with_errors.nodes[u]["site"]).depth < Site.parse(with_errors.nodes[v]["site"]).depth for u, v in into
    )
    kept = [(u, v, k) for u, v, k in with_errors.edges(keys=True) if with_errors.nodes[v]["kind"] != "error"]
    assert set(without.edges(keys=True)) <= set(kept)
    shared = list(without.edges(keys=True))
    assert_close(*([graph.edges[edge]["weight"] for edge in shared] for graph in (with_errors, without)))


def test_what_a_preset_cannot_do_is_refused():
    with pytest.raises(CircuitGraphError, match=r"preset 'sparse' is unknown; expected one of leap"):
        find_preset("sparse")
    assert set(SETS) >= {"transcoders", "cross_layer", "residual"}

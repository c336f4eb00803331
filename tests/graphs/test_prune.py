"""Pruning on a graph small enough to check on paper, and the summary of it."""

from __future__ import annotations

import networkx as nx
import pytest
from support.close import assert_close

from circuitgraph.errors import CircuitGraphError
from circuitgraph.graphs.pruning import prune
from circuitgraph.graphs.schema import check_graph, metric_scale
from circuitgraph.graphs.summary import summary_text
from circuitgraph.nodes import Node

#   embed@1 --ov 1.0--> z.0/f7@2 --mlp 3.0--> mlp_out.0/f3@2 --metric 4.0--> metric@2
#   embed@1 --k -0.5--> z.0/f7@2                       z.0/f7@2 --metric -2.0--> metric@2
#   embed@2 --mlp 0.1--> mlp_out.0/f3@2
ATTRIBUTIONS = {"embed@1": 1.0, "embed@2": 0.1, "z.0/f7@2": -2.0, "mlp_out.0/f3@2": 4.0, "metric@2": 10.0}
EDGES = [
    ("embed@1", "z.0/f7@2", "ov", 1.0),
    ("embed@1", "z.0/f7@2", "k", -0.5),
    ("z.0/f7@2", "mlp_out.0/f3@2", "mlp", 3.0),
    ("embed@2", "mlp_out.0/f3@2", "mlp", 0.1),
    ("mlp_out.0/f3@2", "metric@2", "metric", 4.0),
    ("z.0/f7@2", "metric@2", "metric", -2.0),
]


@pytest.fixture
def graph():
    """The graph drawn above; its metric goes from -2 to 8, so thresholds count in tenths."""
    graph = nx.MultiDiGraph(
        tokens={"clean": ["<bos>", "a", "b"], "corrupted": ["<bos>", "a", "c"]},
        metric={"name": "logit_difference", "clean": 8.0, "corrupted": -2.0},
        n_layers=1,
        n_examples=1,
        provenance={},
        reports=["built by hand"],
    )
    for key, attribution in ATTRIBUTIONS.items():
        node = Node.parse(key)
        place = {"site": str(node.site), "layer": node.site.layer, "pos": node.pos, "feature": node.feature}
        graph.add_node(key, kind=node.kind, attribution=attribution, **place)
    for source, target, kind, weight in EDGES:
        graph.add_edge(source, target, key=kind, kind=kind, weight=weight, local_weight=weight, weight_abs=abs(weight))
    check_graph(graph)
    return graph


def edges(graph):
    return sorted((u, v, k) for u, v, k in graph.edges(keys=True))


CASES = {
    "nothing asked": ({}, set(ATTRIBUTIONS), 6),
    "weak nodes": ({"node_threshold": 0.05}, set(ATTRIBUTIONS) - {"embed@2"}, 5),
    "the threshold itself stays": ({"node_threshold": 0.1}, set(ATTRIBUTIONS) - {"embed@2"}, 5),
    "light edges": ({"edge_threshold": 0.06}, set(ATTRIBUTIONS) - {"embed@2"}, 4),
    "light edges strand nodes": ({"edge_threshold": 0.15}, {"z.0/f7@2", "mlp_out.0/f3@2", "metric@2"}, 3),
    "strongest input": ({"top_k": 1}, {"embed@1", "z.0/f7@2", "mlp_out.0/f3@2", "metric@2"}, 3),
    "strongest nodes": ({"max_nodes": 3}, {"z.0/f7@2", "mlp_out.0/f3@2", "metric@2"}, 3),
    "a node without a way": ({"max_nodes": 2}, {"mlp_out.0/f3@2", "metric@2"}, 1),
    "everything": ({"node_threshold": 1.0}, {"metric@2"}, 0),
}


@pytest.mark.parametrize(("settings", "nodes", "n_edges"), CASES.values(), ids=CASES)
def test_what_is_left_is_what_paper_says(graph, settings, nodes, n_edges):
    pruned = prune(graph, **settings)
    assert set(pruned) == nodes and pruned.number_of_edges() == n_edges


def test_the_argument_is_left_alone(graph):
    before = graph.copy()
    prune(graph, node_threshold=0.2, top_k=1)
    assert edges(before) == edges(graph) and graph.graph == before.graph


def test_every_step_says_what_it_removed(graph):
    reports = prune(graph, node_threshold=0.05, edge_threshold=0.06).graph["reports"]
    assert reports == [
        "built by hand",
        "node_threshold 0.05: removed 1 nodes and 1 edges",
        "edge_threshold 0.06: removed 1 edges",
    ]
    assert prune(graph, node_threshold=1.0).graph["reports"][-1].startswith("nothing is left")


def test_evidence_of_a_larger_circuit_is_not_that_of_a_smaller(graph):
    graph.graph["evidence"] = {"faithfulness": 0.9}
    assert prune(graph, top_k=9).graph["evidence"] == {"faithfulness": 0.9}
    smaller = prune(graph, max_nodes=3)
    assert "evidence" not in smaller.graph and smaller.graph["reports"][-1] == "evidence of the larger circuit dropped"
    assert graph.graph["evidence"] == {"faithfulness": 0.9}


@pytest.mark.parametrize(
    "settings",
    [
        {"node_threshold": -1},
        {"edge_threshold": float("nan")},
        {"top_k": 0},
        {"max_nodes": 1},
    ],
)
def test_nonsense_is_refused(graph, settings):
    with pytest.raises(CircuitGraphError, match=rf"{next(iter(settings))} is .*; expected"):
        prune(graph, **settings)


@pytest.mark.parametrize(("name", "value"), [("node_threshold", 5), ("edge_threshold", 1.5), ("edge_threshold", 1e300)])
def test_a_percentage_in_place_of_a_fraction_is_refused(graph, name, value):
    with pytest.raises(CircuitGraphError, match=rf"^{name} is .*, and no .* is that strong: .* so 5 % is 0.05$"):
        prune(graph, **{name: value})


@pytest.fixture
def single(graph):
    """The same graph of one prompt without a corrupted one; its metric is 8, so thresholds count in eighths."""
    graph.graph["tokens"] = graph.graph["tokens"] | {"corrupted": None}
    graph.graph["metric"] = graph.graph["metric"] | {"corrupted": None}
    graph.nodes["metric@2"]["attribution"] = 8.0
    check_graph(graph)
    return graph


def test_without_a_corrupted_prompt_thresholds_are_shares_of_the_clean_metric(single):
    assert metric_scale(single) == 8.0
    assert set(prune(single, node_threshold=0.12)) == set(ATTRIBUTIONS) - {"embed@2"}
    assert set(prune(single, node_threshold=0.126)) == set(ATTRIBUTIONS) - {"embed@1", "embed@2"}
    assert set(prune(single, node_threshold=1.0)) == {"metric@2"}
    assert prune(single, edge_threshold=0.126).number_of_edges() == 3


def test_a_metric_that_does_not_change_has_no_shares_and_pruning_says_so(graph):
    graph.graph["metric"] = graph.graph["metric"] | {"corrupted": 8.0}
    assert metric_scale(graph) == 0.0
    pruned = prune(graph, node_threshold=0.5, edge_threshold=1.0, top_k=1)
    assert pruned.number_of_edges() == 3
    assert [line for line in pruned.graph["reports"] if "undefined" in line] == [
        "node_threshold 0.5 removed nothing: the metric is the same clean and corrupted, so shares of it are undefined",
        "edge_threshold 1 removed nothing: the metric is the same clean and corrupted, so shares of it are undefined",
    ]


def test_the_summary_of_a_single_prompt_shows_no_corrupted_one(single):
    lines = summary_text(single).splitlines()
    assert "metric     logit_difference  clean 8.0000" in lines
    assert lines[0].startswith("prompt     ") and not [line for line in lines if "corrupted" in line]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": {"name": "m", "clean": 1.0}}, "must hold the finite number corrupted, or null"),
        ({"metric": {"name": "m", "clean": None, "corrupted": None}}, "must hold name and the finite number clean"),
        ({"tokens": {"clean": ["a"] * 3, "corrupted": None}}, "must both be null, or neither"),
        ({"tokens": {"clean": ["a"] * 3, "corrupted": [1]}}, "must hold the list of strings corrupted, or null"),
        ({"tokens": {"clean": None, "corrupted": None}}, "must hold the list of strings clean"),
    ],
)
def test_what_stands_for_no_corrupted_prompt_is_checked(graph, change, message):
    graph.graph |= change
    with pytest.raises(CircuitGraphError, match=message):
        check_graph(graph)


def test_a_graph_without_a_metric_is_refused(graph):
    graph.remove_node("metric@2")
    with pytest.raises(CircuitGraphError, match="has 0 metric nodes"):
        prune(graph)


def test_the_summary_counts_and_ranks(graph):
    graph.graph["evidence"] = {"faithfulness": 0.875, "cpr": None, "settings": []}
    graph.nodes["z.0/f7@2"]["effect"] = -1.5
    lines = summary_text(graph, top=2).splitlines()
    assert "metric     logit_difference  clean 8.0000  corrupted -2.0000" in lines
    assert [line for line in lines if line.startswith("measured")] == ["measured   faithfulness 0.8750"]
    assert "edges      1 ov, 1 k, 2 mlp, 2 metric" in lines
    first = next(i for i, line in enumerate(lines) if line.startswith("strongest nodes"))
    assert [line.split() for line in lines[first + 1 : first + 3]] == [
        ["mlp_out.0/f3@2", "'b'", "+4.0000"],
        ["z.0/f7@2", "'b'", "-2.0000", "-1.5000"],
    ]
    first = next(i for i, line in enumerate(lines) if line.startswith("strongest edges"))
    assert lines[first + 1].split() == ["mlp_out.0/f3@2", "->", "metric@2", "metric", "+4.0000"]
    assert not lines[first + 3 :]


def test_what_removed_edges_explained_is_unexplained(tiny_model, tiny_dictionaries, tiny_pairs):
    from circuitgraph.discovery import discover

    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    pruned = prune(graph, top_k=10)
    changed = 0
    for node, data in pruned.nodes(data=True):
        if "stream_input" in data:
            explained = sum(w for *_, w in pruned.in_edges(node, data="local_weight"))
            assert_close(explained + data["unexplained"], data["stream_input"])
            changed += abs(data["unexplained"] - graph.nodes[node]["unexplained"]) > 1e-3
    assert changed >= 5
    assert dict(prune(pruned, top_k=10).nodes(data="unexplained")) == dict(pruned.nodes(data="unexplained"))

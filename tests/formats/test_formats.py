"""The native graph file loses nothing, is byte-identical when written again, and refuses what it is not."""

from __future__ import annotations

import json

import jsonschema
import networkx as nx
import pytest
from support.graphs import example_graph

from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.formats import graph_to_text, load, save, text_to_graph
from circuitgraph.formats.native import SCHEMA


@pytest.fixture(scope="module")
def graph(tiny_model, tiny_dictionaries, tiny_pairs):
    return discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.01)


def _same(a: nx.MultiDiGraph, b: nx.MultiDiGraph) -> bool:
    return (
        a.graph == b.graph
        and dict(a.nodes(data=True)) == dict(b.nodes(data=True))
        and {(u, v, k): d for u, v, k, d in a.edges(keys=True, data=True)}
        == {(u, v, k): d for u, v, k, d in b.edges(keys=True, data=True)}
    )


def test_a_graph_survives_its_file_and_the_file_is_byte_identical(graph, tmp_path):
    path = tmp_path / "graph.json"
    save(graph, path)
    again = load(path)
    assert graph.number_of_edges() > 100 and _same(again, graph)
    assert graph_to_text(again) == path.read_text(encoding="utf-8")


def test_hostile_strings_survive(tmp_path):
    graph = example_graph(hostile=True)
    save(graph, tmp_path / "graph.json")
    assert _same(load(tmp_path / "graph.json"), graph)


def test_the_order_of_nodes_edges_and_attributes_does_not_matter(graph):
    shuffled = nx.MultiDiGraph(**graph.graph)
    shuffled.add_nodes_from(
        (node, dict(reversed(list(d.items())))) for node, d in reversed(list(graph.nodes(data=True)))
    )
    for u, v, k, d in reversed(list(graph.edges(keys=True, data=True))):
        shuffled.add_edge(u, v, key=k, **dict(reversed(list(d.items()))))
    assert list(shuffled) != list(graph) and graph_to_text(shuffled) == graph_to_text(graph)


def test_the_same_discovery_gives_the_same_bytes(graph, tiny_model, tiny_dictionaries, tiny_pairs):
    again = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.01)
    assert graph_to_text(again) == graph_to_text(graph)


def test_files_are_valid_against_the_schema(graph):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    data = json.loads(graph_to_text(graph))
    validator.validate(data)
    del data["nodes"][3]["attribution"]
    assert not validator.is_valid(data)


def _damaged(graph, change):
    data = json.loads(graph_to_text(graph))
    change(data)
    return json.dumps(data)


DAMAGE = {
    "another format": (lambda d: d.update(format="other"), "no circuitgraph file"),
    "newer version": (lambda d: d.update(version=9), "has version 9; this release reads versions 1 to 3"),
    "no nodes": (lambda d: d.pop("nodes"), "'nodes' is missing"),
    "dangling edge": (
        lambda d: d["edges"][0].update(source="embed@99"),
        "names 'embed@99', which is not among the nodes",
    ),
    "bad node": (lambda d: d["nodes"].append(d["nodes"][0] | {"id": "what"}), "'what' does not parse"),
    "lying node": (lambda d: d["nodes"][0].update(pos=999), "has pos 999; its name says"),
    "unknown kind of edge": (lambda d: d["edges"][0].update(kind="magic"), "kind must be one of"),
    "no weight": (lambda d: d["edges"][0].pop("weight"), "has weight None; expected a finite number"),
    "kind of edge is a list": (lambda d: d["edges"][0].update(kind=["ov"]), "kind must be one of"),
    "attribution is text": (
        lambda d: d["nodes"][0].update(attribution="1"),
        "has attribution '1'; expected a finite number",
    ),
    "wrong layer": (lambda d: d["nodes"][0].update(layer=99), "has layer 99; its name says None"),
    "no layer": (lambda d: d["nodes"][0].pop("layer"), "has layer None"),
    "node twice": (lambda d: d["nodes"].append(d["nodes"][0]), "repeats the id"),
    "no name of the metric": (lambda d: d["graph"]["metric"].pop("name"), "graph.metric must hold name"),
    "tokens are numbers": (
        lambda d: d["graph"]["tokens"].update(clean=[1, 2]),
        "graph.tokens must hold the list of strings clean",
    ),
    "no reports": (lambda d: d["graph"].update(reports=None), "graph.reports must be a list"),
    "evidence is a list": (lambda d: d["graph"].update(evidence=[1]), "graph.evidence is .*; expected an object"),
    "NaN": (lambda d: d["edges"][0].update(weight=float("nan")), "holds NaN; numbers must be finite"),
    "no metric": (lambda d: d["graph"].pop("metric"), "graph.metric must hold"),
    "no tokens": (lambda d: d["graph"].pop("tokens"), "graph.tokens must hold"),
    "backward edge": (lambda d: d["edges"][0].update(source=d["edges"][0]["target"]), "does not run forward"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(graph, change, message):
    with pytest.raises(GraphError, match=message):
        text_to_graph(_damaged(graph, change))


def test_what_is_not_json_is_refused_with_the_files_name(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text('{"format": ')
    with pytest.raises(GraphError, match="graph.json: not JSON: .* at line 1"):
        load(path)
    with pytest.raises(GraphError, match="does not exist"):
        load(tmp_path / "none.json")


def test_nothing_is_written_when_the_graph_cannot_be(graph, tmp_path):
    broken = graph.copy()
    broken.nodes["metric@5"]["attribution"] = float("inf")
    with pytest.raises(GraphError, match="node .metric@5. has attribution inf; expected a finite number"):
        save(broken, tmp_path / "graph.json")
    with pytest.raises(GraphError, match="nested too deeply"):
        text_to_graph("[" * 100_000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CircuitGraphError, match="cannot write .*choose another -o"):
        save(graph, tmp_path / "no" / "folder.json")
    assert list(tmp_path.iterdir()) == []

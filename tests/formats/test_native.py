"""What the native file does beyond keeping a graph: gzip, pieces, older versions, numpy values, groups and notes."""

from __future__ import annotations

import gzip
import json

import jsonschema
import numpy as np
import pytest
from support.format_graphs import large_graph
from support.graphs import example_graph

from circuitgraph.errors import GraphError
from circuitgraph.formats import graph_to_text, load, native, save, text_to_graph
from circuitgraph.formats.native import SCHEMA
from circuitgraph.graphs.schema import check_graph
from circuitgraph.nodes import EDGE_KINDS, NODE_KINDS


def feature_of(graph):
    return next(key for key in graph if graph.nodes[key]["kind"] == "feature")


def test_a_gzipped_file_holds_the_same_text_and_no_time(tmp_path):
    graph = example_graph()
    save(graph, tmp_path / "g.json")
    for name in ("a.json.gz", "b.json.gz"):
        save(graph, tmp_path / name)
    packed = (tmp_path / "a.json.gz").read_bytes()
    assert packed == (tmp_path / "b.json.gz").read_bytes() and packed[4:8] == b"\0\0\0\0"
    assert gzip.decompress(packed) == (tmp_path / "g.json").read_bytes()
    assert graph_to_text(load(tmp_path / "a.json.gz")) == graph_to_text(graph)


def test_a_file_is_read_in_pieces_and_one_of_another_layout_in_one(monkeypatch, tmp_path):
    graph = example_graph(hostile=True)
    text = graph_to_text(graph)
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "other.json").write_text(json.dumps(json.loads(text), indent=1))
    assert graph_to_text(load(tmp_path / "other.json")) == text
    for module in ("native", "save_load"):  # what reads a file in one piece
        monkeypatch.setattr(f"circuitgraph.formats.{module}.read_text", None)
    assert graph_to_text(load(tmp_path / "lines.json")) == text
    with pytest.raises(TypeError, match="NoneType"):
        load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kind", "ov", r"\(metric\): kind must be one of"),
        ("weight", float("inf"), "has weight inf; expected a finite number"),
        ("local_weight", None, "has local_weight None"),
        ("weight_abs", "1", "has weight_abs '1'"),
        ("heads", 0.5, "has heads 0.5; expected a list"),
        ("top_tokens", "a", "has top_tokens 'a'; expected a list"),
    ],
)
def test_an_edge_that_breaks_the_schema_is_named(name, value, message):
    graph = example_graph()
    source, target, kind = next(edge for edge in graph.edges(keys=True) if edge[2] == "metric")
    graph.edges[source, target, kind][name] = value
    with pytest.raises(GraphError, match=f"edge '{source}' -> '{target}' .*{message}"):
        check_graph(graph)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), [0.5, float("inf")], {1, 2}])
def test_a_value_of_no_json_is_named_with_its_edge(value):
    graph = example_graph()
    source, target, kind = list(graph.edges(keys=True))[200]
    graph.edges[source, target, kind]["extra"] = value
    with pytest.raises(GraphError, match=f"edge .*'?{source}.*{target}.* extra "):
        graph_to_text(graph)


def test_a_large_graph_is_written_in_pieces(monkeypatch, tmp_path):
    graph, sizes = large_graph(5000), []

    def write(path, pieces):
        sizes.extend(len(piece) for piece in pieces)

    monkeypatch.setattr(native, "write_atomically", write)
    save(graph, tmp_path / "g.json")
    assert sum(sizes) == len(graph_to_text(graph)) and max(sizes) < sum(sizes) / 5


def test_files_of_version_1_are_read_and_written_as_version_3():
    graph = example_graph()
    data = json.loads(graph_to_text(graph))
    del data["counts"]
    old = json.dumps(data | {"version": 1})
    assert graph_to_text(text_to_graph(old)) == graph_to_text(graph)


@pytest.mark.parametrize("version", [0, 4, True, "1", None, 1.5])
def test_files_of_no_known_version_are_refused(version):
    data = json.loads(graph_to_text(example_graph())) | {"version": version}
    with pytest.raises(GraphError, match=r"has version .*; this release reads versions 1 to 3"):
        text_to_graph(json.dumps(data))


def test_numpy_values_become_plain_ones():
    graph = example_graph()
    node = feature_of(graph)
    source, target, kind = next(iter(graph.edges(keys=True)))
    graph.nodes[node].update(effect=np.float32(0.5), norms=np.arange(3), flag=np.bool_(True), pair=(1, "a"))
    graph.edges[source, target, kind]["weight"] = np.float32(0.25)
    graph.graph["evidence"]["count"] = np.int64(7)
    before = dict(graph.nodes[node])
    again = text_to_graph(graph_to_text(graph))
    assert graph.nodes[node] == before  # the argument is as it was
    found = again.nodes[node]
    assert (found["effect"], found["norms"], found["flag"], found["pair"]) == (0.5, [0, 1, 2], True, [1, "a"])
    assert type(found["effect"]) is float and again.graph["evidence"]["count"] == 7
    assert again.edges[source, target, kind]["weight"] == 0.25


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: "a"}, "holds an object with the key 1; expected a string"),
        ({"a": float("nan")}, r"extra a is nan; expected a finite number"),
        ([float("inf")], "extra is inf; expected a finite number"),
        (2**63, "is a whole number that 64 bits cannot hold"),
        ({1, 2}, "holds a set, which no graph file can"),
    ],
)
@pytest.mark.parametrize("place", ["graph", "node", "edge"])
def test_values_that_no_file_can_hold_are_named(value, message, place):
    graph = example_graph()
    holder = {
        "graph": graph.graph,
        "node": graph.nodes[feature_of(graph)],
        "edge": next(iter(graph.edges(data=True)))[2],
    }[place]
    holder["extra"] = value
    with pytest.raises(GraphError, match=f"{place}.*{message}"):
        graph_to_text(graph)


def test_attributes_that_the_file_needs_for_itself_are_refused():
    graph = example_graph()
    graph.nodes[feature_of(graph)]["id"] = 3
    with pytest.raises(GraphError, match="has an attribute called id; rename it"):
        graph_to_text(graph)


def test_groups_pins_and_notes_are_kept_and_checked():
    graph = example_graph()
    node = feature_of(graph)
    graph.graph |= {"groups": [{"label": "movers", "nodes": [node, "embed@0"]}], "pins": [node, "z.9/f1@0"]}
    graph.nodes[node]["note"] = "reads names"
    again = text_to_graph(graph_to_text(graph))
    assert again.graph["groups"] == graph.graph["groups"] and again.graph["pins"] == [node, "z.9/f1@0"]
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(graph_to_text(graph)))
    for change, message in (
        ({"groups": {}}, "graph.groups is an object; expected a list"),
        ({"groups": [{"nodes": []}]}, "group 1: label is None; expected a string"),
        ({"groups": [], "pins": [3]}, "graph.pins is 3; expected a string"),
    ):
        graph.graph |= change
        with pytest.raises(GraphError, match=message):
            graph_to_text(graph)


def test_an_edge_that_stands_twice_is_refused():
    data = json.loads(graph_to_text(example_graph()))
    data["edges"].append(data["edges"][0])
    with pytest.raises(GraphError, match=r"edge 409 repeats '.*' -> '.*' \(\w+\)"):
        text_to_graph(json.dumps(data))


def test_every_kind_of_node_and_edge_is_valid_against_the_schema():
    data = json.loads(graph_to_text(example_graph()))
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for name, kinds in (("edges", EDGE_KINDS), ("nodes", NODE_KINDS)):
        for kind in kinds:
            validator.validate(data | {name: [data[name][0] | {"kind": kind}]})
    assert not validator.is_valid({key: value for key, value in data.items() if key != "counts"})

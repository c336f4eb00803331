"""What the table of formats promises: a graph written in a format and read again is the same as far as the table says."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
from hypothesis import HealthCheck, example, given, settings
from support import ROOT
from support.format_graphs import graphs, large_graph
from support.graphs import example_graph

from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.formats import FORMATS, format_table, graph_to_text, load, save
from circuitgraph.formats.kinds import ASPECTS

BOTH_WAYS = [name for name, item in FORMATS.items() if item.read and item.write]
FEATURES = [name for name in BOTH_WAYS if name not in ("eap", "mib")]  # those two hold heads and MLPs: test_formats_eap


def path_of(name: str, folder: Path) -> Path:
    return folder / ("graph" + (FORMATS[name].suffixes or ("_model",))[0])


def there_and_back(graph: nx.MultiDiGraph, name: str, folder: Path) -> nx.MultiDiGraph:
    save(graph, path_of(name, folder), name)
    return load(path_of(name, folder), name)


def assert_kept(name: str, before: nx.MultiDiGraph, after: nx.MultiDiGraph) -> None:
    assert FORMATS[name].keeps
    for aspect in FORMATS[name].keeps:
        same = ASPECTS[aspect](after) == ASPECTS[aspect](before)  # pytest would compare what is large line by line
        assert same, aspect


@pytest.mark.parametrize("name", FEATURES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(graph=graphs())
@example(graph=example_graph(hostile=True))
@example(graph=example_graph(n_nodes=1))
def test_a_graph_survives_as_far_as_the_table_says(graph, name, tmp_path):
    again = there_and_back(graph, name, tmp_path)
    assert_kept(name, graph, again)
    if name in ("native", "neuronpedia"):
        assert graph_to_text(again) == graph_to_text(graph)


@pytest.mark.parametrize("name", FEATURES)
def test_many_edges_survive(name, tmp_path):
    n_edges = 100_000 if name == "native" else 8_000
    large = large_graph(n_edges)
    again = there_and_back(large, name, tmp_path)
    assert again.number_of_edges() == n_edges
    assert_kept(name, large, again)


@pytest.mark.parametrize("name", [name for name in FORMATS if name in FEATURES or name == "dot"])
def test_a_graph_is_written_the_same_twice(name, tmp_path):
    graph = example_graph(hostile=True)
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(graph.copy(), path_of(name, tmp_path / folder), name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert contents[0] == contents[1] and all(contents[0].values())


def test_the_table_is_in_the_readme_and_every_promise_is_of_a_known_aspect():
    assert format_table() in (ROOT / "circuitgraph" / "formats" / "README.md").read_text(encoding="utf-8")
    for item in FORMATS.values():
        assert set(item.keeps) <= set(ASPECTS) and bool(item.keeps) == bool(item.read and item.write)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("graph.grapml", r"it has '.grapml', expected one of .json, .*\.gexf.* Did you mean '.graphml'\?"),
        ("graph", "it has no suffix, expected one of"),
        ("graph.pt", "format circuit-tracer is read, not written; choose one of native, html, svg, png"),
    ],
)
def test_an_unknown_suffix_is_answered_with_the_known_ones(path, message, tmp_path):
    with pytest.raises(GraphError, match=message):
        save(example_graph(), tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_chosen_is_said(tmp_path):
    with pytest.raises(GraphError, match="format dot is written, not read; readable are native"):
        load(tmp_path / "graph.dot")
    with pytest.raises(GraphError, match=r"format 'gexff' is unknown.*Did you mean 'gexf'\?"):
        save(example_graph(), tmp_path / "graph", "gexff")
    with pytest.raises(GraphError, match="format graphml takes no option 'slug'; neuronpedia does"):
        save(example_graph(), tmp_path / "graph.graphml", slug="x")
    for name in FEATURES:
        with pytest.raises(GraphError, match="does not exist"):
            load(path_of(name, tmp_path), name)
        with pytest.raises(CircuitGraphError, match="there is no folder|no such file"):
            save(example_graph(), tmp_path / "no" / path_of(name, tmp_path).name, name)


@pytest.mark.parametrize("name", ["native", "neuronpedia", "cytoscape"])
def test_the_content_of_a_json_file_tells_its_format(name, tmp_path):
    graph = example_graph()
    save(graph, tmp_path / "graph.json", name)
    assert_kept(name, graph, load(tmp_path / "graph.json"))


@pytest.mark.parametrize(("name", "read"), [("graphml", nx.read_graphml), ("gexf", nx.read_gexf)])
def test_networkx_reads_what_we_write_and_we_read_what_it_writes_again(name, read, tmp_path):
    graph = example_graph(hostile=True)
    path = path_of(name, tmp_path)
    save(graph, path)
    theirs = read(path)
    assert isinstance(theirs, nx.MultiDiGraph)
    assert theirs.number_of_edges() == graph.number_of_edges() > 300
    column = "weight" if name == "graphml" else "cg_weight"
    weights = {(u, v, d["kind"]): d[column] for u, v, d in theirs.edges(data=True)}
    assert weights == {(u, v, k): w for u, v, k, w in graph.edges(keys=True, data="weight")}
    assert {d["attribution"] for _, d in theirs.nodes(data=True)} == {d for _, d in graph.nodes(data="attribution")}
    if name == "graphml":
        nx.write_graphml(theirs, path)
        again = load(path)
        for node in again:  # what it made of yEd's shapes
            for theirs_only in ("x", "y", "shape_type"):
                del again.nodes[node][theirs_only]
        assert_kept(name, graph, again)


def test_gephi_gets_positions_colours_and_positive_weights(tmp_path):
    graph = example_graph()
    save(graph, tmp_path / "graph.gexf")
    theirs = nx.read_gexf(tmp_path / "graph.gexf")
    assert len({(d["viz"]["position"]["x"], d["viz"]["position"]["y"]) for _, d in theirs.nodes(data=True)}) == len(
        graph
    )
    low, high = (theirs.nodes[key]["viz"]["position"]["y"] for key in ("embed@0", "metric@14"))
    assert low < high  # its y axis points up
    assert min(w for *_, w in theirs.edges(data="weight")) >= 0
    text = (tmp_path / "graph.gexf").read_text()
    assert 'kind="q"' in text and text.count("<viz:color") == len(graph) + graph.number_of_edges()

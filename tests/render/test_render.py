"""What the pictures of a graph promise: every string shown and none obeyed, equal bytes for equal graphs, honest errors."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pytest
from support.graphs import HOSTILE, example_graph

from circuitgraph.errors import CircuitGraphError, GraphError, RenderError
from circuitgraph.formats import save
from circuitgraph.graphs.schema import check_graph
from circuitgraph.render import dot, labels, render_dot, render_html, render_svg

RENDER = {"dot": render_dot, "html": render_html, "svg": render_svg}
formats = pytest.mark.parametrize("render", RENDER.values(), ids=RENDER)
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz on this machine")


def svg_texts(text: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]


def test_the_example_graph_keeps_the_schema() -> None:
    for graph in (example_graph(), example_graph(hostile=True)):
        check_graph(graph)
        assert len(graph) == 120


@formats
def test_equal_graphs_give_equal_bytes(render) -> None:
    graph = example_graph(hostile=True)
    shuffled = nx.MultiDiGraph(**graph.graph)
    shuffled.add_nodes_from(reversed(list(graph.nodes(data=True))))
    shuffled.add_edges_from(reversed(list(graph.edges(keys=True, data=True))))
    assert render(graph) == render(copy.deepcopy(graph)) == render(shuffled)
    assert render(graph) != render(example_graph(seed=1, hostile=True))


@formats
def test_rendering_leaves_the_graph_alone(render) -> None:
    graph = example_graph(hostile=True)
    before = copy.deepcopy(graph)
    render(graph)
    assert nx.utils.graphs_equal(graph, before)
    assert graph.graph == before.graph


@formats
@pytest.mark.parametrize("n_nodes", [0, 1])
def test_a_graph_without_edges_says_so(render, n_nodes: int) -> None:
    graph = example_graph(n_nodes=n_nodes)
    expected = "no node passed the selection" if n_nodes == 0 else "1 node and no edges"
    assert expected in render(graph)


@formats
def test_a_graph_without_any_attribute_renders(render) -> None:
    assert "no node passed the selection" in render(nx.MultiDiGraph())


@formats
@pytest.mark.parametrize("where", ["node", "edge"])
def test_a_number_that_is_not_finite_is_named(render, where: str) -> None:
    graph = example_graph(n_nodes=20)
    if where == "node":
        graph.nodes["embed@3"]["attribution"] = float("nan")
        expected = "node embed@3 has attribution nan"
    else:
        source, target, kind = next(iter(graph.edges(keys=True)))
        graph.edges[source, target, kind]["weight"] = float("inf")
        expected = re.escape(f"edge {source} -> {target} ({kind}) has weight inf")
    with pytest.raises(RenderError, match=expected):
        render(graph)


def test_svg_is_well_formed_and_shows_every_token() -> None:
    for hostile in (False, True):
        text = render_svg(example_graph(hostile=hostile))
        shown = svg_texts(text)
        for token in example_graph(hostile=hostile).graph["tokens"]["clean"]:
            start = labels.visible(token)[:4]
            assert any(each.startswith(start) for each in shown), token
        assert "<script" not in text and "<img" not in text


def test_svg_names_layers_legend_metric_and_evidence() -> None:
    shown = " | ".join(svg_texts(render_svg(example_graph())))
    for text in (
        "L0",
        "L3",
        "attn",
        "MLP",
        "OV: what attention moves",
        "dashed: negative",
        "faithfulness 83% (measured)",
    ):
        assert text in shown
    assert "Circuit for the logit difference of example-4l: 120 nodes, 408 edges" in shown


def test_svg_draws_every_edge_or_says_how_many_it_draws() -> None:
    root = ET.fromstring(render_svg(example_graph()))
    curves = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if "C" in path.get("d", "")]
    assert len(curves) == example_graph().number_of_edges()
    graph = example_graph(8, 15, 400, n_edges=2300)
    text = render_svg(graph)
    assert "2000 strongest drawn" in text
    root = ET.fromstring(text)
    assert len([p for p in root.iter("{http://www.w3.org/2000/svg}path") if "C" in p.get("d", "")]) == 2000


def test_negative_edges_are_dashed_and_kinds_have_their_colours() -> None:
    graph = example_graph()
    root = ET.fromstring(render_svg(graph))
    curves = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if "C" in path.get("d", "")]
    assert sum("stroke-dasharray" in path.attrib for path in curves) == sum(
        w < 0 for *_, w in graph.edges(data="weight")
    )
    colours = [path.get("stroke") for path in curves]
    for kind in labels.EDGE_NAMES:
        assert colours.count(labels.LIGHT[kind]) == sum(key == kind for *_, key in graph.edges(keys=True))


def test_dot_has_a_legend_in_the_colours_of_the_edges() -> None:
    text = render_dot(example_graph())
    for kind in ("ov", "q", "k", "mlp", "metric"):
        entry = next(line for line in text.splitlines() if f"{labels.EDGE_NAMES[kind]}: " in line and "legend" in line)
        assert labels.LIGHT[kind] in entry
    for words in ("dashed edge: negative", "hollow node: negative attribution", "attention feature", "MLP feature"):
        assert any(words in line for line in text.splitlines() if line.startswith("  legend")), words
    assert "legend" not in render_dot(nx.MultiDiGraph())


def test_kinds_of_edges_that_nobody_knows_yet_have_colours_of_their_own() -> None:
    graph = example_graph()
    ends = [edge[:2] for edge in list(graph.edges)[:5]]
    for (source, target), kind in zip(ends, ("through_attention", "a", "b", "c", "residual"), strict=True):
        graph.add_edge(source, target, key=kind, kind=kind, weight=0.5)
    colours = labels.edge_kinds(graph)
    assert [colours[kind] for kind in ("a", "b", "c", "through_attention")] == ["spare1", "spare2", "spare3", "other"]
    assert colours["residual"] == "residual" and colours["ov"] == "ov"
    text = render_svg(graph)
    for colour in ("spare1", "spare2", "spare3"):
        assert text.count(labels.LIGHT[colour]) == 2  # the edge and the legend
    assert "through attention" in " | ".join(svg_texts(text))


def test_dot_names_hold_no_colon_and_no_text_of_ours() -> None:
    text = render_dot(example_graph(hostile=True))
    for line in text.splitlines()[1:-1]:
        assert re.match(r"  (graph|node|edge|(n|clean|corrupted|row|caption|legend)\d+( -> n\d+)?) \[", line), line


@needs_dot
def test_dot_parses_and_keeps_nodes_edges_and_positions() -> None:
    graph = example_graph(hostile=True)
    done = subprocess.run(["dot", "-Tcanon"], input=render_dot(graph).encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(re.findall(rb"^\tn\d+ -> n\d+", done.stdout, re.M)) == graph.number_of_edges()
    assert len(re.findall(rb"^\tn\d+\t", done.stdout, re.M)) == graph.number_of_nodes()


@needs_dot
@pytest.mark.parametrize("token", HOSTILE)
def test_graphviz_shows_every_hostile_token_as_it_is(token: str, tmp_path: Path) -> None:
    graph = example_graph(n_layers=1, n_pos=1, n_nodes=1)
    graph.graph["tokens"] = {"clean": [token], "corrupted": [token]}
    dot.draw(graph, tmp_path / "token.svg")
    shown = svg_texts((tmp_path / "token.svg").read_text(encoding="utf-8"))
    assert any(each.startswith(labels.visible(token)[:5]) for each in shown)
    assert re.search(f"tooltip=.*at {re.escape(dot.quote(labels.visible(token)))[1:-1]}", render_dot(graph))


@needs_dot
@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_graphviz_draws_the_formats(suffix: str, magic: bytes, tmp_path: Path) -> None:
    dot.draw(example_graph(n_nodes=40), tmp_path / f"graph{suffix}")
    assert (tmp_path / f"graph{suffix}").read_bytes().startswith(magic)


def test_without_graphviz_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dot.shutil, "which", lambda name: None)
    monkeypatch.setattr(dot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RenderError, match=r"apt-get install graphviz.*pip install 'circuitgraph-engine\[render\]'"):
        save(example_graph(n_nodes=5), tmp_path / "graph.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(30)", "did not finish within 0.5 s"),
        ("import sys; sys.exit('no such font')", "no such font"),
    ],
)
def test_a_drawing_program_that_hangs_or_fails_is_a_render_error(
    program: str, message: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dot, "TIMEOUT", 0.5 if "sleep" in program else 20.0)
    monkeypatch.setattr(dot, "_command", lambda form: [sys.executable, "-c", program])
    with pytest.raises(RenderError, match=message):
        dot.draw(example_graph(n_nodes=5), tmp_path / "graph.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".html", ".svg", ".dot"])
def test_the_suffix_chooses_the_format(suffix: str, tmp_path: Path) -> None:
    save(example_graph(hostile=True), tmp_path / f"graph{suffix}")
    expected = RENDER[suffix[1:]](example_graph(hostile=True))
    assert (tmp_path / f"graph{suffix}").read_bytes() == expected.encode("utf-8")


@pytest.mark.parametrize("name", ["graph.htlm", "graph", "graph.gif"])
def test_an_unknown_suffix_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        GraphError, match=r"expected one of \.json, \.json\.gz, \.html, \.svg, \.png, \.pdf, \.dot"
    ) as caught:
        save(example_graph(n_nodes=5), tmp_path / name)
    assert ("Did you mean '.html'?" in str(caught.value)) == (name == "graph.htlm")


@pytest.mark.parametrize("suffix", [".svg", ".png", ".dot"])
def test_only_a_page_can_hold_a_comparison_or_links(suffix: str, tmp_path: Path) -> None:
    graph = example_graph(n_nodes=5)
    with pytest.raises(GraphError, match=f"format {suffix[1:]} takes no option 'compare'; html does"):
        save(graph, tmp_path / f"graph{suffix}", compare=graph)
    with pytest.raises(GraphError, match=f"format {suffix[1:]} takes no option 'links'; html does"):
        save(graph, tmp_path / f"graph{suffix}", links={"z.0": "gpt2-small/0-att-kk"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/graph.svg", "file/graph.svg", "folder.svg", "x" * 300 + ".svg"])
def test_a_file_that_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(CircuitGraphError, match=r"^cannot write .*: .*; choose another -o$") as caught:
        save(example_graph(n_nodes=5), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.svg"}


@pytest.mark.parametrize(
    ("name", "shown"), [("logit_difference", "logit difference"), ("mlp_out.2/f699@14", "mlp_out.2/f699@14")]
)
def test_a_metric_is_named_in_words_and_an_explained_node_by_its_name(name, shown) -> None:
    graph = example_graph()
    graph.graph["metric"] = graph.graph["metric"] | {"name": name}
    assert any(shown in text for text in svg_texts(render_svg(graph)))


@pytest.mark.parametrize(("value", "shown"), [(-0.0001, "0%"), (0.004, "0%"), (-0.256, "\u221226%"), (0.951, "95%")])
def test_a_share_of_nothing_has_no_sign(value, shown) -> None:
    graph = example_graph()
    graph.graph["evidence"] = {"faithfulness": value}
    assert ("faithfulness", shown) in [fact[:2] for fact in labels.facts(graph)]

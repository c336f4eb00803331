"""Every format and what it keeps. The table in README.md beside this file is made from it, and so are the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.files import write_atomically
from circuitgraph.formats.circuit_tracer import read_circuit_tracer
from circuitgraph.formats.cytoscape import read_cyjs, write_cyjs
from circuitgraph.formats.eap import read_eap, write_eap
from circuitgraph.formats.gexf import read_gexf, write_gexf
from circuitgraph.formats.graphml import read_graphml, write_graphml
from circuitgraph.formats.mib import read_mib, write_mib
from circuitgraph.formats.native import read_graph, write_graph
from circuitgraph.formats.neuronpedia import write_neuronpedia
from circuitgraph.formats.neuronpedia_links import write_links
from circuitgraph.formats.neuronpedia_read import read_neuronpedia
from circuitgraph.formats.tables import check_parquet, read_csv, read_parquet, write_csv, write_parquet
from circuitgraph.render import check_draw, draw, render_dot, render_html, render_svg

# What a graph consists of: name -> the part of a graph that must come back equal where a format keeps it.
ASPECTS: dict[str, Callable[[nx.MultiDiGraph], Any]] = {
    "nodes, typed edges": lambda g: (set(g), set(g.edges(keys=True))),
    "weights": lambda g: {(u, v, k): (d["weight"], d["local_weight"]) for u, v, k, d in g.edges(keys=True, data=True)},
    "labels": lambda g: dict(g.nodes(data="label")),
    "all attributes": lambda g: (
        dict(g.nodes(data=True)),
        {(u, v, k): d for u, v, k, d in g.edges(keys=True, data=True)},
    ),
    "evidence, provenance, groups": lambda g: g.graph,
}


def _text(render: Callable[..., str]) -> Callable[..., None]:
    """What writes the text that a function makes of a graph."""

    def write(graph: nx.MultiDiGraph, path: str | Path, **options: Any) -> None:
        write_atomically(path, render(graph, **options))

    return write


@dataclass(frozen=True)
class Format:
    """A format: its suffixes, which programs open it, the aspects that survive writing and reading, and its functions.

    options: what `write` takes beside the graph and the path. ready() raises a CircuitGraphError where a program or
    library that writing needs is not installed.
    """

    name: str
    suffixes: tuple[str, ...]
    opens: str
    keeps: tuple[str, ...] = ()
    write: Callable[..., Any] | None = None
    read: Callable[[str | Path], nx.MultiDiGraph] | None = None
    options: tuple[str, ...] = ()
    ready: Callable[[], Any] = tuple


_ALL = tuple(ASPECTS)
_TRACED = "Neuronpedia, circuit-tracer"
_PAGE = ("compare", "names", "links", "max_nodes", "max_edges")
FORMATS = {
    item.name: item
    for item in (
        Format("native", (".json", ".json.gz"), "circuitgraph", _ALL, write_graph, read_graph),
        Format("html", (".html",), "browsers: the viewer", write=_text(render_html), options=_PAGE),
        Format("svg", (".svg",), "papers, browsers", write=_text(render_svg)),
        Format("png", (".png",), "pictures by Graphviz", write=draw, ready=check_draw),
        Format("pdf", (".pdf",), "pictures by Graphviz", write=draw, ready=check_draw),
        Format("dot", (".dot", ".gv"), "Graphviz", write=_text(render_dot)),
        Format(
            "neuronpedia", (".neuronpedia.json",), _TRACED, _ALL, write_neuronpedia, read_neuronpedia, ("slug", "scan")
        ),
        Format("circuit-tracer", (".pt",), "circuit-tracer", read=read_circuit_tracer),
        Format("eap", (".eap.json",), "EAP-IG, MIB (graphs of heads and MLPs)", _ALL[:2], write_eap, read_eap),
        Format("mib", (), "MIB leaderboard (a folder)", _ALL[:2], write_mib, read_mib, ("circuits",)),
        Format("graphml", (".graphml",), "yEd, Gephi, Cytoscape, networkx, igraph", _ALL, write_graphml, read_graphml),
        Format("gexf", (".gexf",), "Gephi, Gephi Lite", _ALL, write_gexf, read_gexf),
        Format("cytoscape", (".cyjs",), "Cytoscape, cytoscape.js", _ALL, write_cyjs, read_cyjs),
        Format("csv", (".csv",), "spreadsheets, pandas, R", _ALL, write_csv, read_csv),
        Format(
            "parquet", (".parquet",), "pandas, polars, DuckDB", _ALL, write_parquet, read_parquet, ready=check_parquet
        ),
        Format("links", (".links.txt",), "a browser: Neuronpedia pages", write=write_links),
    )
}


def format_table() -> str:
    """The table of formats as Markdown: who opens it, and what survives writing and reading."""
    head = ["format", "suffix", "for", *ASPECTS]
    rows = [head, ["---", "---", "---", *(":-:" for _ in ASPECTS)]]
    for item in FORMATS.values():
        marks = ["yes" if aspect in item.keeps else "" for aspect in ASPECTS]
        if item.read is None or item.write is None:
            marks = ["only written" if item.read is None else "only read", *("" for _ in marks[1:])]
        rows.append([item.name, " ".join(f"`{suffix}`" for suffix in item.suffixes), item.opens, *marks])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"

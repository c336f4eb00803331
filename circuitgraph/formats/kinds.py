"""Every format, what it keeps, and which one a file is. The table in the README is made from this, and so are the tests.

In come graphs and paths; files go out and graphs come back. A format is chosen by name, else by the file's suffix, and a
`.json` file by what is in it. This module knows the formats' names and nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError, did_you_mean
from circuitgraph.formats.circuit_tracer import read_circuit_tracer
from circuitgraph.formats.cytoscape import read_cyjs, value_from_cyjs, write_cyjs
from circuitgraph.formats.dot import write_dot
from circuitgraph.formats.eap import read_eap, value_from_eap, write_eap
from circuitgraph.formats.gexf import read_gexf, write_gexf
from circuitgraph.formats.graphml import read_graphml, write_graphml
from circuitgraph.formats.mib import read_mib, write_mib
from circuitgraph.formats.native import read_graph, value_to_graph, write_graph
from circuitgraph.formats.neuronpedia import write_neuronpedia
from circuitgraph.formats.neuronpedia_links import write_links
from circuitgraph.formats.neuronpedia_read import read_neuronpedia, value_from_neuronpedia
from circuitgraph.formats.tables import read_csv, read_parquet, write_csv, write_parquet
from circuitgraph.formats.untrusted import open_bytes, parse_json, read_text, reading

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


@dataclass(frozen=True)
class Format:
    """A format: its suffixes, which programs open it, the aspects that survive writing and reading, and its functions."""

    name: str
    suffixes: tuple[str, ...]
    opens: str
    keeps: tuple[str, ...] = ()
    write: Callable[..., Any] | None = None
    read: Callable[[str | Path], nx.MultiDiGraph] | None = None
    settings: tuple[str, ...] = ()


_ALL = tuple(ASPECTS)
FORMATS = {
    item.name: item
    for item in (
        Format("native", (".json", ".json.gz"), "circuitgraph", _ALL, write_graph, read_graph),
        Format(
            "neuronpedia",
            (".neuronpedia.json",),
            "Neuronpedia, circuit-tracer",
            _ALL,
            write_neuronpedia,
            read_neuronpedia,
            ("slug", "scan"),
        ),
        Format("circuit-tracer", (".pt",), "circuit-tracer", read=read_circuit_tracer),
        Format("eap", (".eap.json",), "EAP-IG, MIB (graphs of heads and MLPs)", _ALL[:2], write_eap, read_eap),
        Format("mib", (), "MIB leaderboard (a folder)", _ALL[:2], write_mib, read_mib, ("circuits",)),
        Format("graphml", (".graphml",), "yEd, Gephi, Cytoscape, networkx, igraph", _ALL, write_graphml, read_graphml),
        Format("gexf", (".gexf",), "Gephi, Gephi Lite", _ALL, write_gexf, read_gexf),
        Format("cytoscape", (".cyjs",), "Cytoscape, cytoscape.js", _ALL, write_cyjs, read_cyjs),
        Format("dot", (".dot", ".gv"), "Graphviz", write=write_dot),
        Format("csv", (".csv",), "spreadsheets, pandas, R", _ALL, write_csv, read_csv),
        Format("parquet", (".parquet",), "pandas, polars, DuckDB", _ALL, write_parquet, read_parquet),
        Format("links", (".links.txt",), "a browser: Neuronpedia pages", write=write_links),
    )
}

_SUFFIXES = {suffix: item for item in FORMATS.values() for suffix in item.suffixes}


def export_graph(graph: nx.MultiDiGraph, path: str | Path, format: str | None = None, **settings: Any) -> None:
    """Write the graph in a format, named or told by the suffix. GraphError for an unknown one and settings it has not."""
    chosen = _named(format) if format is not None else _by_suffix(path, "write")
    if chosen.write is None:
        raise GraphError(f"format {chosen.name} is read, not written; choose one of {', '.join(_able('write'))}")
    unknown = [name for name in settings if name not in chosen.settings]
    if unknown:
        raise GraphError(f"format {chosen.name} has no setting {unknown[0]!r}")
    chosen.write(graph, path, **settings)


def import_graph(path: str | Path, format: str | None = None) -> nx.MultiDiGraph:
    """The graph in a file of any format, named or told by the suffix, or by the content for .json."""
    if format is None and not Path(path).is_dir():
        chosen = _by_suffix(path, "read")
        if chosen.name == "native":
            return _read_json(path)
    else:
        chosen = _named(format if format is not None else "mib")
    if chosen.read is None:
        raise GraphError(f"format {chosen.name} is written, not read; readable are {', '.join(_able('read'))}")
    return chosen.read(path)


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


def _read_json(path: str | Path) -> nx.MultiDiGraph:
    with reading(path):
        with open_bytes(path) as file:
            if file.read(12) == b'{\n"format": ':
                return read_graph(path)
        value = parse_json(read_text(path))
        if isinstance(value, dict):
            if "elements" in value:
                return value_from_cyjs(value)
            if "cfg" in value and "edges" in value:
                return value_from_eap(parse_json(read_text(path), unique=True))
            if "metadata" in value or "qParams" in value or "links" in value:
                return value_from_neuronpedia(value)
        return value_to_graph(value)


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise GraphError(
            f"format {name!r} is unknown; expected one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
        )
    return FORMATS[name]


def _by_suffix(path: str | Path, what: str) -> Format:
    """The format with the longest suffix that the name ends in."""
    name = Path(path).name.lower()
    able = _able(what)
    known = [suffix for item in able.values() for suffix in item.suffixes]
    fitting = [suffix for suffix in _SUFFIXES if name.endswith(suffix)]
    if fitting:
        return _SUFFIXES[max(fitting, key=len)]
    found = Path(name).suffix
    raise GraphError(
        f"cannot tell the format of {str(path)!r}: it has {repr(found) if found else 'no suffix'}, expected one of"
        f" {', '.join(known)}, or name one of {', '.join(able)}.{did_you_mean(found, known)}"
    )


def _able(what: str) -> dict[str, Format]:
    return {name: item for name, item in FORMATS.items() if getattr(item, what) is not None}

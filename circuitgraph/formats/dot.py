"""DOT with every attribute: for Graphviz, Gephi and programs that parse it. Written, not read.

In comes a graph, out comes DOT text. `circuitgraph render` draws pictures and leaves weak edges out; this keeps every node and
edge. Nodes are n0, n1, ... (a colon would be read as a port) with our id as `cg_id`; all of our attributes have `cg_` in front,
since DOT gives names such as weight, label and pos a meaning of its own. Positions are in points, y up (`neato -n2`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.files import write_atomically
from circuitgraph.formats.drawing import edge_colour, looks
from circuitgraph.formats.flat import FlatGraph, to_flat
from circuitgraph.formats.markup import escape


def write_dot(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as DOT."""
    write_atomically(path, (piece.encode("utf-8") for piece in _pieces(to_flat(graph), graph)))


def _pieces(flat: FlatGraph, graph: nx.MultiDiGraph) -> Iterator[str]:
    drawn = looks(graph)
    names = {key: f"n{i}" for i, (key, _) in enumerate(flat.nodes)}
    yield f"digraph circuit {{\ncomment={_quoted(flat.facts)};\n"
    for key, row in flat.nodes:
        look = drawn[key]
        shown = {"label": look.caption, "pos": f"{look.x:.1f},{-look.y:.1f}!", "color": look.fill}
        yield f"{names[key]} [{_attributes(shown, {'id': key} | row)}];\n"
    for source, target, row in flat.edges:
        shown = {"color": edge_colour(row["kind"]), "style": "dashed" if row["weight"] < 0 else "solid"}
        yield f"{names[source]} -> {names[target]} [{_attributes(shown, row)}];\n"
    yield "}\n"


def _attributes(theirs: dict[str, str], ours: dict[str, Any]) -> str:
    pairs = theirs | {name if name.startswith("cg_") else f"cg_{name}": value for name, value in ours.items()}
    return ", ".join(f"{_quoted(name)}={_quoted(value)}" for name, value in pairs.items())


def _quoted(value: Any) -> str:
    """A quoted string, never an HTML-like one, in which a backslash stands for itself and nothing is an entity."""
    text = escape(value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value))
    return '"' + text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') + '"'

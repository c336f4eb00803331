"""GraphML: for yEd, Gephi, Cytoscape, networkx, igraph. Every attribute, typed; parallel edges; read back without loss.

In comes a graph or a file, out comes the other. Columns are those of `flat`. yEd draws the nodes where circuitgraph does (a
y:ShapeNode each) and shows its own properties for the rest; Gephi shows the column `label`; networkx reads `kind` and all
numbers as they are. Graph attributes are the graph's data `circuitgraph`, one JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.build import EdgeRow
from circuitgraph.formats.drawing import Look, looks
from circuitgraph.formats.flat import BOOLEAN, INTEGER, NUMBER, STRING, FlatGraph, NodeRow, from_flat, to_flat
from circuitgraph.formats.markup import read_xml, unescape, value_of, xml
from circuitgraph.formats.untrusted import reading

RESERVED = ("label", "id", "source", "target")  # `label` is what programs show; the others are columns of theirs
TYPES = {INTEGER: "long", NUMBER: "double", BOOLEAN: "boolean", STRING: "string"}
_KINDS = {"int": INTEGER, "long": INTEGER, "float": NUMBER, "double": NUMBER, "boolean": BOOLEAN, "string": STRING}
_SHAPES = {
    "triangle": "triangle",
    "diamond": "diamond",
    "hexagon": "hexagon",
    "square": "rectangle",
    "pill": "roundrectangle",
    "star": "star5",
    "wedge": "trapezoid",
}
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://www.yworks.com/xml/graphml">
<key id="g" for="graph" attr.name="circuitgraph" attr.type="string"/>
<key id="label" for="node" attr.name="label" attr.type="string"/>
<key id="drawn" for="node" yfiles.type="nodegraphics"/>
"""


def write_graphml(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as GraphML."""
    flat, drawn = to_flat(graph, RESERVED), looks(graph)
    write_atomically(path, (piece.encode("utf-8") for piece in _pieces(flat, drawn)))


def read_graphml(path: str | Path) -> nx.MultiDiGraph:
    """The graph of a GraphML file that `write_graphml` wrote, or another program that opened and saved one."""
    with reading(path):
        content = _Content()
        read_xml(path, content.start, content.end)
        return from_flat(content.facts, content.nodes, content.edges)


def _pieces(flat: FlatGraph, drawn: dict[str, Look]) -> Iterator[str]:
    yield _HEAD
    ids: dict[str, dict[str, str]] = {}
    for what, columns in (("node", flat.node_columns), ("edge", flat.edge_columns)):
        ids[what] = {name: f"{what[0]}{i}" for i, name in enumerate(columns)}
        for name, kind in columns.items():
            yield f'<key id="{ids[what][name]}" for="{what}" attr.name="{xml(name)}" attr.type="{TYPES[kind]}"/>\n'
    yield f'<graph id="circuit" edgedefault="directed">\n<data key="g">{xml(flat.facts)}</data>\n'
    for key, row in flat.nodes:
        look = drawn[key]
        data = _data(ids["node"], row)
        yield f'<node id="{xml(key)}"><data key="label">{xml(look.caption)}</data>{data}{_shape(look)}</node>\n'
    for i, (source, target, row) in enumerate(flat.edges):
        data = _data(ids["edge"], row)
        yield f'<edge id="e{i}" source="{xml(source)}" target="{xml(target)}">{data}</edge>\n'
    yield "</graph>\n</graphml>\n"


def _data(ids: dict[str, str], row: dict[str, Any]) -> str:
    return "".join(f'<data key="{ids[name]}">{xml(value)}</data>' for name, value in row.items())


def _shape(look: Look) -> str:
    size = 2 * look.radius
    return (
        '<data key="drawn"><y:ShapeNode>'
        f'<y:Geometry x="{look.x - look.radius:.1f}" y="{look.y - look.radius:.1f}" width="{size:.1f}" height="{size:.1f}"/>'
        f'<y:Fill color="{look.fill}"/><y:NodeLabel modelName="sides" modelPosition="s">{xml(look.caption)}</y:NodeLabel>'
        f'<y:Shape type="{_SHAPES.get(look.shape, "ellipse")}"/></y:ShapeNode></data>'
    )


class _Content:
    """What a GraphML file holds, gathered element by element."""

    def __init__(self) -> None:
        self.facts: str | None = None
        self.nodes: list[NodeRow] = []
        self.edges: list[EdgeRow] = []
        self._keys: dict[str, tuple[str, str]] = {}
        self._row: dict[str, Any] | None = None
        self._key: str | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "key" and "attr.name" in attributes:
            kind = _KINDS.get(attributes.get("attr.type", "string"))
            if kind is None:
                raise GraphError(f"key {attributes['attr.name'][:40]!r} has type {attributes['attr.type'][:40]!r}")
            self._keys[attributes.get("id", "")] = unescape(attributes["attr.name"]), kind
        elif tag == "node":
            self._row = {}
            self.nodes.append((_end(attributes, "id", "a node"), self._row))
        elif tag == "edge":
            self._row = {}
            self.edges.append((_end(attributes, "source", "an edge"), _end(attributes, "target", "an edge"), self._row))
        elif tag == "data":
            self._key = attributes.get("key", "")

    def end(self, tag: str, text: str) -> None:
        if tag in ("node", "edge"):
            self._row = None
        elif tag == "data" and self._key in self._keys:
            name, kind = self._keys[self._key]
            if self._row is None:
                self.facts = unescape(text) if name == "circuitgraph" else self.facts
            elif name not in RESERVED:
                self._row[name] = value_of(text, kind)


def _end(attributes: dict[str, str], name: str, where: str) -> str:
    if name not in attributes:
        raise GraphError(f"{where} has no {name!r}")
    return unescape(attributes[name])

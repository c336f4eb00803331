"""GraphML: for yEd, Gephi, Cytoscape, networkx, igraph. Every attribute, typed; parallel edges; read back without loss.

Columns are those of `flat`. yEd draws the nodes where circuitgraph does (a y:ShapeNode each) and shows its own
properties for the rest; Gephi shows the column `label`; networkx reads `kind` and all numbers as they are. Graph
attributes are the graph's data `circuitgraph`, one JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.formats.drawing import Look
from circuitgraph.formats.flat import FlatGraph
from circuitgraph.formats.markup import unescape, xml
from circuitgraph.formats.xml_graphs import TYPES, XmlContent, read_xml_graph, write_xml_graph

RESERVED = ("label", "id", "source", "target")  # `label` is what programs show; the others are columns of theirs
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
    write_xml_graph(graph, path, RESERVED, _pieces)


def read_graphml(path: str | Path) -> nx.MultiDiGraph:
    """The graph of a GraphML file that `write_graphml` wrote, or another program that opened and saved one."""
    return read_xml_graph(path, _Content())


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
        f'<y:Geometry x="{look.x - look.radius:.1f}" y="{look.y - look.radius:.1f}"'
        f' width="{size:.1f}" height="{size:.1f}"/><y:Fill color="{look.fill}"/>'
        f'<y:NodeLabel modelName="sides" modelPosition="s">{xml(look.caption)}</y:NodeLabel>'
        f'<y:Shape type="{_SHAPES.get(look.shape, "ellipse")}"/></y:ShapeNode></data>'
    )


class _Content(XmlContent):
    """`key` declares a column of nodes, edges or the graph (its id is unique in the file), `data` holds a cell."""

    _key = ""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "key" and "attr.name" in attributes:
            self.declare("", attributes.get("id", ""), attributes["attr.name"], attributes.get("attr.type", "string"))
        elif tag in ("node", "edge"):
            self.open(tag, attributes)
        elif tag == "data":
            self._key = attributes.get("key", "")

    def end(self, tag: str, text: str) -> None:
        if tag in ("node", "edge"):
            self.row = None
        elif tag == "data" and self.row is not None:
            self.put("", self._key, text, RESERVED)
        elif tag == "data" and self.named("", self._key) == "circuitgraph":
            self.facts = unescape(text)

"""GEXF 1.2: for Gephi and Gephi Lite, which open it with positions, sizes and colours set. Read back without loss.

Columns are those of `flat`. Gephi keeps names for itself whatever their case (type, label, weight, ...): ours are there
as `cg_weight` and so on, and its own edge weight is |weight|, since its layouts take no negative one. Graph attributes
are the description in `meta`, one JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.formats.drawing import Look, edge_colour
from circuitgraph.formats.flat import FlatGraph
from circuitgraph.formats.markup import unescape, xml
from circuitgraph.formats.xml_graphs import TYPES, XmlContent, read_xml_graph, write_xml_graph

RESERVED = ("id", "label", "type", "weight", "source", "target", "interval", "timeset", "start", "end", "viz")
_SHAPES = {"triangle": "triangle", "diamond": "diamond", "square": "square"}
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<gexf xmlns="http://www.gexf.net/1.2draft" xmlns:viz="http://www.gexf.net/1.2draft/viz" version="1.2">
"""


def write_gexf(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as GEXF."""
    write_xml_graph(graph, path, RESERVED, _pieces)


def read_gexf(path: str | Path) -> nx.MultiDiGraph:
    """The graph of a GEXF file that `write_gexf` wrote, or Gephi after opening one."""
    return read_xml_graph(path, _Content())


def _pieces(flat: FlatGraph, drawn: dict[str, Look]) -> Iterator[str]:
    yield _HEAD
    yield f"<meta><creator>circuitgraph</creator><description>{xml(flat.facts)}</description></meta>\n"
    yield '<graph defaultedgetype="directed" mode="static">\n'
    for what, columns in (("node", flat.node_columns), ("edge", flat.edge_columns)):
        yield f'<attributes class="{what}" mode="static">\n'
        for name, kind in columns.items():
            yield f'<attribute id="{xml(name)}" title="{xml(name)}" type="{TYPES[kind]}"/>\n'
        yield "</attributes>\n"
    yield "<nodes>\n"
    for key, row in flat.nodes:
        look = drawn[key]
        yield f'<node id="{xml(key)}" label="{xml(look.caption)}">{_values(row)}{_viz(look)}</node>\n'
    yield "</nodes>\n<edges>\n"
    for i, (source, target, row) in enumerate(flat.edges):
        ends = f'id="{i}" source="{xml(source)}" target="{xml(target)}" kind="{xml(row["kind"])}"'
        weight = abs(row["cg_weight"])
        colour = f"<viz:color {_rgb(edge_colour(row['kind']))}/>"
        yield f'<edge {ends} label="{xml(row["kind"])}" weight="{weight!r}">{_values(row)}{colour}</edge>\n'
    yield "</edges>\n</graph>\n</gexf>\n"


def _values(row: dict[str, Any]) -> str:
    values = "".join(f'<attvalue for="{xml(name)}" value="{xml(value)}"/>' for name, value in row.items())
    return f"<attvalues>{values}</attvalues>"


def _viz(look: Look) -> str:
    return (
        f'<viz:color {_rgb(look.fill)}/><viz:position x="{look.x:.1f}" y="{-look.y:.1f}" z="0.0"/>'
        f'<viz:size value="{look.radius:.1f}"/><viz:shape value="{_SHAPES.get(look.shape, "disc")}"/>'
    )


def _rgb(colour: str) -> str:
    red, green, blue = bytes.fromhex(colour[1:])
    return f'r="{red}" g="{green}" b="{blue}"'


class _Content(XmlContent):
    """`attribute` declares a column of the class that is open, `attvalue` holds a cell."""

    _class = "node"

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "attributes":
            self._class = attributes.get("class", "")
            if self._class not in ("node", "edge"):
                raise GraphError(f"attributes are of class {self._class[:40]!r}; expected node or edge")
        elif tag == "attribute":
            name, kind = attributes.get("title", ""), attributes.get("type", "")
            self.declare(self._class, attributes.get("id", ""), name, kind)
        elif tag in ("node", "edge"):
            self._class = tag
            self.open(tag, attributes)
        elif tag == "attvalue":
            self.put(self._class, attributes.get("for", ""), attributes.get("value", ""))

    def end(self, tag: str, text: str) -> None:
        if tag in ("node", "edge"):
            self.row = None
        elif tag == "description":
            self.facts = unescape(text)

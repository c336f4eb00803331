"""Positions and looks of nodes for formats whose programs draw files.

Positions, sizes, colours and captions are those of circuitgraph's own pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from circuitgraph.render.labels import LIGHT, caption, shape, visible
from circuitgraph.render.layout import lay_out


@dataclass(frozen=True)
class Look:
    """Centre (y down) and radius in px, caption, shape and fill of one node."""

    x: float
    y: float
    radius: float
    caption: str
    shape: str
    fill: str


def looks(graph: nx.MultiDiGraph) -> dict[str, Look]:
    """How each node of the graph is drawn; its caption is the id where it has no words."""
    layout = lay_out(graph)
    found = {}
    for key, data in graph.nodes(data=True):
        x, y = layout.centres[key]
        sign = "negative" if data["attribution"] < 0 else "positive"
        fill = LIGHT["metric"] if data["kind"] == "metric" else LIGHT[sign]
        words = caption(graph, key) if data.get("label") or data["kind"] == "metric" else visible(key)
        found[key] = Look(x, y, layout.radii[key], words, shape(data), fill)
    return found


def edge_colour(kind: str) -> str:
    """The colour of an edge kind, #RRGGBB."""
    return LIGHT.get(kind, LIGHT["other"])

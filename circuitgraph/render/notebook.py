"""A circuit graph in a notebook: the viewer in a frame, and a picture where no script may run.

In comes a graph, out comes an object that Jupyter shows. This module imports no notebook library.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from circuitgraph.render.html import render_html
from circuitgraph.render.svg import render_svg

MAX_EDGES = 5_000  # the page is stored in the notebook with each output: 0.3 MB at this size
SANDBOX = "allow-scripts allow-downloads allow-popups"


@dataclass(frozen=True)
class NotebookView:
    """What a notebook cell shows: `page` in a frame of `height` px, or `picture` in a renderer without frames."""

    page: str
    picture: str
    summary: str
    height: int

    def _repr_html_(self) -> str:
        """The page in a sandboxed frame, which can neither reach the notebook nor be reached by its style."""
        page = html.escape(self.page, quote=True)
        look = f"width:100%;height:{self.height}px;border:1px solid #8886;border-radius:6px"
        return (
            f'<iframe title="{html.escape(self.summary)}" sandbox="{SANDBOX}" style="{look}" srcdoc="{page}"></iframe>'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Mapping[str, str]:
        """All three forms; the front end takes the richest it may show, so GitHub shows the picture."""
        return {"text/html": self._repr_html_(), "image/svg+xml": self.picture, "text/plain": self.summary}


def view_graph(
    graph: nx.MultiDiGraph, other: nx.MultiDiGraph | None = None, *, height: int = 760, max_edges: int = MAX_EDGES
) -> NotebookView:
    """The viewer of `graph` (beside `other`) for the last line of a notebook cell.

    Only the max_edges strongest edges travel into the notebook; the page says so where it leaves some out.
    """
    summary = f"circuit graph: {graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges"
    return NotebookView(render_html(graph, other, max_edges=max_edges), render_svg(graph), summary, height)

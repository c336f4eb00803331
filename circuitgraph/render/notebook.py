"""A circuit graph in a notebook: the viewer in a frame, and a picture where no script may run."""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from circuitgraph.errors import CircuitGraphError
from circuitgraph.graphs.schema import require_graph
from circuitgraph.render.html import render_html
from circuitgraph.render.svg import render_svg

MAX_EDGES = 5_000  # the page is stored in the notebook with each output: 0.3 MB at this size
SANDBOX = "allow-scripts allow-downloads allow-popups"


@dataclass(frozen=True, repr=False)
class NotebookView:
    """What a notebook cell shows: `page` in a frame of `height` px, or `picture` in a renderer without frames."""

    page: str
    picture: str
    summary: str
    height: int

    def __repr__(self) -> str:
        return self.summary

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


def show(
    graph: nx.MultiDiGraph, compare: nx.MultiDiGraph | None = None, *, height: int = 760, max_edges: int = MAX_EDGES
) -> NotebookView:
    """The viewer of a graph, for the last line of a notebook cell or for IPython's display().

    Args:
        compare: a second graph to show beside it.
        height: of the frame, in px.
        max_edges: so many edges, the strongest, travel into the notebook; the page says what it leaves out.
    """
    require_graph(graph, with_metric=False)
    summary = f"circuit graph: {graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges"
    return NotebookView(render_html(graph, compare, max_edges=max_edges), render_svg(graph), summary, height)


def show_in_ipython() -> None:
    """Make circuit graphs show themselves where the program runs inside IPython; elsewhere nothing happens.

    Only graphs of ours do; any other networkx graph keeps its text.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.display_formatter.mimebundle_formatter.for_type(nx.MultiDiGraph, _bundle)


def _bundle(graph: nx.MultiDiGraph, include: Any = None, exclude: Any = None) -> Mapping[str, str] | None:
    if not {"metric", "tokens", "provenance"} <= graph.graph.keys():
        return None
    try:
        return show(graph)._repr_mimebundle_()
    except CircuitGraphError:
        return None

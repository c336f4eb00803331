"""Pictures of circuit graphs: DOT, SVG, PNG, PDF and one offline HTML page with the viewer.

In comes a graph with the schema of `circuitgraph.graph`; out come text or a file. Nothing here changes a graph, loads
a model or opens a connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import networkx as nx

from circuitgraph.errors import CircuitGraphError, RenderError, did_you_mean
from circuitgraph.files import write_atomically
from circuitgraph.render.dot import draw, render_dot
from circuitgraph.render.html import render_html
from circuitgraph.render.notebook import view_graph
from circuitgraph.render.svg import render_svg

__all__ = ["RENDERERS", "draw", "render_dot", "render_html", "render_svg", "view_graph", "write_rendering"]

RENDERERS = {".dot": render_dot, ".html": render_html, ".svg": render_svg}
DRAWN = (".pdf", ".png")  # by Graphviz


def write_rendering(
    graph: nx.MultiDiGraph,
    path: str | os.PathLike[str],
    *,
    compare: nx.MultiDiGraph | None = None,
    names: Sequence[str] = ("A", "B"),
    links: Mapping[str, str] | None = None,
) -> None:
    """Write the graph to `path` in the format its suffix names: .html, .svg, .dot, or with Graphviz .png, .pdf.

    The first three are byte-identical for equal graphs. Pages alone take a second graph to `compare` with, the `names`
    of the two, and `links` from sites to Neuronpedia (see `render_html`). RenderError when the suffix is unknown or
    does not take these, when Graphviz is needed and not installed, and when the file cannot be written; whatever was
    at `path` before is then unchanged.
    """
    suffix = Path(path).suffix.lower()
    if (compare is not None or links) and suffix in (*RENDERERS, *DRAWN) and suffix != ".html":
        what = "a comparison" if compare is not None else "links to Neuronpedia"
        raise RenderError(f"{os.fspath(path)!r} cannot hold {what}: expected a name that ends in .html")
    if suffix in DRAWN:
        return draw(graph, path)
    if suffix not in RENDERERS:
        known = sorted((*RENDERERS, *DRAWN))
        found, hint = repr(suffix) if suffix else "no suffix", did_you_mean(suffix, known)
        raise RenderError(
            f"cannot tell the format of {os.fspath(path)!r}: it has {found}, expected {', '.join(known)}.{hint}"
        )
    page = suffix == ".html"
    text = render_html(graph, compare, names=names, links=links) if page else RENDERERS[suffix](graph)
    try:
        write_atomically(path, text)
    except CircuitGraphError as error:
        raise RenderError(str(error)) from error

"""Pictures of circuit graphs: DOT, SVG, PNG, PDF, one offline HTML page with the viewer, and that page in a notebook.

Nothing here changes a graph, loads a model or opens a connection. `circuitgraph.formats.save` writes them to files.
"""

from circuitgraph.render.dot import check_draw, draw, render_dot
from circuitgraph.render.html import render_html
from circuitgraph.render.notebook import show
from circuitgraph.render.svg import render_svg

__all__ = ["check_draw", "draw", "render_dot", "render_html", "render_svg", "show"]

"""A circuit graph as DOT text with the positions of `layout`, and the pictures that Graphviz draws from it.

DOT is always written. SVG, PNG and PDF need Graphviz: its own program, else the one inside pygraphviz.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired

import networkx as nx

from circuitgraph.errors import RenderError
from circuitgraph.files import write_atomically
from circuitgraph.graphs.schema import require_graph
from circuitgraph.render import labels
from circuitgraph.render.labels import LIGHT
from circuitgraph.render.layout import Layout, Point, curve, lay_out, place_captions

TIMEOUT = 120.0  # seconds; 20,000 pinned edges take 0.7 s of one core
MANY, DENSE = 1_000, 96  # edges above which pixels are larger: 5,000 edges at 144 dpi took 8 s and 28 MB
FORMATS = (".pdf", ".png", ".svg")
CHILD = """
import sys, pygraphviz
sys.stdout.buffer.write(pygraphviz.AGraph(string=sys.stdin.read()).draw(format=sys.argv[1], prog="nop2"))
"""
SHAPES = {
    "triangle": "triangle", "circle": "circle", "rounded": "box", "diamond": "diamond", "square": "box",
    "house": "house", "hexagon": "hexagon", "star": "star", "wedge": "invtriangle", "pill": "box",
}  # fmt: skip


GLYPHS = {
    "triangle": "▲", "circle": "●", "rounded": "■", "diamond": "◆", "square": "■", "house": "⌂",
    "hexagon": "⬢", "star": "★", "wedge": "▼", "pill": "▬",
}  # fmt: skip


def render_dot(graph: nx.MultiDiGraph) -> str:
    """The graph as DOT text whose nodes and edges carry the positions of `layout`, in points.

    `neato -n2` (pygraphviz: prog="nop2") draws it as laid out; `dot` ignores the positions and makes its own. Nodes
    are named n0, n1, ... since a colon in a name would be read as a port; our names stand in `id` and `tooltip`.

    Args:
        graph: The circuit graph; all its edges are drawn.
    """
    require_graph(graph, with_metric=False)
    layout = lay_out(graph)
    edges = labels.ranked_edges(graph)
    names = {node: f"n{number}" for number, node in enumerate(sorted(graph))}
    return "\n".join(
        [
            "digraph circuit {",
            *_defaults(graph),
            *_signs(layout),
            *(_node(graph, layout, node, name) for node, name in names.items()),
            *_captions(graph, layout),
            *_legend(graph, layout),
            *_edges(graph, layout, edges, names),
            "}\n",
        ]
    )


def draw(graph: nx.MultiDiGraph, path: str | os.PathLike[str]) -> None:
    """Write the picture that Graphviz draws of the graph to a .svg, .png or .pdf file.

    RenderError when the suffix is another one, when no Graphviz is installed and when drawing fails or takes longer
    than `TIMEOUT`; CircuitGraphError when the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise RenderError(
            f"Graphviz does not draw {os.fspath(path)!r} here: expected a name that ends in {', '.join(FORMATS)}"
        )
    write_atomically(path, _run(_command(suffix[1:]), render_dot(graph)))


def check_draw() -> None:
    """RenderError where no Graphviz is installed."""
    _command("png")


def quote(text: str) -> str:
    """`text` as a quoted DOT string that shows exactly its visible characters, whatever they are.

    Never an HTML-like label; backslashes, quotes and entities are taken literally.
    """
    shown = labels.visible(text, " ").replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{shown}"'


def _at(layout: Layout, point: Point) -> str:
    """A point of the layout in Graphviz coordinates, where y grows upwards."""
    return f"{point[0]:g},{round(layout.height - point[1], 1):g}"


def _defaults(graph: nx.MultiDiGraph) -> list[str]:
    title = f'label={quote(_title(graph))}, labelloc=t, labeljust=l, fontname="Helvetica", fontsize=14'
    text = f'fontname="Helvetica", fontsize=10, fontcolor={quote(LIGHT["ink"])}'
    return [
        f"  graph [bgcolor={quote(LIGHT['page'])}, outputorder=edgesfirst, splines=true, rankdir=BT, pad=0.3];",
        f"  graph [{title}, dpi={DENSE if graph.number_of_edges() > MANY else 144}];",
        f'  node [label="", fixedsize=true, style=filled, {text}];',
        "  edge [dir=none];",
    ]


def _title(graph: nx.MultiDiGraph) -> str:
    numbers = "; ".join(f"{name} {value} ({basis})" for name, value, basis, _ in labels.facts(graph)[:2])
    return " ".join(part for part in (numbers, labels.statement(graph)) if part)


def _plain(name: str, layout: Layout, point: Point, text: str, size: float) -> str:
    look = f"shape=plaintext, style=solid, fixedsize=false, fontsize={size:g}"
    return f"  {name} [{look}, label={quote(text)}, pos={_pinned(layout, point)}];"


def _pinned(layout: Layout, point: Point) -> str:
    return f'"{_at(layout, point)}!"'


def _signs(layout: Layout) -> list[str]:
    """Tokens under their columns and names of the rows at the left, as plaintext nodes."""
    lines = []
    for number, column in enumerate(layout.columns):
        middle = column.x + column.width / 2
        limit = max(3, int((column.width - 4) / 6.6))
        lines.append(
            _plain(f"clean{number}", layout, (middle, layout.height + 16), labels.shorten(column.clean, limit), 11)
        )
        if column.clean != column.corrupted:
            lines.append(
                _plain(
                    f"corrupted{number}",
                    layout,
                    (middle, layout.height + 34),
                    labels.shorten(column.corrupted, limit),
                    11,
                )
            )
    for number, row in enumerate(layout.rows):
        text = row.text if row.layer is None else f"L{row.layer} {row.text}".strip()
        lines.append(_plain(f"row{number}", layout, (-36, row.y + row.height / 2), text, 11))
    return lines


def _captions(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    placed = enumerate(place_captions(graph, layout, 9))
    return [_plain(f"caption{number}", layout, (each.x, each.y - 4), each.text, 9) for number, each in placed]


def _node(graph: nx.MultiDiGraph, layout: Layout, node: str, name: str) -> str:
    data = graph.nodes[node]
    form, radius = labels.shape(data), layout.radii[node]
    negative = (data.get("attribution") or 0.0) < 0
    fill, pen = (LIGHT["page"], LIGHT["negative"]) if negative else (LIGHT["positive"], LIGHT["positive"])
    wide = 2 * radius * (1.7 if form == "pill" else 1)
    style = '"filled,rounded"' if form in ("pill", "rounded") else "filled"
    body = f"shape={SHAPES[form]}, style={style}, width={wide / 72:.3f}, height={2 * radius / 72:.3f}"
    look = f"fillcolor={quote(fill)}, color={quote(pen)}, penwidth={1.5 if negative else 0.5}"
    text = f"id={quote(node)}, tooltip={quote(labels.title(graph, node))}"
    return f"  {name} [{body}, {look}, pos={_pinned(layout, layout.centres[node])}, {text}];"


def _legend(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    """What lines and shapes mean, as plaintext nodes at the foot; the colour of a kind is the colour of its words."""
    entries = [
        (LIGHT[colour], "━ " + ": ".join(filter(None, (labels.edge_name(kind), labels.EDGE_MEANINGS.get(kind)))))
        for kind, colour in labels.edge_kinds(graph).items()
    ]
    entries += [(LIGHT["muted"], f"{GLYPHS[form]} {name}") for form, name in labels.legend(graph)]
    if graph.number_of_edges():
        entries.append((LIGHT["muted"], "╌ dashed edge: negative"))
    if graph.number_of_nodes():
        entries.append((LIGHT["muted"], "○ hollow node: negative attribution"))
    lines, x, y = [], 0.0, layout.height + 62
    for number, (colour, text) in enumerate(entries):
        wide = labels.text_width(text, 9) + 14
        if x and x + wide > max(layout.width, 480):
            x, y = 0.0, y + 16
        look = f"shape=plaintext, style=solid, fixedsize=false, fontsize=9, fontcolor={quote(colour)}"
        pos = _pinned(layout, (x + wide / 2, y))
        lines.append(f"  legend{number} [{look}, label={quote(text)}, pos={pos}];")
        x += wide
    return lines


def _edges(graph: nx.MultiDiGraph, layout: Layout, edges: list[labels.Edge], names: dict[str, str]) -> list[str]:
    """All edges, weak ones first so that strong ones lie on top."""
    reference, colours = labels.reference_weight(edges), labels.edge_kinds(graph)
    lines = []
    for source, target, kind, data in reversed(edges):
        weight = data.get("weight", 0.0)
        strength = labels.edge_strength(weight, reference)
        colour = f"{LIGHT[colours[kind]]}{round(255 * labels.edge_opacity(strength)):02X}"
        spline = " ".join(_at(layout, point) for point in curve(layout, source, target, kind))
        tooltip = f"{labels.edge_name(kind)} {labels.signed(weight)}: {source} → {target}"
        lines.append(
            f"  {names[source]} -> {names[target]} [penwidth={labels.edge_width(strength):.2f}, color={quote(colour)},"
            f'{" style=dashed," if weight < 0 else ""} tooltip={quote(tooltip)}, pos="{spline}"];'
        )
    return lines


def _command(form: str) -> list[str]:
    """The command that turns DOT on its input into a picture on its output."""
    if shutil.which("dot"):
        from graphviz.backend.dot_command import command

        return list(map(str, command("neato", form, neato_no_op=2)))
    if importlib.util.find_spec("pygraphviz"):
        # In a child: a stuck layout holds the interpreter lock, and only a process can be ended.
        return [sys.executable, "-X", "utf8", "-c", CHILD, form]
    raise RenderError(
        f"drawing .{form} needs Graphviz, which is not installed: `apt-get install graphviz` or"
        " `pip install 'circuitgraph-engine[render]'`; .svg, .html and .dot need nothing"
    )


def _run(command: list[str], dot: str) -> bytes:
    from graphviz.backend.execute import run_check  # graphviz.pipe takes no time-out

    failed = ""
    try:
        done = run_check(command, input=dot.encode("utf-8"), capture_output=True, timeout=TIMEOUT, quiet=True)
        if done.stdout:
            return bytes(done.stdout)
        failed = done.stderr.decode("utf-8", "replace") or "it drew nothing"
    except TimeoutExpired:
        raise RenderError(
            f"Graphviz did not finish within {TIMEOUT:g} s: prune the graph, or write .svg or .html instead"
        ) from None
    except CalledProcessError as error:
        failed = error.stderr.decode("utf-8", "replace") or f"exit status {error.returncode}"
    said = labels.shorten(failed.strip().splitlines()[-1], 160)
    raise RenderError(f"Graphviz could not draw the graph: {said}; write .svg or .html instead")

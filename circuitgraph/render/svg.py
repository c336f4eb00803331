"""A circuit graph as one SVG picture for a paper or a README, written without any drawing program.

It is the grid of `layout` with tokens below, layers at the left, a title with the measured numbers above and a legend
at the foot.
"""

from __future__ import annotations

import html
from typing import Any

import networkx as nx

from circuitgraph.graphs.schema import require_graph
from circuitgraph.render import labels
from circuitgraph.render.labels import LIGHT
from circuitgraph.render.layout import Column, Layout, curve, lay_out, place_captions
from circuitgraph.render.looks import LOOKS

GUTTER, MARGIN = 72.0, 18.0
DASH = "{:g} {:g}".format(*LOOKS.lines.dash)
SANS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def render_svg(graph: nx.MultiDiGraph) -> str:
    """The graph as SVG text on a white ground, byte-identical for equal graphs.

    At most `labels.MAX_DRAWN_EDGES` edges are drawn, the strongest; the title says how many.

    Args:
        graph: The circuit graph.

    Raises RenderError when a number of the graph is not finite.
    """
    require_graph(graph, with_metric=False)
    layout = lay_out(graph)
    width = max(GUTTER + layout.width + MARGIN, 720.0)
    head, top = _head(graph, width)
    foot, height = _foot(graph, width, top + layout.height + _strip_height(layout) + 14)
    body = [
        *_bands(layout),
        *_guides(layout),
        *_edges(graph, layout),
        *_nodes(graph, layout),
        *_captions(graph, layout),
        *_strip(layout),
    ]
    frame = {"width": round(width), "height": round(height), "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    look = {"font_family": SANS, "font_size": 12, "role": "img"}
    content = [
        f"<title>{_escape(_summary(graph))}</title>",
        _tag("rect", width="100%", height="100%", fill=LIGHT["page"]),
        *head,
        _tag("g", "\n".join(body), transform=f"translate({GUTTER:g} {top:g})"),
        *foot,
    ]
    return _tag("svg", "\n".join(content), xmlns="http://www.w3.org/2000/svg", **frame, **look) + "\n"


def path_data(layout: Layout, source: str, target: str, kind: str) -> str:
    """SVG path data of an edge."""
    (x0, y0), *rest = curve(layout, source, target, kind)
    return f"M{x0:g} {y0:g}C" + " ".join(f"{x:g} {y:g}" for x, y in rest)


def _tag(name: str, inside: str = "", /, **attributes: Any) -> str:
    """An element; `_` in attribute names stands for `-`, numbers are rounded to two digits. `inside` is markup."""
    written = {
        key.replace("_", "-"): f"{round(v, 2):g}" if isinstance(v, float) else v for key, v in attributes.items()
    }
    opened = "".join([name, *(f' {key}="{value}"' for key, value in written.items())])
    return f"<{opened}>{inside}</{name}>" if inside else f"<{opened}/>"


def _escape(text: str) -> str:
    return html.escape(labels.visible(text, " "), quote=True)


def _text(x: float, y: float, text: str, colour: str = "ink", /, **attributes: Any) -> str:
    return _tag("text", _escape(text), x=x, y=y, fill=LIGHT[colour], **attributes)


def _summary(graph: nx.MultiDiGraph) -> str:
    edges = graph.number_of_edges()
    drawn = f" ({labels.MAX_DRAWN_EDGES} strongest drawn)" if edges > labels.MAX_DRAWN_EDGES else ""
    model = f" of {labels.model_name(graph)}" if labels.model_name(graph) else ""
    subject = f"Circuit for the {labels.metric_name(graph)}{model}"
    return f"{subject}: {graph.number_of_nodes()} nodes, {edges} edges{drawn}"


def _head(graph: nx.MultiDiGraph, width: float) -> tuple[list[str], float]:
    """(title and measured numbers, y below them)."""
    parts = [_text(MARGIN, 28.0, _summary(graph), font_size=16, font_weight=600)]
    facts = [f"{name} {value} ({basis})" for name, value, basis, _ in labels.facts(graph)]
    y = 48.0
    for line in _wrap(facts, width):
        parts.append(_text(MARGIN, y, line, "muted"))
        y += 17
    if labels.statement(graph):
        parts.append(_text(MARGIN, y, labels.statement(graph)))
        y += 17
    return parts, y + 4


def _wrap(parts: list[str], width: float) -> list[str]:
    """The parts joined by middle dots into lines that fit the picture."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and labels.text_width(longer, 11) <= width - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _bands(layout: Layout) -> list[str]:
    """Layer by layer a pale band with the layer's name, in it a label for each site."""
    parts = []
    for layer in dict.fromkeys(row.layer for row in layout.rows if row.layer is not None):
        rows = [row for row in layout.rows if row.layer == layer]
        top, height = rows[0].y, sum(row.height for row in rows)
        if layer % 2 == 0:
            left, width = 8 - GUTTER, GUTTER - 8 + layout.width
            parts.append(_tag("rect", x=left, y=top, width=width, height=height, fill=LIGHT["band"]))
        parts.append(_text(16 - GUTTER, top + height / 2 + 4, f"L{layer}", font_weight=600))
    for row in layout.rows:
        parts.append(_text(-8.0, row.y + row.height / 2 + 4, row.text, "muted", font_size=10.5, text_anchor="end"))
    return parts


def _guides(layout: Layout) -> list[str]:
    path = "".join(f"M{column.x:g} 0V{layout.height:g}" for column in layout.columns[1:])
    look = {"stroke": LIGHT["line"], "stroke_width": 0.7, "stroke_dasharray": "1 3", "fill": "none"}
    return [_tag("path", d=path, **look)] if path else []


def _edges(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    """The strongest edges as curves, weak ones first so that strong ones lie on top."""
    edges = labels.ranked_edges(graph)
    reference, colours = labels.reference_weight(edges), labels.edge_kinds(graph)
    parts = []
    for source, target, kind, data in reversed(edges[: labels.MAX_DRAWN_EDGES]):
        weight = data.get("weight", 0.0)
        strength = labels.edge_strength(weight, reference)
        look = {"stroke_width": labels.edge_width(strength), "stroke_opacity": labels.edge_opacity(strength)}
        dash = {"stroke_dasharray": DASH} if weight < 0 else {}
        path = path_data(layout, source, target, kind)
        parts.append(_tag("path", d=path, fill="none", stroke=LIGHT[colours[kind]], **look, **dash))
    return parts


def _nodes(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    parts = []
    for node in sorted(graph):
        data = graph.nodes[node]
        x, y = layout.centres[node]
        path = labels.shape_path(labels.shape(data), layout.radii[node])
        title = f"<title>{_escape(labels.title(graph, node))}</title>"
        look = _fill(negative=(data.get("attribution") or 0.0) < 0)
        parts.append(_tag("path", title, transform=f"translate({x:g} {y:g})", d=path, **look))
    return parts


def _fill(negative: bool) -> dict[str, str | float]:
    """Filled where the attribution is positive, hollow and red where it is negative."""
    if negative:
        return {"fill": LIGHT["page"], "stroke": LIGHT["negative"], "stroke_width": 1.8}
    return {"fill": LIGHT["positive"], "stroke": LIGHT["page"], "stroke_width": 1}


def _captions(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    halo = {"stroke": LIGHT["page"], "stroke_width": 3, "stroke_linejoin": "round", "paint_order": "stroke"}
    return [
        _text(caption.x, caption.y, caption.text, font_size=10, text_anchor="middle", **halo)
        for caption in place_captions(graph, layout)
    ]


def _shows_corrupted(layout: Layout) -> bool:
    return any(column.clean != column.corrupted for column in layout.columns)


def _strip_height(layout: Layout) -> float:
    return (1 + _shows_corrupted(layout)) * _strip_line(layout) + 10


def _strip_line(layout: Layout) -> float:
    """Height of one row of tokens: as high as the longest one where they stand upright."""
    tokens = [labels.shorten(token, 12) for column in layout.columns for token in (column.clean, column.corrupted)]
    longest = max((labels.text_width(token, 12) for token in tokens), default=0.0)
    return longest + 14 if layout.vertical_tokens else 20.0


def _strip(layout: Layout) -> list[str]:
    """The tokens under their columns; the corrupted row appears where there is one, and marks what differs."""
    if not layout.columns:
        return []
    parts = [_tag("path", d=f"M0 {layout.height:g}H{layout.width:g}", stroke=LIGHT["muted"])]
    for place, side in enumerate(("clean", "corrupted") if _shows_corrupted(layout) else ("clean",)):
        top = layout.height + 6 + place * _strip_line(layout)
        if _shows_corrupted(layout):
            parts.append(_text(-8.0, top + 14, side, "muted", font_size=10.5, text_anchor="end"))
        for column in layout.columns:
            parts += _token(layout, column, side, top)
    return parts


def _token(layout: Layout, column: Column, side: str, top: float) -> list[str]:
    """One token, on a coloured ground where the two prompts differ; `=` below a token that is the same in both."""
    changed, upright = column.clean != column.corrupted, layout.vertical_tokens
    limit = 12 if upright else max(3, int((column.width - 4) / 7.2))
    same = side == "corrupted" and not changed
    text = "=" if same else labels.shorten(getattr(column, side), limit)
    middle, colour = column.x + column.width / 2, "muted" if same else "ink"
    parts = []
    if changed:
        inset, height = (1, _strip_line(layout) - 6) if upright else (3, 18)
        width = column.width - 2 * inset
        parts.append(_tag("rect", x=column.x + inset, y=top, width=width, height=height, rx=4, fill=LIGHT["mark"]))
    if upright:
        turn = f"rotate(90 {middle - 4:g} {top + 4:g})"
        return [*parts, _text(middle - 4, top + 4, text, colour, font_family=MONO, transform=turn)]
    return [*parts, _text(middle, top + 13.5, text, colour, font_family=MONO, text_anchor="middle")]


def _foot(graph: nx.MultiDiGraph, width: float, top: float) -> tuple[list[str], float]:
    """(the legend in lines, y below it)."""
    parts, x, y = [], MARGIN, top + 12
    for symbol, text in _legend(graph):
        left = 30.0 if symbol else 0.0
        wide = left + labels.text_width(text, 9.6) + 16
        if x + wide > width - MARGIN and x > MARGIN:
            x, y = MARGIN, y + 19
        label = _text(left, 4.0, text, "muted", font_size=11)
        parts.append(_tag("g", symbol + label, transform=f"translate({x:.1f} {y:.1f})"))
        x += wide
    return parts, y + 18


def _legend(graph: nx.MultiDiGraph) -> list[tuple[str, str]]:
    """(symbol, text): kinds of edges present, kinds of nodes present, and what sign and size mean."""

    def line(colour: str, **dash: str) -> str:
        return _tag("path", d="M0 0H22", stroke=colour, stroke_width=3, **dash)

    def shape(form: str, negative: bool = False) -> str:
        return _tag("path", transform="translate(11 0)", d=labels.shape_path(form, 6), **_fill(negative))

    present = labels.edge_kinds(graph)
    entries = [
        (line(LIGHT[colour]), ": ".join(filter(None, (labels.edge_name(kind), labels.EDGE_MEANINGS.get(kind)))))
        for kind, colour in present.items()
    ]
    if present:
        entries += [(line(LIGHT["other"], stroke_dasharray=DASH), "dashed: negative"), ("", "edges run upwards")]
    entries += [(shape(form), name) for form, name in labels.legend(graph)]
    if graph.number_of_nodes():
        entries += [(shape("circle", negative=True), "hollow: negative attribution"), ("", "size: |attribution|")]
    if any(text.startswith("→") for text in (labels.caption(graph, node) for node in graph)):
        entries.append(("", "→token: promoted by the feature"))
    return entries

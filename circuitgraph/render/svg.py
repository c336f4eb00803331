"""A circuit graph as one SVG picture for a paper or a README, written without any drawing program.

In comes a graph, out comes SVG text: the grid of `layout` with tokens below, layers at the left, a title with the
measured numbers above and a legend at the foot. This module knows no files and no Graphviz.
"""

from __future__ import annotations

import html

import networkx as nx

from circuitgraph.render import labels
from circuitgraph.render.labels import LIGHT
from circuitgraph.render.layout import BIAS, Column, Layout, curve, lay_out, place_captions

GUTTER, MARGIN = 72.0, 18.0
SANS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def render_svg(graph: nx.MultiDiGraph) -> str:
    """The graph as SVG text on a white ground, byte-identical for equal graphs.

    At most `labels.MAX_DRAWN_EDGES` edges are drawn, the strongest; the title says how many. RenderError when a
    number of the graph is not finite.
    """
    layout = lay_out(graph)
    width = max(GUTTER + layout.width + MARGIN, 720.0)
    head, head_height = _head(graph, width)
    foot, foot_height = _foot(graph, width, head_height + layout.height + _strip_height(layout) + 14)
    height = head_height + layout.height + _strip_height(layout) + 14 + foot_height
    body = [*_bands(layout), *_guides(layout), *_edges(graph, layout), *_nodes(graph, layout), *_captions(graph, layout), *_strip(layout)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
            f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="{SANS}" font-size="12" role="img">',
            f"<title>{_escape(_summary(graph))}</title>",
            f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>',
            *head,
            f'<g transform="translate({GUTTER:.0f} {head_height:.0f})">',
            *body,
            "</g>",
            *foot,
            "</svg>\n",
        ]
    )


def _escape(text: str) -> str:
    return html.escape(labels.visible(text, " "), quote=True)


def _text(x: float, y: float, text: str, colour: str = "ink", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{LIGHT[colour]}"{extra}>{_escape(text)}</text>'


def _summary(graph: nx.MultiDiGraph) -> str:
    nodes, edges = graph.number_of_nodes(), graph.number_of_edges()
    drawn = "" if edges <= labels.MAX_DRAWN_EDGES else f" ({labels.MAX_DRAWN_EDGES} strongest drawn)"
    model = labels.model_name(graph)
    return f"Circuit for the {labels.metric_name(graph)}{f' of {model}' if model else ''}: {nodes} nodes, {edges} edges{drawn}"


def _head(graph: nx.MultiDiGraph, width: float) -> tuple[list[str], float]:
    lines = [_text(MARGIN, 28, _summary(graph), extra=' font-size="16" font-weight="600"')]
    y = 48.0
    for line in _wrap([f"{name} {value} ({basis})" for name, value, basis, _ in labels.facts(graph)], width):
        lines.append(_text(MARGIN, y, line, "muted"))
        y += 17
    if labels.statement(graph):
        lines.append(_text(MARGIN, y, labels.statement(graph), "ink"))
        y += 17
    return lines, y + 4


def _wrap(parts: list[str], width: float) -> list[str]:
    """The parts joined by middle dots into lines that fit the picture."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}   ·   {part}" if lines else part
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
            parts.append(f'<rect x="-{GUTTER - 8:.0f}" y="{top:.1f}" width="{GUTTER - 8 + layout.width:.1f}" height="{height:.1f}" fill="{LIGHT["band"]}"/>')
        parts.append(_text(-GUTTER + 16, top + height / 2 + 4, f"L{layer}", extra=' font-weight="600"'))
    for row in layout.rows:
        parts.append(_text(-8, row.y + row.height / 2 + 4, row.text, "muted", ' font-size="10.5" text-anchor="end"'))
    return parts


def _guides(layout: Layout) -> list[str]:
    edges = [column.x for column in layout.columns[1:]]
    path = "".join(f"M{x:.1f} 0V{layout.height:.1f}" for x in edges)
    return [f'<path d="{path}" stroke="{LIGHT["line"]}" stroke-width="0.7" stroke-dasharray="1 3" fill="none"/>'] if path else []


def _edges(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    """The strongest edges as curves, weak ones first so that strong ones lie on top."""
    edges = labels.ranked_edges(graph)
    reference = labels.reference_weight(edges)
    parts = ['<g fill="none">']
    for source, target, kind, data in reversed(edges[: labels.MAX_DRAWN_EDGES]):
        strength = labels.edge_strength(data.get("weight", 0.0), reference)
        dash = ' stroke-dasharray="5 3"' if data.get("weight", 0.0) < 0 else ""
        parts.append(
            f'<path d="{path_data(layout, source, target, kind)}" stroke="{labels.edge_colour(kind)}"'
            f' stroke-width="{labels.edge_width(strength):.2f}" stroke-opacity="{labels.edge_opacity(strength):.2f}"{dash}/>'
        )
    return [*parts, "</g>"]


def path_data(layout: Layout, source: str, target: str, kind: str) -> str:
    """SVG path data of an edge."""
    (x0, y0), *rest = curve(layout, source, target, kind)
    return f"M{x0:g} {y0:g}C" + " ".join(f"{x:g} {y:g}" for x, y in rest)


def _nodes(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    parts = []
    for node, data in graph.nodes(data=True):
        x, y = layout.centres[node]
        negative = (data.get("attribution") or 0.0) < 0
        fill, stroke = (LIGHT["page"], LIGHT["negative"]) if negative else (LIGHT["positive"], LIGHT["page"])
        parts.append(
            f'<path transform="translate({x:g} {y:g})" d="{labels.shape_path(labels.shape(data), layout.radii[node])}" fill="{fill}"'
            f' stroke="{stroke}" stroke-width="{1.8 if negative else 1}"><title>{_escape(labels.title(graph, node))}</title></path>'
        )
    return sorted(parts)


def _captions(graph: nx.MultiDiGraph, layout: Layout) -> list[str]:
    halo = f' font-size="10" text-anchor="middle" stroke="{LIGHT["page"]}" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'
    return [_text(caption.x, caption.y, caption.text, "ink", halo) for caption in place_captions(graph, layout)]


def _shows_corrupted(layout: Layout) -> bool:
    return any(column.clean != column.corrupted for column in layout.columns)


def _strip_height(layout: Layout) -> float:
    return (1 + _shows_corrupted(layout)) * _strip_line(layout) + 10


def _strip_line(layout: Layout) -> float:
    """Height of one row of tokens: as high as the longest one where they stand upright."""
    longest = max((labels.text_width(labels.shorten(column.clean, 12), 12) for column in layout.columns), default=0.0)
    return longest + 14 if layout.vertical_tokens else 20.0


def _strip(layout: Layout) -> list[str]:
    """The tokens under their columns; the corrupted row appears where there is one, and marks what differs."""
    line = _strip_line(layout)
    y = layout.height + 6
    parts = [f'<path d="M0 {layout.height:.1f}H{layout.width:.1f}" stroke="{LIGHT["muted"]}" stroke-width="1"/>'] if layout.columns else []
    for place, side in enumerate(("clean", "corrupted") if _shows_corrupted(layout) else ("clean",)):
        if _shows_corrupted(layout):
            parts.append(_text(-8, y + place * line + 14, side, "muted", ' font-size="10.5" text-anchor="end"'))
        for column in layout.columns:
            parts += _token(layout, column, side, y + place * line)
    return parts


def _token(layout: Layout, column: Column, side: str, top: float) -> list[str]:
    text, middle = getattr(column, side), column.x + column.width / 2
    changed = column.clean != column.corrupted
    text = labels.shorten(text, 12 if layout.vertical_tokens else max(3, int((column.width - 4) / 7.2)))
    if side == "corrupted" and not changed:
        text = "" if column.pos is None else "·" if layout.vertical_tokens else "="
    extra = f' font-family="{MONO}" text-anchor="{"start" if layout.vertical_tokens else "middle"}"'
    if layout.vertical_tokens:
        mark = f'<rect x="{column.x + 1:.1f}" y="{top:.1f}" width="{column.width - 2:.1f}" height="{_strip_line(layout) - 6:.1f}" rx="4" fill="{LIGHT["mark"]}"/>'
        extra += f' transform="rotate(90 {middle - 4:.1f} {top + 4:.1f})"'
        return [*([mark] if changed else []), _text(middle - 4, top + 4, text, "ink" if changed or side == "clean" else "muted", extra)]
    mark = f'<rect x="{column.x + 3:.1f}" y="{top:.1f}" width="{column.width - 6:.1f}" height="18" rx="4" fill="{LIGHT["mark"]}"/>'
    colour = "muted" if column.pos is None or text == "=" else "ink"
    return [*([mark] if changed else []), _text(middle, top + 13.5, text, colour, extra)]


def _foot(graph: nx.MultiDiGraph, width: float, top: float) -> tuple[list[str], float]:
    """The legend: kinds of edges present, kinds of nodes present, and what sign and size mean."""
    kinds = [kind for kind in (*labels.EDGE_NAMES, None) if kind is None or any(k == kind for *_, k in graph.edges(keys=True))]
    entries: list[tuple[str, str]] = []
    for kind in kinds[:-1]:
        entries.append((f'<path d="M0 0H22" stroke="{labels.edge_colour(str(kind))}" stroke-width="3"/>', f"{labels.edge_name(str(kind))}: {labels.EDGE_MEANINGS[str(kind)]}"))
    if graph.number_of_edges():
        entries.append((f'<path d="M0 0H22" stroke="{LIGHT["other"]}" stroke-width="3" stroke-dasharray="5 3"/>', "dashed: negative"))
    for form, name in labels.legend(graph):
        entries.append((f'<path transform="translate(11 0)" d="{labels.shape_path(form, 6)}" fill="{LIGHT["positive"]}"/>', name))
    if graph.number_of_nodes():
        hollow = f'<path transform="translate(11 0)" d="{labels.shape_path("circle", 6)}" fill="{LIGHT["page"]}" stroke="{LIGHT["negative"]}" stroke-width="1.8"/>'
        entries.append((hollow, "hollow: negative attribution"))
        entries += [("", "size: |attribution|"), ("", "→token: promoted by the feature"), ("", "edges run upwards")]
    parts, x, y = [], MARGIN, top + 12
    for symbol, text in entries:
        wide = (30 if symbol else 0) + labels.text_width(text, 9.6) + 16
        if x + wide > width - MARGIN and x > MARGIN:
            x, y = MARGIN, y + 19
        label = _text(30 if symbol else 0, 4, text, "muted", ' font-size="11"')
        parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{symbol}{label}</g>')
        x += wide
    return parts, y - top + 18

"""Where every node of a circuit graph is drawn: positions left to right, layers bottom to top.

A `Layout` is in px with the origin at the top left, used alike by SVG and DOT; the viewer takes its cells and rows and
packs what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from circuitgraph.errors import RenderError
from circuitgraph.nodes import LAYER_SITES, Site
from circuitgraph.render import labels
from circuitgraph.render.looks import LOOKS
from circuitgraph.render.order import sort_cells

WIDTH = 1100  # of the grid: with its margins it fills a README column and fits beside the viewer's panel
STEP_MIN, STEP_MAX = 21.0, 58.0  # between neighbours in a cell; the largest node is 20 px wide
LINE = 38.0  # height of one line of nodes in a cell: the node and its caption
EMPTY_LINE = 20.0
ROW_GAP = 8.0
LEAST_WRAP = 5  # nodes in a line of a cell that are tried before the picture grows wider
TOKEN_LIMITS = (110.0, 84.0, 64.0, 48.0)  # widths at which tokens are cut, tried in this order
UPRIGHT = 22.0  # width of a column whose tokens stand upright
TOP, ABOVE = 1 << 30, ("logit", "metric")  # the layer of what stands above all layers, and what that is, bottom to top

Point = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One position with its two tokens; x is the left edge."""

    pos: int
    x: float
    width: float
    clean: str
    corrupted: str


@dataclass(frozen=True)
class Row:
    """One site of one layer; `layer` is None for the embeddings and the metric; y is the upper edge."""

    layer: int | None
    text: str
    y: float
    height: float


@dataclass(frozen=True)
class Caption:
    """Text centred on x with its baseline at y, placed so that it touches no node and no other caption."""

    node: str
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Layout:
    """Size of the grid, its columns (left to right) and rows (top to bottom), centre and radius of each node.

    `vertical_tokens` says that the columns are too narrow for horizontal tokens.
    """

    width: float
    height: float
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    centres: dict[str, Point]
    radii: dict[str, float]
    vertical_tokens: bool


def lay_out(graph: nx.MultiDiGraph, width: float = WIDTH) -> Layout:
    """The layout of `graph`, about `width` px wide where the number of positions allows it.

    A column is as wide as its fullest cell (and its tokens) needs; a row as high as its fullest cell. RenderError
    when a node's attribution or an edge's weight is not finite.
    """
    check_finite(graph)
    cells = find_cells(graph)
    fit = _fit(graph, cells, width)
    columns, x = [], 0.0
    for pos in sorted(fit.widths):
        columns.append(Column(pos, x, fit.widths[pos], *labels.tokens_at(graph, pos)))
        x += fit.widths[pos]
    rows = _rows(graph, cells, fit.wrap)
    at = {column.pos: column for column in columns}
    centres = {}
    for (key, pos), nodes in cells.items():
        centres.update(_place_cell(nodes, at[pos], rows[key], fit))
    total = sum(row.height for row in rows.values())
    return Layout(x, total, tuple(columns), tuple(rows.values()), centres, labels.radii(graph), fit.vertical)


def check_finite(graph: nx.MultiDiGraph) -> None:
    for node, value in graph.nodes(data="attribution", default=0.0):
        if value is not None and not math.isfinite(value):
            raise RenderError(
                f"node {node} has attribution {value}: expected a finite number; rebuild the graph or remove the node"
            )
    for source, target, kind, value in graph.edges(keys=True, data="weight", default=0.0):
        if not math.isfinite(value):
            raise RenderError(
                f"edge {source} -> {target} ({kind}) has weight {value}: expected a finite number;"
                " rebuild the graph or remove the edge"
            )


RowKey = tuple[int, int]  # (layer, rank of the site in it): sorts bottom to top
Cell = tuple[RowKey, int]  # row and position


def _row_of(site: Site) -> RowKey:
    """The row of a site; both embeddings share the lowest one, logits stand below the metric."""
    if site.layer is None:
        return (TOP, ABOVE.index(site.kind)) if site.kind in ABOVE else (-1, 0)
    return site.layer, LAYER_SITES.index(site.kind)


def _rows(graph: nx.MultiDiGraph, cells: dict[Cell, list[str]], wrap: int) -> dict[RowKey, Row]:
    """The rows from the top."""
    keys = row_keys(graph, cells)
    lines = {
        key: max((math.ceil(len(nodes) / wrap) for (row, _), nodes in cells.items() if row == key), default=0)
        for key, *_ in keys
    }
    rows, y = {}, 0.0
    for key, layer, text in keys:
        rows[key] = Row(layer, text, round(y, 1), round(lines[key] * LINE + ROW_GAP if lines[key] else EMPTY_LINE, 1))
        y += rows[key].height
    return rows


def find_cells(graph: nx.MultiDiGraph) -> dict[Cell, list[str]]:
    """Nodes by cell, each cell in drawing order."""
    cells: dict[Cell, list[str]] = {}
    for node, data in graph.nodes(data=True):
        cells.setdefault((_row_of(Site.parse(data["site"])), data["pos"]), []).append(node)
    sort_cells(graph, cells)
    return cells


def row_keys(graph: nx.MultiDiGraph, cells: Mapping[Cell, list[str]]) -> list[tuple[RowKey, int | None, str]]:
    """(key, layer, text) of each row from the top; a layer without nodes keeps one thin row."""
    present = {row for row, _ in cells}
    layers = max([int(graph.graph.get("n_layers") or 0), *(row[0] + 1 for row in present if row[0] < TOP)])
    rows: list[tuple[RowKey, int | None, str]] = []
    rows += [(row, None, ABOVE[row[1]]) for row in sorted(present, reverse=True) if row[0] == TOP]
    for layer in reversed(range(layers)):
        own = sorted((row for row in present if row[0] == layer), reverse=True)
        rows += [(row, layer, _site_text(LAYER_SITES[row[1]])) for row in own] or [((layer, 0), layer, "")]
    if (-1, 0) in present:
        rows.append(((-1, 0), None, "embed"))
    return rows


def _site_text(kind: str) -> str:
    return {"attention": "attn", "MLP": "MLP"}.get(labels.SITE_WORDS.get(kind, ""), "resid")


@dataclass(frozen=True)
class _Fit:
    """How a cell is filled: px between neighbours, nodes in a line, and how tokens stand under the column."""

    widths: dict[int, float]
    step: float
    wrap: int
    vertical: bool


def _fit(graph: nx.MultiDiGraph, cells: dict[Cell, list[str]], width: float) -> _Fit:
    """The roomiest filling that stays within `width`: first full cells break into lines, then long tokens are cut.

    Cells keep at least `LEAST_WRAP` nodes in a line, so many positions make the picture wider than asked.
    """
    tokens = graph.graph.get("tokens") or {}
    n_pos = max([len(tokens.get("clean") or []), *(pos + 1 for _, pos in cells)])
    fullest = dict.fromkeys(range(n_pos), 0)
    for (_, pos), nodes in cells.items():
        fullest[pos] = max(fullest.get(pos, 0), len(nodes))
    tokens_need = {pos: _token_width(graph, pos) for pos in fullest}
    most = max(fullest.values(), default=1)
    least = min(most, LEAST_WRAP)

    def widths(limit: float, step: float, wrap: int) -> dict[int, float]:
        room = 4 if limit < TOKEN_LIMITS[-1] else LOOKS.cell_padding
        return {
            pos: max(min(limit, tokens_need[pos]), min(count, wrap) * step + room) for pos, count in fullest.items()
        }

    choices = [(limit, wrap) for limit in TOKEN_LIMITS for wrap in range(most, least - 1, -1)]
    fitting = ((limit, wrap) for limit, wrap in choices if sum(widths(limit, STEP_MIN, wrap).values()) <= width)
    limit, wrap = next(fitting, (UPRIGHT, least))
    steps = [STEP_MIN + half / 2 for half in range(int(2 * (STEP_MAX - STEP_MIN)) + 1)]
    step = max((step for step in steps if sum(widths(limit, step, wrap).values()) <= width), default=STEP_MIN)
    return _Fit(widths(limit, step, wrap), step, wrap, limit == UPRIGHT)


def _token_width(graph: nx.MultiDiGraph, pos: int) -> float:
    return max(36.0, *(labels.text_width(text, 12) + LOOKS.token_padding for text in labels.tokens_at(graph, pos)))


def _place_cell(nodes: list[str], column: Column, row: Row, fit: _Fit) -> dict[str, Point]:
    """Centres of the nodes of one cell: lines of equal length, centred, every second one shifted like bricks."""
    count = math.ceil(len(nodes) / fit.wrap)
    per_line = math.ceil(len(nodes) / count)
    top = row.y + (row.height - LINE * count) / 2
    centres = {}
    for place, node in enumerate(nodes):
        line, slot = divmod(place, per_line)
        in_line = min(per_line, len(nodes) - line * per_line)
        brick = (0.25 if line % 2 else -0.25) if count > 1 and in_line == per_line else 0.0
        x = column.x + column.width / 2 + (slot - (in_line - 1) / 2 + brick) * fit.step
        centres[node] = (round(x, 1), round(top + LINE * (line + 0.5) - 4, 1))
    return centres


def curve(layout: Layout, source: str, target: str, kind: str) -> tuple[Point, Point, Point, Point]:
    """The four points of the cubic from the top of `source` to the bottom of `target`.

    Q arrives at the left, K at the right and OV in the middle, so that parallel edges of one pair stay apart.
    """
    (x0, y0), (x1, y1) = layout.centres[source], layout.centres[target]
    shape = LOOKS.curve
    side = shape.side * {"q": -1, "k": 1}.get(kind, 0)
    start = (x0 + shape.start * side * layout.radii[source], y0 - shape.top * layout.radii[source])
    end = (x1 + side * layout.radii[target], y1 + shape.bottom * layout.radii[target])
    rise = start[1] - end[1]
    bend = max(shape.bend, shape.steep * rise)
    lean = shape.lean * side + _bow(end[0] - start[0], rise) * (-1 if source < target else 1)
    points = (start, (start[0] + lean, start[1] - bend), (end[0] + lean, end[1] + bend), end)
    return tuple((round(x, 1), round(y, 1)) for x, y in points)  # type: ignore[return-value]


def _bow(across: float, rise: float) -> float:
    """How far a nearly upright edge leans out, so that it passes beside the nodes between its two ends."""
    shape = LOOKS.curve
    upright = max(0.0, 1 - abs(across) / shape.upright)
    return upright * min(shape.bow, max(0.0, shape.bow_slope * (rise - shape.bow_from)))


def place_captions(graph: nx.MultiDiGraph, layout: Layout, size: float = 10) -> list[Caption]:
    """Captions that fit, chosen greedily: the user's labels first, then the largest |attribution|."""

    def importance(node: str) -> tuple[bool, bool, float, str]:
        data = graph.nodes[node]
        return data.get("kind") != "metric", not data.get("label"), -abs(data.get("attribution") or 0.0), node

    taken = [
        (x - r, y - r, x + r, y + r) for (x, y), r in ((layout.centres[node], layout.radii[node]) for node in graph)
    ]
    captions = []
    for node in sorted(graph, key=importance):
        text = labels.caption(graph, node)
        (x, y), radius = layout.centres[node], layout.radii[node]
        half = labels.text_width(text, size) / 2
        x = min(max(x, half + 1), layout.width - half - 1)
        for baseline in (
            (y - radius - 3, y + radius + size)
            if graph.nodes[node].get("kind") == "metric"
            else (y + radius + size, y - radius - 3)
        ):
            box = (x - half - 2, baseline - size + 1, x + half + 2, baseline + 2)
            if text and box[1] >= 0 and box[3] <= layout.height and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                captions.append(Caption(node, text, round(x, 1), round(baseline, 1)))
                break
    return captions


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

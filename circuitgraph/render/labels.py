"""Text, colour, width, order and shape of a drawn circuit graph, for DOT, SVG and the viewer alike."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx

from circuitgraph.graphs.schema import metric_scale
from circuitgraph.render.looks import LOOKS

MAX_DRAWN_EDGES = 2000
RADIUS = 10.0  # px of the largest node
MINUS = "\u2212"

# All colours keep 3:1 (lines) or 4.5:1 (text) on their page and stay apart under the common colour deficiencies.
LIGHT = {
    "ov": "#B35900", "q": "#3C8DC5", "k": "#007F5F", "mlp": "#003E7E", "metric": "#B0428A", "residual": "#767676",
    "spare1": "#7A52C7", "spare2": "#A63D2F", "spare3": "#4F7A1C", "other": "#767676",
    "positive": "#333C4A", "negative": "#C2243C", "page": "#FFFFFF", "ink": "#1B1F24", "muted": "#57606A",
    "band": "#F5F7F9", "line": "#D5DBE1", "raised": "#FFFFFF", "mark": "#FFE2A8", "accent": "#0B5CAD",
}  # fmt: skip
DARK = {
    "ov": "#FFB000", "q": "#7CC8F5", "k": "#26C79A", "mlp": "#4F8EF7", "metric": "#F08CC4", "residual": "#9A9A9A",
    "spare1": "#B79CFF", "spare2": "#FF9D7A", "spare3": "#A9D46A", "other": "#9A9A9A",
    "positive": "#DDE3EA", "negative": "#FF7B87", "page": "#10141A", "ink": "#E8ECF1", "muted": "#9DA8B5",
    "band": "#171C24", "line": "#303844", "raised": "#1B212A", "mark": "#6B4E00", "accent": "#7DB7FF",
}  # fmt: skip

EDGE_NAMES = {"ov": "OV", "q": "Q", "k": "K", "mlp": "MLP", "residual": "residual", "metric": "metric"}
EDGE_MEANINGS = {
    "ov": "what attention moves",
    "q": "why this query",
    "k": "why this key",
    "mlp": "what the MLP reads",
    "residual": "what the residual stream carries on",
    "metric": "what the metric reads",
}
SPARE = ("spare1", "spare2", "spare3")  # for kinds that have no colour of their own
NODE_ORDER = ("embedding", "pos_embedding", "bias", "feature", "error", "probe", "logit", "metric")
SITE_WORDS = {"z": "attention", "attn_out": "attention", "mlp_out": "MLP", "mlp_post": "MLP"}


def visible(text: str, space: str = "·") -> str:
    """`text` with white space, controls, bidi marks and lone surrogates made visible.

    ` a\\n` becomes `·a⏎`, U+202E becomes `\\u202e` (pictures of controls are missing in too many fonts).

    The result has no character that XML, DOT or a terminal could refuse, and prints in one line.
    """
    return "".join(_visible_character(character, space) for character in text)


def _visible_character(character: str, space: str) -> str:
    code = ord(character)
    if character in " \n\t":
        return {" ": space, "\n": "⏎", "\t": "⇥"}[character]
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs")
    noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if not hidden and not noncharacter:
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shorten(text: str, limit: int) -> str:
    """`text`, or its first characters and an ellipsis when it is longer than `limit`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_width(text: str, size: float) -> float:
    """Estimated width in px of `text` at font size `size` (0.6 em a character, 1 em for wide ones)."""
    return size * sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.6 for character in text)


def signed(value: float) -> str:
    """`value` with three significant digits and always a sign: `+0.125`, `−3.10`, `+4096`, `+2.50e-7`, `0`."""
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-4 <= size < 1e6:
        text = f"{size:#.3g}" if size < 999.5 else f"{size:.0f}"
    else:
        mantissa, _, exponent = f"{size:.2e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return (MINUS if value < 0 else "+") + text.rstrip(".")


def plain(value: float) -> str:
    """`value` as `signed`, without the plus."""
    return signed(value).lstrip("+")


def tokens_at(graph: nx.MultiDiGraph, pos: int) -> tuple[str, str]:
    """Visible clean and corrupted token of a position; empty strings where the graph names none.

    Without a corrupted prompt the clean token stands for both: nothing differs.
    """
    tokens = graph.graph.get("tokens") or {}
    clean = tokens.get("clean") or []
    corrupted = clean if tokens.get("corrupted") is None else tokens["corrupted"]
    return visible("".join(clean[pos : pos + 1])), visible("".join(corrupted[pos : pos + 1]))


def metric_name(graph: nx.MultiDiGraph) -> str:
    """Name of the metric in words: `logit difference`; a node that is explained keeps its name."""
    name = str((graph.graph.get("metric") or {}).get("name", "metric"))
    return visible(name if "/" in name else name.replace("_", " "), " ")


def model_name(graph: nx.MultiDiGraph) -> str:
    """Name of the model from the provenance, or the empty string."""
    return visible(str((graph.graph.get("provenance") or {}).get("model", "")), " ")


def statement(graph: nx.MultiDiGraph) -> str:
    """One sentence when there is little or nothing to draw, else the empty string."""
    nodes, edges = graph.number_of_nodes(), graph.number_of_edges()
    if nodes == 0:
        return "This graph is empty: no node passed the selection. The reports say what each step removed."
    if edges == 0:
        return f"This graph has {nodes} node{'s' * (nodes > 1)} and no edges: nothing connects to anything."
    return ""


def facts(graph: nx.MultiDiGraph) -> list[tuple[str, str, str, str]]:
    """(name, value, "measured" or "estimated", explanation) of every number in the header, in reading order."""
    metric, evidence = graph.graph.get("metric") or {}, graph.graph.get("evidence") or {}
    found = []
    if "clean" in metric and "corrupted" in metric:
        runs = [f"{plain(metric[run])} {run}" for run in ("clean", "corrupted") if metric[run] is not None]
        examples = graph.graph.get("n_examples", 1)
        basis = f"mean over {examples} example{'s' * (examples != 1)}"
        if not metric_scale(graph):
            basis += "; it does not change, so shares of it are undefined"
        value = ", ".join(runs) if len(runs) > 1 else plain(metric["clean"])
        found.append((metric_name(graph), value, "measured", basis))
    for key, name, explanation in _EVIDENCE:
        if isinstance(evidence.get(key), (int, float)):
            share = f"{round(evidence[key], 2) + 0.0:.0%}".replace("-", MINUS)
            found.append((name, share, "measured", explanation))
    if isinstance(evidence.get("pearson_r"), (int, float)):
        count = evidence.get("n_patched")
        over = f" over {count} patched nodes" if count is not None else ""
        explanation = f"correlation of estimated attributions with effects measured by patching{over}"
        found.append(("estimate against effect", f"r = {plain(evidence['pearson_r'])}", "measured", explanation))
    total = sum(abs(weight) for *_, weight in graph.edges(data="weight", default=0.0))
    if total:
        from_errors = sum(
            abs(weight) for u, _, weight in graph.edges(data="weight", default=0.0) if is_error(graph.nodes[u])
        )
        explanation = "share of the absolute edge weight that leaves error nodes: what the dictionaries miss"
        found.append(("input from errors", f"{from_errors / total:.0%}", "estimated", explanation))
    return found


_EVIDENCE = (
    ("faithfulness", "faithfulness", "the circuit alone, between the empty circuit (0%) and the whole model (100%)"),
    (
        "complement_faithfulness",
        "rest alone",
        "complement_faithfulness: the model without the circuit; near 0% where nothing that matters was left out",
    ),
    ("faithfulness_errors_removed", "errors removed", "faithfulness when the error nodes are taken out as well"),
)


def is_error(attributes: Mapping[str, Any]) -> bool:
    """Whether the node is an error node."""
    return bool(attributes.get("kind") == "error")


def is_top(attributes: Mapping[str, Any]) -> bool:
    """Whether the node is what the graph explains: the metric, or a logit or probe that it weighs."""
    return attributes.get("kind") in ("metric", "logit", "probe")


def kind_name(attributes: Mapping[str, Any]) -> str:
    """What the node is, in words: `attention feature`, `MLP error`, `token embedding`, `metric`."""
    kind = str(attributes.get("kind", "node"))
    if kind in ("feature", "error", "bias"):
        site = str(attributes.get("site", "")).partition(".")[0]
        return f"{SITE_WORDS.get(site, 'residual')} {kind}"
    return {"embedding": "token embedding", "pos_embedding": "position embedding"}.get(kind, kind)


def short_name(attributes: Mapping[str, Any]) -> str:
    """The node inside its cell: `f1024` for a feature, else its kind."""
    named = attributes.get("kind") == "feature" and attributes.get("feature") is not None
    return f"f{attributes['feature']}" if named else kind_name(attributes)


def caption(graph: nx.MultiDiGraph, node: str) -> str:
    """Text beside a drawn node: the user's label, else a token it promotes (`→·Mary`) or a logit's token, else `f1024`,
    or nothing."""
    attributes = graph.nodes[node]
    limits = LOOKS.captions
    if attributes.get("label"):
        return shorten(visible(str(attributes["label"]), " "), limits.label)
    if attributes.get("kind") == "metric":
        return shorten(metric_name(graph), limits.metric)
    if attributes.get("kind") == "logit":
        return shorten(visible(str(attributes.get("token", "logit"))), limits.token)
    if attributes.get("kind") != "feature":
        return ""
    promoted = attributes.get("top_tokens")
    return "→" + shorten(visible(str(promoted[0])), limits.promoted) if promoted else short_name(attributes)


def title(graph: nx.MultiDiGraph, node: str) -> str:
    """The node in one line for tooltips and screen readers."""
    attributes = graph.nodes[node]
    parts = [visible(node), kind_name(attributes)]
    if attributes.get("label"):
        parts.append(f"“{visible(str(attributes['label']), ' ')}”")
    if attributes.get("pos") is not None:
        parts.append(f"at {tokens_at(graph, attributes['pos'])[0]}")
    word = change_name(graph) if attributes.get("kind") == "metric" else "attribution"
    parts.append(f"{word} {signed(attributes.get('attribution') or 0.0)}")
    if attributes.get("effect") is not None:
        parts.append(f"measured effect {signed(attributes['effect'])}")
    return ", ".join(parts)


def change_name(graph: nx.MultiDiGraph) -> str:
    """What the metric node's attribution is, in words."""
    corrupted = (graph.graph.get("metric") or {}).get("corrupted")
    return "clean, no corrupted prompt" if corrupted is None else "clean minus corrupted"


def shape(attributes: Mapping[str, Any]) -> str:
    """Name of the node's shape; see `shape_path`."""
    kind, site = attributes.get("kind"), str(attributes.get("site", "")).partition(".")[0]
    if kind == "feature":
        return {"attention": "triangle", "MLP": "circle"}.get(SITE_WORDS.get(site, ""), "rounded")
    return {
        "error": "diamond",
        "embedding": "square",
        "pos_embedding": "house",
        "bias": "hexagon",
        "probe": "wedge",
        "logit": "star",
        "metric": "pill",
    }.get(str(kind), "circle")


def shape_path(name: str, radius: float) -> str:
    """SVG path data of a shape around (0, 0); all shapes of one radius look about equally large."""
    if name in _POLYGONS:
        points = [f"{radius * x:.1f} {radius * y:.1f}" for x, y in _POLYGONS[name]]
        return "M" + "L".join(points) + "Z"
    half = 1.7 * radius if name == "pill" else 0.85 * radius if name == "rounded" else radius
    tall = 0.8 * radius if name == "pill" else half
    corner = 0.35 * radius if name == "rounded" else tall
    arc = f"a{corner:.1f} {corner:.1f} 0 0 1 "
    across, down = 2 * (half - corner), 2 * (tall - corner)
    return (
        f"M{corner - half:.1f} {-tall:.1f}h{across:.1f}{arc}{corner:.1f} {corner:.1f}v{down:.1f}"
        f"{arc}{-corner:.1f} {corner:.1f}h{-across:.1f}{arc}{-corner:.1f} {-corner:.1f}v{-down:.1f}"
        f"{arc}{corner:.1f} {-corner:.1f}Z"
    )


_POLYGONS = {
    "triangle": ((0, -1.1), (1.05, 0.8), (-1.05, 0.8)),
    "diamond": ((0, -1.2), (1.05, 0), (0, 1.2), (-1.05, 0)),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "house": ((0, -1.1), (0.9, -0.25), (0.9, 0.85), (-0.9, 0.85), (-0.9, -0.25)),
    "star": tuple(
        (r * math.sin(math.pi * i / 5), 0.1 - r * math.cos(math.pi * i / 5)) for i, r in enumerate((1.35, 0.62) * 5)
    ),
    "wedge": ((0, 1.1), (1.05, -0.8), (-1.05, -0.8)),
    "hexagon": ((-0.5, -0.9), (0.5, -0.9), (1, 0), (0.5, 0.9), (-0.5, 0.9), (-1, 0)),
}


def radii(graph: nx.MultiDiGraph) -> dict[str, float]:
    """Radius in px of each node, 4 to 10 by the root of |attribution|; the metric and its targets have 10."""
    sizes = {node: abs(data.get("attribution") or 0.0) for node, data in graph.nodes(data=True) if not is_top(data)}
    largest = max(sizes.values(), default=0.0) or 1.0
    least, most = LOOKS.least_radius * RADIUS, RADIUS
    return {
        node: least + (most - least) * math.sqrt(sizes[node] / largest) if node in sizes else most for node in graph
    }


def legend(graph: nx.MultiDiGraph) -> list[tuple[str, str]]:
    """(shape, kind in words) of every kind of node in the graph, in drawing order."""
    rank = {kind: place for place, kind in enumerate(NODE_ORDER)}
    present = {(rank.get(str(data.get("kind")), 9), kind_name(data), shape(data)) for _, data in graph.nodes(data=True)}
    merged: dict[str, list[str]] = {}
    for _, name, form in sorted(present):
        merged.setdefault(form, []).append(name)
    return [(form, merge_names(names)) for form, names in merged.items()]


def merge_names(names: list[str]) -> str:
    """`MLP error` and `attention error` share a shape: one entry, `error`."""
    return names[0] if len(names) == 1 else names[0].rpartition(" ")[2]


Edge = tuple[str, str, str, dict[str, Any]]


def ranked_edges(graph: nx.MultiDiGraph) -> list[Edge]:
    """(source, target, kind, attributes) of all edges, largest |weight| first, ties by name."""
    edges: Iterable[Edge] = graph.edges(keys=True, data=True)
    return sorted(edges, key=lambda edge: (-abs(edge[3].get("weight", 0.0)), str(edge[0]), str(edge[1]), str(edge[2])))


def edge_name(kind: str) -> str:
    """Short name of an edge kind: `OV`, `Q`, `K`, `MLP`, `metric`, else its words."""
    return EDGE_NAMES.get(kind, visible(kind.replace("_", " "), " "))


def edge_kinds(graph: nx.MultiDiGraph) -> dict[str, str]:
    """The kinds of edges in the graph, known ones first, each with the name of its colour in `LIGHT` and `DARK`.

    Kinds that this module does not know take the spare colours in the order of their names, further ones are grey.
    """
    present = {str(kind) for *_, kind in graph.edges(keys=True)}
    unknown = dict(zip(sorted(present - set(EDGE_NAMES)), SPARE, strict=False))
    known = [kind for kind in EDGE_NAMES if kind in present]
    return {
        kind: unknown.get(kind, kind if kind in EDGE_NAMES else "other")
        for kind in known + sorted(present - set(known))
    }


def reference_weight(edges: list[Edge]) -> float:
    """The 99th percentile of |weight| of ranked edges (1 when there are none): what is drawn at full width."""
    return abs(edges[len(edges) // 100][3].get("weight", 0.0)) or 1.0 if edges else 1.0


def edge_strength(weight: float, reference: float) -> float:
    """sqrt(|weight| / reference), at most 1: the one number that sets width and opacity."""
    return min(1.0, math.sqrt(abs(weight) / reference))


def edge_width(strength: float) -> float:
    """Stroke width in px for a strength between 0 and 1."""
    base, slope, power = LOOKS.lines.width
    return base + slope * math.pow(strength, power)


def edge_opacity(strength: float) -> float:
    """Stroke opacity for a strength between 0 and 1: weak edges stay in the background."""
    base, slope, power = LOOKS.lines.opacity
    return base + slope * math.pow(strength, power)

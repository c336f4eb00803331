"""A circuit graph as one HTML page that needs no server, no network and no other file.

In comes a graph, out comes the page: our template, style and script with the graph as JSON beside them. This module
decides nothing about looks; it packs what `labels` and `layout` decided so that the script only has to draw it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import networkx as nx

from circuitgraph.errors import RenderError
from circuitgraph.render import labels
from circuitgraph.render.labels import DARK, LIGHT
from circuitgraph.render.layout import Layout, lay_out, place_captions
from circuitgraph.render.svg import path_data

STAGE = (930, 600)  # width and height left for the grid in a 1440 x 900 window
SCRIPTS = ("dom.js", "graph.js", "grid.js", "panel.js", "viewer.js")


def render_html(graph: nx.MultiDiGraph) -> str:
    """The page as text, byte-identical for equal graphs.

    Tokens and labels travel as JSON with `& < >` escaped and reach the page as text only; a content security policy
    allows exactly the page's own script and style. RenderError when a number of the graph is not finite.
    """
    script = "(() => {\n" + '"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS) + "})();"
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{{_variables(DARK)}}} }}"
    style = f":root {{{_variables(LIGHT)}}}\n{dark}\n{_asset('viewer.css')}"
    parts = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": _json(payload(graph)),
    }
    # One pass: a token that looks like a placeholder stays a token.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("viewer.html"))


def _asset(name: str) -> str:
    return (resources.files("circuitgraph.render") / "viewer" / name).read_text(encoding="utf-8")


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(value: Any) -> str:
    """`value` as ASCII JSON in which no HTML parser can find the end of a script or the start of a comment."""
    text = _dump(value, separators=(",", ":"))
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _dump(value: Any, **how: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True, **how)
    except (ValueError, TypeError) as error:
        raise RenderError(
            f"the graph cannot be written as JSON: {error}; expected text, finite numbers, lists and dicts"
        ) from error


def payload(graph: nx.MultiDiGraph) -> dict[str, Any]:
    """Everything the page shows, as plain JSON values; nodes and edges as columns, edges strongest first."""
    layout = lay_out(graph, *STAGE)
    order = sorted(graph, key=lambda node: (layout.centres[node][0], -layout.centres[node][1], node))
    edges = labels.ranked_edges(graph)
    kind_numbers, kinds = _kinds(edges)
    return {
        "model": labels.model_name(graph),
        "statement": labels.statement(graph),
        "facts": labels.facts(graph),
        "prompts": _prompts(graph),
        "grid": _grid(layout),
        "nodes": _nodes(graph, layout, order),
        "edges": _edges(layout, edges, {node: number for number, node in enumerate(order)}, kind_numbers),
        "kinds": kinds,
        "legend": [[labels.shape_path(form, 6), name] for form, name in labels.legend(graph)],
        "logits": _logits(graph),
        "reports": [labels.visible(str(line), " ") for line in graph.graph.get("reports") or []],
        "provenance": _provenance(graph),
        "most_drawn": labels.MAX_DRAWN_EDGES,
    }


def _prompts(graph: nx.MultiDiGraph) -> dict[str, list[str]]:
    tokens = graph.graph.get("tokens") or {}
    return {
        side: [labels.visible(token, " ") for token in _spaced(tokens.get(side) or [])]
        for side in ("clean", "corrupted")
    }


def _spaced(tokens: list[str]) -> list[str]:
    """The tokens as they read in a row: word-level tokenizers keep no spaces, so there one goes between words."""
    if any(token[:1].isspace() for token in tokens):
        return tokens
    return [token if i == 0 or not token[:1].isalnum() else f" {token}" for i, token in enumerate(tokens)]


def _grid(layout: Layout) -> dict[str, Any]:
    return {
        "width": round(layout.width, 1),
        "height": round(layout.height, 1),
        "upright": layout.vertical_tokens,
        "columns": [
            [column.pos, round(column.x, 1), round(column.width, 1), column.clean, column.corrupted]
            for column in layout.columns
        ],
        "rows": [[row.layer, row.text, round(row.y, 1), round(row.height, 1)] for row in layout.rows],
    }


def _nodes(graph: nx.MultiDiGraph, layout: Layout, order: list[str]) -> dict[str, list[Any]]:
    captions = {caption.node: [caption.text, caption.x, caption.y] for caption in place_captions(graph, layout)}
    data = [graph.nodes[node] for node in order]
    columns: dict[str, list[Any]] = {
        "name": [labels.visible(node) for node in order],
        "short": [labels.short_name(each) for each in data],
        "kind": [labels.kind_name(each) for each in data],
        "title": [labels.title(graph, node) for node in order],
        "error": [labels.is_error(each) for each in data],
        "metric": [each.get("kind") == "metric" for each in data],
        "x": [layout.centres[node][0] for node in order],
        "y": [layout.centres[node][1] for node in order],
        "radius": [round(layout.radii[node], 1) for node in order],
        "path": [
            labels.shape_path(labels.shape(each), layout.radii[node]) for node, each in zip(order, data, strict=True)
        ],
        "caption": [captions.get(node) for node in order],
        "label": [labels.visible(str(each["label"]), " ") if each.get("label") else None for each in data],
        "top_tokens": [[labels.visible(str(token)) for token in each.get("top_tokens") or []] for each in data],
    }
    for name in ("layer", "pos"):
        columns[name] = [each.get(name) for each in data]
    for name in ("attribution", "effect", "activation", "baseline_activation", "influence"):
        columns[name] = [_rounded(each.get(name)) for each in data]
    return columns


def _edges(
    layout: Layout, edges: list[labels.Edge], numbers: dict[str, int], kinds: dict[str, int]
) -> dict[str, list[Any]]:
    reference = labels.reference_weight(edges)
    strengths = [labels.edge_strength(data.get("weight", 0.0), reference) for *_, data in edges]
    return {
        "source": [numbers[source] for source, *_ in edges],
        "target": [numbers[target] for _, target, *_ in edges],
        "kind": [kinds[kind] for _, _, kind, _ in edges],
        "weight": [_rounded(data.get("weight", 0.0)) for *_, data in edges],
        "local_weight": [_rounded(data.get("local_weight")) for *_, data in edges],
        "heads": [[_rounded(head) for head in data.get("heads") or []] for *_, data in edges],
        "width": [round(labels.edge_width(strength), 2) for strength in strengths],
        "opacity": [round(labels.edge_opacity(strength), 2) for strength in strengths],
        "path": [path_data(layout, source, target, kind) for source, target, kind, _ in edges],
    }


def _rounded(value: float | None) -> float | None:
    """`value` with six significant digits: half the bytes, and more than a reader can use."""
    return None if value is None else float(f"{value:.6g}")


def _kinds(edges: list[labels.Edge]) -> tuple[dict[str, int], list[list[Any]]]:
    """Number of each kind of edge present, and for each number [name, meaning, edges, colour]; known kinds first."""
    counts = Counter(kind for _, _, kind, _ in edges)
    known = [kind for kind in labels.EDGE_NAMES if kind in counts]
    kinds = known + sorted(kind for kind in counts if kind not in labels.EDGE_NAMES)
    rows = [
        [labels.edge_name(kind), labels.EDGE_MEANINGS.get(kind, ""), counts[kind], kind if kind in known else "other"]
        for kind in kinds
    ]
    return {kind: number for number, kind in enumerate(kinds)}, rows


def _logits(graph: nx.MultiDiGraph) -> dict[str, list[list[Any]]]:
    logits = graph.graph.get("logits") or {}
    return {
        side: [[labels.visible(str(token)), _rounded(prob)] for token, prob in logits.get(side) or []]
        for side in ("clean", "corrupted")
    }


def _provenance(graph: nx.MultiDiGraph) -> str:
    """The provenance as indented JSON for reading, or the empty string."""
    provenance = graph.graph.get("provenance")
    text = _dump(provenance, indent=2, ensure_ascii=False) if provenance else ""
    return "\n".join(labels.visible(line, " ") for line in text.split("\n"))

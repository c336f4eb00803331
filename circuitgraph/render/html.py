"""A circuit graph as one HTML page that needs no server, no network and no other file.

The viewer's template, style and script are put together with the graph as data; `payload` decides what the data are.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import networkx as nx

from circuitgraph.errors import RenderError
from circuitgraph.graphs.schema import require_graph
from circuitgraph.render import labels
from circuitgraph.render.labels import DARK, LIGHT
from circuitgraph.render.payload import MAX_EDGES, MAX_NODES, payload

COMPRESS_ABOVE = 2_000_000  # bytes of data; below, inflating costs more than it saves


def render_html(
    graph: nx.MultiDiGraph,
    compare: nx.MultiDiGraph | None = None,
    *,
    names: Sequence[str] = ("A", "B"),
    links: Mapping[str, str] | None = None,
    max_nodes: int = MAX_NODES,
    max_edges: int = MAX_EDGES,
) -> str:
    """The page as text, byte-identical for equal graphs.

    Tokens and labels travel as JSON with `& < >` escaped and reach the page as text only; a content security policy
    allows exactly the page's own script and style, and no connection. RenderError when a number of the graph is not
    finite.

    Args:
        compare: a second graph; the page then shows what only one has, and the differences.
        names: what the two graphs are called.
        links: site -> id of its dictionary on Neuronpedia (`gpt2-small/5-att-kk`), for links to feature pages.
        max_nodes, max_edges: the most that the page holds, the strongest; it says what it leaves out.
    """
    require_graph(graph, with_metric=False)
    data = payload(graph, compare, names=names, links=links, max_nodes=max_nodes, max_edges=max_edges)
    script, style = _asset("bundle/viewer.js"), f"{_colours()}\n{_asset('bundle/viewer.css')}"
    text = to_json(data)
    packed = len(text) > COMPRESS_ABOVE
    parts = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'",
        "title": html.escape(_title(graph, compare)),
        "style": style,
        "script": script,
        "encoding": "gzip" if packed else "json",
        "data": base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii") if packed else text,
    }
    # One pass: a token that looks like a placeholder stays a token.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("viewer.html"))


def _title(graph: nx.MultiDiGraph, other: nx.MultiDiGraph | None) -> str:
    words = f"{labels.metric_name(graph)} circuit{'s compared' if other is not None else ''}"
    return " · ".join(filter(None, (words, labels.model_name(graph))))


def _asset(name: str) -> str:
    return (resources.files("circuitgraph.render") / "viewer" / name).read_text(encoding="utf-8")


def _colours() -> str:
    """The palettes as custom properties; the script says which of the two, as the system or the reader chose."""

    def variables(palette: Mapping[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in palette.items())

    return "\n".join(
        [
            f":root{{color-scheme:light;{variables(LIGHT)}}}",
            f":root[data-theme=dark]{{color-scheme:dark;{variables(DARK)}}}",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def to_json(value: Any) -> str:
    """`value` as ASCII JSON in which no HTML parser can find the end of a script or the start of a comment.

    RenderError for what JSON cannot hold.
    """
    try:
        text = json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise RenderError(
            f"the graph cannot be written as JSON: {error}; expected text, finite numbers, lists and dicts"
        ) from error
    for character in "&<>":  # all others that matter, U+2028 and U+2029 too, are escaped as not ASCII
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

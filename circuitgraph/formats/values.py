"""The values that a graph file may hold, and where a file's values are taken apart.

They are plain: None, bool, int of 64 bits, finite float, str, list, dict with strings as keys. numpy scalars and arrays
and tuples, which programs leave in graphs, become those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import networkx as nx
import numpy as np

from circuitgraph.errors import GraphError

_SIMPLE = frozenset({str, bool, type(None)})
_STRING = frozenset({str})
_FLAT = frozenset({float, str})
MAX_DEPTH = 64


def plain_graph(graph: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """The graph itself if its values are plain, else a copy where they are; GraphError for what no JSON holds."""
    if is_plain_graph(graph):
        return graph
    copy = nx.MultiDiGraph()
    copy.graph.update(plain(graph.graph, "graph"))
    copy.add_nodes_from((key, plain(d, f"node {key!r}")) for key, d in graph.nodes(data=True))
    copy.add_edges_from((u, v, k, plain(d, f"edge {u!r} -> {v!r}")) for u, v, k, d in graph.edges(keys=True, data=True))
    return copy


def is_plain_graph(graph: nx.MultiDiGraph) -> bool:
    """Whether every value of the graph is plain and nested no more than `MAX_DEPTH` deep."""
    nodes = [data for _, data in graph.nodes(data=True)]
    edges = [data for _, inner in graph.adjacency() for keyed in inner.values() for data in keyed.values()]
    return _is_plain(graph.graph) and _are_plain(nodes) and _are_plain(edges)


def _are_plain(tables: Iterable[dict[str, Any]]) -> bool:
    """Whether every key is a string and every value plain. Quick for usual values; NaN is found when written."""
    if not _STRING.issuperset(map(type, chain.from_iterable(tables))):
        return False
    values = [value for table in tables for value in table.values() if type(value) not in _FLAT]
    rest = [value for value in values if type(value) is not list]
    inner = chain.from_iterable(value for value in values if type(value) is list)
    return all(map(_is_plain, rest if _FLAT.issuperset(map(type, inner)) else values))


def _is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    kind = type(value)
    if kind is dict:
        return depth > 0 and all(type(key) is str and _is_plain(item, depth - 1) for key, item in value.items())
    if kind is list:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if kind is float:
        return bool(value - value == 0)
    return kind in _SIMPLE or (kind is int and -(1 << 63) <= value < 1 << 63)


def plain(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """The value with plain types only; GraphError, which names the place, for what has none."""
    if depth == 0:
        raise GraphError(f"{where} is nested more than {MAX_DEPTH} deep; graph files hold no deeper values")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | str):
        return value if type(value) in _SIMPLE else str(value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise GraphError(f"{where} is a whole number that 64 bits cannot hold")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise GraphError(f"{where} is {value}; expected a finite number")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, where, depth - 1) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise GraphError(f"{where} holds an object with the key {key!r}; expected a string")
        return {str(key): plain(item, f"{where} {key}"[:80], depth - 1) for key, item in value.items()}
    raise GraphError(
        f"{where} holds a {type(value).__name__}, which no graph file can; expected numbers, text or lists"
    )


def dumps(value: Any, where: str) -> str:
    """The value as JSON text in one line with sorted keys, ASCII only; GraphError names the place of what has none."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError):
        return _ENCODER.encode(plain(value, where))


_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False)


def take_object(value: Any, where: str) -> dict[str, Any]:
    """The value if it is an object; GraphError otherwise."""
    if not isinstance(value, dict):
        raise GraphError(f"{where} is {_shown(value)}; expected an object")
    return value


def take_list(value: Any, where: str) -> list[Any]:
    """The value if it is a list; GraphError otherwise."""
    if not isinstance(value, list):
        raise GraphError(f"{where} is {_shown(value)}; expected a list")
    return value


def take_string(value: Any, where: str) -> str:
    """The value if it is a string; GraphError otherwise."""
    if not isinstance(value, str):
        raise GraphError(f"{where} is {_shown(value)}; expected a string")
    return value


def take_whole(value: Any, where: str, least: int = 0, most: int = 1 << 53) -> int:
    """The value if it is a whole number in that range; GraphError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise GraphError(f"{where} is {_shown(value)}; expected a whole number from {least} to {most}")
    return value


def take_number(value: Any, where: str) -> float:
    """The value as a float if it is a finite number; GraphError otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300 or value != value:
        raise GraphError(f"{where} is {_shown(value)}; expected a finite number")
    return float(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

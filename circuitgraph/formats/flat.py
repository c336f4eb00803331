"""A graph as two tables whose columns have one type each, and back: what GraphML, GEXF, Cytoscape and CSV can hold.

A column is integer, number, boolean or string if all of its values are; else its values become JSON text and its name
gets `json_` in front. A name that a format keeps for itself, or that starts with one of our own marks, gets `cg_` in
front. Values that are None are left out where the node's id says them (layer, feature), and become JSON text elsewhere.
Graph attributes, with the version of the schema, are one JSON text. A column of whole and other numbers comes back as
numbers (1 as 1.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.formats.build import Builder, EdgeRow, check, in_order
from circuitgraph.formats.untrusted import parse_json
from circuitgraph.formats.values import dumps, plain_graph, take_object
from circuitgraph.formats.versions import known_version
from circuitgraph.graphs.schema import VERSION
from circuitgraph.nodes import Node

INTEGER, NUMBER, BOOLEAN, STRING = "integer", "number", "boolean", "string"
EXACT = 1 << 53  # whole numbers up to here are exact as floats
_JSON, _OWN = "json_", "cg_"
_VERSION = "circuitgraph_version"  # of the schema, among the graph attributes; files before version 3 have none
_PLACE = ("kind", "site", "layer", "pos", "feature")

NodeRow = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class FlatGraph:
    """Column name -> type and rows without missing values, of nodes and edges; facts is the rest as JSON text."""

    facts: str
    node_columns: dict[str, str]
    nodes: list[NodeRow]
    edge_columns: dict[str, str]
    edges: list[EdgeRow]


def to_flat(graph: nx.MultiDiGraph, reserved: Iterable[str] = ()) -> FlatGraph:
    """The tables of a graph whose columns avoid the reserved names (in any case of letters)."""
    graph = plain_graph(graph)
    check(graph)
    keys, edges = in_order(graph)
    names = frozenset(name.lower() for name in reserved)
    rows = [
        {k: v for k, v in graph.nodes[key].items() if not (v is None and k in ("layer", "feature"))} for key in keys
    ]
    node_columns, node_rows = _columns(rows, names)
    edge_columns, edge_rows = _columns([data for *_, data in edges], names)
    return FlatGraph(
        dumps(graph.graph | {_VERSION: VERSION}, "graph"),
        node_columns,
        list(zip(keys, node_rows, strict=True)),
        edge_columns,
        [(source, target, row) for (source, target, _), row in zip(edges, edge_rows, strict=True)],
    )


def from_flat(facts: str | None, nodes: Iterable[NodeRow], edges: Iterable[EdgeRow]) -> nx.MultiDiGraph:
    """The graph of such tables; GraphError if they hold none. Unknown columns are kept as attributes."""
    if not facts:
        raise GraphError(
            "it holds no graph attributes (tokens, metric, ...): only files that circuitgraph wrote are read"
        )
    known = take_object(parse_json(facts), "the text of the graph attributes")
    builder = Builder(known, known_version(known.pop(_VERSION, 2)))
    for key, row in nodes:
        attributes = _attributes(row)
        builder.add_node(key, {k: v for k, v in Node.parse(key).fields.items() if k in _PLACE} | attributes)
    for source, target, row in edges:
        builder.add_edge(source, target, _attributes(row))
    return builder.finished()


def _columns(rows: list[dict[str, Any]], reserved: frozenset[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Column name -> type, sorted, and the rows under these names."""
    kinds: dict[str, set[type]] = {}
    inexact = set()
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
            if type(value) is int and abs(value) > EXACT:
                inexact.add(name)
    types = {name: _type(found, name in inexact) for name, found in sorted(kinds.items())}
    outside = {name: _outside_name(name, kind is None, reserved) for name, kind in types.items()}
    cells = {name: (outside[name], _cell(name, kind)) for name, kind in types.items()}
    converted = []
    for row in rows:
        named = [(cells[name], value) for name, value in row.items()]
        converted.append({column: value if cell is None else cell(value) for (column, cell), value in named})
    return {outside[name]: kind or STRING for name, kind in types.items()}, converted


def _type(found: set[type], inexact: bool) -> str | None:
    if found <= {int, float} and not (inexact and len(found) > 1):
        return INTEGER if found == {int} else NUMBER
    return {bool: BOOLEAN, str: STRING}.get(found.pop()) if len(found) == 1 else None


def _outside_name(name: str, as_json: bool, reserved: frozenset[str]) -> str:
    own = name.lower() in reserved or name.startswith((_JSON, _OWN))
    return (_JSON if as_json else "") + (_OWN if own else "") + name


def _cell(name: str, kind: str | None) -> Callable[[Any], Any] | None:
    """What makes a cell of a value; None where the value is one."""
    if kind is None:
        return partial(dumps, where=f"attribute {name}")
    return float if kind == NUMBER else None


def _attributes(row: dict[str, Any]) -> dict[str, Any]:
    attributes = {}
    for name, value in row.items():
        if name.startswith(_JSON):
            name = name.removeprefix(_JSON)
            if not isinstance(value, str):
                raise GraphError(f"column {_JSON}{name} holds {type(value).__name__}; expected JSON text")
            value = parse_json(value)
        attributes[name.removeprefix(_OWN)] = value
    return attributes

"""Cytoscape JSON (.cyjs): for Cytoscape desktop and cytoscape.js, with positions. Read back without loss.

Columns are those of `flat`. `name` is what Cytoscape shows; `interaction` is the kind of an edge, as its importers
expect; names that Cytoscape keeps for itself have `cg_` in front. Positions are in px, y down. Graph attributes are the
network's column `circuitgraph`, one JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.files import write_atomically
from circuitgraph.formats.drawing import looks
from circuitgraph.formats.flat import FlatGraph, from_flat, to_flat
from circuitgraph.formats.untrusted import parse_json, read_text, reading
from circuitgraph.formats.values import dumps, take_list, take_object, take_string

RESERVED = (
    "id",
    "name",
    "shared name",
    "suid",
    "selected",
    "source",
    "target",
    "interaction",
    "shared interaction",
    "label",
    "parent",
)
_THEIRS = frozenset(RESERVED)


def write_cyjs(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as Cytoscape JSON."""
    pieces = _pieces(to_flat(graph, RESERVED), graph)
    write_atomically(path, (piece.encode("ascii") for piece in pieces))


def read_cyjs(path: str | Path) -> nx.MultiDiGraph:
    """The graph of a Cytoscape JSON file that `write_cyjs` wrote, or Cytoscape after opening one."""
    with reading(path):
        return value_from_cyjs(parse_json(read_text(path)))


def value_from_cyjs(value: Any) -> nx.MultiDiGraph:
    """The graph of the JSON value of such a file."""
    data = take_object(value, "the file")
    elements = take_object(data.get("elements"), "elements")
    facts = take_object(data.get("data", {}), "data").get("circuitgraph")
    nodes = [_data(item, f"node {i + 1}") for i, item in enumerate(take_list(elements.get("nodes"), "elements.nodes"))]
    edges = [_data(item, f"edge {i + 1}") for i, item in enumerate(take_list(elements.get("edges"), "elements.edges"))]
    return from_flat(
        None if facts is None else take_string(facts, "data.circuitgraph"),
        [(take_string(row.get("id"), f"node {i + 1}: id"), _ours(row)) for i, row in enumerate(nodes)],
        [(*_ends(row, f"edge {i + 1}"), _ours(row)) for i, row in enumerate(edges)],
    )


def _pieces(flat: FlatGraph, graph: nx.MultiDiGraph) -> Iterator[str]:
    drawn = looks(graph)
    head = {"name": "circuit", "circuitgraph": flat.facts}
    yield (
        '{\n"format_version": "1.0",\n"generated_by": "circuitgraph",\n'
        f'"data": {dumps(head, "graph")},\n"elements": {{\n"nodes": ['
    )
    for i, (key, row) in enumerate(flat.nodes):
        look = drawn[key]
        data = row | {"id": key, "name": look.caption}
        item = {"data": data, "position": {"x": look.x, "y": look.y}}
        yield ("," if i else "") + "\n" + dumps(item, f"node {key!r}")
    yield '\n],\n"edges": ['
    for i, (source, target, row) in enumerate(flat.edges):
        data = row | {"id": f"e{i}", "source": source, "target": target, "interaction": row["kind"]}
        yield ("," if i else "") + "\n" + dumps({"data": data}, f"edge {source!r} -> {target!r}")
    yield "\n]\n}\n}\n"


def _data(item: Any, where: str) -> dict[str, Any]:
    return take_object(take_object(item, where).get("data"), f"{where}: data")


def _ours(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.lower() not in _THEIRS}


def _ends(row: dict[str, Any], where: str) -> tuple[str, str]:
    return take_string(row.get("source"), f"{where}: source"), take_string(row.get("target"), f"{where}: target")

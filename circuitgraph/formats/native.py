"""The native graph file: versioned JSON that loses nothing and is byte-identical when written again.

In comes a graph or a file, out comes the other. The layout, documented by native.schema.json beside this file:

    {"format": "circuitgraph", "version": 1,
     "graph": {graph attributes},
     "nodes": [{"id": "z.2/f17@5", ...node attributes}, ...],         in forward order
     "edges": [{"source": id, "target": id, "kind": "ov", ...}, ...]} by target, source, kind

Keys are sorted, one node or edge stands on a line, and NaN or Inf are refused. This module knows no other format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.graph import check_graph
from circuitgraph.nodes import EDGE_KINDS, Node

FORMAT = "circuitgraph"
VERSION = 1
SCHEMA = Path(__file__).with_name("native.schema.json")


def graph_to_text(graph: nx.MultiDiGraph) -> str:
    """The graph as the text of a native file. GraphError if it breaks the schema."""
    check_graph(graph)
    nodes = sorted(graph.nodes(data=True), key=lambda item: Node.parse(item[0]).order)
    edges = sorted(
        graph.edges(data=True),
        key=lambda e: (Node.parse(e[1]).order, Node.parse(e[0]).order, EDGE_KINDS.index(e[2]["kind"])),
    )
    node_lines = [_dumps({"id": key} | attributes) for key, attributes in nodes]
    edge_lines = [_dumps({"source": source, "target": target} | attributes) for source, target, attributes in edges]
    parts = [
        f'"format": {_dumps(FORMAT)}',
        f'"version": {VERSION}',
        f'"graph": {_dumps(graph.graph)}',
        f'"nodes": {_lines(node_lines)}',
        f'"edges": {_lines(edge_lines)}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def text_to_graph(text: str) -> nx.MultiDiGraph:
    """The graph of a native file's text. GraphError if it is not one."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise GraphError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise GraphError("the JSON is nested too deeply to be a graph") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise GraphError('this is no circuitgraph file: expected a JSON object with "format": "circuitgraph"')
    if data.get("version") != VERSION:
        raise GraphError(f"the file has version {data.get('version')!r}; this release reads version {VERSION}")
    for key, kind in (("graph", dict), ("nodes", list), ("edges", list)):
        if not isinstance(data.get(key), kind):
            raise GraphError(f"{key!r} is missing or no {kind.__name__}")
    graph = nx.MultiDiGraph(**data["graph"])
    for i, attributes in enumerate(data["nodes"]):
        key = _take(attributes, "id", f"node {i + 1}")
        if key in graph:
            raise GraphError(f"node {i + 1} repeats the id {key!r}")
        graph.add_node(key, **attributes)
    for i, attributes in enumerate(data["edges"]):
        ends = [_take(attributes, end, f"edge {i + 1}") for end in ("source", "target")]
        for end in ends:
            if end not in graph:
                raise GraphError(f"edge {i + 1} names {end!r}, which is not among the nodes")
        graph.add_edge(*ends, key=str(attributes.get("kind")), **attributes)
    check_graph(graph)
    return graph


def write_graph(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write the graph as a native file; nothing is written if anything fails."""
    write_atomically(path, graph_to_text(graph))


def read_graph(path: str | Path) -> nx.MultiDiGraph:
    """The graph in a native file. GraphError, with the file's name, for anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GraphError(f"graph file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"graph file {path} cannot be read: {error}") from None
    try:
        return text_to_graph(text)
    except GraphError as error:
        raise GraphError(f"graph file {path}: {error}") from None


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise GraphError(f"the graph holds a value that JSON cannot: {error}") from None


def _lines(items: list[str]) -> str:
    return "[\n" + ",\n".join(items) + "\n]" if items else "[]"


def _take(attributes: Any, key: str, where: str) -> str:
    if not isinstance(attributes, dict) or not isinstance(attributes.get(key), str):
        raise GraphError(f"{where} has no {key!r}; expected an object with a string there")
    value: str = attributes.pop(key)
    return value


def _refuse(constant: str) -> None:
    raise GraphError(f"the file holds {constant}; numbers must be finite")

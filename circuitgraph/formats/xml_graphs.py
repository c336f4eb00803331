"""What GraphML and GEXF have in common: columns with types, then nodes and edges with cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.build import EdgeRow
from circuitgraph.formats.drawing import Look, looks
from circuitgraph.formats.flat import BOOLEAN, INTEGER, NUMBER, STRING, FlatGraph, NodeRow, from_flat, to_flat
from circuitgraph.formats.markup import read_xml, unescape, value_of
from circuitgraph.formats.untrusted import reading

TYPES = {INTEGER: "long", NUMBER: "double", BOOLEAN: "boolean", STRING: "string"}
_KINDS = {name: kind for kind, name in TYPES.items()} | {"int": INTEGER, "integer": INTEGER, "float": NUMBER}
Pieces = Callable[[FlatGraph, dict[str, Look]], Iterator[str]]


def write_xml_graph(graph: nx.MultiDiGraph, path: str | Path, reserved: Iterable[str], pieces: Pieces) -> None:
    """Write the pieces of text that a format makes of the graph's tables and looks."""
    text = pieces(to_flat(graph, reserved), looks(graph))
    write_atomically(path, (piece.encode("utf-8") for piece in text))


def read_xml_graph(path: str | Path, content: XmlContent) -> nx.MultiDiGraph:
    """The graph of a file, which `content` gathers."""
    with reading(path):
        read_xml(path, content.start, content.end)
        return from_flat(content.facts, content.nodes, content.edges)


class XmlContent(ABC):
    """What a file holds, gathered element by element; a format says which elements declare and which hold a cell."""

    def __init__(self) -> None:
        self.facts: str | None = None
        self.nodes: list[NodeRow] = []
        self.edges: list[EdgeRow] = []
        self.row: dict[str, Any] | None = None  # of the node or edge that is open
        self._columns: dict[tuple[str, str], tuple[str, str]] = {}

    @abstractmethod
    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""

    @abstractmethod
    def end(self, tag: str, text: str) -> None:
        """An element with this text ends."""

    def declare(self, what: str, column: str, name: str, kind: str) -> None:
        """A column of nodes, of edges or of all ("")."""
        if kind not in _KINDS:
            raise GraphError(f"column {name[:40]!r} has type {kind[:40]!r}; expected one of {', '.join(_KINDS)}")
        self._columns[what, column] = unescape(name), _KINDS[kind]

    def named(self, what: str, column: str) -> str | None:
        """The name of a column that was declared."""
        return self._columns.get((what, column), (None, ""))[0]

    def open(self, tag: str, attributes: dict[str, str]) -> None:
        """A node or an edge begins."""
        names = ("id",) if tag == "node" else ("source", "target")
        missing = [name for name in names if name not in attributes]
        if missing:
            raise GraphError(f"{'a node' if tag == 'node' else 'an edge'} has no {missing[0]!r}")
        self.row, ends = {}, [unescape(attributes[name]) for name in names]
        if tag == "node":
            self.nodes.append((ends[0], self.row))
        else:
            self.edges.append((ends[0], ends[1], self.row))

    def put(self, what: str, column: str, text: str, without: Iterable[str] = ()) -> None:
        """A cell of the open node or edge; columns that nobody declared are passed over."""
        if self.row is not None and (what, column) in self._columns:
            name, kind = self._columns[what, column]
            if name not in without:
                self.row[name] = value_of(text, kind)

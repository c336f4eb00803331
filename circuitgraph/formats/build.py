"""The rows of a file of any format -> a checked graph, and a graph -> its rows in their order."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np

from circuitgraph.errors import GraphError
from circuitgraph.formats.groups import check_groups
from circuitgraph.formats.values import MAX_DEPTH, is_plain_graph
from circuitgraph.formats.versions import todays_facts, todays_node
from circuitgraph.graphs.schema import VERSION, check_graph
from circuitgraph.nodes import EDGE_KINDS, Node

EdgeRow = tuple[str, str, dict[str, Any]]
_ARGUMENTS = frozenset({"self", "u_for_edge", "v_for_edge", "key"})  # of networkx' add_edge, which is quicker


class Builder:
    """A graph that grows row by row and refuses what a graph cannot have twice or not at all.

    Rows of a file of an older version come out in today's words.
    """

    def __init__(self, facts: dict[str, Any], version: int = VERSION) -> None:
        self.graph = nx.MultiDiGraph()
        self.graph.graph.update(todays_facts(facts, version))
        self.version = version
        self.n_nodes = self.n_edges = 0

    def add_node(self, key: str, attributes: dict[str, Any]) -> None:
        self.n_nodes += 1
        if key in self.graph:
            raise GraphError(f"node {self.n_nodes} repeats the id {key!r}")
        attributes = todays_node(attributes, self.graph.graph, self.version)
        self.graph.add_nodes_from([(key, attributes)])  # add_node(**attributes) would refuse some names

    def add_edge(self, source: str, target: str, attributes: dict[str, Any]) -> None:
        self.n_edges += 1
        kind = str(attributes.get("kind"))
        for end in (source, target):
            if end not in self.graph:
                raise GraphError(f"edge {self.n_edges} names {end!r}, which is not among the nodes")
        if self.graph.has_edge(source, target, kind):
            raise GraphError(f"edge {self.n_edges} repeats {source!r} -> {target!r} ({kind})")
        if _ARGUMENTS.isdisjoint(attributes):
            self.graph.add_edge(source, target, kind, **attributes)
        else:
            self.graph.add_edges_from([(source, target, kind, attributes)])

    def finished(self) -> nx.MultiDiGraph:
        """The graph; GraphError unless it keeps the schema."""
        if not is_plain_graph(self.graph):
            raise GraphError(
                f"it holds a value that is nested more than {MAX_DEPTH} deep; graph files hold no deeper ones"
            )
        check(self.graph)
        return self.graph


def check(graph: nx.MultiDiGraph) -> None:
    """GraphError unless the graph keeps the schema, groups and pins included."""
    check_graph(graph)
    check_groups(graph)


def in_order(graph: nx.MultiDiGraph) -> tuple[list[str], list[EdgeRow]]:
    """The nodes in forward order; the edges by target, source and kind."""
    nodes = sorted(graph, key=lambda key: Node.parse(key).order)
    rank = {key: i for i, key in enumerate(nodes)}
    kinds = {kind: i for i, kind in enumerate(EDGE_KINDS)}
    edges: list[EdgeRow] = []
    places: list[int] = []  # one number per edge, which sorts quicker than three
    for source, inner in graph.adjacency():
        for target, keyed in inner.items():
            first = (rank[target] * len(nodes) + rank[source]) * len(kinds)
            places += [first + kinds[kind] for kind in keyed]
            edges += [(source, target, data) for data in keyed.values()]
    return nodes, [edges[i] for i in np.argsort(np.array(places, dtype=np.int64)).tolist()]

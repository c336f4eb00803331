"""What a person adds to a graph: groups of nodes, pins, notes. Optional, the same in every format.

    graph.graph["groups"]   [{"label": "name movers", "nodes": [node, ...]}, ...]   called supernodes by Neuronpedia
    graph.graph["pins"]     [node, ...] in the order in which they were pinned
    node["label"]           a name for the node
    node["note"]            anything else about it

Nodes that the graph has lost since, by pruning, are passed over.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from circuitgraph.formats.values import take_list, take_object, take_string


def groups_of(graph: nx.MultiDiGraph) -> list[tuple[str, list[str]]]:
    """(label, those of its nodes that are in the graph) of each group; GraphError if a group is malformed."""
    groups = []
    for i, value in enumerate(take_list(graph.graph.get("groups", []), "graph.groups")):
        where = f"group {i + 1}"
        group = take_object(value, where)
        groups.append(
            (take_string(group.get("label"), f"{where}: label"), _nodes(graph, group.get("nodes"), f"{where}: nodes"))
        )
    return groups


def pins_of(graph: nx.MultiDiGraph) -> list[str]:
    """The pinned nodes that are in the graph; GraphError if they are no list of names."""
    return _nodes(graph, graph.graph.get("pins", []), "graph.pins")


def check_groups(graph: nx.MultiDiGraph) -> None:
    """GraphError unless groups, pins, labels and notes are what this module says."""
    groups_of(graph)
    pins_of(graph)
    for key, attributes in graph.nodes(data=True):
        for name in ("label", "note"):
            if name in attributes:
                take_string(attributes[name], f"node {key!r}: {name}")


def _nodes(graph: nx.MultiDiGraph, value: Any, where: str) -> list[str]:
    return [node for node in (take_string(item, where) for item in take_list(value, where)) if node in graph]

"""A circuit graph as tensors, for whoever computes on its matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from circuitgraph.graphs.schema import require_graph
from circuitgraph.nodes import Node

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class GraphTensors:
    """The nodes of a graph in forward order and what the graph says of them.

    Attributes:
        nodes: n nodes; the last one is the metric.
        index: [n, 3] int64, (layer, pos, feature) of each node, -1 where it has none.
        adjacency: [n, n] sparse float64, [target, source] is the sum of the weights of all edges between the two.
        attribution: [n] float64.
    """

    nodes: list[Node]
    index: Tensor
    adjacency: Tensor
    attribution: Tensor

    def __repr__(self) -> str:
        return f"GraphTensors of {len(self.nodes)} nodes and {self.adjacency._nnz()} connected pairs"


def tensors(graph: nx.MultiDiGraph) -> GraphTensors:
    """The graph's nodes, adjacency matrix and attributions as tensors.

    The matrix has the convention of circuit-tracer: a row is a target, a column a source, so that adjacency @ x passes
    x forward.

    Args:
        graph: The circuit graph; it is not changed.
    """
    require_graph(graph)
    import torch

    nodes = sorted(map(Node.parse, graph), key=lambda node: node.order)
    number = {str(node): i for i, node in enumerate(nodes)}
    index = [[-1 if value is None else value for value in (n.site.layer, n.pos, n.feature)] for n in nodes]
    edges = [(number[target], number[source], weight) for source, target, weight in graph.edges(data="weight")]
    ends = torch.tensor([edge[:2] for edge in edges], dtype=torch.int64).reshape(-1, 2).T
    weights = torch.tensor([edge[2] for edge in edges], dtype=torch.float64)
    adjacency = torch.sparse_coo_tensor(ends, weights, (len(nodes), len(nodes)), check_invariants=True).coalesce()
    attribution = torch.tensor([graph.nodes[str(node)]["attribution"] for node in nodes], dtype=torch.float64)
    return GraphTensors(nodes, torch.tensor(index, dtype=torch.int64).reshape(-1, 3), adjacency, attribution)

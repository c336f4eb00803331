"""The edges into a batch of targets, before any is selected: their weights, added up over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from circuitgraph.edges.position_sums import Groups
from circuitgraph.edges.products import Block
from circuitgraph.nodes import EdgeKind

BY_HEAD = ("ov", "q", "k")  # kinds of edges that keep their terms by head


@dataclass(frozen=True, eq=False)
class Weights:
    """The edges from n nodes of one table of sources into all targets of the batch.

    Args:
        first: The number of the first of these nodes in the table.
        weight: Their weights.
        local: Their local weights, or one row: the mean over the examples.
        heads: The terms of `local` by head; None for kinds of edges that do not split by head.
    """

    first: int
    weight: Float[Tensor, "batch targets n"]
    local: Float[Tensor, "some_batch targets n"]
    heads: Float[Tensor, "some_batch targets n_heads n"] | None


class IncomingEdges:
    """The edges into a batch of targets, by kind and table of sources.

    Args:
        groups: Which columns of each table are one node.
        ids: The targets' numbers in the graph.
    """

    def __init__(self, groups: Sequence[Groups], ids: Int[Tensor, " targets"]) -> None:
        self.groups, self.ids = groups, ids
        self.weights: dict[tuple[EdgeKind, int], Weights] = {}

    def add(self, block: Block, node_gradient: Float[Tensor, "batch r"], rows: Int[Tensor, " r"]) -> None:
        """Add what r of the targets read at one position.

        Args:
            block: Their local weights.
            node_gradient: d metric / d(what they read).
            rows: Which of the targets they are.
        """
        key, groups = (block.kind, block.table), self.groups[block.table]
        local = block.local.sum(2) if block.local.shape[2] > 1 else block.local[:, :, 0]
        weight, heads = node_gradient[:, :, None] * local, block.local if block.kind in BY_HEAD else None
        if groups.single:  # nothing to add up: every node stands at one position, and these targets at the same one
            self.weights[key] = Weights(block.columns.start, weight, local, heads)
            return
        local, heads = local.mean(0, keepdim=True), None if heads is None else heads.mean(0, keepdim=True)
        n_targets, n_nodes = len(self.ids), len(groups.nodes)
        if key not in self.weights:
            self.weights[key] = Weights(
                0,
                weight.new_zeros(len(weight), n_targets, n_nodes),
                local.new_zeros(1, n_targets, n_nodes),
                None if heads is None else heads.new_zeros(1, n_targets, heads.shape[2], n_nodes),
            )
        total, sources = self.weights[key], groups.number[block.columns]
        for sums, values in ((total.weight, weight), (total.local, local), (total.heads, heads)):
            if sums is not None and values is not None:
                by_node = values.new_zeros(*values.shape[:-1], n_nodes).index_add_(-1, sources, values)
                sums.index_add_(1, rows, by_node)

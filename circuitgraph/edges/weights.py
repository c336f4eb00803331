"""The edges into a batch of targets: weights and loadings per head, added up over positions before any is selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from circuitgraph.edges.position_sums import Groups
from circuitgraph.edges.products import Block
from circuitgraph.nodes import EdgeKind

TYPED = ("ov", "q", "k")  # kinds of edges that keep a loading per head


@dataclass(frozen=True, eq=False)
class Weights:
    """The edges from nodes first.. of one table of sources, n of them, into all targets of the batch.

    weight [batch, targets, n]; local [batch or 1, targets, n] and heads [batch or 1, targets, n_heads, n], where 1 row is
    the mean over the examples. heads is None for kinds of edges that do not split by head.
    """

    first: int
    weight: Tensor
    local: Tensor
    heads: Tensor | None


class IncomingEdges:
    """The edges into some targets, by kind and table of sources."""

    def __init__(self, groups: Sequence[Groups], n_targets: int) -> None:
        self.groups, self.n_targets = groups, n_targets
        self.found: dict[tuple[EdgeKind, int], Weights] = {}

    def add(self, block: Block, node_gradient: Tensor, rows: Tensor) -> None:
        """Add what the targets read at one position.

        Args:
            block: The local weights, [batch, r, heads, columns].
            node_gradient: [batch, r] d metric / d(what is read).
            rows: [r] The target of each row.
        """
        key, groups = (block.kind, block.table), self.groups[block.table]
        local = block.local.sum(2) if block.local.shape[2] > 1 else block.local[:, :, 0]
        weight, heads = node_gradient[:, :, None] * local, block.local if block.kind in TYPED else None
        if groups.single:  # every target stands at one position, and so does every source: there is nothing to add
            self.found[key] = Weights(block.columns.start, weight, local, heads)
            return
        local, heads = local.mean(0, keepdim=True), None if heads is None else heads.mean(0, keepdim=True)
        shape, n = (self.n_targets,), (len(groups.nodes),)
        if key not in self.found:
            self.found[key] = Weights(
                0,
                weight.new_zeros(len(weight), *shape, *n),
                local.new_zeros(1, *shape, *n),
                None if heads is None else heads.new_zeros(1, *shape, heads.shape[2], *n),
            )
        total, sources = self.found[key], groups.number[block.columns]
        for sums, values in ((total.weight, weight), (total.local, local), (total.heads, heads)):
            if sums is not None and values is not None:
                by_node = values.new_zeros(*values.shape[:-1], *n).index_add_(-1, sources, values)
                sums.index_add_(1, rows, by_node)

"""Sums over positions: one node per feature instead of one per feature and position, one edge per two of them and kind.

Nodes are columns of tables, and edges are products of columns. `Groups` says which columns are one node, so that the
tracer can add up what they read and write before it selects any edge. Of such a sum

    weight        is the mean over the examples of the sum over the positions of source and target
    weight_abs    the mean over the examples of that sum's absolute value; where examples cancel it exceeds |weight|
    local_weight, heads, stream_input    as weight, over the target's positions where the metric depends on it
    attribution, activation        as weight

A sum stands at position 0 of a graph with one position, `ALL`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable, VectorTable
from circuitgraph.nodes import Node

ALL = "all positions"


@dataclass(frozen=True, eq=False)
class Groups:
    """Which columns of one table are one node: with positions "each" every column, with "sum" those of one feature.

    Args:
        nodes: The nodes of the table.
        number: The number in `nodes` of the node that each column belongs to.
        counted: Columns whose input counts: in a sum those where the metric depends on it.
        single: Whether column i is node i.
    """

    nodes: Sequence[Node]
    number: Int[Tensor, " columns"]
    counted: Bool[Tensor, " columns"]
    single: bool

    @classmethod
    def of(cls, table: NodeTable, positions: str) -> Groups:
        """The groups of a table of single positions, for positions "each" or "sum"."""
        if positions == "each":
            everything = torch.ones_like(table.pos, dtype=torch.bool)
            return cls(table.nodes(), torch.arange(len(table), device=table.pos.device), everything, True)
        if not isinstance(table, FeatureTable):
            nodes = [Node(table.kind, table.site, 0)] if len(table) else []
            return cls(nodes, torch.zeros_like(table.pos), table.matters, False)
        features, number = torch.unique(table.feature, return_inverse=True)
        nodes = [Node("feature", table.site, 0, feature) for feature in features.tolist()]
        return cls(nodes, number, table.matters, False)

    def columns(self, nodes: Int[Tensor, " nodes"]) -> Int[Tensor, " columns"]:
        """The columns of these nodes (by number, ascending) whose input counts."""
        return nodes if self.single else (torch.isin(self.number, nodes) & self.counted).nonzero().flatten()


def sum_positions(table: NodeTable) -> NodeTable:
    """The table with one column per feature, or one in all, whose values are added up over positions.

    For choosing and showing nodes; edges are traced from the table of single positions.
    """
    if not len(table):
        return table
    if not isinstance(table, FeatureTable):
        changes = {site: change.sum(1, keepdim=True) for site, change in table.changes.items()}
        attribution, vectors = (x.sum(1, keepdim=True) for x in (table.attribution, table.vectors))
        return VectorTable(table.kind, table.site, table.pos[:1] * 0, attribution, vectors, changes)
    feature, column = torch.unique(table.feature, return_inverse=True)

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(values), len(feature)).index_add_(1, column, values)

    return replace(
        table,
        pos=torch.zeros_like(feature),
        feature=feature,
        attribution=summed(table.attribution),
        acts=summed(table.acts),
        baseline_acts=summed(table.baseline_acts),
        node_gradient=summed(table.node_gradient),
        post_scale=None,
    )


def terms(table: NodeTable, total: NodeTable) -> NodeTable:
    """The columns of the table that the sums in `total` are made of."""
    if isinstance(table, FeatureTable) and isinstance(total, FeatureTable):
        return table.take(torch.isin(table.feature, total.feature))
    return table if len(total) else table.take(table.pos[:0])

"""Sums over positions: one node per feature instead of one per feature and position, one edge per two of them and kind.

In come the tables and paths of single positions; out come tables of sums, and edges that were added up over the positions of
source and target before any is selected. What one edge is stays `edges`' knowledge.

    weight        mean over the examples of the sum over the positions of source and target
    weight_abs    mean over the examples of that sum's absolute value: what the mean hides, not what the sum does
    local_weight, heads, inflow    as weight, over the target's positions where the metric depends on it
    attribution, activation        as weight

A sum stands at position 0 of a graph with one place, `ALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable, VectorTable
from circuitgraph.attribution.targets import TargetNode
from circuitgraph.edges.influence import node_influence
from circuitgraph.edges.products import Block
from circuitgraph.edges.table import EdgeCollector
from circuitgraph.edges.trace import TracedEdges, Tracer
from circuitgraph.nodes import EdgeKind, Node
from circuitgraph.progress import Progress

POSITIONS = ("each", "sum")
ALL = "all positions"


def sum_positions(table: NodeTable) -> NodeTable:
    """The table with one column per feature, or one in all: attributions, activations and vectors added up over positions.

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


class SumTracer(Tracer):
    """Traces the features of a dictionary group by group, all positions of a feature together, and adds up what they read.

    The base class counts columns: one id per feature and position. `number` turns such ids into those of the sums.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.members = [_Members.of(table) for table in self.tables]
        self.sums = [node for table in self.tables for node in sum_positions(table).nodes()]
        sizes = torch.tensor([0, *(len(members.first) for members in self.members)]).cumsum(0).tolist()
        self.n_columns, self.n_sums = len(self.nodes), len(self.sums)
        parts = [m.sums.cpu() + offset for m, offset in zip(self.members, sizes, strict=False)]
        self.numbers = torch.cat([torch.zeros(0, dtype=torch.int64), *parts])
        self.collector = _Renumbered(self.sums, self.number)
        self.readers: Tensor | None = None  # of a group that is being traced: one column of each sum
        self.waiting: dict[tuple[EdgeKind, int], tuple[Tensor, Tensor]] = {}

    def number(self, ids: Tensor) -> Tensor:
        """The ids of the sums to which these columns belong; targets and the metric follow the sums as they follow columns."""
        return self.numbers[ids.to("cpu", torch.int64)]

    def trace_targets(self, metric_gradient: Tensor, targets: Sequence[TargetNode]) -> None:
        """The inputs of the metric, or of the targets and their edges to the metric."""
        self.numbers = torch.cat([self.numbers, torch.arange(self.n_sums, self.n_sums + len(targets) + 1)])
        super().trace_targets(metric_gradient, targets)
        self.sums += [replace(node, pos=0) for node in self.nodes[self.n_columns :]]

    def trace(self, index: int, columns: Tensor) -> None:
        """The inputs of the sums to which these columns belong, at all positions where the metric depends on them."""
        if not len(columns):
            return
        table, members = self.tables[index], self.members[index]
        batch, gradient = len(table.attribution), table.node_gradient
        if isinstance(table, VectorTable) and table.reads is not None:
            gradient = table.reads.abs().sum(-1)
        row = 3 * self.n_sums * (batch + self.model.n_heads)  # numbers that wait per reader: weights and loadings
        for sums in torch.unique(members.sums[columns]).split(max(1, self.memory // (16 * row))):
            self.readers = (members.first[sums] + self.offsets[index]).cpu()
            super().trace(index, (torch.isin(members.sums, sums) & (gradient != 0).any(0)).nonzero().flatten())
            self._collect()

    def trace_most_influential(self, budget: int, progress: Progress) -> None:
        """Trace `budget` sums in up to four rounds, the most influential on the targets first in each."""
        readable = torch.zeros(self.n_sums, dtype=torch.bool)
        firsts = {index: self.members[index].first + self.offsets[index] for index in self.readable}
        for first in firsts.values():
            readable[self.number(first)] = True
        traced = torch.zeros_like(readable)
        while (done := int(traced.sum())) < budget:
            progress("tracing edges", done, budget)
            influence = node_influence(self.collector.table(), self._weights())[: self.n_sums]
            open_ = torch.where(readable & ~traced, influence, 0)
            chosen = open_.topk(min(budget - done, max(256, -(-budget // 4)), len(open_))).indices
            chosen = chosen[open_[chosen] > 0].sort().values
            if not len(chosen):
                break
            traced[chosen] = True
            for index, first in firsts.items():
                here = torch.isin(self.number(first), chosen).to(first.device)
                self.trace(index, self.members[index].first[here])

    def result(self) -> TracedEdges:
        """The edges between sums, and what their targets read in all."""
        streams: dict[int, float] = {}
        for column, value in self.stream_inputs.items():
            number = int(self.number(torch.tensor([column])))
            streams[number] = streams.get(number, 0.0) + value
        inflows = {int(self.number(torch.tensor([i]))): value for i, value in self.total_inputs.items()}
        return TracedEdges(self.collector.table(), inflows, streams, self._weights())

    def _weights(self) -> Tensor:
        return torch.cat([self.weights.new_zeros(self.n_sums), self.weights[self.n_columns :]])

    def _keep(self, ids: Tensor, node_gradient: Tensor, blocks: Sequence[Block]) -> None:
        """Add the edges of these blocks into columns ids [r] to what waits for the rest of their sums."""
        alone = self.readers is None
        readers = ids if self.readers is None else self.readers
        rows = (self.number(ids)[:, None] == self.number(readers)).int().argmax(1)
        for block in blocks:
            sums, n = self.members[block.table].sums[block.columns], len(self.members[block.table].first)
            loadings = block.local.mean(0, keepdim=True).flatten(0, 1)  # [readers, heads, columns]
            weights = node_gradient[:, :, None] * block.local.sum(2)
            key, shape = (block.kind, block.table), (len(readers), n)
            if key not in self.waiting:
                empty = loadings.new_zeros(len(readers), loadings.shape[1], n)
                self.waiting[key] = weights.new_zeros(len(weights), *shape), empty
            for total, dim, values in zip(self.waiting[key], (1, 0), (weights, loadings), strict=True):
                by_source = values.new_zeros(*values.shape[:-1], n).index_add_(-1, sums, values)
                total.index_add_(dim, rows.to(total.device), by_source)
        if alone:
            self.readers = ids
            self._collect()

    def _collect(self) -> None:
        """Collect the edges that wait and pass the selection."""
        assert self.readers is not None
        blocks = [
            Block(kind, table, slice(0, loadings.shape[-1]), loadings[None])
            for (kind, table), (_, loadings) in self.waiting.items()
        ]
        weights = [weight for weight, _ in self.waiting.values()]
        self._select(self.readers, blocks, [block.local.sum(2) for block in blocks], weights)
        self.readers, self.waiting = None, {}

    def _mark(self, table: int, columns: Tensor) -> Tensor:
        """Mark one column of each of these sums as kept; their ids."""
        return super()._mark(table, self.members[table].first[columns])


@dataclass(frozen=True, eq=False)
class _Members:
    """Of a table: to which sum each column belongs, sums [n], and the first column of each sum, first [n_sums]."""

    sums: Tensor
    first: Tensor

    @classmethod
    def of(cls, table: NodeTable) -> _Members:
        sums = torch.zeros_like(table.pos)
        if isinstance(table, FeatureTable):
            sums = torch.unique(table.feature, return_inverse=True)[1]
        order = sums.argsort(stable=True)
        n = int(sums.max()) + 1 if len(sums) else 0
        starts = torch.searchsorted(sums[order], torch.arange(n, device=sums.device))
        return cls(sums, order[starts])


class _Renumbered(EdgeCollector):
    """A collector of edges between sums, which is told columns."""

    def __init__(self, nodes: Sequence[Node], number: Callable[[Tensor], Tensor]) -> None:
        super().__init__(nodes)
        self.number = number

    def add(self, kind: EdgeKind, source: Tensor, target: Tensor, *values: Any) -> None:
        """n edges of one kind between sums, given by one column of each."""
        super().add(kind, self.number(source), self.number(target), *values)

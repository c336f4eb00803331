"""Edges as columns: a few bytes per edge, so that millions can be weighed before the few that stay become a graph.

`EdgeCollector` gathers chunks of edges between numbered nodes into an `EdgeTable`, which iterates as `Edge` values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from circuitgraph.nodes import EDGE_KINDS, EdgeKind, Node


@dataclass(frozen=True)
class Edge:
    """One edge: means over the examples of weight, local_weight and |weight|, and local_weight by head."""

    source: Node
    target: Node
    kind: EdgeKind
    weight: float
    local_weight: float
    weight_abs: float
    heads: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """m edges between numbered nodes.

    Args:
        nodes: The nodes.
        source: [m] int32 The number of each edge's source in `nodes`.
        target: [m] int32 That of its target.
        kind: [m] uint8 The number of its kind in `EDGE_KINDS`.
        weight: [m] The contribution to the metric through the target, the mean over the examples.
        local_weight: [m] The contribution to what the target reads, likewise.
        weight_abs: [m] The mean of |weight|.
        heads: [m_heads, n_heads] The terms of local_weight by head, of the edges that have them.
        head_of: [m_heads] int64 Which edges these are, ascending.
    """

    nodes: Sequence[Node]
    source: Tensor
    target: Tensor
    kind: Tensor
    weight: Tensor
    local_weight: Tensor
    weight_abs: Tensor
    heads: Tensor
    head_of: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Edge]:
        loadings = dict(zip(self.head_of.tolist(), self.heads.tolist(), strict=True))
        columns = (self.source, self.target, self.kind, self.weight, self.local_weight, self.weight_abs)
        for i, (u, v, kind, w, lw, m) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            yield Edge(self.nodes[u], self.nodes[v], EDGE_KINDS[kind], w, lw, m, tuple(loadings.get(i, ())))

    @cached_property
    def by_target_depth(self) -> list[Tensor]:
        """Indices of the edges, those into the last reading layer first: a source is complete before it is a target."""
        depth = np.array([-node.site.depth for node in self.nodes])
        rank = np.unique(depth, return_inverse=True)[1].astype(np.int16)[self.target.numpy()]
        order = torch.from_numpy(np.argsort(rank, kind="stable"))  # a radix sort, for 16 bits
        counts = np.bincount(rank)
        return list(order.split(counts[counts > 0].tolist()))

    def take(self, mask: Tensor) -> EdgeTable:
        """The table of the edges where the mask [m] holds."""
        kept, chosen = mask[self.head_of], mask.nonzero()[:, 0]
        columns = (self.source, self.target, self.kind, self.weight, self.local_weight, self.weight_abs)
        source, target, kind, weight, local_weight, weight_abs = (c.index_select(0, chosen) for c in columns)
        head_of = self.head_of[kept]
        if len(head_of):
            head_of = mask.cumsum(0)[head_of] - 1
        heads = self.heads[kept]
        return EdgeTable(self.nodes, source, target, kind, weight, local_weight, weight_abs, heads, head_of)


@dataclass
class EdgeCollector:
    """Collects chunks of edges and makes the table."""

    nodes: Sequence[Node]
    chunks: list[tuple[Tensor, ...]] = field(default_factory=list)
    loadings: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    size: int = 0

    def add(
        self,
        kind: EdgeKind,
        source: Tensor,
        target: Tensor,
        weight: Tensor,
        local_weight: Tensor,
        weight_abs: Tensor,
        heads: Tensor | None,
    ) -> None:
        """n edges of one kind; heads [n, n_heads] or None."""
        kinds = torch.full((len(source),), EDGE_KINDS.index(kind), dtype=torch.uint8)
        ids = (source.to("cpu", torch.int32), target.to("cpu", torch.int32), kinds)
        self.chunks.append((*ids, *(x.to("cpu") for x in (weight, local_weight, weight_abs))))
        if heads is not None:
            self.loadings.append((heads.to("cpu"), torch.arange(self.size, self.size + len(source))))
        self.size += len(source)

    def table(self) -> EdgeTable:
        """Everything added so far, in that order."""
        if not self.chunks:
            ids, values = torch.zeros(0, dtype=torch.int32), torch.zeros(0)
            none = torch.zeros(0, dtype=torch.int64)
            return EdgeTable(self.nodes, ids, ids, ids.to(torch.uint8), values, values, values, values[:, None], none)
        columns = tuple(torch.cat(parts) for parts in zip(*self.chunks, strict=True))
        self.chunks = [columns]
        source, target, kind, weight, local_weight, weight_abs = columns
        if not self.loadings:
            self.loadings = [(weight.new_zeros(0, 1), torch.zeros(0, dtype=torch.int64))]
        heads, head_of = (torch.cat(parts) for parts in zip(*self.loadings, strict=True))
        self.loadings = [(heads, head_of)] if len(heads) else []
        return EdgeTable(self.nodes, source, target, kind, weight, local_weight, weight_abs, heads, head_of)

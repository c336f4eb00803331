"""Tables of nodes as columns of tensors, one table per site and kind.

In come tensors; out come nodes, sub-tables, and what the nodes write into the residual stream. This module computes no
attribution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from circuitgraph.dictionary import Dictionary
from circuitgraph.nodes import Node, NodeKind, Site


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one dictionary that are active in either run, n columns sorted by position, then feature.

    pos, feature [n]; attribution, acts, baseline_acts and node_gradient = dm/d(pre-activation) [batch, n];
    write [n, d_model]: what one unit of activation adds to the residual stream.
    """

    site: Site
    pos: Tensor
    feature: Tensor
    attribution: Tensor
    dictionary: Dictionary
    acts: Tensor
    baseline_acts: Tensor
    node_gradient: Tensor
    write: Tensor
    kind: NodeKind = "feature"

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def delta(self) -> Tensor:
        """acts - baseline_acts [batch, n]."""
        return self.acts - self.baseline_acts

    def node(self, column: int) -> Node:
        """The node of one column."""
        return Node("feature", self.site, int(self.pos[column]), int(self.feature[column]))

    def nodes(self) -> list[Node]:
        """The nodes of all columns."""
        return [Node("feature", self.site, p, f) for p, f in zip(self.pos.tolist(), self.feature.tolist(), strict=True)]

    def take(self, columns: Tensor) -> FeatureTable:
        """The table of these columns only (indices [m] or mask [n])."""
        return replace(
            self,
            pos=self.pos[columns],
            feature=self.feature[columns],
            attribution=self.attribution[:, columns],
            acts=self.acts[:, columns],
            baseline_acts=self.baseline_acts[:, columns],
            node_gradient=self.node_gradient[:, columns],
            write=self.write[columns],
        )

    def read_by(self, reader: Tensor, columns: slice = slice(None)) -> Tensor:
        """(write . reader) * delta [batch, readers, heads, columns] of readers [batch or 1, readers or 1, heads, d_model]."""
        return (reader @ self.write[columns].T) * self.delta[:, None, None, columns]

    def difference(self, column: int) -> Tensor:
        """What the node adds to the residual stream, clean minus baseline, [batch, d_model]."""
        return self.delta[:, column, None] * self.write[column]


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Nodes that are whole vectors, one per position: errors, embeddings, biases; n columns sorted by position.

    pos [n], attribution [batch, n], vectors [batch, n, d_model]: what each adds to the residual stream, clean minus
    baseline.
    """

    kind: NodeKind
    site: Site
    pos: Tensor
    attribution: Tensor
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.pos)

    def node(self, column: int) -> Node:
        """The node of one column."""
        return Node(self.kind, self.site, int(self.pos[column]))

    def nodes(self) -> list[Node]:
        """The nodes of all columns."""
        return [Node(self.kind, self.site, p) for p in self.pos.tolist()]

    def take(self, columns: Tensor) -> VectorTable:
        """The table of these columns only (indices [m] or mask [n])."""
        return replace(
            self, pos=self.pos[columns], attribution=self.attribution[:, columns], vectors=self.vectors[:, columns]
        )

    def read_by(self, reader: Tensor, columns: slice = slice(None)) -> Tensor:
        """vector . reader [batch, readers, heads, columns] of readers [batch or 1, readers or 1, heads, d_model]."""
        return reader @ self.vectors[:, None, columns].transpose(-1, -2)

    def difference(self, column: int) -> Tensor:
        """What the node adds to the residual stream, clean minus baseline, [batch, d_model]."""
        return self.vectors[:, column]


NodeTable = FeatureTable | VectorTable

"""Tables of nodes as columns of tensors, one table per site and kind.

In come tensors; out come nodes, sub-tables, and what the nodes write into the residual stream. This module computes no
attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.nodes import Node, NodeKind, Site


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one dictionary that are active in either run, n columns sorted by position, then feature.

    pos, feature [n]; attribution, acts, baseline_acts and node_gradient = dm/d(pre-activation) [batch, n]. to_stream turns
    rows of W_dec into what they add to the residual stream, up to `post_scale` [batch, n], the frozen scale of a post-norm
    (None without one).
    """

    site: Site
    pos: Tensor
    feature: Tensor
    attribution: Tensor
    dictionary: Dictionary
    acts: Tensor
    baseline_acts: Tensor
    node_gradient: Tensor
    to_stream: Callable[[Tensor], Tensor]
    post_scale: Tensor | None = None
    kind: NodeKind = "feature"

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def reads_at(self) -> Site | None:
        """Where what it reads is read."""
        return self.dictionary.reads

    @cached_property
    def writes(self) -> Tensor:
        """What one unit of each activation adds to the stream at each site of the dictionary, [n, n_sites, d_model]."""
        rows = self.dictionary.weights.W_dec[self.feature].to(self.acts.dtype)
        return self.to_stream(rows.unflatten(-1, (len(self.dictionary.sites), -1)))

    @cached_property
    def reads(self) -> Tensor:
        """d(pre-activation)/d(input) of each feature, [n, d_in]."""
        return self.dictionary.input_directions(self.feature).to(self.acts.dtype)

    @property
    def matters(self) -> Tensor:
        """Columns [n] whose pre-activation the metric depends on, in any example."""
        return (self.node_gradient != 0).any(0)

    @property
    def delta(self) -> Tensor:
        """acts - baseline_acts [batch, n]."""
        return self.acts - self.baseline_acts

    @property
    def amount(self) -> Tensor:
        """How much of `writes` each node adds, clean minus baseline, [batch, n]."""
        return self.delta if self.post_scale is None else self.delta / self.post_scale

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
            post_scale=None if self.post_scale is None else self.post_scale[:, columns],
        )

    def differences(self, column: int) -> dict[Site, Tensor]:
        """How each site changes with the node, clean minus baseline, [batch, d] each: where a post-norm follows, before it."""
        delta = self.delta[:, column, None]
        if self.post_scale is not None:
            row = self.dictionary.weights.W_dec[int(self.feature[column])].to(delta.dtype)
            return {self.site: delta * row}
        sites = [site.output for site in self.dictionary.sites]
        return {site: delta * vector for site, vector in zip(sites, self.writes[column], strict=True)}


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Nodes that are whole vectors, one per position: errors, embeddings, biases; n columns sorted by position.

    pos [n], attribution [batch, n], vectors [batch, n, d_model]: what each adds to the residual stream, clean minus
    baseline, a post-norm with its frozen scale passed. changes: the same as changes of sites, before a post-norm. reads
    [batch, n, d]: for errors that are targets themselves, d (what they bring to the metric) / d (activation at the site).
    """

    kind: NodeKind
    site: Site
    pos: Tensor
    attribution: Tensor
    vectors: Tensor
    changes: Mapping[Site, Tensor]
    reads: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def reads_at(self) -> Site | None:
        """Where what it reads is read; None for nodes that are sources only."""
        return None if self.reads is None else self.site

    @property
    def matters(self) -> Tensor:
        """Columns [n] whose activation the metric depends on, in any example; none of nodes that are sources only."""
        return torch.zeros_like(self.pos, dtype=torch.bool) if self.reads is None else (self.reads != 0).any(-1).any(0)

    @property
    def node_gradient(self) -> Tensor:
        """1 [batch, n]: what such a node reads is its contribution to the metric."""
        return torch.ones_like(self.attribution)

    def node(self, column: int) -> Node:
        """The node of one column."""
        return Node(self.kind, self.site, int(self.pos[column]))

    def nodes(self) -> list[Node]:
        """The nodes of all columns."""
        return [Node(self.kind, self.site, p) for p in self.pos.tolist()]

    def take(self, columns: Tensor) -> VectorTable:
        """The table of these columns only (indices [m] or mask [n])."""
        return replace(
            self,
            pos=self.pos[columns],
            attribution=self.attribution[:, columns],
            vectors=self.vectors[:, columns],
            changes={site: change[:, columns] for site, change in self.changes.items()},
            reads=None if self.reads is None else self.reads[:, columns],
        )

    def differences(self, column: int) -> dict[Site, Tensor]:
        """How each site changes with the node, clean minus baseline, [batch, d] each: where a post-norm follows, before it."""
        return {site: change[:, column] for site, change in self.changes.items()}


NodeTable = FeatureTable | VectorTable

"""Tables of nodes as columns of tensors, one table per site and kind: what nodes are, write and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.nodes import Node, NodeKind, Site


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one dictionary that are active in either run, n columns sorted by position, then feature.

    Args:
        site: The site where the dictionary writes first.
        pos: The position of each.
        feature: Its index in the dictionary.
        attribution: Its attribution.
        dictionary: The dictionary.
        acts: Activations in the clean run.
        baseline_acts: Activations in the baseline.
        node_gradient: d metric / d(pre-activation) in the clean run; 0 where the feature is not active.
        to_stream: Rows of W_dec -> what they add to the residual stream, up to post_scale.
        post_scale: The frozen scale of a post-norm, None without one.
    """

    site: Site
    pos: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    attribution: Float[Tensor, "batch n"]
    dictionary: Dictionary
    acts: Float[Tensor, "batch n"]
    baseline_acts: Float[Tensor, "batch n"]
    node_gradient: Float[Tensor, "batch n"]
    to_stream: Callable[[Tensor], Tensor]
    post_scale: Float[Tensor, "batch n"] | None = None
    kind: NodeKind = "feature"

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def reads_at(self) -> Site | None:
        """The site that they read."""
        return self.dictionary.reads

    @cached_property
    def writes(self) -> Float[Tensor, "n sites d_model"]:
        """What one unit of each activation adds to the stream at each site of the dictionary."""
        rows = self.dictionary.weights.W_dec[self.feature].to(self.acts.dtype)
        return self.to_stream(rearrange(rows, "n (sites d) -> n sites d", sites=len(self.dictionary.sites)))

    @cached_property
    def reads(self) -> Float[Tensor, "n d_in"]:
        """d(pre-activation)/d(input) of each feature."""
        return self.dictionary.input_directions(self.feature).to(self.acts.dtype)

    @property
    def matters(self) -> Bool[Tensor, " n"]:
        """Columns whose pre-activation the metric depends on, in any example."""
        return (self.node_gradient != 0).any(0)

    @property
    def delta(self) -> Float[Tensor, "batch n"]:
        """acts - baseline_acts."""
        return self.acts - self.baseline_acts

    @property
    def amount(self) -> Float[Tensor, "batch n"]:
        """How much of `writes` each node adds, clean minus baseline."""
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
        """The change [batch, d] of each site with the node, clean minus baseline, before a post-norm if one follows."""
        delta = self.delta[:, column, None]
        if self.post_scale is not None:
            row = self.dictionary.weights.W_dec[int(self.feature[column])].to(delta.dtype)
            return {self.site: delta * row}
        sites = [site.output for site in self.dictionary.sites]
        return {site: delta * vector for site, vector in zip(sites, self.writes[column], strict=True)}


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Nodes that are whole vectors, one per position: errors, embeddings, biases; n columns sorted by position.

    Args:
        kind: What they are.
        site: Where they write.
        pos: The position of each.
        attribution: Its attribution.
        vectors: What it adds to the residual stream, clean minus baseline, behind a post-norm with its frozen scale.
        changes: The same as changes [batch, n, d] of sites, before a post-norm.
        reads: Of errors that are targets: d(what they bring to the metric) / d(activation at the site). Else None.
    """

    kind: NodeKind
    site: Site
    pos: Int[Tensor, " n"]
    attribution: Float[Tensor, "batch n"]
    vectors: Float[Tensor, "batch n d_model"]
    changes: Mapping[Site, Tensor]
    reads: Float[Tensor, "batch n d"] | None = None

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def reads_at(self) -> Site | None:
        """The site that they read; None for nodes that are sources only."""
        return None if self.reads is None else self.site

    @property
    def matters(self) -> Bool[Tensor, " n"]:
        """Columns whose activation the metric depends on, in any example; none of nodes that are sources only."""
        return torch.zeros_like(self.pos, dtype=torch.bool) if self.reads is None else (self.reads != 0).any(-1).any(0)

    @property
    def node_gradient(self) -> Float[Tensor, "batch n"]:
        """1: what such a node reads is its contribution to the metric."""
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
        """The change [batch, d] of each site with the node, clean minus baseline, before a post-norm if one follows."""
        return {site: change[:, column] for site, change in self.changes.items()}


NodeTable = FeatureTable | VectorTable

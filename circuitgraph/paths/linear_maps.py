"""Linear maps of the residual stream that input directions pass: skip connections, and components frozen at the clean run.

In come weights, the clean run's patterns, norm scales and slopes; out come maps with `apply` (what arrives at the output
when the stream changes) and `pull_back` (its transpose, for input directions). Nothing is run again and no autograd graph is
kept. This module knows no nodes and no edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from circuitgraph.models.formulas import AttentionState
from circuitgraph.models.layout import MlpWeights, Norm
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site


class LinearMap(Protocol):
    """A map from the stream at depth `entry` to what is added to it at depth `out`."""

    @property
    def out(self) -> int:
        """The depth of its output."""

    @property
    def entry(self) -> int:
        """The depth below which writers reach its input."""

    def apply(self, x: Tensor) -> Tensor:
        """What a change x [batch, pos, d_model] of the stream adds at the output, [batch, pos, d_model]."""

    def pull_back(self, dense: Tensor, first: int) -> tuple[Tensor, int]:
        """Input directions dense [batch, readers, heads, n, d_model] at positions from `first` on, at the output, as
        input directions at the entry, and the position of their first row."""


@dataclass(frozen=True, eq=False)
class InputNorm:
    """The norm in front of a component with the clean run's scale [batch, pos, 1]; gain=False reads before the gain."""

    norm: Norm | None
    scale: Tensor | None
    gain: bool = True

    def apply(self, x: Tensor) -> Tensor:
        """J x at every position, [batch, pos, d]."""
        if self.norm is not None:
            x = (self.norm if self.gain else Norm(None, None, self.norm.centred)).apply(x)
        return x if self.scale is None else x / self.scale

    def pull_back(self, dense: Tensor, first: int) -> Tensor:
        """J^T r of dense [batch, readers, heads, n, d] at positions from `first` on."""
        if self.norm is not None:
            dense = self.norm.pull_back(dense, gain=self.gain)
        return dense if self.scale is None else dense / _rows(self.scale, dense, first)


@dataclass(frozen=True, eq=False)
class SkipMap:
    """The linear skip connection of a transcoder: x_out += norm(x) @ W_skip, position by position."""

    out: int
    entry: int
    norm: InputNorm
    W_skip: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """What a change of the stream adds through the skip."""
        return self.norm.apply(x) @ self.W_skip

    def pull_back(self, dense: Tensor, first: int) -> tuple[Tensor, int]:
        """Input directions before the skip."""
        return self.norm.pull_back(dense @ self.W_skip.T, first), first


@dataclass(frozen=True, eq=False)
class FrozenMlp:
    """An MLP linearised at the clean run: slopes [batch, pos, d_mlp] of the neurons by their inputs, post-norm frozen."""

    out: int
    entry: int
    norm: InputNorm
    weights: MlpWeights
    slopes: tuple[Tensor, Tensor | None]
    post: InputNorm

    def apply(self, x: Tensor) -> Tensor:
        """J x of the whole MLP."""
        y, (inner, gate) = self.norm.apply(x), self.slopes
        neurons = (y @ self.weights.W_in) * inner
        if gate is not None and self.weights.W_gate is not None:
            neurons = neurons + (y @ self.weights.W_gate) * gate
        return self.post.apply(neurons @ self.weights.W_out)

    def pull_back(self, dense: Tensor, first: int) -> tuple[Tensor, int]:
        """J^T r of the whole MLP."""
        neurons, (inner, gate) = self.post.pull_back(dense, first) @ self.weights.W_out.T, self.slopes
        y = (neurons * _rows(inner, dense, first)) @ self.weights.W_in.T
        if gate is not None and self.weights.W_gate is not None:
            y = y + (neurons * _rows(gate, dense, first)) @ self.weights.W_gate.T
        return self.norm.pull_back(y, first), first


@dataclass(frozen=True, eq=False)
class FrozenAttention:
    """Attention with the clean run's pattern: every position passes on its value, no query or key changes."""

    out: int
    entry: int
    norm: InputNorm
    state: AttentionState
    post: InputNorm

    def apply(self, x: Tensor) -> Tensor:
        """sum_h P[h] (norm(x) W_V[h]) W_O[h], through the frozen post-norm."""
        weights, state = self.state.weights, self.state
        values = torch.einsum("bkd,hdx->bkhx", self.norm.apply(x), weights.W_V)
        z = torch.einsum("bhpk,bkhx->bphx", state.pattern, state.per_query_head(values, 2))
        return self.post.apply(torch.einsum("bphx,hxd->bpd", z, weights.W_O))

    def pull_back(self, dense: Tensor, first: int) -> tuple[Tensor, int]:
        """The transpose: readers at positions first.. read values from every position that these attend to."""
        weights, state = self.state.weights, self.state
        batch, readers, outer, n, d = dense.shape
        last = first + n if state.causal else state.pattern.shape[-1]
        W_V, W_O = state.per_query_head(weights.W_V, 0), weights.W_O
        H, x = W_O.shape[:2]
        pulled = self.post.pull_back(dense, first).reshape(batch, readers * outer * n, d)
        z = (pulled @ W_O.flatten(0, 1).T).view(batch, readers * outer, n, H, x)
        pattern = state.pattern[:, :, first : first + n, :last]
        # [batch, heads, key, query] @ [batch, heads, query, readers * x]
        moved = pattern.transpose(-1, -2) @ z.permute(0, 3, 2, 1, 4).reshape(batch, H, n, -1)
        moved = moved.view(batch, H, last, readers * outer, x).permute(0, 3, 2, 1, 4).reshape(batch, -1, H * x)
        values = moved @ W_V.transpose(1, 2).reshape(H * x, d)
        return self.norm.pull_back(values.view(batch, readers, outer, last, d), 0), 0


def skip_map(model: Model, reads: Site, writes: Site, W_skip: Tensor, clean: Mapping[Site, Tensor]) -> LinearMap:
    """The skip connection of a transcoder that reads the MLP's input."""
    norm = input_norm(model, "ln2", reads, clean, gain=reads.kind != "ln2_normalized")
    return SkipMap(writes.depth, mlp_entry(model, reads), norm, W_skip.to(clean[writes].dtype))


def frozen_component(
    model: Model, site: Site, clean: Mapping[Site, Tensor], slopes: Mapping[Site, Tensor]
) -> LinearMap:
    """Attention (z, attn_out) or MLP (mlp_out) of the site's layer, frozen at the clean run. ModelError if its formula is
    not known."""
    layer = site.block
    post = "ln1_post" if site.kind in ("z", "attn_out") else "ln2_post"
    behind = input_norm(model, post, site, clean)
    if post == "ln1_post":
        norm = input_norm(model, "ln1", site, clean)
        out, entry = Site("attn_out", layer).depth, Site("ln1_scale", layer).depth
        return FrozenAttention(out, entry, norm, model.attention_state(layer, clean), behind)
    own = slopes[Site("mlp_pre", layer)], slopes.get(Site("mlp_gate", layer))
    norm = input_norm(model, "ln2", site, clean)
    return FrozenMlp(Site("mlp_out", layer).depth, mlp_entry(model, site), norm, model.mlp(layer), own, behind)


def input_norm(model: Model, name: str, site: Site, clean: Mapping[Site, Tensor], *, gain: bool = True) -> InputNorm:
    """The norm called `name` of the site's layer with its clean scale; the identity where the model has none."""
    return InputNorm(model.norm(site, name), clean.get(Site(f"{name}_scale", site.layer)), gain)


def mlp_entry(model: Model, site: Site) -> int:
    """The depth below which writers reach the MLP of the site's layer."""
    return Site("ln1_scale" if model.parallel else "ln2_scale", site.layer).depth


def _rows(values: Tensor, dense: Tensor, first: int) -> Tensor:
    """values [batch, pos, d] at the positions of dense, to multiply it with."""
    return values[:, None, None, first : first + dense.shape[3]]

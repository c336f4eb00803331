"""Linear maps of the residual stream that paths pass: skip connections, and components frozen at the clean run.

A map is used both ways: `apply` gives what arrives at its output when the stream changes, `pull_back`, its transpose,
turns input directions behind it into input directions before it. Both use the patterns, norm scales and slopes of the
clean run; nothing is run again and no autograd graph is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuitgraph.models.formulas import AttentionState
from circuitgraph.models.layout import MlpWeights, Norm
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph.paths.stream import entry_depth


@runtime_checkable
class LinearMap(Protocol):
    """A map from the stream at depth `entry` to what is added to it at depth `out`."""

    @property
    def out(self) -> int:
        """The depth of its output."""

    @property
    def entry(self) -> int:
        """The depth below which writers reach its input."""

    def apply(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What a change x of the stream adds at the output."""

    def pull_back(
        self, dense: Float[Tensor, "batch targets heads n d_model"], first: int
    ) -> tuple[Float[Tensor, "batch targets heads m d_model"], int]:
        """Input directions behind the map as those before it.

        Args:
            dense: Input directions at the positions first..first + n - 1.
            first: The first of these positions.

        Returns input directions, and the position of their first row.
        """


@dataclass(frozen=True, eq=False)
class InputNorm:
    """A norm with the clean run's scale; without one, or without both, what is left is the identity."""

    norm: Norm | None
    scale: Float[Tensor, "batch pos 1"] | None

    def apply(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """J x at every position."""
        x = x if self.norm is None else self.norm.apply(x)
        return x if self.scale is None else x / self.scale

    def pull_back(
        self, dense: Float[Tensor, "batch targets heads n d"], first: int
    ) -> Float[Tensor, "batch targets heads n d"]:
        """J^T r at the positions from `first` on."""
        dense = dense if self.norm is None else self.norm.pull_back(dense)
        return dense if self.scale is None else dense / _rows(self.scale, dense, first)


@dataclass(frozen=True, eq=False)
class SkipMap:
    """The linear skip connection of a transcoder: x_out += norm(x) @ W_skip, position by position."""

    out: int
    entry: int
    norm: InputNorm
    W_skip: Float[Tensor, "d_model d_model"]

    def apply(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What a change of the stream adds through the skip."""
        return self.norm.apply(x) @ self.W_skip

    def pull_back(
        self, dense: Float[Tensor, "batch targets heads n d_model"], first: int
    ) -> tuple[Float[Tensor, "batch targets heads n d_model"], int]:
        """Input directions before the skip."""
        return self.norm.pull_back(dense @ self.W_skip.T, first), first


@dataclass(frozen=True, eq=False)
class FrozenMlp:
    """An MLP made linear at the clean run: `slopes` are its neurons' by their input and, if gated, by their gate."""

    out: int
    entry: int
    norm: InputNorm
    weights: MlpWeights
    slopes: tuple[Float[Tensor, "batch pos d_mlp"], Float[Tensor, "batch pos d_mlp"] | None]
    post: InputNorm

    def apply(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """J x of the whole MLP."""
        y, (inner, gate) = self.norm.apply(x), self.slopes
        neurons = (y @ self.weights.W_in) * inner
        if gate is not None and self.weights.W_gate is not None:
            neurons = neurons + (y @ self.weights.W_gate) * gate
        return self.post.apply(neurons @ self.weights.W_out)

    def pull_back(
        self, dense: Float[Tensor, "batch targets heads n d_model"], first: int
    ) -> tuple[Float[Tensor, "batch targets heads n d_model"], int]:
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

    def apply(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """sum_h P[h] (norm(x) W_V[h]) W_O[h], through the frozen post-norm."""
        weights, state = self.state.weights, self.state
        values = torch.einsum("bkd,hdx->bkhx", self.norm.apply(x), weights.W_V)
        z = torch.einsum("bhpk,bkhx->bphx", state.pattern, state.per_query_head(values, 2))
        return self.post.apply(torch.einsum("bphx,hxd->bpd", z, weights.W_O))

    def pull_back(
        self, dense: Float[Tensor, "batch targets heads n d_model"], first: int
    ) -> tuple[Float[Tensor, "batch targets heads m d_model"], int]:
        """The transpose: targets at positions first.. read values from every position that these attend to."""
        state, sizes = (
            self.state,
            {"targets": dense.shape[1], "n": dense.shape[3], "h": self.state.weights.W_O.shape[0]},
        )
        last = first + sizes["n"] if state.causal else state.pattern.shape[-1]
        pattern = state.pattern[:, :, first : first + sizes["n"], :last]
        W_V = rearrange(state.per_query_head(state.weights.W_V, 0), "h d x -> (h x) d")
        W_O = rearrange(state.weights.W_O, "h x d -> d (h x)")
        # "outer" are the heads that read this layer's output, "h" the heads of this layer
        z = rearrange(self.post.pull_back(dense, first), "batch targets outer n d -> batch (targets outer n) d") @ W_O
        z = rearrange(z, "batch (r n) (h x) -> batch h n (r x)", n=sizes["n"], h=sizes["h"])
        moved = rearrange(
            pattern.transpose(-1, -2) @ z, "batch h key (r x) -> batch (r key) (h x)", x=len(W_V) // sizes["h"]
        )
        values = rearrange(
            moved @ W_V, "batch (targets outer key) d -> batch targets outer key d", targets=sizes["targets"], key=last
        )
        return self.norm.pull_back(values, 0), 0


def skip_map(model: Model, reads: Site, writes: Site, W_skip: Tensor, clean: Mapping[Site, Tensor]) -> LinearMap:
    """The skip connection of a transcoder that reads the MLP's input."""
    norm = InputNorm(reading_norm(model, reads), _scale(clean, "ln2", reads))
    return SkipMap(writes.depth, entry_depth(model, reads), norm, W_skip.to(clean[writes].dtype))


def frozen_component(
    model: Model, site: Site, clean: Mapping[Site, Tensor], slopes: Mapping[Site, Tensor]
) -> LinearMap:
    """Attention or MLP of the site's layer, frozen at the clean run.

    Args:
        model: The model.
        site: Where it writes: z, attn_out or mlp_out.
        clean: Activations of the clean run.
        slopes: `gradients.mlp_slopes` of the layer, for an MLP.

    Raises ModelError if its formula is not known.
    """
    layer, entry = site.block, entry_depth(model, site)
    before, behind = ("ln1", "ln1_post") if site.part == "attention" else ("ln2", "ln2_post")
    norm, post = (InputNorm(model.norm(site, name), _scale(clean, name, site)) for name in (before, behind))
    if site.part == "attention":
        return FrozenAttention(Site("attn_out", layer).depth, entry, norm, model.attention_state(layer, clean), post)
    own = slopes[Site("mlp_pre", layer)], slopes.get(Site("mlp_gate", layer))
    return FrozenMlp(Site("mlp_out", layer).depth, entry, norm, model.mlp(layer), own, post)


def reading_norm(model: Model, site: Site) -> Norm | None:
    """The norm between the stream and what reads at the site, None without one; at ln2_normalized without its gain."""
    if site.part == "stream":
        return None
    norm = model.norm(site, "ln1" if site.part == "attention" else "ln2")
    return norm if norm is None or site.kind != "ln2_normalized" else Norm(None, None, norm.centred)


def _scale(clean: Mapping[Site, Tensor], norm: str, site: Site) -> Tensor | None:
    """The clean run's scale of that norm in the site's layer, None without one."""
    return clean.get(Site(f"{norm}_scale", site.layer))


def _rows(values: Tensor, dense: Tensor, first: int) -> Tensor:
    """values [batch, pos, d] at the positions of dense, to multiply it with."""
    return values[:, None, None, first : first + dense.shape[3]]

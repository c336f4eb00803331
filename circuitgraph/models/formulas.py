"""The formulas of attention and MLPs that edges differentiate, and a check whether a model follows them.

    q, k, v = norm(x) W + b;  s = cap(scale * R norm(q) . R norm(k));  pattern = softmax(s)
    mlp_out = post_norm(mlp_post W_out + b_out)

This module computes rotated queries and keys, scores and their slopes from recorded activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.models.layout import AttentionWeights, MlpWeights, Norm
from circuitgraph.nodes import Site


@dataclass(frozen=True)
class Rotation:
    """Rotary positions.

    Args:
        cos, sin: [pos, rotary_dim], for the first rotary_dim coordinates of each head; [batch, pos, rotary_dim] if the
            examples' positions differ.
        interleaved: Whether pairs are neighbouring coordinates, not those of the two halves.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def apply(self, x: Tensor, at: Tensor | slice = slice(None)) -> Tensor:
        """R x, rotated.

        Args:
            x: [batch, ..., n, heads, d_head]; a batch of 1 takes the batch of the angles.
            at: The position of each of the n rows.
        """
        size = self.cos.shape[-1]
        cos, sin = self._at(x, at)
        turned = x[..., :size] * cos + self._quarter(x[..., :size]) * sin
        return torch.cat([turned, x[..., size:].expand(*turned.shape[:-1], -1)], -1)

    def undo(self, x: Tensor, at: Tensor | slice = slice(None)) -> Tensor:
        """R^T x: an input direction after the rotation becomes one before it. Arguments as of `apply`."""
        size = self.cos.shape[-1]
        cos, sin = self._at(x, at)
        turned = x[..., :size] * cos - self._quarter(x[..., :size] * sin)
        return torch.cat([turned, x[..., size:].expand(*turned.shape[:-1], -1)], -1)

    def _at(self, x: Tensor, at: Tensor | slice) -> list[Tensor]:
        """cos and sin at these positions, shaped to be multiplied with x [batch, ..., n, heads, d_head]."""
        angles = [angle[..., at, :][..., None, :] for angle in (self.cos, self.sin)]
        if self.cos.ndim == 2:
            return angles
        return [angle.view(len(angle), *[1] * (x.ndim - 4), *angle.shape[1:]) for angle in angles]

    def _quarter(self, x: Tensor) -> Tensor:
        """Each pair (a, b) as (-b, a); its transpose is its negative."""
        if self.interleaved:
            return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], -1)


@dataclass(frozen=True, eq=False)
class AttentionState:
    """One attention layer in a run: what the derivative of its scores needs.

    Args:
        weights: Its weights.
        q: Queries [batch, pos, n_heads, d_head], normed and rotated.
        k: Keys [batch, pos, n_kv, d_head], normed and rotated.
        v: Values [batch, pos, n_kv, d_head].
        pattern: [batch, n_heads, query, key].
        q_scale, k_scale: Scales of the norms per head [batch, pos, heads], or None.
        rotation: Of rotary positions, or None.
        causal: Whether each query only sees keys at its position and before.
    """

    weights: AttentionWeights
    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Tensor
    q_scale: Tensor | None
    k_scale: Tensor | None
    rotation: Rotation | None
    causal: bool = True

    def keys(self, pos: int) -> slice:
        """The positions that the query at pos may attend to; the pattern is 0 at those of them that are masked."""
        return slice(0, pos + 1) if self.causal else slice(0, self.k.shape[1])

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.q.shape[2] // self.k.shape[2]

    def per_query_head(self, x: Tensor, dim: int) -> Tensor:
        """x with n_kv entries in that dimension repeated to n_heads, one for each query head."""
        return x if self.group == 1 else x.repeat_interleave(self.group, dim)

    def positioned(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Queries or keys x [..., pos, d_head] of one head as they enter the product: normed, and rotated."""
        x = _head_norm(x, gain, self.weights.eps)[0]
        return x if self.rotation is None else self.rotation.apply(x[..., None, :])[..., 0, :]

    def scores(self, pos: int | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(scores, d scores / d (scale * q . k)) of the queries at pos, [batch, n_heads, queries, key] each."""
        q = self.q[:, pos] if isinstance(pos, slice) else self.q[:, pos : pos + 1]
        k = self.per_query_head(self.k, 2)
        scores = torch.einsum("bqhx,bkhx->bhqk", q, k) * self.weights.scale
        cap = self.weights.soft_cap
        if cap is None:
            return scores, torch.ones_like(scores)
        bent = torch.tanh(scores / cap)
        return cap * bent, 1 - bent.square()


def attention_state(
    weights: AttentionWeights,
    layer: int,
    values: Mapping[Site, Tensor],
    cos_sin: tuple[Tensor, Tensor] | None = None,
    *,
    causal: bool = True,
    hidden_below: float = -1e30,
) -> AttentionState:
    """The state of a layer from what a run recorded.

    Args:
        weights: The layer's weights.
        layer: Its number.
        values: Recorded q, k, v and pattern; rotary_cos, rotary_sin and attn_scores if the run has them.
        cos_sin: Rotary cos and sin [n_ctx, rotary_dim], where the run does not record them.
        causal: Whether the model attends only to earlier positions. In aligned prompts a key may come after its query
            all the same: one with a weight, or, if scores are recorded, one whose score is not below hidden_below.
        hidden_below: The score below which the model masks a key.
    """
    d_head = weights.W_Q.shape[-1]
    q, k, v = (values[Site(kind, layer)].unflatten(-1, (-1, d_head)) for kind in "qkv")
    cos, sin = (values.get(Site(kind, layer)) for kind in ("rotary_cos", "rotary_sin"))
    rotation = None
    if cos is not None and sin is not None:
        shared = len(cos) == 1
        rotation = Rotation(cos[0] if shared else cos, sin[0] if shared else sin, weights.interleaved)
    elif cos_sin is not None:
        rotation = Rotation(cos_sin[0][: q.shape[1]], cos_sin[1][: q.shape[1]], weights.interleaved)
    q, q_scale = _head_norm(q, weights.q_gain, weights.eps)
    k, k_scale = _head_norm(k, weights.k_gain, weights.eps)
    if rotation is not None:
        q, k = rotation.apply(q), rotation.apply(k)
    pattern = values[Site("pattern", layer)]
    scores = values.get(Site("attn_scores", layer))
    ahead = (pattern if scores is None else scores >= hidden_below).triu(1)
    return AttentionState(weights, q, k, v, pattern, q_scale, k_scale, rotation, causal and not bool(ahead.any()))


def _head_norm(x: Tensor, gain: Tensor | None, eps: float) -> tuple[Tensor, Tensor | None]:
    if gain is None:
        return x, None
    scale = (x.square().mean(-1) + eps).sqrt()
    return x / scale[..., None] * gain, scale


def attention_difference(
    weights: AttentionWeights,
    norm: Norm | None,
    layer: int,
    values: Mapping[Site, Tensor],
    cos_sin: tuple[Tensor, Tensor] | None,
    eps: float,
) -> str:
    """How a layer's recorded attention differs from the formulas, in words; empty if it follows them.

    q, k and v are compared with the norm of the stream times the weights, and the pattern with the softmax of the
    scores over the keys that the model does not mask.

    Args:
        weights, norm: The layer's attention and the norm before it.
        layer: Its number.
        values: Activations of a run at all sites of the layer.
        cos_sin: As of `attention_state`.
        eps: The precision of the model's dtype.
    """
    if any(Site(kind, layer) not in values for kind in ("q", "k", "v", "pattern")):
        return "its queries, keys, values or attention pattern cannot be read"
    normed = _normed(norm, values[Site("resid_pre", layer)], values.get(Site("ln1_scale", layer)))
    for name, W, b in (
        ("q", weights.W_Q, weights.b_Q),
        ("k", weights.W_K, weights.b_K),
        ("v", weights.W_V, weights.b_V),
    ):
        expected = torch.einsum("bpd,hdx->bphx", normed, W) + (0 if b is None else b)
        if not _close(values[Site(name, layer)].unflatten(-1, expected.shape[2:]), expected, eps):
            return f"its {name} is not the norm of the stream times the weights"
    state = attention_state(weights, layer, values, cos_sin)
    scores = state.scores()[0].masked_fill(state.pattern == 0, -torch.inf)
    if not _close(scores.softmax(-1), state.pattern, eps * (1 + float(scores[scores.isfinite()].abs().max()))):
        return "its pattern is not the softmax of q . k with the positions, caps and norms that are known here"
    return ""


def mlp_difference(
    weights: MlpWeights,
    norm: Norm | None,
    post: Norm | None,
    layer: int,
    values: Mapping[Site, Tensor],
    eps: float,
    *,
    parallel: bool,
) -> str:
    """How a layer's recorded MLP differs from the formulas, in words; empty if it follows them.

    Args:
        weights, norm, post: The layer's MLP, the norm before it and the one after it.
        layer: Its number.
        values: Activations of a run at all sites of the layer.
        eps: The precision of the model's dtype.
        parallel: Whether the MLP reads the stream before attention is added.
    """
    if Site("mlp_post", layer) not in values:
        return "its neurons cannot be read"
    stream = values[Site("resid_pre", layer)]
    if not parallel:
        stream = stream + values[Site("attn_out", layer)]
    normed = _normed(norm, stream, values.get(Site("ln2_scale", layer)))
    if Site("mlp_in", layer) in values and not _close(values[Site("mlp_in", layer)], normed, eps):
        return "its input is not the norm of the stream"
    out = values[Site("mlp_post", layer)] @ weights.W_out + (0 if weights.b_out is None else weights.b_out)
    if post is not None:
        out = _normed(post, out, values[Site("ln2_post_scale", layer)])
    return "" if _close(values[Site("mlp_out", layer)], out, eps) else "its output is not its neurons times W_out"


def _normed(norm: Norm | None, x: Tensor, scale: Tensor | None) -> Tensor:
    y = x if norm is None else norm.apply(x)
    y = y if scale is None else y / scale
    return y if norm is None or norm.bias is None else y + norm.bias


def _close(recorded: Tensor, expected: Tensor, eps: float) -> bool:
    """Whether they are equal up to rounding: a few roundings of a narrow dtype, many of a wide one."""
    return float((recorded - expected).abs().max()) <= min(256 * eps, 0.1) * float(expected.abs().max())

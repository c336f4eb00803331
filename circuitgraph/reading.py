"""How a feature's pre-activation depends on the residual stream: reading vectors, one path per kind of edge.

In come encoder vectors, the state of a component in the clean run and norms; out come `Path`s, which read what nodes
write without spelling out a vector per head and position, or as dense vectors where something linear stands between.
Norm scales, per head and per stream, are frozen at the clean run. This module knows no tables, thresholds or graphs.

    mlp    r[p] = J_ln2^T e / scale2[p]                                      e = encoder vector of the reader
    ov     r[k] = J_ln1^T sum_h P[h,p,k] W_V[h] e_h / scale1[k]              e_h = head h's slice of e
    q      r[p] = J_ln1^T sum_h W_Q[h] N_q R_p^T sum_k ds[h,k] k[k,h] / scale1[p]
    k      r[k] = J_ln1^T sum_h W_K[h] N_k R_k^T ds[h,k] q[p,h] / scale1[k]

with s[h,k] = v[k,h] . e_h, the softmax derivative ds[h,k] = P[h,p,k] (s[h,k] - sum_j P[h,p,j] s[h,j]) times the slope of
the soft cap and the scale of the scores; q and k are normed and rotated (R), N = gain / scale of the norms per head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.model import Model
from circuitgraph.model_formulas import AttentionState, Rotation
from circuitgraph.model_layout import Norm
from circuitgraph.nodes import EdgeKind, Site


@dataclass(frozen=True, eq=False)
class Projection:
    """Stream vectors as a reader sees them: through the norm's Jacobian and, per head, W [n_kv, d_model, d_head].

    group: query heads per head of W. Without W there is one head, the stream itself.
    """

    norm: Norm | None = None
    gain: bool = True
    W: Tensor | None = None
    group: int = 1
    head_gain: Tensor | None = None
    rotation: Rotation | None = None

    def of(self, x: Tensor, pos: Tensor) -> Tensor:
        """x [batch or 1, n, d_model] at positions pos [n] -> [batch or 1, n, heads, d_head], without frozen scales."""
        if self.norm is not None:
            x = (self.norm if self.gain else Norm(None, None, self.norm.centred)).apply(x)
        if self.W is None:
            return x[:, :, None]
        y = torch.einsum("bnd,hdx->bnhx", x, self.W)
        if self.head_gain is not None:
            y = y * self.head_gain
        if self.rotation is not None:
            y = self.rotation.apply(y, pos)
        return y if self.group == 1 else y.repeat_interleave(self.group, 2)

    def back(self, a: Tensor, pos: Tensor) -> Tensor:
        """The transpose: a [batch, readers, heads, d_head] at positions pos [n] -> [batch, readers, heads, n, d_model]."""
        y = a[:, :, None].expand(-1, -1, len(pos), -1, -1)
        if self.W is None:
            y = y[:, :, :, 0]
        else:
            if self.rotation is not None:
                y = self.rotation.undo(y, pos)
            if self.head_gain is not None:
                y = y * self.head_gain
            y = torch.einsum("brnhx,hdx->brhnd", y, self.W.repeat_interleave(self.group, 0))
        if self.norm is not None:
            y = self.norm.pull_back(y, gain=self.gain)
        return y[:, :, None] if self.W is None else y


@dataclass(frozen=True, eq=False)
class Path:
    """One way from the residual stream at positions first..last into readers that stand at one position.

    Read is factor * (vectors . projection(x)), summed over heads later: vectors [batch or 1, readers or 1, heads, d],
    factor [batch, readers or 1, heads or 1, last - first + 1]. Writers below `entry` (a depth) are read.
    """

    kind: EdgeKind
    entry: int
    projection: Projection
    vectors: Tensor
    factor: Tensor
    first: int
    last: int

    def read(self, projected: Tensor, pos: Tensor) -> Tensor:
        """What [batch, readers, heads, n] of projected [batch or 1, n, heads, d] at positions pos is read."""
        product = self.vectors.transpose(1, 2) @ projected.permute(0, 2, 3, 1)
        return product.transpose(1, 2) * self.factor[..., pos - self.first]

    def dense(self) -> Tensor:
        """The reading vectors themselves, [batch, readers, heads, last - first + 1, d_model]."""
        pos = torch.arange(self.first, self.last + 1, device=self.factor.device)
        batch = len(self.factor)
        readers = max(self.vectors.shape[1], self.factor.shape[1])
        a = self.vectors.expand(batch, readers, -1, -1)
        return self.projection.back(a, pos) * self.factor[..., None]


def check_reader(model: Model, site: Site) -> None:
    """ModelError unless what a dictionary reads at the site can be traced into the stream."""
    if site.kind in ("z", "attn_out"):
        model.attention(site.layer or 0)
    elif site.kind in ("mlp_post", "mlp_out"):
        model.mlp(site.layer or 0)


class Reader:
    """Makes the paths of one dictionary's features, position by position.

    reads: the site that is read. slopes: d mlp_post / d mlp_pre (and / d mlp_gate), for what reads behind the neurons.
    """

    def __init__(
        self, model: Model, reads: Site, clean: Mapping[Site, Tensor], slopes: Mapping[Site, Tensor] | None = None
    ) -> None:
        self.model, self.reads, self.clean, self.slopes = model, reads, clean, slopes or {}
        layer, kind = reads.layer or 0, reads.kind
        self.state: AttentionState | None = None
        if kind in ("z", "attn_out"):
            self.state = model.attention_state(layer, clean)
            weights, norm, group = self.state.weights, model.norm(reads, "ln1"), self.state.group
            rotation = self.state.rotation
            self.projections = {
                "ov": Projection(norm, True, weights.W_V, group),
                "q": Projection(norm, True, weights.W_Q, 1, weights.q_gain, rotation),
                "k": Projection(norm, True, weights.W_K, group, weights.k_gain, rotation),
            }
        elif kind in ("resid_pre", "resid_post"):
            self.projections = {"residual": Projection()}
        else:
            self.projections = {"mlp": Projection(model.norm(reads, "ln2"), gain=kind != "ln2_normalized")}

    @property
    def entry(self) -> int:
        """The depth below which writers are read."""
        kind = self.reads.kind
        if kind in ("resid_pre", "resid_post"):
            return self.reads.depth
        attention = kind in ("z", "attn_out") or self.model.parallel
        return Site("ln1_scale" if attention else "ln2_scale", self.reads.layer).depth

    def paths(self, vectors: Tensor, pos: int) -> list[Path]:
        """The paths into readers at position pos with encoder vectors [readers, d_in]."""
        if self.state is not None:
            return self._attention_paths(self.state, self._behind(vectors, pos), pos)
        if "residual" in self.projections:
            ones = vectors.new_ones(len(self.clean[self.reads]), 1, 1, 1)
            return [self._path("residual", vectors[None, :, None], ones, pos, pos)]
        e = self._behind(vectors, pos)
        if self.reads.kind in ("mlp_post", "mlp_out"):
            e = self._before_neurons(e, pos)
        scale = self.clean[Site("ln2_scale", self.reads.layer)][:, pos, 0]
        return [self._path("mlp", e[:, :, None], (1 / scale)[:, None, None, None], pos, pos)]

    def _behind(self, vectors: Tensor, pos: int) -> Tensor:
        """Vectors at the output of attention or MLP as vectors [batch or 1, readers, d] at z or mlp_post."""
        kind, layer = self.reads.kind, self.reads.layer
        if kind not in ("attn_out", "mlp_out"):
            return vectors[None]
        inner = Site("z" if kind == "attn_out" else "mlp_post", layer)
        post = self.model.output_norm(inner)
        vectors = vectors[None]
        if post is not None:
            vectors = post[0].pull_back(vectors) / self.clean[post[1]][:, pos, None]
        if kind == "attn_out":
            return vectors @ self.model.attention(layer or 0).W_O.flatten(0, 1).T
        return vectors @ self.model.mlp(layer or 0).W_out.T

    def _before_neurons(self, e: Tensor, pos: int) -> Tensor:
        """Vectors [batch or 1, readers, d_mlp] at mlp_post as vectors [batch, readers, d_model] at the MLP's input."""
        weights, layer = self.model.mlp(self.reads.layer or 0), self.reads.layer
        inner = e * self.slopes[Site("mlp_pre", layer)][:, pos, None]
        result = inner @ weights.W_in.T
        if weights.W_gate is not None:
            result = result + (e * self.slopes[Site("mlp_gate", layer)][:, pos, None]) @ weights.W_gate.T
        return result

    def _attention_paths(self, state: AttentionState, e: Tensor, pos: int) -> list[Path]:
        heads = (state.q.shape[2], state.q.shape[3])
        e = e.unflatten(-1, heads)  # [batch or 1, readers, heads, d_head]
        seen = slice(0, pos + 1)
        pattern = state.pattern[:, :, pos, seen]
        slope = state.scores(pos)[1][:, :, 0, seen]
        scale = self.clean[Site("ln1_scale", self.reads.layer)][..., 0]
        v = state.per_query_head(state.v[:, seen], 2)
        s = (e.transpose(1, 2) @ v.permute(0, 2, 3, 1)).transpose(1, 2)  # [batch, readers, heads, key]
        weighted = pattern[:, None]
        d_scores = weighted * (s - (weighted * s).sum(-1, keepdim=True)) * (slope * state.weights.scale)[:, None]
        keys = state.per_query_head(state.k[:, seen], 2)
        query_read = (d_scores.transpose(1, 2) @ keys.transpose(1, 2)).transpose(1, 2)
        q_factor, k_factor = 1 / scale[:, pos, None], 1 / scale[:, None, seen]
        if state.q_scale is not None and state.k_scale is not None:
            q_factor = q_factor / state.q_scale[:, pos]
            k_factor = k_factor / state.per_query_head(state.k_scale[:, seen], 2).transpose(1, 2)
        return [
            self._path("ov", e, (pattern / scale[:, None, seen])[:, None], 0, pos),
            self._path("q", query_read, q_factor[:, None, :, None], pos, pos),
            self._path("k", state.q[:, pos][:, None], d_scores * k_factor[:, None], 0, pos),
        ]

    def _path(self, kind: EdgeKind, vectors: Tensor, factor: Tensor, first: int, last: int) -> Path:
        return Path(kind, self.entry, self.projections[kind], vectors, factor, first, last)


@dataclass(frozen=True, eq=False)
class Skip:
    """A linear skip connection past the features of a transcoder: x_out += norm(x) @ W_skip, position by position.

    Reading vectors at depths from `out` down to `entry` pass it: r += J^T r. scale [batch, pos, 1] is the norm's.
    """

    out: int
    entry: int
    projection: Projection
    W_skip: Tensor
    scale: Tensor

    def pull_back(self, dense: Tensor, first: int) -> Tensor:
        """dense [batch, readers, heads, n, d_model] at positions from `first` on, with what arrives through the skip."""
        norm = self.projection.norm
        arriving = dense @ self.W_skip.T
        if norm is not None:
            arriving = norm.pull_back(arriving, gain=self.projection.gain)
        scale = self.scale[:, first : first + dense.shape[3]]
        return dense + arriving / scale[:, None, None]


def skip_of(model: Model, reads: Site, writes: Site, W_skip: Tensor, clean: Mapping[Site, Tensor]) -> Skip:
    """The skip connection of a transcoder between these sites."""
    reader = Reader(model, reads, clean)
    scale = clean[Site("ln2_scale", reads.layer)]
    return Skip(writes.depth, reader.entry, reader.projections["mlp"], W_skip.to(scale.dtype), scale)


def floors(sites: Sequence[Site]) -> list[int]:
    """Depths of residual-stream dictionaries, ascending: what is written below one reaches readers above through it."""
    return sorted(site.depth for site in sites if site.kind in ("resid_pre", "resid_post"))

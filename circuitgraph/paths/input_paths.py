"""How a feature's pre-activation depends on the residual stream: input directions, one path per kind of edge.

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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from circuitgraph.errors import ModelError
from circuitgraph.models.formulas import AttentionState, Rotation
from circuitgraph.models.layout import Norm
from circuitgraph.models.model import Model
from circuitgraph.nodes import EdgeKind, Site
from circuitgraph.paths.linear_maps import mlp_entry


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
class Softmax:
    """The attention of one query position, for differences of its pattern instead of the derivative.

    query [batch, heads, d_head], keys [batch, key, heads, d_head] as they enter the scores, s [batch, readers, heads, key]
    what each key's value adds to each reader, hidden [batch, heads, key] what the model's mask hides.
    """

    query: Tensor
    keys: Tensor
    s: Tensor
    hidden: Tensor
    scale: float
    soft_cap: float | None

    def without_query(self, change: Tensor) -> Tensor:
        """What readers lose when `change` [batch, n, heads, d_head] is taken out of the query, [batch, readers, heads, n]."""
        moved = self._products[:, None] - torch.einsum("bnhx,bkhx->bnhk", change, self.keys)
        pattern = self._capped(moved).masked_fill(self.hidden[:, None], -torch.inf).softmax(-1)
        return torch.einsum("brhk,bnhk->brhn", self.s, self._pattern[:, None] - pattern)

    def without_key(self, change: Tensor, at: Tensor) -> Tensor:
        """The same when it is taken out of the key at positions at [n]: one score of each pattern moves.

        p = sigmoid(score - logsumexp of the others), and the others keep their shares among themselves: what is lost is the
        change of p times s less the others' mean of s. So a pattern of 1, or a huge new score, loses no digits.
        """
        logs, mean = self._others
        moved = self._products[..., at] - torch.einsum("bhx,bnhx->bhn", self.query, change)
        before, after = (
            (self._capped(products) - logs[..., at]).sigmoid().masked_fill(self.hidden[..., at], 0)
            for products in (self._products[..., at], moved)
        )
        return (before - after)[:, None] * (self.s - mean)[..., at]

    @cached_property
    def _products(self) -> Tensor:
        return torch.einsum("bhx,bkhx->bhk", self.query, self.keys)

    @cached_property
    def _pattern(self) -> Tensor:
        return self._capped(self._products).masked_fill(self.hidden, -torch.inf).softmax(-1)

    @cached_property
    def _others(self) -> tuple[Tensor, Tensor]:
        """Of all keys but one: the log of their summed exponentials [batch, heads, key] and their mean of s [batch,
        readers, heads, key]; -inf and 0 for a key that is alone."""
        scores = self._capped(self._products).masked_fill(self.hidden, -torch.inf)
        itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
        others = scores[:, :, None].masked_fill(itself, -torch.inf)  # [batch, heads, key, other key]
        return others.logsumexp(-1), torch.einsum("brhj,bhkj->brhk", self.s, others.softmax(-1).nan_to_num(0))

    def _capped(self, products: Tensor) -> Tensor:
        scores = products * self.scale
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)


@dataclass(frozen=True, eq=False)
class Path:
    """One way from the residual stream at positions first..last into readers that stand at one position.

    Read is factor * (vectors . projection(x)), summed over heads later: vectors [batch or 1, readers or 1, heads, d],
    factor [batch, readers or 1, heads or 1, last - first + 1]. Writers below `entry` (a depth) are read. With `softmax`
    what is read is the difference that taking out projection(x) * factor of the query or key makes, and is not linear.
    """

    kind: EdgeKind
    entry: int
    projection: Projection
    vectors: Tensor
    factor: Tensor
    first: int
    last: int
    softmax: Softmax | None = None

    def read(self, projected: Tensor, pos: Tensor, amount: Tensor | None) -> Tensor:
        """What [batch, readers, heads, n] of projected [batch or 1, n, heads, d] times amount [batch, n] at positions pos
        is read."""
        if self.softmax is not None:
            change = projected * self.factor[:, 0, :, pos - self.first].transpose(1, 2)[..., None]
            change = change if amount is None else change * amount[..., None, None]
            if self.kind == "q":
                return self.softmax.without_query(change)
            return self.softmax.without_key(change, pos)
        product = (self.vectors.transpose(1, 2) @ projected.permute(0, 2, 3, 1)).transpose(1, 2)
        product = product * self.factor[..., pos - self.first]
        return product if amount is None else product * amount[:, None, None]

    def of_stream(self, x: Tensor) -> Tensor:
        """What [batch, readers, heads] a linear path reads of a whole change of the stream x [batch, pos, d_model]."""
        pos = torch.arange(self.first, self.last + 1, device=x.device)
        return self.read(self.projection.of(x[:, pos], pos), pos, None).sum(-1)

    def dense(self) -> Tensor:
        """The input directions themselves, [batch, readers, heads, last - first + 1, d_model]."""
        pos = torch.arange(self.first, self.last + 1, device=self.factor.device)
        batch = len(self.factor)
        readers = max(self.vectors.shape[1], self.factor.shape[1])
        a = self.vectors.expand(batch, readers, -1, -1)
        return self.projection.back(a, pos) * self.factor[..., None]


# What a dictionary may read for its inputs to be traced.
INPUT_SITES = ("resid_pre", "z", "attn_out", "ln2_normalized", "mlp_in", "mlp_post", "mlp_out", "resid_post")


def check_input_site(model: Model, site: Site) -> None:
    """ModelError unless what a dictionary reads at the site can be traced into the stream."""
    if site.kind not in INPUT_SITES:
        raise ModelError(
            f"{model.name}: what is read at {site} cannot be traced into the stream; expected one of {', '.join(INPUT_SITES)}"
        )
    if site.kind in ("z", "attn_out"):
        model.attention(site.block)
    elif site.kind in ("mlp_post", "mlp_out"):
        model.mlp(site.block)


class InputPaths:
    """Makes the paths of one dictionary's features, position by position.

    reads: the site that is read. slopes: d mlp_post / d mlp_pre (and / d mlp_gate), for what reads behind the neurons.
    recompute: q and k by the difference of the pattern with and without each source, for heads that are saturated.
    """

    def __init__(
        self,
        model: Model,
        reads: Site,
        clean: Mapping[Site, Tensor],
        slopes: Mapping[Site, Tensor] | None = None,
        *,
        ablate: bool = False,
    ) -> None:
        self.model, self.reads, self.clean, self.slopes = model, reads, clean, slopes or {}
        self.ablate = ablate
        layer, kind = reads.block, reads.kind
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
        if kind in ("z", "attn_out"):
            return Site("ln1_scale", self.reads.layer).depth
        return mlp_entry(self.model, self.reads)

    def paths(self, vectors: Tensor, pos: int) -> list[Path]:
        """The paths into readers at position pos with encoder vectors [readers, d_in] or [batch, readers, d_in]."""
        vectors = vectors if vectors.ndim == 3 else vectors[None]
        if self.state is not None:
            return self._attention_paths(self.state, self._behind(vectors, pos), pos)
        if "residual" in self.projections:
            ones = vectors.new_ones(len(self.clean[self.reads]), 1, 1, 1)
            return [self._path("residual", vectors[:, :, None], ones, pos, pos)]
        e = self._behind(vectors, pos)
        if self.reads.kind in ("mlp_post", "mlp_out"):
            e = self._before_neurons(e, pos)
        scale = self._scale("ln2")[:, pos]
        return [self._path("mlp", e[:, :, None], (1 / scale)[:, None, None, None], pos, pos)]

    def _scale(self, name: str) -> Tensor:
        """The clean scale of a norm in front of the component, [batch, pos]; 1 where the model has no norm."""
        found = self.clean.get(Site(f"{name}_scale", self.reads.layer))
        if found is None:
            batch, n_pos = self.clean[Site("embed")].shape[:2]
            return self.clean[Site("embed")].new_ones(batch, n_pos)
        return found[..., 0]

    def _behind(self, vectors: Tensor, pos: int) -> Tensor:
        """Vectors at the output of attention or MLP as vectors [batch or 1, readers, d] at z or mlp_post."""
        kind, layer = self.reads.kind, self.reads.layer
        if kind not in ("attn_out", "mlp_out"):
            return vectors
        inner = Site("z" if kind == "attn_out" else "mlp_post", layer)
        post = self.model.output_norm(inner)
        if post is not None:
            vectors = post[0].pull_back(vectors) / self.clean[post[1]][:, pos, None]
        if kind == "attn_out":
            return vectors @ self.model.attention(layer or 0).W_O.flatten(0, 1).T
        return vectors @ self.model.mlp(layer or 0).W_out.T

    def _before_neurons(self, e: Tensor, pos: int) -> Tensor:
        """Vectors [batch or 1, readers, d_mlp] at mlp_post as vectors [batch, readers, d_model] at the MLP's input."""
        weights, layer = self.model.mlp(self.reads.block), self.reads.layer
        inner = e * self.slopes[Site("mlp_pre", layer)][:, pos, None]
        result = inner @ weights.W_in.T
        if weights.W_gate is not None:
            result = result + (e * self.slopes[Site("mlp_gate", layer)][:, pos, None]) @ weights.W_gate.T
        return result

    def _attention_paths(self, state: AttentionState, e: Tensor, pos: int) -> list[Path]:
        heads = (state.q.shape[2], state.q.shape[3])
        e = e.unflatten(-1, heads)  # [batch or 1, readers, heads, d_head]
        seen = state.keys(pos)
        last = seen.stop - 1
        pattern = state.pattern[:, :, pos, seen]
        scale = self._scale("ln1")
        v = state.per_query_head(state.v[:, seen], 2)
        s = (e.transpose(1, 2) @ v.permute(0, 2, 3, 1)).transpose(1, 2)  # [batch, readers, heads, key]
        keys = state.per_query_head(state.k[:, seen], 2)
        q_factor, k_factor = 1 / scale[:, pos, None], 1 / scale[:, None, seen]
        if state.q_scale is not None and state.k_scale is not None:
            q_factor = q_factor / state.q_scale[:, pos]
            k_factor = k_factor / state.per_query_head(state.k_scale[:, seen], 2).transpose(1, 2)
        k_factor = k_factor.expand(-1, heads[0], -1)
        paths = [self._path("ov", e, (pattern / scale[:, None, seen])[:, None], 0, last)]
        if self.ablate:
            query, ones = state.q[:, pos], torch.ones_like(q_factor)[:, None, :, None]
            hidden = self.clean[Site("attn_scores", self.reads.layer)][:, :, pos, seen] < self.model.hidden_below
            softmax = Softmax(query, keys, s, hidden, state.weights.scale, state.weights.soft_cap)
            paths.append(replace(self._path("q", e, q_factor[:, None, :, None] * ones, pos, pos), softmax=softmax))
            return [*paths, replace(self._path("k", e, k_factor[:, None], 0, last), softmax=softmax)]
        slope = state.scores(pos)[1][:, :, 0, seen]
        weighted = pattern[:, None]
        d_scores = weighted * (s - (weighted * s).sum(-1, keepdim=True)) * (slope * state.weights.scale)[:, None]
        query_read = (d_scores.transpose(1, 2) @ keys.transpose(1, 2)).transpose(1, 2)
        return [
            *paths,
            self._path("q", query_read, q_factor[:, None, :, None], pos, pos),
            self._path("k", state.q[:, pos][:, None], d_scores * k_factor[:, None], 0, last),
        ]

    def _path(self, kind: EdgeKind, vectors: Tensor, factor: Tensor, first: int, last: int) -> Path:
        return Path(kind, self.entry, self.projections[kind], vectors, factor, first, last)

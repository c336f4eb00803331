"""How what is read at a site depends on the residual stream: input directions, one path per kind of edge.

Targets are features, errors or directions that read at one site. `InputPaths` makes the paths into them, position by
position, from their encoder vectors e, the clean run and the norms. Norm scales, per head and per stream, are frozen at
the clean run. The input direction r at each position is

    mlp    r[p] = J_ln2^T e / scale2[p]
    ov     r[k] = J_ln1^T sum_h P[h,p,k] W_V[h] e_h / scale1[k]              e_h = head h's slice of e
    q      r[p] = J_ln1^T sum_h W_Q[h] N_q R_p^T sum_k ds[h,k] k[k,h] / scale1[p]
    k      r[k] = J_ln1^T sum_h W_K[h] N_k R_k^T ds[h,k] q[p,h] / scale1[k]

with s[h,k] = v[k,h] . e_h, the softmax derivative ds[h,k] = P[h,p,k] (s[h,k] - sum_j P[h,p,j] s[h,j]) times the slope
of the soft cap and the scale of the scores; q and k are normed and rotated (R), N = gain / scale of the norms per head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuitgraph.errors import ModelError
from circuitgraph.models.formulas import AttentionState
from circuitgraph.models.model import Model
from circuitgraph.nodes import DICTIONARY_SITES, EdgeKind, Site
from circuitgraph.paths.linear_maps import reading_norm
from circuitgraph.paths.path import Path, Projection
from circuitgraph.paths.softmax import Softmax
from circuitgraph.paths.stream import entry_depth


def check_input_site(model: Model, site: Site) -> None:
    """ModelError unless what a dictionary reads at the site can be traced into the stream."""
    if site.kind not in DICTIONARY_SITES:
        raise ModelError(
            f"{model.name}: what is read at {site} cannot be traced into the stream; expected one of"
            f" {', '.join(DICTIONARY_SITES)}"
        )
    if site.part == "attention":
        model.attention(site.block)
    elif site.behind_neurons:
        model.mlp(site.block)


class InputPaths:
    """Makes the paths into targets that read at one site.

    Args:
        model: The model.
        reads: The site that is read.
        clean: Activations of the clean run.
        slopes: `gradients.mlp_slopes`, for what reads behind the neurons of an MLP.
        ablate: Take q and k paths by the difference of the pattern with and without each source.
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
        self.entry = entry_depth(model, reads)  # sources below this depth are read
        self.state: AttentionState | None = None
        norm = reading_norm(model, reads)
        if reads.part == "attention":
            self.state = model.attention_state(reads.block, clean)
            weights, group, rotation = self.state.weights, self.state.group, self.state.rotation
            self.projections = {
                "ov": Projection(norm, weights.W_V, group),
                "q": Projection(norm, weights.W_Q, 1, weights.q_gain, rotation),
                "k": Projection(norm, weights.W_K, group, weights.k_gain, rotation),
            }
        else:
            self.projections = {"residual" if reads.part == "stream" else "mlp": Projection(norm)}

    def paths(
        self, vectors: Float[Tensor, "targets d_in"] | Float[Tensor, "#batch targets d_in"], pos: int
    ) -> list[Path]:
        """The paths into targets at one position.

        Args:
            vectors: Their encoder vectors, the same for every example or one each.
            pos: The position.
        """
        vectors = vectors if vectors.ndim == 3 else vectors[None]
        if self.state is not None:
            return self._attention_paths(self.state, self._behind(vectors, pos), pos)
        if self.reads.part == "stream":
            ones = vectors.new_ones(len(self.clean[self.reads]), 1, 1, 1)
            return [self._path("residual", vectors[:, :, None], ones, pos, pos)]
        e = self._behind(vectors, pos)
        if self.reads.behind_neurons:
            e = self._before_neurons(e, pos)
        factor = rearrange(1 / self._scale("ln2")[:, pos], "batch -> batch 1 1 1")
        return [self._path("mlp", e[:, :, None], factor, pos, pos)]

    def _scale(self, name: str) -> Float[Tensor, "batch pos"]:
        """The clean scale of a norm in front of the component; 1 where the model has no norm."""
        scale = self.clean.get(Site(f"{name}_scale", self.reads.layer))
        if scale is None:
            batch, n_pos = self.clean[Site("embed")].shape[:2]
            return self.clean[Site("embed")].new_ones(batch, n_pos)
        return scale[..., 0]

    def _behind(self, vectors: Tensor, pos: int) -> Float[Tensor, "some_batch targets d"]:
        """Vectors at the output of attention or MLP as vectors at z or mlp_post; others as they are."""
        kind, layer = self.reads.kind, self.reads.layer
        if kind not in ("attn_out", "mlp_out"):
            return vectors
        inner = Site("z" if kind == "attn_out" else "mlp_post", layer)
        post = self.model.output_norm(inner)
        if post is not None:
            vectors = post[0].pull_back(vectors) / self.clean[post[1]][:, pos, None]
        if kind == "attn_out":
            W_O = self.model.attention(self.reads.block).W_O
            return vectors @ rearrange(W_O, "heads d_head d_model -> d_model (heads d_head)")
        return vectors @ self.model.mlp(self.reads.block).W_out.T

    def _before_neurons(self, e: Tensor, pos: int) -> Float[Tensor, "batch targets d_model"]:
        """Vectors [batch or 1, targets, d_mlp] at mlp_post as vectors at the MLP's input."""
        weights, layer = self.model.mlp(self.reads.block), self.reads.layer
        inner = e * self.slopes[Site("mlp_pre", layer)][:, pos, None]
        result = inner @ weights.W_in.T
        if weights.W_gate is not None:
            result = result + (e * self.slopes[Site("mlp_gate", layer)][:, pos, None]) @ weights.W_gate.T
        return result

    def _attention_paths(self, state: AttentionState, e: Tensor, pos: int) -> list[Path]:
        """The ov, q and k paths into targets with vectors e [batch or 1, targets, heads * d_head] at z."""
        n_heads = state.q.shape[2]
        e = rearrange(e, "batch targets (heads d_head) -> batch targets heads d_head", heads=n_heads)
        seen = state.keys(pos)
        last = seen.stop - 1
        pattern, scale = state.pattern[:, :, pos, seen], self._scale("ln1")
        keys, values = (state.per_query_head(x[:, seen], 2) for x in (state.k, state.v))
        s = torch.einsum("brhx,bkhx->brhk", e, values)
        q_factor, k_factor = 1 / scale[:, pos, None], 1 / scale[:, None, seen]
        if state.q_scale is not None and state.k_scale is not None:
            q_factor = q_factor / state.q_scale[:, pos]
            k_factor = k_factor / rearrange(
                state.per_query_head(state.k_scale[:, seen], 2), "batch key heads -> batch heads key"
            )
        k_factor = k_factor.expand(-1, n_heads, -1)
        q_factor = rearrange(q_factor, "batch heads -> batch 1 heads 1")
        ov = self._path("ov", e, (pattern / scale[:, None, seen])[:, None], 0, last)
        if self.ablate:
            hidden = self.clean[Site("attn_scores", self.reads.layer)][:, :, pos, seen] < self.model.hidden_below
            softmax = Softmax(state.q[:, pos], keys, s, hidden, state.weights.scale, state.weights.soft_cap)
            return [
                ov,
                self._path("q", e, q_factor, pos, pos, softmax),
                self._path("k", e, k_factor[:, None], 0, last, softmax),
            ]
        slope = state.scores(pos)[1][:, :, 0, seen]
        weighted = pattern[:, None]
        d_scores = weighted * (s - (weighted * s).sum(-1, keepdim=True)) * (slope * state.weights.scale)[:, None]
        return [
            ov,
            self._path("q", torch.einsum("brhk,bkhx->brhx", d_scores, keys), q_factor, pos, pos),
            self._path("k", state.q[:, pos][:, None], d_scores * k_factor[:, None], 0, last),
        ]

    def _path(
        self, kind: EdgeKind, vectors: Tensor, factor: Tensor, first: int, last: int, softmax: Softmax | None = None
    ) -> Path:
        return Path(kind, self.entry, self.projections[kind], vectors, factor, first, last, softmax)

"""Where TransformerLens keeps hooks and weights: in TransformerBridge, and in an already loaded HookedTransformer.

It gives the hook point of every kind of Site, and weights in one layout whatever the library and the family. No other
module of the engine uses TransformerLens' names. Whether the formulas that these weights belong to are the model's is
checked in `load`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from circuitgraph.nodes import DICTIONARY_SITES, Site

# Kind of site -> hook point. Raw module hooks there see the tensors of the autograd graph; the libraries' own hook API
# copies q, k, v and z out of it, and costs 100 ms a call on the bridge. `hook_resid_mid` is not used: on the bridge it
# is only the branch to the MLP. `hook_attn_out` and `hook_mlp_out` are what is added to the stream, after a post-norm.
_SHARED_HOOKS = {
    "ln1_scale": "blocks.{}.ln1.hook_scale",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "pattern": "blocks.{}.attn.hook_pattern",
    "ln1_post_scale": "blocks.{}.ln1_post.hook_scale",
    "attn_out": "blocks.{}.hook_attn_out",
    "ln2_scale": "blocks.{}.ln2.hook_scale",
    "ln2_normalized": "blocks.{}.ln2.hook_normalized",
    "ln2_post_scale": "blocks.{}.ln2_post.hook_scale",
    "mlp_out": "blocks.{}.hook_mlp_out",
}
_BRIDGE_HOOKS = _SHARED_HOOKS | {
    "embed": "embed.hook_out",
    "pos_embed": "pos_embed.hook_out",
    "resid_pre": "blocks.{}.hook_in",
    "rotary_cos": "blocks.{}.attn.hook_cos",
    "rotary_sin": "blocks.{}.attn.hook_sin",
    "q": "blocks.{}.attn.q.hook_out",
    "k": "blocks.{}.attn.k.hook_out",
    "v": "blocks.{}.attn.v.hook_out",
    "z": "blocks.{}.attn.o.hook_in",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_gate": "blocks.{}.mlp.gate.hook_out",
    "mlp_pre": "blocks.{}.mlp.in.hook_out",
    "mlp_post": "blocks.{}.mlp.out.hook_in",
    "resid_post": "blocks.{}.hook_out",
    "final_scale": "ln_final.hook_scale",
}
_HOOKED_HOOKS = _SHARED_HOOKS | {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "z": "blocks.{}.attn.hook_z",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "resid_post": "blocks.{}.hook_resid_post",
    "final_scale": "ln_final.hook_scale",
}


_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")


@dataclass(frozen=True)
class Norm:
    """A norm with its scale frozen: y = gain * (x - mean(x)) / scale + bias. RMSNorm does not subtract the mean.

    J is the map without 1/scale and bias.
    """

    gain: Tensor | None
    bias: Tensor | None
    centred: bool

    def apply(self, vectors: Tensor) -> Tensor:
        """J v for vectors [..., d]."""
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors if self.gain is None else vectors * self.gain

    def pull_back(self, vectors: Tensor, *, gain: bool = True) -> Tensor:
        """J^T r for vectors [..., d]; gain=False for those that read the input of the gain."""
        if gain and self.gain is not None:
            vectors = vectors * self.gain
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors


@dataclass(frozen=True)
class AttentionWeights:
    """One attention layer: scores = cap(scale * rotate(norm(q)) . rotate(norm(k))).

    Query head h reads key head h // (n_heads / n_kv), and cap(s) = soft_cap * tanh(s / soft_cap).

    Args:
        W_Q: [n_heads, d_model, d_head].
        W_K, W_V: [n_kv, d_model, d_head].
        W_O: [n_heads, d_head, d_model].
        b_Q, b_K, b_V, b_O: [heads, d_head] and [d_model], or None.
        scale: What q . k is multiplied by.
        soft_cap: None where scores are not capped.
        q_gain, k_gain: [d_head], of norms per head (root mean square with eps); None without such norms.
        eps: That of the norms per head.
        interleaved: Whether rotary pairs are neighbouring coordinates, not those of the two halves.
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    scale: float
    soft_cap: float | None = None
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None
    eps: float = 0.0
    interleaved: bool = False


@dataclass(frozen=True)
class MlpWeights:
    """One MLP: mlp_post = act(x W_in + b_in), or act(x W_gate) * (x W_in + b_in) if it is gated.

    Args:
        W_in, W_gate: [d_model, d_mlp].
        W_out: [d_mlp, d_model].
        b_out: [d_model] or None.
    """

    W_in: Tensor
    W_gate: Tensor | None
    W_out: Tensor
    b_out: Tensor | None


class BridgeLayout:
    """TransformerBridge: Hugging Face weights under TransformerLens' names."""

    hooks: Mapping[str, str] = _BRIDGE_HOOKS

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        self.library, self.cfg, self.dtype = library, library.cfg, dtype

    @cached_property
    def points(self) -> Mapping[str, torch.nn.Module]:
        """Name -> hook point. Kept, because the bridge makes its own table anew each time, in 20 ms."""
        return dict(self.library.hook_dict)

    @property
    def rms(self) -> bool:
        """Whether the norms are RMSNorm, which does not centre."""
        return bool(self.cfg.uses_rms_norm)

    @property
    def logit_soft_cap(self) -> float | None:
        """c where the logits are c * tanh(logit / c), None where they are not capped."""
        cap = float(getattr(self.cfg, "output_logits_soft_cap", None) or 0)
        return cap if cap > 0 else None

    def parameters(self) -> Any:
        """(name, weight) of the model."""
        for name, value in self.library.original_model.named_parameters():
            yield name.replace("_original_component.", ""), value

    def processing(self) -> frozenset[str]:
        """What TransformerLens did to the weights when it loaded them."""
        return self._processing() if self.library.compatibility_mode else frozenset()

    def _processing(self) -> frozenset[str]:
        """By what the weights look like: a stream without mean, values without bias, norms without gain."""
        embedding = self._weight(self.library.W_E)
        layers = [self.attention(layer) for layer in range(self.cfg.n_layers)]
        gains = [self.norm(block, "ln1") for block in self.library.blocks]
        signs = {
            "center_writing_weights": float(embedding.mean(-1).abs().max()) < 1e-4 * float(embedding.abs().max()),
            "fold_value_biases": not any(layer.b_V is not None and bool(layer.b_V.any()) for layer in layers),
            "fold_ln": all(norm is None or norm.gain is None or bool((norm.gain == 1).all()) for norm in gains),
        }
        return frozenset(name for name, done in signs.items() if done)

    def hook_name(self, site: Site) -> str:
        """The hook point of a site; empty where the library has none."""
        return self.hooks.get(site.kind, "").format(site.layer)

    def norm(self, block: Any, name: str) -> Norm | None:
        """The norm of this name in a block, or None."""
        module = getattr(block, name, None)
        if module is None:
            return None
        return Norm(self._gain(module), self._read(module, "bias"), centred=not self.rms)

    def apply(self, layer: int, part: str, x: Tensor) -> Tensor:
        """The output of one of the layer's modules, without a gradient; x itself if the layer has no such module.

        Args:
            layer: The layer.
            part: ln1, ln1_post, ln2, ln2_post or mlp.
            x: [batch, pos, d_model].
        """
        module = getattr(self.library.blocks[layer], part, None)
        if module is None:
            return x
        with torch.no_grad():
            y: Tensor = module(x.to(self.library.W_U.dtype))
        return y.to(x.dtype)

    def attention(self, layer: int) -> AttentionWeights:
        """The weights of that layer's attention."""
        attn = self.library.blocks[layer].attn
        inner = attn._original_component
        scale = getattr(inner, "scaling", None)
        if scale is None:
            scale = self.cfg.d_head**-0.5 / (layer + 1 if self.cfg.scale_attn_by_inverse_layer_idx else 1)
        norms = [getattr(attn, name, None) for name in ("q_norm", "k_norm")]
        gains = [None if norm is None else self._gain(norm) for norm in norms]
        inner_norm = getattr(norms[0], "_original_component", None)
        eps = getattr(inner_norm, "variance_epsilon", None) or getattr(inner_norm, "eps", None)
        return AttentionWeights(
            **{name: self._weight(getattr(attn, name)) for name in ("W_Q", "W_K", "W_V", "W_O")},
            **{name: self._read(attn, name) for name in ("b_Q", "b_K", "b_V", "b_O")},  # type: ignore[arg-type]
            scale=float(scale),
            soft_cap=getattr(inner, "attn_logit_softcapping", None),
            q_gain=gains[0],
            k_gain=gains[1],
            eps=float(eps or 0),
            interleaved=bool(self.cfg.rotary_adjacent_pairs),
        )

    def rotary_cos_sin(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """None: the bridge has hook points for them."""
        return None

    def mlp(self, layer: int) -> MlpWeights:
        """The weights of that layer's MLP."""
        mlp = self.library.blocks[layer].mlp
        weights = [self._read(mlp, name) for name in ("W_in", "W_gate", "W_out", "b_out")]
        return MlpWeights(*weights)  # type: ignore[arg-type]

    def _gain(self, module: Any) -> Tensor | None:
        weight = self._read(module, "weight")
        return weight + 1 if weight is not None and self.cfg.rmsnorm_uses_offset else weight

    def _weight(self, value: Tensor) -> Tensor:
        return value.detach().to(self.dtype)

    def _read(self, module: Any, name: str) -> Tensor | None:
        """The weight in the dtype computed in, or None; the bridge raises AttributeError for a weight that is None."""
        value = getattr(module, name, None)
        return None if value is None else self._weight(value)


class HookedLayout(BridgeLayout):
    """HookedTransformer, which TransformerLens 4 drops. Only a loaded one is accepted."""

    hooks: Mapping[str, str] = _HOOKED_HOOKS

    @property
    def rms(self) -> bool:
        """Whether the norms are RMSNorm, which does not centre."""
        return str(self.cfg.normalization_type).startswith("RMS")

    def processing(self) -> frozenset[str]:
        """What TransformerLens did to the weights when it loaded them."""
        return self._processing()

    def parameters(self) -> Any:
        """(name, weight) of the model."""
        yield from self.library.named_parameters()

    def hook_name(self, site: Site) -> str:
        """The hook point of a site; an MLP's input has one in HookedSAETransformer, and where the norm has no gain."""
        if site.kind == "mlp_in":
            own = f"blocks.{site.layer}.mlp.hook_in"
            if own in self.points or not str(self.cfg.normalization_type).endswith("Pre"):
                return own
            site = Site("ln2_normalized", site.layer)
        gated = {"mlp_gate": "mlp.hook_pre", "mlp_pre": "mlp.hook_pre_linear"}
        inner = gated if self.cfg.gated_mlp else {"mlp_pre": "mlp.hook_pre"}
        return f"blocks.{site.layer}.{inner[site.kind]}" if site.kind in inner else super().hook_name(site)

    def norm(self, block: Any, name: str) -> Norm | None:
        """The norm of this name in a block, or None."""
        module = getattr(block, name, None)
        if module is None or self.cfg.normalization_type is None:
            return None
        return Norm(self._read(module, "w"), self._read(module, "b"), centred=not self.rms)

    def attention(self, layer: int) -> AttentionWeights:
        """The weights of that layer's attention."""
        attn, cfg = self.library.blocks[layer].attn, self.cfg
        raw = "_" if (cfg.n_key_value_heads or cfg.n_heads) != cfg.n_heads else ""
        names = {name: raw + name if name[2] in "KV" else name for name in _ATTENTION}
        norms = [getattr(attn, name, None) for name in ("q_norm", "k_norm")]
        gains = [None if norm is None else self._weight(norm.w) for norm in norms]
        cap = float(cfg.attn_scores_soft_cap)
        return AttentionWeights(
            **{name: self._weight(getattr(attn, stored)) for name, stored in names.items()},
            scale=1 / float(attn.attn_scale),
            soft_cap=cap if cap > 0 else None,
            q_gain=gains[0],
            k_gain=gains[1],
            eps=float(cfg.eps),
            interleaved=bool(cfg.rotary_adjacent_pairs),
        )

    def rotary_cos_sin(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin [n_ctx, rotary_dim]; None without rotary positions."""
        attn = self.library.blocks[layer].attn
        if self.cfg.positional_embedding_type != "rotary":
            return None
        return self._weight(attn.rotary_cos), self._weight(attn.rotary_sin)


def layout_of(library: Any, dtype: torch.dtype) -> BridgeLayout:
    """The layout of a loaded TransformerBridge or HookedTransformer."""
    return BridgeLayout(library, dtype) if hasattr(library, "original_model") else HookedLayout(library, dtype)


# How dictionaries' metadata spell hooks, without the layer -> kind of site: the names above, and more for outputs.
_HOOK_SPELLINGS = {
    name.removeprefix("blocks.{}."): kind
    for hooks in (_BRIDGE_HOOKS, _HOOKED_HOOKS)
    for kind, name in hooks.items()
    if kind in DICTIONARY_SITES
} | {
    "attn.hook_out": "attn_out",
    "ln1_post.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "ln2_post.hook_out": "mlp_out",
}


def site_of_hook(name: str) -> Site | None:
    """The Site of a dictionary that a TransformerLens hook name means, or None if it means none."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    kind = _HOOK_SPELLINGS.get(match[2]) if match else None
    return Site(kind, int(match[1])) if match and kind else None

"""The model behind an adapter: load it, run it while reading and replacing activations at Sites.

In come names, folders or an already loaded TransformerBridge, token ids, and functions that replace activations;
out go logits and tensors at Sites. This is the only module that knows TransformerLens' hook names and
traps; it knows no dictionaries, metrics or gradients.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitgraph.errors import ModelError
from circuitgraph.nodes import Site

# Site kind -> TransformerBridge hook. Raw module hooks on these points see the tensors of the autograd graph;
# the bridge's own hook API reshapes q, k, v and z into copies outside of it and costs 100 ms a call.
_HOOKS = {
    "embed": "embed.hook_out",
    "pos_embed": "pos_embed.hook_out",
    "resid_pre": "blocks.{}.hook_in",
    "ln1_scale": "blocks.{}.ln1.hook_scale",
    "q": "blocks.{}.attn.q.hook_out",
    "k": "blocks.{}.attn.k.hook_out",
    "v": "blocks.{}.attn.v.hook_out",
    "pattern": "blocks.{}.attn.hook_pattern",
    "z": "blocks.{}.attn.o.hook_in",
    "attn_out": "blocks.{}.attn.hook_out",
    "ln2_scale": "blocks.{}.ln2.hook_scale",
    "ln2_normalized": "blocks.{}.ln2.hook_normalized",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_post": "blocks.{}.mlp.out.hook_in",
    "mlp_out": "blocks.{}.mlp.hook_out",
    "resid_post": "blocks.{}.hook_out",
}

Replace = Callable[[Tensor, Mapping[Site, Tensor]], Tensor]


@dataclass(frozen=True)
class AttentionWeights:
    """Reading weights of one attention layer, W_Q, W_K, W_V [n_heads, d_model, d_head], and the factor `scale` on q . k."""

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Sizes are attributes; `run` is the only way to its activations."""

    bridge: Any
    name: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    n_ctx: int

    @property
    def device(self) -> torch.device:
        device: torch.device = self.bridge.W_U.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.bridge.W_U.dtype
        return dtype

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block both read its input (GPT-J, NeoX) instead of one after the other."""
        return bool(self.bridge.cfg.parallel_attn_mlp)

    def width(self, site: Site) -> int:
        """Size of the last dimension of the activations at a residual-sized, z or mlp_post site."""
        if site.kind == "mlp_post":
            return int(self.bridge.cfg.d_mlp)
        return self.n_heads * self.d_head if site.kind == "z" else self.d_model

    def has(self, site: Site) -> bool:
        """Whether this model has the site (layer in range, hook present)."""
        name = _HOOKS.get(site.kind, "").format(site.layer)
        return name in self.bridge.hook_dict

    @property
    def unknown_token(self) -> int | None:
        """The id that the tokenizer gives to words it does not know; None if it knows all (GPT-2's is its BOS)."""
        tokenizer = self.bridge.tokenizer
        unknown: int | None = tokenizer.unk_token_id
        return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown

    # tokens ------------------------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """Token ids of a prompt, with the beginning-of-sequence token where the model was trained with one."""
        tokenizer = self.bridge.tokenizer
        ids = list(tokenizer(text).input_ids)
        bos = tokenizer.bos_token_id
        if self.bridge.cfg.default_prepend_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids

    def continuation(self, text: str) -> list[int]:
        """Token ids of a text that continues a prompt: no special tokens."""
        return list(self.bridge.tokenizer(text, add_special_tokens=False).input_ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, as it would appear when decoded alone."""
        return [self.bridge.tokenizer.decode([int(i)]) for i in ids]

    # weights -----------------------------------------------------------------------------------------------

    def attention(self, site: Site) -> AttentionWeights:
        """Reading weights of the attention at the site. ModelError for attention whose derivative is not built yet."""
        cfg, attn = self.bridge.cfg, self._block(site).attn
        if cfg.positional_embedding_type != "standard" or (cfg.n_key_value_heads or cfg.n_heads) != cfg.n_heads:
            raise ModelError(
                f"{self.name}: attention edges need learned positions and one key per query head; this model has"
                f" {cfg.positional_embedding_type!r} positions and {cfg.n_key_value_heads or cfg.n_heads} key heads for"
                f" {cfg.n_heads} query heads. Node attributions work; edges for such attention are not built yet"
            )
        scale = self.d_head**-0.5 / ((site.layer or 0) + 1 if cfg.scale_attn_by_inverse_layer_idx else 1)
        return AttentionWeights(attn.W_Q.detach(), attn.W_K.detach(), attn.W_V.detach(), scale)

    def attention_output(self, site: Site) -> tuple[Tensor, Tensor]:
        """W_O [n_heads, d_head, d_model] and b_O [d_model] of the site's layer: attn_out = sum_h z[h] @ W_O[h] + b_O."""
        attn = self._block(site).attn
        W_O = attn.W_O.detach()
        bias = getattr(attn.o, "bias", None)
        return W_O, W_O.new_zeros(self.d_model) if bias is None else bias.detach()

    @property
    def centres(self) -> bool:
        """Whether its norms take the mean off what they read (LayerNorm; RMSNorm does not)."""
        return not bool(self.bridge.cfg.uses_rms_norm)

    def value_bias(self, site: Site, *, norm: bool) -> Tensor:
        """What the value biases of the site's layer add to z, [n_heads * d_head]; it is constant, as patterns sum to 1.

        norm: with what the bias of ln1 adds through W_V, which becomes part of b_V where that norm is folded.
        """
        block = self._block(site)
        W_V, bias = block.attn.W_V.detach(), getattr(block.attn, "b_V", None)
        bias = W_V.new_zeros(W_V.shape[0], W_V.shape[2]) if bias is None else bias.detach()
        shift = getattr(block.ln1, "bias", None) if norm else None
        if shift is not None:
            bias = bias + torch.einsum("d,hdk->hk", shift.detach(), W_V)
        value_bias: Tensor = bias.repeat_interleave(self.n_heads // bias.shape[0], dim=0).flatten()
        return value_bias

    def through_norm(self, site: Site, norm: str, vectors: Tensor, *, gain: bool = True) -> Tensor:
        """vectors [..., d_model] at the output of norm `ln1` or `ln2` of the site's layer pulled back to its input, up to
        the frozen 1/scale.

        J^T r = centre(gain * r) for LayerNorm; RMSNorm has no centring.
        """
        return self._before_norm(getattr(self._block(site), norm), vectors, gain)

    def _before_norm(self, norm: Any, vectors: Tensor, gain: bool) -> Tensor:
        if gain:
            weight = norm.weight.detach()
            vectors = vectors * (weight + 1 if self.bridge.cfg.rmsnorm_uses_offset else weight)
        return vectors if self.bridge.cfg.uses_rms_norm else vectors - vectors.mean(-1, keepdim=True)

    def logit_lens(self, vectors: Tensor) -> Tensor:
        """What vectors [..., d_model] in the residual stream add to the logits [..., vocab] directly, up to the final norm's scale."""
        centred = self._before_norm(self.bridge.ln_final, vectors, gain=False)
        logits: Tensor = (centred * self.bridge.ln_final.weight.detach()) @ self.bridge.W_U.detach()
        return logits

    # running -----------------------------------------------------------------------------------------------

    def run(
        self,
        tokens: Tensor,
        *,
        record: Sequence[Site] = (),
        replace: Mapping[Site, Replace] | None = None,
        start: tuple[int, Tensor] | None = None,
        differentiable: bool = False,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits [batch, pos, vocab] of tokens [batch, pos], and the activations at the recorded sites.

        replace: site -> function of (its value, everything recorded so far in this pass) that returns the value
        to go on with; what is recorded is the value before replacement, with that site's z heads concatenated.
        start: (layer, residual stream entering it) skips the blocks below that layer.
        differentiable: keep the autograd graph from the embeddings on; recorded tensors are part of it.
        """
        replace = replace or {}
        recorded: dict[Site, Tensor] = {}
        first = 0 if start is None else start[0]
        entry = Site("resid_pre", first)
        fired: set[Site] = set()

        def hook(site: Site) -> Callable[[Any, Any, Tensor], Tensor | None]:
            def on_forward(module: Any, args: Any, value: Tensor) -> Tensor | None:
                fired.add(site)
                new = value
                if start is not None and site == entry:
                    new = value = start[1]
                elif differentiable and start is None and site.kind in ("embed", "pos_embed"):
                    new = value = value.detach().requires_grad_()
                if site in wanted:
                    recorded[site] = value
                if site in replace:
                    new = replace[site](value, recorded)
                return new

            return on_forward

        wanted = set(record)
        sites = wanted | set(replace)
        if start is not None:
            sites.add(entry)
        elif differentiable:
            sites.add(Site("embed"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(differentiable))
            stack.enter_context(self._skipping(first))
            for site in sites:
                stack.callback(self._point(site).register_forward_hook(hook(site)).remove)
            logits = self.bridge(tokens.to(self.device))
        if fired != sites:
            silent = ", ".join(sorted(map(str, sites - fired)))
            raise ModelError(f"{self.name}: the model ran without reaching {silent}; these activations cannot be read")
        return logits, recorded

    def _block(self, site: Site) -> Any:
        if site.layer is None:
            raise ModelError(f"{site} is in no layer; expected a site of one block")
        return self.bridge.blocks[site.layer]

    def _point(self, site: Site) -> torch.nn.Module:
        if not self.has(site):
            raise ModelError(f"{self.name} has no site {site}; it has {self.n_layers} layers (0-{self.n_layers - 1})")
        point: torch.nn.Module = self.bridge.hook_dict[_HOOKS[site.kind].format(site.layer)]
        return point

    @contextlib.contextmanager
    def _skipping(self, first: int) -> Iterator[None]:
        """The blocks below `first` hand their input on: TransformerBridge 3.9 has no start_at_layer of its own."""
        blocks = [self.bridge.blocks[layer] for layer in range(first)]
        try:
            for block in blocks:
                object.__setattr__(block, "forward", lambda hidden, *args, **kwargs: hidden)
            yield
        finally:
            for block in blocks:
                object.__delattr__(block, "forward")


def load_model(
    model: str | Path | Any, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Model:
    """The model of that name or local folder, or an already loaded TransformerBridge, frozen and in eval mode.

    A folder is any Hugging Face checkpoint with its tokenizer; names go through TransformerLens and the hub. dtype is
    float32 (the default) or float64; a loaded model keeps its own dtype and device.
    Raises ModelError for a missing or broken folder, for NaN weights, and for models that cannot be attributed yet.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        bridge, name = model, str(model.cfg.model_name)
        if device is not None or dtype is not None:
            raise ModelError(f"{name} is loaded already; its device and dtype are its own, so give neither")
    else:
        name = Path(str(model)).name if Path(str(model)).is_dir() else str(model)
        bridge = _boot(TransformerBridge, str(model), device, dtype or torch.float32)
    if bridge.W_U.dtype not in (torch.float32, torch.float64):
        raise ModelError(f"{name} is in {bridge.W_U.dtype}; expected torch.float32 or torch.float64")
    bridge.requires_grad_(False)
    bridge.eval()
    for key, value in bridge.original_model.named_parameters():
        if not bool(value.isfinite().all()):
            raise ModelError(
                f"{name}: weight {key.replace('_original_component.', '')} contains NaN or Inf; the checkpoint is broken"
            )
    if bridge.tokenizer is None:
        raise ModelError(f"{name}: no tokenizer was found beside the weights; save one into the same folder")
    cfg = bridge.cfg
    loaded = Model(bridge, name, cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.n_ctx)
    _check_stream(loaded)
    return loaded


def _check_stream(model: Model) -> None:
    """ModelError unless the residual stream of each block is its input + attn_out + mlp_out, on a few tokens.

    All attribution rests on this sum; post-norms (Gemma 2) and scaled branches (Granite) break it.
    """
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    sites = [[Site(kind, layer) for kind in kinds] for layer in range(model.n_layers)]
    n_tokens = min(4, model.n_ctx, model.bridge.cfg.d_vocab)
    _, found = model.run(torch.arange(n_tokens)[None], record=[site for block in sites for site in block])
    for layer, (before, attention, mlp, after) in enumerate(sites):
        missing = (found[after] - found[before] - found[attention] - found[mlp]).abs().max()
        if float(missing) > 64 * torch.finfo(model.dtype).eps * float(found[after].abs().max()):
            raise ModelError(
                f"{model.name}: in layer {layer} the residual stream is not its input plus the outputs of attention and MLP"
                " (a norm or a scale stands between them); such models are not supported yet"
            )


def _boot(bridge: Any, name: str, device: str | torch.device | None, dtype: torch.dtype) -> Any:
    looks_local = Path(name).is_absolute() or name.startswith((".", "~"))
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(
            f"model folder {name} does not exist; give a folder written by save_pretrained, or a model name"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"model folder {name} holds no config.json; give a folder written by save_pretrained")
    try:
        with _without_progress_bars():
            return bridge.boot_transformers(str(folder) if folder.is_dir() else name, device=device, dtype=dtype)
    except Exception as error:  # the library raises whatever its dependencies raise; the cause stays attached
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {name!r} does not load: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar on stderr even for weights that load in a millisecond."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


# TransformerLens hook names as dictionaries' metadata spell them -> Site kind.
_HOOK_SPELLINGS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "attn.hook_z": "z",
    "attn.o.hook_in": "z",
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_out",
    "ln2.hook_normalized": "ln2_normalized",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
    "mlp.out.hook_in": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
}


def site_of_hook(name: str) -> Site | None:
    """The Site that a TransformerLens hook name means, or None if it means none of ours."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    kind = _HOOK_SPELLINGS.get(match[2]) if match else None
    return Site(kind, int(match[1])) if match and kind else None

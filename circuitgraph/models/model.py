"""The model: its sizes, tokens and weights, and running it while activations at Sites are read and replaced.

Everything that leaves it is in float32 or float64, whatever the model computes in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from circuitgraph.errors import ModelError
from circuitgraph.models.formulas import AttentionState, attention_state
from circuitgraph.models.layout import AttentionWeights, BridgeLayout, MlpWeights, Norm
from circuitgraph.models.variants import VariantValues, entry_layer, start_layer
from circuitgraph.nodes import Site
from circuitgraph_kernels import compute_dtype

Replace = Callable[[Tensor, Mapping[Site, Tensor]], Tensor]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

_BY_HEAD = ("q", "k", "v", "z")  # HookedTransformer keeps heads apart
_ATTENTION = ("ln1_scale", "rotary_cos", "rotary_sin", "q", "k", "v", "pattern")
# side products of the forward pass
_ASIDE = (
    *("ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_normalized", "ln2_post_scale", "final_scale"),
    *("rotary_cos", "rotary_sin"),
)


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Sizes are attributes; `run` is the only way to its activations.

    differences says, by (part, layer), which formulas that edges rest on are not this model's.
    """

    library: Any
    layout: BridgeLayout
    name: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    n_ctx: int
    differences: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers, {self.n_heads} heads, d_model {self.d_model}"
        return f"Model {self.name}: {sizes}, {str(self.dtype).removeprefix('torch.')} on {self.device}"

    @property
    def device(self) -> torch.device:
        device: torch.device = self.library.W_U.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in; everything that leaves this class is in `compute_dtype` of it."""
        dtype: torch.dtype = self.library.W_U.dtype
        return dtype

    @property
    def eps(self) -> float:
        """The rounding of its forward pass: transformers computes RMSNorm in float32 even in a float64 model."""
        inside = torch.float32 if self.dtype == torch.float64 and self.layout.rms else self.dtype
        return float(torch.finfo(inside).eps)

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block both read its input (GPT-J, NeoX) instead of one after the other."""
        return bool(self.library.cfg.parallel_attn_mlp)

    @property
    def n_vocab(self) -> int:
        """How many token ids it knows."""
        return int(self.library.cfg.d_vocab)

    @property
    def causal(self) -> bool:
        """Whether a position sees none after it."""
        return str(getattr(self.library.cfg, "attention_dir", "causal")) == "causal"

    @property
    def processing(self) -> frozenset[str]:
        """What TransformerLens did to the weights on loading: fold_ln, center_writing_weights, fold_value_biases."""
        return self.layout.processing()

    def width(self, site: Site) -> int:
        """Size of the last dimension of the activations at a residual-sized, z or MLP-sized site."""
        if site.kind in ("mlp_post", "mlp_pre", "mlp_gate"):
            return int(self.library.cfg.d_mlp)
        return self.n_heads * self.d_head if site.kind == "z" else self.d_model

    def has(self, site: Site) -> bool:
        """Whether this model has the site (layer in range, hook present)."""
        return self.layout.hook_name(site) in self.layout.points

    @property
    def unknown_token(self) -> int | None:
        """The id that the tokenizer gives to words it does not know; None if it knows all (GPT-2's is its BOS)."""
        tokenizer = self.library.tokenizer
        unknown: int | None = tokenizer.unk_token_id
        return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown

    # tokens ------------------------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """Token ids of a prompt, with the beginning-of-sequence token where the model was trained with one."""
        tokenizer = self.library.tokenizer
        ids = list(tokenizer(text).input_ids)
        bos = tokenizer.bos_token_id
        if ids[:1] == [bos]:  # TransformerBridge turns it on for every tokenizer that has one
            ids = ids[1:]
        return [bos, *ids] if self.library.cfg.default_prepend_bos and bos is not None else ids

    def continuation(self, text: str) -> list[int]:
        """Token ids of a text that continues a prompt: no special tokens."""
        return list(self.library.tokenizer(text, add_special_tokens=False).input_ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, as it would appear when decoded alone."""
        return [self.library.tokenizer.decode([int(i)]) for i in ids]

    # weights -----------------------------------------------------------------------------------------------

    def attention(self, layer: int) -> AttentionWeights:
        """The weights of one attention layer. ModelError where its formula is not that of `AttentionWeights`."""
        self._check_formula("attention", layer)
        return self.layout.attention(layer)

    def attention_sites(self, layer: int) -> list[Site]:
        """What a run must record for `attention_state`."""
        return [site for kind in _ATTENTION if self.has(site := Site(kind, layer))]

    def attention_state(self, layer: int, values: Mapping[Site, Tensor]) -> AttentionState:
        """Queries, keys and values of a layer in a run that recorded `attention_sites`. Raises as `attention` does."""
        angles, below = self.layout.rotary_cos_sin(layer), self.hidden_below
        return attention_state(self.attention(layer), layer, values, angles, causal=self.causal, hidden_below=below)

    @property
    def hidden_below(self) -> float:
        """What hidden scores are below: masks add the smallest number of a type, float32's in some float64 models."""
        return max(-1e30, torch.finfo(self.dtype).min / 2)

    def mlp(self, layer: int) -> MlpWeights:
        """The weights of one MLP. ModelError where its formula is not that of `MlpWeights`."""
        self._check_formula("MLP", layer)
        return self.layout.mlp(layer)

    @property
    def centres(self) -> bool:
        """Whether its norms take the mean off what they read (LayerNorm; RMSNorm does not)."""
        return not self.layout.rms

    def value_bias(self, site: Site, *, norm: bool) -> Tensor:
        """What the value biases of the site's layer add to z, [n_heads * d_head]; it is constant, as patterns sum to 1.

        norm: with what the bias of ln1 adds through W_V, which becomes part of b_V where that norm is folded.
        """
        weights, ln1 = self.layout.attention(self._layer(site)), self.norm(site, "ln1")
        bias = torch.zeros_like(weights.W_V[:, 0]) if weights.b_V is None else weights.b_V
        if norm and ln1 is not None and ln1.bias is not None:
            bias = bias + torch.einsum("d,hdx->hx", ln1.bias, weights.W_V)
        return bias.repeat_interleave(self.n_heads // len(bias), 0).flatten()

    def norm(self, site: Site, name: str) -> Norm | None:
        """The norm `ln1`, `ln2`, `ln1_post` or `ln2_post` of the site's layer; None if the model has none there."""
        return self.layout.norm(self.library.blocks[self._layer(site)], name)

    def output_norm(self, site: Site) -> tuple[Norm, Site] | None:
        """The post-norm that what is written at z or mlp_post passes, and the site of its scale; None without one."""
        name = {"z": "ln1_post", "mlp_post": "ln2_post"}.get(site.kind)
        norm = None if name is None else self.norm(site, name)
        return None if norm is None else (norm, Site(f"{name}_scale", site.layer))

    def write(self, site: Site, vectors: Tensor) -> Tensor:
        """What vectors [..., d] at a site add to the residual stream, [..., d_model], up to a post-norm's 1/scale.

        z goes through W_O and mlp_post through W_out, both through the post-norm where there is one; the rest is added
        as it is.
        """
        if site.kind == "z":
            vectors = vectors @ self.layout.attention(self._layer(site)).W_O.flatten(0, 1)
        elif site.kind == "mlp_post":
            vectors = vectors @ self.layout.mlp(self._layer(site)).W_out
        post = self.output_norm(site)
        return vectors if post is None else post[0].apply(vectors)

    def output_bias(self, site: Site) -> tuple[Tensor | None, Tensor | None]:
        """(the bias that passes the post-norm at z or mlp_post, the bias added behind it), [d_model] each or None."""
        if site.kind not in ("z", "mlp_post"):
            return None, None
        layer = self._layer(site)
        inner = self.layout.attention(layer).b_O if site.kind == "z" else self.layout.mlp(layer).b_out
        post = self.output_norm(site)
        return inner, None if post is None else post[0].bias

    def logit_lens(self, vectors: Tensor) -> Tensor:
        """What vectors [..., d_model] in the stream add to the logits [..., vocab], up to the final norm's scale."""
        norm = self.layout.norm(self.library, "ln_final")
        logits: Tensor = (vectors if norm is None else norm.apply(vectors)) @ self.library.W_U.detach().to(vectors)
        return logits

    def unembedding(self, coefficients: Tensor, logits: Tensor) -> Tensor:
        """d (coefficients [vocab] . logits) / d stream at its end, [batch, d_model], without the final norm's 1/scale.

        A soft cap on the logits has the slope that it has at these logits [batch, vocab].
        """
        cap, norm = self.layout.logit_soft_cap, self.layout.norm(self.library, "ln_final")
        weighed = coefficients.expand_as(logits) if cap is None else coefficients * (1 - (logits / cap).square())
        vectors = weighed @ self.library.W_U.detach().to(weighed).T
        return vectors if norm is None else norm.pull_back(vectors)

    def _check_formula(self, part: str, layer: int) -> None:
        if reason := self.differences.get((part, layer)):
            raise ModelError(
                f"{self.name}: edges through the {part} of layer {layer} cannot be traced: {reason}. Node attributions"
                " work"
            )

    def _layer(self, site: Site) -> int:
        if site.layer is None:
            raise ModelError(f"{site} is in no layer; expected a site of one block")
        return site.layer

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
        """One forward pass.

        Args:
            tokens: Token ids [batch, pos].
            record: Sites whose activations are returned, each as it is before its own replacement, heads of q, k, v and
                z side by side.
            replace: Site -> a function of (its value, everything recorded so far) that returns the value to go on with.
            start: (layer, stream that enters it [batch, pos, d_model]): the blocks below do not run; n_layers skips
                all.
            differentiable: Keep the autograd graph from the embeddings on; recorded tensors are part of it.

        Returns the logits [batch, pos, vocab] and the recorded activations. Raises ModelError for a site that the model
        does not have or does not reach.
        """
        replace = replace or {}
        recorded: dict[Site, Tensor] = {}
        first = 0 if start is None else start[0]
        entry = Site("resid_pre", first)
        fired: set[Site] = set()
        computed = compute_dtype(self.dtype)

        def hook(site: Site) -> Callable[[Any, Any, Tensor], Tensor | None]:
            def on_forward(module: Any, args: Any, value: Tensor) -> Tensor | None:
                fired.add(site)
                # What is shown lies on the path of the forward pass, so that gradients at it are those of everything
                # after; a norm's scale is a side product: to give it back would cut the gradient through the norm.
                shown = value.flatten(2) if site.kind in _BY_HEAD and value.ndim == 4 else value
                shown = shown.to(computed)
                if start is not None and site == entry:
                    shown = start[1].to(computed)
                elif differentiable and start is None and site.kind in ("embed", "pos_embed"):
                    shown = shown.detach().requires_grad_()
                if site in wanted:
                    recorded[site] = shown
                if site in replace:
                    shown = replace[site](shown, recorded)
                if shown is value or (site.kind in _ASIDE and site not in replace):
                    return None
                return shown.to(value.dtype).reshape(shown.shape[:2] + value.shape[2:])

            return on_forward

        wanted = set(record)
        sites = wanted | set(replace)
        if differentiable and (aside := [str(site) for site in replace if site.kind in _ASIDE]):
            raise ModelError(
                f"{self.name}: gradients do not pass a replaced {aside[0]}, which the library computes beside its"
                " forward pass; replace it in a run without gradients"
            )
        if start is not None:
            sites |= {entry} if first < self.n_layers else set()
        elif differentiable:
            sites.add(Site("embed"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(differentiable))
            stack.enter_context(self._skipping(first, None if start is None else start[1]))
            for site in sites:
                stack.callback(self._point(site).register_forward_hook(hook(site)).remove)
            logits = self.library(tokens.to(self.device)).to(computed)
        if fired != sites:
            silent = ", ".join(sorted(map(str, sites - fired)))
            raise ModelError(f"{self.name}: the model ran without reaching {silent}; these activations cannot be read")
        return logits, recorded

    def run_variants(
        self,
        tokens: Tensor,
        edits: Mapping[Site, Replace],
        n: int,
        *,
        clean: Mapping[Site, Tensor],
        read: Iterable[Site] = (),
        observe: Iterable[Site] = (),
        differentiable: bool = False,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """n variants of the same prompts in one forward pass, started at the lowest layer that an edit touches.

        Args:
            tokens: Token ids [batch, pos].
            edits: Site -> a function of (its value, everything read or observed before it), [n, batch, pos, ...] each,
                that returns the value to go on with and leaves its arguments as they are.
            n: How many variants.
            clean: Activations [batch, pos, ...] of the run without edits, which all variants are below the start. What
                it lacks of the sites below is run again; with none at all, variants start at layer 0.
            read: Sites that edits read.
            observe: Sites whose values are returned, each as it is before its own edit.
            differentiable: Keep the autograd graph, as `run` does.

        Returns the logits [n, batch, pos, vocab] and the observed values [n, batch, pos, ...].
        """
        observe = list(observe)
        wanted = {*read, *observe}
        first = start_layer(self.n_layers, edits, wanted, clean)
        below = {site: clean[site] for site in wanted if entry_layer(site, self.n_layers) < first}

        def of_rows(edit: Replace) -> Replace:
            def replace(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
                values = VariantValues(n, recorded, below)
                after = edit(rearrange(x, "(n batch) ... -> n batch ...", n=n), values)
                return rearrange(after, "n batch ... -> (n batch) ...")

            return replace

        inside, start = {site: of_rows(edit) for site, edit in edits.items()}, None
        if first:
            end = Site("resid_post", first - 1)
            stream = repeat(clean[end], "batch ... -> (n batch) ...", n=n)
            start = first, inside.pop(end)(stream, {}) if end in inside else stream
        logits, recorded = self.run(
            repeat(tokens, "batch pos -> (n batch) pos", n=n),
            record=sorted(wanted - below.keys()),
            replace=inside,
            start=start,
            differentiable=differentiable,
        )
        values = VariantValues(n, recorded, below)
        return rearrange(logits, "(n batch) ... -> n batch ...", n=n), {site: values[site] for site in observe}

    def _point(self, site: Site) -> torch.nn.Module:
        if not self.has(site):
            raise ModelError(f"{self.name} has no site {site}; it has {self.n_layers} layers (0-{self.n_layers - 1})")
        return self.layout.points[self.layout.hook_name(site)]

    @contextlib.contextmanager
    def _skipping(self, first: int, stream: Tensor | None) -> Iterator[None]:
        """The blocks below `first` hand their input on, or the stream if no block is left to enter.

        TransformerBridge 3.9 has no start_at_layer of its own.
        """
        blocks = [self.library.blocks[layer] for layer in range(first)]
        end = stream.to(self.dtype) if stream is not None and first == self.n_layers else None
        try:
            for block in blocks:
                object.__setattr__(block, "forward", lambda hidden, *args, **kwargs: hidden if end is None else end)
            yield
        finally:
            for block in blocks:
                object.__delattr__(block, "forward")

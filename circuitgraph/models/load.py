"""Loading a model: a name, a folder, or an object of TransformerLens or transformers.

Blocks that do not follow the formulas are noted; edges through them are refused. A model is refused where attribution
itself would be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitgraph.embedded import DEMO, MODEL
from circuitgraph.errors import ModelError
from circuitgraph.models.formulas import attention_difference, mlp_difference
from circuitgraph.models.layout import layout_of
from circuitgraph.models.model import DTYPES, Model
from circuitgraph.nodes import Site
from circuitgraph_kernels import compute_dtype

_NORMS = ("ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_normalized", "ln2_post_scale")
_CHECKED = (
    *("ln1_scale", "rotary_cos", "rotary_sin", "q", "k", "v", "pattern", *_NORMS),
    *("resid_pre", "attn_out", "mlp_in", "mlp_post", "mlp_out", "resid_post"),
)
_ROUNDINGS = 64  # of the stream, by which the parts of a block may miss it
_LOGIT_ROUNDINGS = 1000  # of the largest logit, between two ways to compute attention


def is_library_model(model: object) -> bool:
    """Whether this is a loaded TransformerBridge or HookedTransformer; nothing is imported to find out."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return bool(names & {"TransformerBridge", "HookedTransformer"})


def is_hugging_face_model(model: object) -> bool:
    """Whether this is a loaded causal language model of transformers; nothing is imported to find out."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return "PreTrainedModel" in names and callable(getattr(model, "get_output_embeddings", None))


def load_model(
    model: str | Path | Any,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
) -> Model:
    """The model, frozen and in eval mode.

    Args:
        model: A name on the Hugging Face hub, or "demo"; a folder with a checkpoint and its tokenizer; a
            TransformerBridge, HookedTransformer or HookedSAETransformer; or a causal language model of transformers,
            which is wrapped and frozen, not copied.
        device: Where a name or folder is loaded to; None for TransformerLens' choice.
        dtype: What a name or folder is computed in: float32 (the default), bfloat16, float16 or float64.
        tokenizer: That of a model of transformers; None to find it by the model's `name_or_path`.

    Raises ModelError for a missing or broken folder, for NaN weights, for a model without a tokenizer, and for models
    that cannot be attributed yet.
    """
    if isinstance(model, str) and model == DEMO:
        model = MODEL
    if is_library_model(model) or is_hugging_face_model(model):
        if device is not None or dtype is not None:
            raise ModelError(f"{_name_of(model)} is loaded already; its device and dtype are its own, so give neither")
    elif not isinstance(model, str | Path):
        raise ModelError(
            f"model is {type(model).__name__}; expected a name, a folder, a TransformerBridge, a HookedTransformer or a"
            " causal language model of transformers"
        )
    if tokenizer is not None and not is_hugging_face_model(model):
        raise ModelError(f"{_name_of(model)} has a tokenizer of its own; give one only with a model of transformers")
    if dtype not in (None, *DTYPES.values()):
        raise ModelError(f"{_name_of(model)} cannot be loaded in {dtype}; expected one of {', '.join(DTYPES)}")
    if is_library_model(model):
        return _model_of(model, _name_of(model))
    if is_hugging_face_model(model):
        return _wrapped(model, tokenizer)
    return _model_of(_boot(str(model), device, dtype or torch.float32), _name_of(model))


def _name_of(model: Any) -> str:
    """What a model is called: the name, the last part of its folder, or what the object says of itself."""
    if is_library_model(model):
        return str(model.cfg.model_name)
    text = str(model.name_or_path) if is_hugging_face_model(model) else str(model)
    if not text:
        return type(model).__name__
    return Path(text).name if Path(text).is_dir() else text


def _wrapped(model: Any, tokenizer: Any) -> Model:
    """A model of transformers; ModelError if TransformerLens runs it in another way than it runs itself."""
    name, source = _name_of(model), str(model.name_or_path)
    if tokenizer is None and not source:
        raise ModelError(f"{name} does not say where its tokenizer is; give load_model(model, tokenizer=...)")
    model.eval()
    ids = _some_tokens(int(model.config.vocab_size)).to(model.device)
    with torch.no_grad():
        expected = model(ids).logits
    loaded = _model_of(_boot(source or name, None, model.dtype, hugging_face=model, tokenizer=tokenizer), name)
    difference = (loaded.run(ids)[0] - expected).abs().max()
    if not float(difference) <= _LOGIT_ROUNDINGS * loaded.eps * float(expected.abs().max()):
        raise ModelError(
            f"{name}: TransformerLens computes logits that differ from the model's own by {float(difference):.2g};"
            " such models are not supported"
        )
    return loaded


def _boot(
    name: str,
    device: str | torch.device | None,
    dtype: torch.dtype,
    *,
    hugging_face: Any = None,
    tokenizer: Any = None,
) -> Any:
    """A TransformerBridge.

    Args:
        name: A name on the hub or a local folder, from which whatever is not given is loaded.
        device: Where it is loaded to; None for the library's choice.
        dtype: What it computes in.
        hugging_face: A loaded model of transformers.
        tokenizer: Its tokenizer.

    Raises ModelError if there is none of that name or it does not load.
    """
    from transformer_lens.model_bridge import TransformerBridge

    folder = Path(name).expanduser()
    if hugging_face is None:
        looks_local = Path(name).is_absolute() or name.startswith((".", "~"))
        if looks_local and not folder.is_dir():
            raise ModelError(
                f"model folder {name} does not exist; give a folder written by save_pretrained, or a model name"
            )
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ModelError(f"model folder {name} holds no config.json; give a folder written by save_pretrained")
    source = str(folder) if folder.is_dir() else name
    given = {key: value for key, value in (("hf_model", hugging_face), ("tokenizer", tokenizer)) if value is not None}
    try:
        with _without_progress_bars():
            return TransformerBridge.boot_transformers(source, device=device, dtype=dtype, **given)
    except Exception as error:  # the library raises whatever its dependencies raise; the cause stays attached
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if hugging_face is not None and tokenizer is None:
            reason = f"no tokenizer in {name!r}, or it does not load; give load_model(model, tokenizer=...) ({reason})"
        raise ModelError(f"model {name!r} does not load: {reason}") from error


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


def _model_of(library: Any, name: str) -> Model:
    """The `Model` of a loaded object of TransformerLens, checked."""
    if attached := list(getattr(library, "acts_to_saes", {})):
        raise ModelError(
            f"{name} has SAEs attached ({attached[0]}), so its logits are not the model's; call reset_saes() and give"
            " the SAEs as dictionaries"
        )
    if library.W_U.dtype not in DTYPES.values():
        raise ModelError(f"{name} is in {library.W_U.dtype}; expected one of {', '.join(DTYPES)}")
    library.requires_grad_(False)
    library.eval()
    layout = layout_of(library, compute_dtype(library.W_U.dtype))
    for key, value in layout.parameters():
        if not bool(value.isfinite().all()):
            raise ModelError(f"{name}: weight {key} contains NaN or Inf; the checkpoint is broken")
    # transformers makes an empty tokenizer where GPT-2's files are missing
    if library.tokenizer is None or len(library.tokenizer) < 2:
        raise ModelError(f"{name}: no tokenizer was found beside the weights; save one into the same folder")
    cfg = library.cfg
    model = Model(library, layout, name, cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.n_ctx)
    return replace(model, differences=_differences(model))


def _differences(model: Model) -> dict[tuple[str, int], str]:
    """What of each block does not follow the formulas that edges rest on, by (part, layer).

    Raises ModelError if the residual stream is not a sum: all attribution rests on resid_post = resid_pre + attn_out +
    mlp_out, which scaled branches (Granite) break.
    """
    tokens = _some_tokens(model.library.cfg.d_vocab)[:, : model.n_ctx]
    layers = range(model.n_layers)
    sites = [Site(kind, layer) for layer in layers for kind in _CHECKED if model.has(Site(kind, layer))]
    _, values = model.run(tokens, record=sites)
    differences: dict[tuple[str, int], str] = {}
    for layer in layers:
        before, attention, mlp, after = (
            values[Site(kind, layer)] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        missing = (after - before - attention - mlp).abs().max()
        if float(missing) > _ROUNDINGS * torch.finfo(model.dtype).eps * float(after.abs().max()):
            raise ModelError(
                f"{model.name}: in layer {layer} the residual stream is not its input plus the outputs of attention and"
                " MLP (a scale stands between them); such models are not supported yet"
            )
        differences |= {(part, layer): reason for part, reason in _differences_of_block(model, layer, values).items()}
    return differences


def _differences_of_block(model: Model, layer: int, values: Mapping[Site, Tensor]) -> dict[str, str]:
    """How the formulas of attention and MLP differ from what the model computed, for each part that does."""
    site, layout = Site("z", layer), model.layout
    ln1, ln2 = model.norm(site, "ln1"), model.norm(site, "ln2")
    cos_sin, eps = layout.rotary_cos_sin(layer), model.eps
    try:
        attention = attention_difference(layout.attention(layer), ln1, layer, values, cos_sin, eps)
        mlp = mlp_difference(
            layout.mlp(layer), ln2, model.norm(site, "ln2_post"), layer, values, eps, parallel=model.parallel
        )
    except (AttributeError, TypeError, RuntimeError) as error:  # a layout that the library's classes do not share
        attention = mlp = f"its weights cannot be read ({' '.join(str(error).split())[:200]})"
    return {part: reason for part, reason in (("attention", attention), ("MLP", mlp)) if reason}


def _some_tokens(d_vocab: int) -> Tensor:
    """A few token ids [1, pos] to try a model on."""
    return torch.arange(min(6, d_vocab))[None]

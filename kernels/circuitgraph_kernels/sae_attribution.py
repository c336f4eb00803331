"""The public operation: attribution of every active feature of one dictionary, and of its error node.

Arguments are checked here, then a backend computes.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from circuitgraph_kernels._entries import Entries, Inputs, full_precision
from circuitgraph_kernels.weights import SaeWeights, compute_dtype

# Modules with a function `attribute(Inputs) -> Entries`; imported when chosen, so that none is a dependency.
BACKENDS = {name: f"circuitgraph_kernels._{name}" for name in ("reference", "torch", "triton")}
PRECISIONS = ("exact", "bfloat16")


@dataclass(frozen=True, eq=False)
class SaeAttribution:
    """Attributions of one dictionary at T tokens; [K, ...] where K gradients were given as [K, T, d_out].

    The list holds one entry per feature active in either run, sorted by token, then feature. A feature with the same
    activation in both runs is listed with attribution 0.
    """

    token: Tensor  # [n] int64
    feature: Tensor  # [n] int64
    clean_acts: Tensor  # [n]
    baseline_acts: Tensor  # [n]
    attribution: Tensor  # [n] or [K, n]
    error: Tensor  # [T] or [K, T]
    backend: str  # the backend that ran
    precision: str  # "float32" or "float64", and what was rounded where another precision than "exact" was asked for


@full_precision
def sae_attribution(
    clean: Tensor,
    baseline: Tensor | None,
    gradient: Tensor,
    weights: SaeWeights,
    *,
    clean_out: Tensor | None = None,
    baseline_out: Tensor | None = None,
    precision: str = "exact",
    backend: str = "auto",
) -> SaeAttribution:
    """Attribution of each active (token, feature) pair, and of the error node of each token.

        attribution[t, i] = (acts_clean[t, i] - acts_baseline[t, i]) * (gradient[t] . W_dec[i])
        error[t]          = gradient[t] . (error_clean[t] - error_baseline[t]),    error = x_out - decode(acts)
        error[t] + sum over i of attribution[t, i] = gradient[t] . (clean_out[t] - baseline_out[t])

    Every number is computed in float32 (float64 for float64 inputs) from its own two rows: it does not depend on the
    other tokens, on tiles or on threads. Not differentiable.

    Args:
        clean: [T, d_in] what the dictionary reads in the run that is explained.
        baseline: [T, d_in] the same in the other run; None means that acts_baseline and error_baseline are zero.
        gradient: [T, d_out] or [K, T, d_out] of the metric, by the activation that the dictionary reconstructs. K
            gradients cost one encoding.
        weights: the dictionary.
        clean_out: [T, d_out] the activation that the dictionary reconstructs. By default `clean`, which is right only
            where it writes where it reads: pass it for a transcoder, less its skip connection if it has one.
        baseline_out: [T, d_out] the same in the other run. Give both or none.
        precision: "exact", or "bfloat16", which rounds W_enc and W_dec once and keeps the copies: half the memory
            traffic where gathering their rows is the bottleneck.
        backend: "auto" (triton for tensors on a GPU, else torch), "triton", "torch" or "reference".

    Raises ValueError for a shape, dtype or device that does not fit, a row with a NaN or Inf (it is named), and an
    unknown choice.
    """
    name = backend_name(backend, clean.device)
    if precision not in PRECISIONS:
        raise ValueError(f"sae_attribution: precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    given = check_arguments(clean, baseline, gradient, clean_out, baseline_out, weights)

    dtype = compute_dtype(clean.dtype)
    computed = str(dtype).removeprefix("torch.")
    if precision == "bfloat16" and dtype == torch.float64:
        raise ValueError("sae_attribution: precision is 'bfloat16' and clean is torch.float64, expected 'exact' for it")
    if precision == "bfloat16":
        weights, computed = _rounded(weights), f"{computed}, weights in bfloat16"
    given = {key: tensor.to(dtype) for key, tensor in given.items()}
    inputs = Inputs(
        clean=given["clean"],
        baseline=given.get("baseline"),
        gradient=given["gradient"] if gradient.ndim == 3 else given["gradient"][None],
        clean_out=given.get("clean_out", given["clean"]),
        baseline_out=given.get("baseline_out", given.get("baseline")),
        weights=weights,
    )
    _check_finite(given)
    module = "circuitgraph_kernels._neurons" if weights.basis and name != "reference" else BACKENDS[name]
    entries: Entries = importlib.import_module(module).attribute(inputs)
    if gradient.ndim == 2:
        entries = entries._replace(attribution=entries.attribution[0], error=entries.error[0])
    return SaeAttribution(*entries, name, computed)


def backend_name(backend: str, device: torch.device | str = "cpu") -> str:
    """The backend that `backend` means for tensors on a device: "auto" is resolved.

    Raises ValueError for an unknown name, and for triton where it is missing or cannot run.
    """
    kind = torch.device(device).type
    has_triton = importlib.util.find_spec("triton") is not None
    if backend == "auto":
        return "triton" if kind == "cuda" and has_triton else "torch"
    if backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"sae_attribution: backend is {backend!r}, expected one of auto, {', '.join(BACKENDS)}.{hint}")
    if backend == "triton" and not has_triton:
        raise ValueError(
            "sae_attribution: backend is 'triton', which is not installed; pip install triton, or take 'auto'"
        )
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
    if backend == "triton" and kind != "cuda" and not interpreted:
        raise ValueError(
            f"sae_attribution: backend is 'triton' and the tensors are on {kind}, expected cuda; take 'auto', or set"
            " TRITON_INTERPRET=1 to test the kernels without a GPU"
        )
    return backend


def check_arguments(
    clean: Tensor,
    baseline: Tensor | None,
    gradient: Tensor,
    clean_out: Tensor | None,
    baseline_out: Tensor | None,
    weights: SaeWeights,
) -> dict[str, Tensor]:
    """The tensors that were given, by name; ValueError for a shape, dtype or device that does not fit the weights."""
    _check_outputs(clean, baseline, clean_out, baseline_out, weights)
    optional = {"baseline": baseline, "clean_out": clean_out, "baseline_out": baseline_out}
    given = {"clean": clean, "gradient": gradient} | {key: x for key, x in optional.items() if x is not None}
    _check_kinds(given, weights)
    _check_shapes(given, weights)
    return given


def _check_outputs(
    clean: Tensor, baseline: Tensor | None, clean_out: Tensor | None, baseline_out: Tensor | None, weights: SaeWeights
) -> None:
    """The output side is given for both runs or for none."""
    if clean_out is None and weights.d_in != weights.d_out:
        raise ValueError(
            f"sae_attribution: clean_out is None, expected [T, {weights.d_out}]: the dictionary reads {weights.d_in}"
            f" numbers and writes {weights.d_out}"
        )
    wanted = baseline is not None and clean_out is not None
    if wanted != (baseline_out is not None):
        verb = "expected with baseline and clean_out" if wanted else "needs both baseline and clean_out"
        state = "None" if baseline_out is None else "given"
        raise ValueError(f"sae_attribution: baseline_out is {state}, {verb}")


def _check_kinds(tensors: dict[str, Tensor], weights: SaeWeights) -> None:
    clean, device = tensors["clean"], weights.W_enc.device
    for name, tensor in tensors.items():
        if tensor.dtype != clean.dtype or not tensor.is_floating_point():
            kinds = f"{name} is {tensor.dtype} and clean is {clean.dtype}"
            raise ValueError(f"sae_attribution: {kinds}, expected one floating-point dtype")
        if tensor.device != device:
            raise ValueError(f"sae_attribution: {name} is on {tensor.device}, expected {device} as the weights are")
    if compute_dtype(clean.dtype) != compute_dtype(weights.W_enc.dtype):
        raise ValueError(
            f"sae_attribution: clean is {clean.dtype} and the weights are {weights.W_enc.dtype}, convert one of them"
        )


def _check_shapes(tensors: dict[str, Tensor], weights: SaeWeights) -> None:
    tokens = tensors["clean"].shape[0] if tensors["clean"].ndim == 2 else "T"
    for name, tensor in tensors.items():
        width = weights.d_in if name in ("clean", "baseline") else weights.d_out
        shape = tuple(tensor.shape)
        fits = shape == (tokens, width) or (name == "gradient" and shape[1:] == (tokens, width) and shape[0] > 0)
        if not fits:
            gradients = f" or [K, {tokens}, {width}]" if name == "gradient" else ""
            raise ValueError(f"sae_attribution: {name} has shape {shape}, expected [{tokens}, {width}]{gradients}")


def _check_finite(tensors: dict[str, Tensor]) -> None:
    """A NaN would make features inactive, an Inf active. The host waits once."""
    if bool(torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()):
        return
    for name, tensor in tensors.items():
        bad = (~tensor.isfinite().all(dim=-1)).nonzero().tolist()
        if bad:
            row, more = ", ".join(map(str, bad[0])), f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
            raise ValueError(f"sae_attribution: {name}[{row}]{more} holds a NaN or Inf, expected finite numbers")


_ROUNDED: WeakKeyDictionary[SaeWeights, tuple[object, SaeWeights]] = WeakKeyDictionary()


def _rounded(weights: SaeWeights) -> SaeWeights:
    """The weights with both matrices in bfloat16, kept as long as the given ones are."""
    if weights not in _ROUNDED or _ROUNDED[weights][0] != weights.version:
        matrices = {name: getattr(weights, name).detach().bfloat16() for name in ("W_enc", "W_dec")}
        _ROUNDED[weights] = (weights.version, replace(weights, **matrices))
    return _ROUNDED[weights][1]

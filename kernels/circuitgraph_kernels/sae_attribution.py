"""The public operation: attribution of every active feature and of the error node of one dictionary.

In come activations of two runs, gradients at the dictionary's output and its weights; out comes a
`SaeAttribution`. This module checks arguments and chooses the backend; it does not compute attributions itself.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitgraph_kernels._reference import Entries, Inputs
from circuitgraph_kernels.weights import SaeWeights, compute_dtype

# Modules with a function `attribute(Inputs) -> Entries`; imported when chosen, so that none is a dependency.
BACKENDS = {"reference": "circuitgraph_kernels._reference", "torch": "circuitgraph_kernels._torch"}
WANTS = ("list", "sum", "both")


@dataclass(frozen=True, eq=False)
class SaeAttribution:
    """Attributions of one dictionary at T tokens; [K, ...] where K gradients were given as [K, T, d_out].

    The list is sorted by token, then feature; it has length 0 when only the sum was wanted.
    """

    token: Tensor  # [n] int64
    feature: Tensor  # [n] int64
    clean_acts: Tensor  # [n]
    baseline_acts: Tensor  # [n]
    attribution: Tensor  # [n] or [K, n]
    error: Tensor  # [T] or [K, T]
    feature_sum: Tensor | None  # [d_sae] or [K, d_sae], over all tokens and before the threshold; None unless wanted
    backend: str  # the backend that ran
    precision: str  # "float32" or "float64"; "float32/high" and the like where torch was told to multiply less exactly


@torch.no_grad()
def sae_attribution(
    clean: Tensor,
    baseline: Tensor | None,
    gradient: Tensor,
    weights: SaeWeights,
    *,
    clean_out: Tensor | None = None,
    baseline_out: Tensor | None = None,
    threshold: float = 0.0,
    want: str = "list",
    skip_equal_rows: bool = True,
    backend: str = "auto",
) -> SaeAttribution:
    """Attribution of each active (token, feature) pair, and of the error node of each token.

        attribution[t, i] = (acts_clean[t, i] - acts_baseline[t, i]) * (gradient[t] . W_dec[i])
        error[t]          = gradient[t] . (error_clean[t] - error_baseline[t]),    error = x_out - decode(acts)
        error[t] + sum over i of attribution[t, i] = gradient[t] . (clean_out[t] - baseline_out[t])

    clean, baseline [T, d_in]: what the dictionary reads. gradient [T, d_out] or [K, T, d_out]: of the metric by the
    activation the dictionary reconstructs. clean_out, baseline_out [T, d_out]: that activation; by default clean and
    baseline, which is right only if the dictionary writes where it reads (pass them for a transcoder, less its
    skip connection if it has one). baseline=None: acts_baseline and error_baseline are zero.

    The list holds every feature active in either run, one with equal activations with attribution 0; but tokens
    whose rows are the same in both runs have error 0 and, unless skip_equal_rows is False, no entries. A positive
    `threshold` drops entries with |attribution| <= threshold (for K gradients the largest of the K counts); `error`
    and `feature_sum` ignore it.
    want: "list", "sum" (feature_sum, an empty list) or "both". backend: "auto", "torch" or "reference".
    Computed in float64 for float64 inputs, else in float32. Not differentiable.

    Raises ValueError for a shape, dtype or device that does not fit, a NaN or Inf row (naming it), an unknown choice.
    """
    name = backend_name(backend)
    _check_choices(threshold, want)
    _check_outputs(clean, baseline, clean_out, baseline_out, weights)
    optional = {"baseline": baseline, "clean_out": clean_out, "baseline_out": baseline_out}
    given = {"clean": clean, "gradient": gradient} | {key: x for key, x in optional.items() if x is not None}
    _check_kinds(given, weights)
    _check_shapes(given, weights)
    _check_finite(given)

    dtype = compute_dtype(clean.dtype)
    given = {key: tensor.to(dtype) for key, tensor in given.items()}
    inputs = Inputs(
        clean=given["clean"],
        baseline=given.get("baseline"),
        gradient=given["gradient"] if gradient.ndim == 3 else given["gradient"][None],
        clean_out=given.get("clean_out", given["clean"]),
        baseline_out=given.get("baseline_out", given.get("baseline")),
        weights=weights,
        want_sum=want != "list",
    )
    attribute = importlib.import_module(BACKENDS[name]).attribute
    entries = _attribute_changed(inputs, attribute) if skip_equal_rows else attribute(inputs)
    entries = _select(entries, threshold, want)
    attribution, error, feature_sum = entries[4:]
    if gradient.ndim == 2:
        attribution, error, feature_sum = attribution[0], error[0], None if feature_sum is None else feature_sum[0]
    return SaeAttribution(*entries[:4], attribution, error, feature_sum, name, _precision(dtype))


def _attribute_changed(inputs: Inputs, attribute: Callable[[Inputs], Entries]) -> Entries:
    """Attribute without the tokens that are the same in both runs: their differences are exactly zero."""
    if inputs.baseline is None or inputs.baseline_out is None:
        return attribute(inputs)
    changed = (inputs.clean != inputs.baseline).any(dim=-1)
    if inputs.clean_out is not inputs.clean or inputs.baseline_out is not inputs.baseline:
        changed |= (inputs.clean_out != inputs.baseline_out).any(dim=-1)
    if changed.all():
        return attribute(inputs)
    kept = changed.nonzero()[:, 0]
    entries = attribute(
        replace(
            inputs,
            clean=inputs.clean[kept],
            baseline=inputs.baseline[kept],
            gradient=inputs.gradient[:, kept],
            clean_out=inputs.clean_out[kept],
            baseline_out=inputs.baseline_out[kept],
        )
    )
    error = entries.error.new_zeros((len(inputs.gradient), len(changed)))
    error[:, kept] = entries.error
    return entries._replace(token=kept[entries.token], error=error)


def _select(entries: Entries, threshold: float, want: str) -> Entries:
    """Drop the entries that were not asked for."""
    if want != "sum" and threshold == 0:
        return entries
    largest = entries.attribution.abs().amax(dim=0)
    kept = (largest > (math.inf if want == "sum" else threshold)).nonzero()[:, 0]
    return entries._replace(
        token=entries.token[kept],
        feature=entries.feature[kept],
        clean_acts=entries.clean_acts[kept],
        baseline_acts=entries.baseline_acts[kept],
        attribution=entries.attribution[:, kept],
    )


def backend_name(backend: str) -> str:
    """The backend that `backend` means: "auto" is resolved, anything unknown is a ValueError."""
    if backend == "auto":
        return "torch"
    if backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), BACKENDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"sae_attribution: backend is {backend!r}, expected one of auto, {', '.join(BACKENDS)}.{hint}")
    return backend


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "float64"
    setting = torch.get_float32_matmul_precision()
    return "float32" if setting == "highest" else f"float32/{setting}"


def _check_choices(threshold: float, want: str) -> None:
    if want not in WANTS:
        raise ValueError(f"sae_attribution: want is {want!r}, expected one of {', '.join(WANTS)}")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"sae_attribution: threshold is {threshold}, expected a finite number >= 0")


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
    """A NaN row would make features inactive, an Inf row would make all of them active."""
    for name, tensor in tensors.items():
        finite = tensor.isfinite().all(dim=-1)
        if not finite.all():
            row = ", ".join(str(index) for index in (~finite).nonzero()[0].tolist())
            raise ValueError(f"sae_attribution: {name}[{row}] holds a NaN or Inf, expected finite numbers")

"""The public operation: attribution of every active feature and of the error node of one dictionary.

In come activations of two runs, gradients at the dictionary's output and its weights; out comes a
`SaeAttribution`. This module checks arguments and chooses the backend; it does not compute attributions itself.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from circuitgraph_kernels._entries import Entries, Inputs, full_precision
from circuitgraph_kernels.weights import SaeWeights, compute_dtype

# Modules with a function `attribute(Inputs) -> Entries`; imported when chosen, so that none is a dependency.
BACKENDS = {name: f"circuitgraph_kernels._{name}" for name in ("reference", "torch", "triton")}
WANTS = ("list", "sum", "both")
PRECISIONS = ("exact", "bfloat16")
NONFINITE = ("raise", "skip")


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
    precision: str  # "float32" or "float64", and what was rounded where another precision than "exact" was asked for
    skipped: Tensor  # [m] tokens left out because a row of theirs holds a NaN or Inf; their error is NaN


@full_precision
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
    precision: str = "exact",
    skip_equal_rows: bool = True,
    nonfinite: str = "raise",
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
    want: "list", "sum" (feature_sum, an empty list) or "both".
    precision: "exact" loses no feature, and each number is computed in float32 (float64 for float64 inputs) from its own
    two rows, so that it does not depend on the other tokens, on tiles or on threads. "bfloat16" rounds W_enc and W_dec
    once and keeps the copies: half the memory traffic where gathering their rows is the bottleneck.
    nonfinite: a NaN or Inf raises, or with "skip" its token is left out and named in `skipped`.
    backend: "auto" (triton for tensors on a GPU, else torch), "triton", "torch" or "reference". Not differentiable.

    Raises ValueError for a shape, dtype or device that does not fit, a NaN or Inf row (naming it), an unknown choice.
    """
    name = backend_name(backend, clean.device)
    _check_choices(
        threshold, {"want": (want, WANTS), "precision": (precision, PRECISIONS), "nonfinite": (nonfinite, NONFINITE)}
    )
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
        want_sum=want != "list",
    )
    finite = torch.stack([_finite_tokens(tensor) for tensor in given.values()]).all(dim=0)
    wanted = finite & _changed(inputs) if skip_equal_rows else finite
    n_finite, n_wanted = torch.stack((finite.sum(), wanted.sum())).tolist()  # the host waits once
    if n_finite < len(finite) and nonfinite == "raise":
        _raise_nonfinite(given)
    module = "circuitgraph_kernels._neurons" if weights.basis and name != "reference" else BACKENDS[name]
    attribute = importlib.import_module(module).attribute
    entries = attribute(inputs) if n_wanted == len(wanted) else _attribute_some(inputs, attribute, wanted)
    skipped = (~finite).nonzero()[:, 0] if n_finite < len(finite) else finite.new_zeros(0, dtype=torch.int64)
    entries.error[:, skipped] = torch.nan
    entries = _select(entries, threshold, want)
    attribution, error, feature_sum = entries[4:]
    if gradient.ndim == 2:
        attribution, error, feature_sum = attribution[0], error[0], None if feature_sum is None else feature_sum[0]
    return SaeAttribution(*entries[:4], attribution, error, feature_sum, name, computed, skipped)


def _changed(inputs: Inputs) -> Tensor:
    """[T]: the tokens that differ between the runs; the differences of the others are exactly zero."""
    if inputs.baseline is None or inputs.baseline_out is None:
        return inputs.clean.new_ones(len(inputs.clean), dtype=torch.bool)
    changed = (inputs.clean != inputs.baseline).any(dim=-1)
    if inputs.clean_out is not inputs.clean or inputs.baseline_out is not inputs.baseline:
        changed |= (inputs.clean_out != inputs.baseline_out).any(dim=-1)
    return changed


def _attribute_some(inputs: Inputs, attribute: Callable[[Inputs], Entries], wanted: Tensor) -> Entries:
    """Attribute these tokens only; the error of the others is 0."""
    kept = wanted.nonzero()[:, 0]
    entries = attribute(inputs.of_tokens(kept))
    error = entries.error.new_zeros((len(inputs.gradient), len(wanted)))
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


def _check_choices(threshold: float, choices: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"sae_attribution: {name} is {value!r}, expected one of {', '.join(known)}")
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


def _finite_tokens(x: Tensor) -> Tensor:
    """[T]: tokens whose rows, of all gradients, are finite. A NaN would make features inactive, an Inf active."""
    finite = x.isfinite().all(dim=-1)
    return finite if finite.ndim == 1 else finite.all(dim=0)


def _raise_nonfinite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        bad = (~tensor.isfinite().all(dim=-1)).nonzero().tolist()
        if bad:
            row, more = ", ".join(map(str, bad[0])), f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
            raise ValueError(
                f"sae_attribution: {name}[{row}]{more} holds a NaN or Inf, expected finite numbers; nonfinite='skip'"
                " leaves such tokens out"
            )


_ROUNDED: WeakKeyDictionary[SaeWeights, tuple[object, SaeWeights]] = WeakKeyDictionary()


def _rounded(weights: SaeWeights) -> SaeWeights:
    """The weights with both matrices in bfloat16, kept as long as the given ones are."""
    if weights not in _ROUNDED or _ROUNDED[weights][0] != weights.version:
        matrices = {name: getattr(weights, name).detach().bfloat16() for name in ("W_enc", "W_dec")}
        _ROUNDED[weights] = (weights.version, replace(weights, **matrices))
    return _ROUNDED[weights][1]

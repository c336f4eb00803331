"""What goes into a backend and what comes out of it, and the steps that do not depend on the backend.

A backend turns `Inputs`, the checked arguments of one call, into `Entries`: (token, feature) pairs with their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from circuitgraph_kernels.weights import SaeWeights, output_bias

Function = TypeVar("Function", bound=Callable[..., Any])


def full_precision(function: Function) -> Function:
    """The function without gradients and without autocast, which would round the products of narrow weights."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        devices = (x.device for x in (*args, *options.values()) if isinstance(x, Tensor))
        device = next(devices, torch.device("cpu"))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return function(*args, **options)

    return run  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Checked arguments of one call, all in the dtype computed in; no baseline means zero."""

    clean: Tensor  # [T, d_in]
    baseline: Tensor | None  # [T, d_in]
    gradient: Tensor  # [K, T, d_out]
    clean_out: Tensor  # [T, d_out]
    baseline_out: Tensor | None  # [T, d_out]
    weights: SaeWeights

    def of_tokens(self, rows: slice) -> Inputs:
        """The same for these tokens only."""
        return replace(
            self,
            clean=self.clean[rows],
            baseline=None if self.baseline is None else self.baseline[rows],
            gradient=self.gradient[:, rows],
            clean_out=self.clean_out[rows],
            baseline_out=None if self.baseline_out is None else self.baseline_out[rows],
        )


class Entries(NamedTuple):
    """What a backend returns: every feature active in either run, tokens ascending, then features ascending."""

    token: Tensor  # [n] int64
    feature: Tensor  # [n] int64
    clean_acts: Tensor  # [n]
    baseline_acts: Tensor  # [n]
    attribution: Tensor  # [K, n]
    error: Tensor  # [K, T]


def output_difference(inputs: Inputs) -> Tensor:
    """What features and errors of each token have to explain, [T, d_out]: clean - baseline, without the biases.

    The decoder is affine, so gradient . output_difference = error + the sum of the token's attributions, and no
    reconstruction is needed. With a zero baseline, where the baseline's error is zero too, nothing is subtracted but
    the clean run's bias.
    """
    difference = inputs.clean_out
    if inputs.baseline is None or inputs.baseline_out is None:
        return difference - output_bias(inputs.weights, inputs.clean).to(difference.dtype)
    difference = difference - inputs.baseline_out
    if inputs.weights.normalize != "none":
        biases = (output_bias(inputs.weights, x) for x in (inputs.clean, inputs.baseline))
        difference = difference - next(biases) + next(biases)
    return difference


def row_starts(token: Tensor, n_tokens: int) -> Tensor:
    """[n_tokens + 1] int64: entries start[t] to start[t + 1] are those of token t, in a list sorted by token."""
    return torch.searchsorted(token, torch.arange(n_tokens + 1, dtype=token.dtype, device=token.device))


def top_k_entries(token: Tensor, score: Tensor, k: int, n_tokens: int) -> Tensor:
    """Mask [n] of the k largest positive scores of each token; of equal scores the first in the list.

    The list is sorted by token.
    """
    by_score = torch.sort(score, descending=True, stable=True).indices
    order = by_score[torch.sort(token[by_score], stable=True).indices]  # by token, then score, then place in the list
    rank = torch.arange(len(token), device=token.device) - row_starts(token, n_tokens)[token]
    active = torch.zeros_like(token, dtype=torch.bool)
    active[order] = rank < k
    return active & (score > 0)

"""How well estimates agree with measurements.

In come two lists of numbers with names; out come correlations, shared signs, the overlap of the largest, the items that
disagree most, and bootstrap intervals of a ratio of means. This module knows neither models nor graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

N_WORST = 5


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured, over n items; None where undefined (fewer than two items, or all alike).

    sign_agreement: share of the items with one sign, among those where neither number is 0. top_k_overlap: share of the
    top_k largest |predicted| that are among the top_k largest |measured|. worst: name, predicted and measured of the
    largest |predicted - measured|.
    """

    n: int
    pearson_r: float | None
    spearman_r: float | None
    sign_agreement: float | None
    top_k: int
    top_k_overlap: float | None
    worst: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Interval:
    """A number, and the bounds between which 95 % of its bootstrap resamples over the examples lie; None for one example."""

    value: float
    low: float | None
    high: float | None


def compare(names: Sequence[str], predicted: Tensor, measured: Tensor, *, top_k: int = 10) -> Agreement:
    """The agreement of two vectors [n]."""
    n, k = len(names), min(top_k, len(names))
    measured = measured.double()
    predicted = predicted.to(measured)
    both = (predicted != 0) & (measured != 0)
    largest = [set(values.abs().argsort(descending=True, stable=True)[:k].tolist()) for values in (predicted, measured)]
    worst = (predicted - measured).abs().argsort(descending=True, stable=True)[:N_WORST].tolist()
    return Agreement(
        n=n,
        pearson_r=pearson(predicted, measured),
        spearman_r=pearson(ranks(predicted), ranks(measured)),
        sign_agreement=float((predicted.sign() == measured.sign())[both].double().mean()) if bool(both.any()) else None,
        top_k=k,
        top_k_overlap=len(largest[0] & largest[1]) / k if k else None,
        worst=tuple((names[i], float(predicted[i]), float(measured[i])) for i in worst),
    )


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Correlation of two vectors; None for fewer than two values or no variance."""
    if len(x) < 2 or not bool(x.std()) or not bool(y.std()):
        return None
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    """The rank of each value, 0 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    shared: Tensor = last - (counts.double() + 1) / 2
    return shared[inverse]


def auroc(scores: Tensor, truth: Tensor) -> float | None:
    """The share of (true, false) pairs in which the true item has the larger score, ties counting half; None without both."""
    positive, negative = scores[truth], scores[~truth]
    if not len(positive) or not len(negative):
        return None
    order = ranks(torch.cat([positive, negative]))[: len(positive)]
    return float((order.sum() - len(positive) * (len(positive) - 1) / 2) / (len(positive) * len(negative)))


def ratio(numerator: Tensor, denominator: Tensor, *, seed: int, n_bootstrap: int = 1000) -> Interval | None:
    """mean(numerator) / mean(denominator) of two vectors [examples], resampled together; None where that is x / 0."""
    if float(denominator.mean()) == 0:
        return None
    value, n = float(numerator.mean() / denominator.mean()), len(numerator)
    if n < 2:
        return Interval(value, None, None)
    rows = torch.randint(n, (n_bootstrap, n), generator=torch.Generator().manual_seed(seed)).to(numerator.device)
    below = denominator[rows].mean(1)
    drawn = (numerator[rows].mean(1) / below)[below != 0].double()
    if not len(drawn):
        return Interval(value, None, None)
    bounds = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64, device=drawn.device))
    return Interval(value, float(bounds[0]), float(bounds[1]))

"""How well estimates agree with measurements: correlations, shared signs, overlap of the largest, the worst items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats
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

    def __repr__(self) -> str:
        return (
            f"{self.n}: pearson {_number(self.pearson_r)}, spearman {_number(self.spearman_r)},"
            f" same sign {_number(self.sign_agreement)}, top {self.top_k} shared {_number(self.top_k_overlap)}"
        )


def compare(names: Sequence[str], predicted: Tensor, measured: Tensor, *, top_k: int = 10) -> Agreement:
    """The agreement of two vectors [n].

    Args:
        names: What each of the n items is called, for the list of the worst.
        predicted: The estimates, [n].
        measured: The measurements, [n].
        top_k: How many of the largest to compare; all of them where there are fewer.
    """
    n, k = len(names), min(top_k, len(names))
    measured = measured.double()
    predicted = predicted.to(measured)
    both = (predicted != 0) & (measured != 0)
    largest = [set(values.abs().argsort(descending=True, stable=True)[:k].tolist()) for values in (predicted, measured)]
    worst = (predicted - measured).abs().argsort(descending=True, stable=True)[:N_WORST].tolist()
    return Agreement(
        n=n,
        pearson_r=pearson(predicted, measured),
        spearman_r=spearman(predicted, measured),
        sign_agreement=float((predicted.sign() == measured.sign())[both].double().mean()) if bool(both.any()) else None,
        top_k=k,
        top_k_overlap=len(largest[0] & largest[1]) / k if k else None,
        worst=tuple((names[i], float(predicted[i]), float(measured[i])) for i in worst),
    )


def pearson(x: Tensor, y: Tensor) -> float | None:
    """The linear correlation of two vectors; None for fewer than two values, or where all of one are equal."""
    if not _varies(x) or not _varies(y):
        return None
    return float(scipy.stats.pearsonr(x.cpu().numpy(), y.cpu().numpy()).statistic)


def spearman(x: Tensor, y: Tensor) -> float | None:
    """The correlation of the ranks, equal values sharing the mean of theirs; None where `pearson` is."""
    if not _varies(x) or not _varies(y):
        return None
    return float(scipy.stats.spearmanr(x.cpu().numpy(), y.cpu().numpy()).statistic)


def auroc(scores: Tensor, truth: Tensor) -> float | None:
    """The share of (true, false) pairs in which the true item has the larger score, ties counting half.

    Args:
        scores: One number per item, [n].
        truth: Which items are true, boolean [n].

    None where all items are true, or none is.
    """
    positive, negative = scores[truth], scores[~truth]
    if not len(positive) or not len(negative):
        return None
    pairs_in_order = scipy.stats.mannwhitneyu(positive.cpu().numpy(), negative.cpu().numpy(), method="asymptotic")
    return float(pairs_in_order.statistic) / (len(positive) * len(negative))


def _varies(values: Tensor) -> bool:
    return len(values) > 1 and bool((values != values[0]).any())


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"

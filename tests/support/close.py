"""One rule for how near two computed numbers must be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Numbers = Tensor | float | Sequence[float]


def tolerance(dtype: torch.dtype, n_terms: int, scale: Tensor | float) -> float:
    """8 * eps * sqrt(n_terms) * scale: how far rounding may take a sum from its exact value.

    The rounding errors of n terms add up like a random walk; the factor 8 is for the worst of many sums.

    Args:
        dtype: what the sum was computed in.
        n_terms: how many numbers were added, over all steps of the computation.
        scale: at least the sum of the absolute terms.
    """
    return 8 * torch.finfo(dtype).eps * max(n_terms, 1) ** 0.5 * max(float(scale), torch.finfo(dtype).tiny)


def assert_close(
    actual: Numbers,
    expected: Numbers,
    *,
    n_terms: int = 1000,
    dtype: torch.dtype | None = None,
    scale: Tensor | float | None = None,
    allowance: float = 0.0,
    zeros: bool = False,
    name: str = "",
) -> None:
    """Every number differs from the expected one by at most `tolerance(dtype, n_terms, scale)` + `allowance`, and is finite.

    Args:
        actual: a tensor of any shape, a number, or a list of numbers.
        expected: as many numbers in the same shape.
        n_terms: see `tolerance`.
        dtype: what the numbers were computed in; by default the coarser type of both sides. A Python float is float64.
        scale: see `tolerance`; by default the largest absolute expected number.
        allowance: what the two may differ by beside rounding: a quadrature's error, what a finite step leaves out.
        zeros: whether only zeros, or nothing at all, may be compared. It shows nothing, so it fails by default.
        name: what is compared, for the message.
    """
    left, right = _tensor(actual), _tensor(expected)
    subject = f"{name}: " if name else ""
    assert left.shape == right.shape, f"{subject}shape {tuple(left.shape)}, expected {tuple(right.shape)}"
    dtype = dtype or max(left.dtype, right.dtype, key=lambda each: torch.finfo(each).eps)
    left, right = (x.detach().double().cpu() for x in (left, right))
    assert zeros or left.any() or right.any(), f"{subject}only zeros are compared with zeros"
    if left.numel() == 0:
        return
    bound = tolerance(dtype, n_terms, right.abs().max() if scale is None else scale) + allowance
    difference = (left - right).abs()
    at = int(difference.nan_to_num(nan=torch.inf).argmax())
    message = f"{float(left.flatten()[at])!r}, expected {float(right.flatten()[at])!r}"
    message += f": they differ by {float(difference.flatten()[at]):.3g}, more than {bound:.3g}"
    message = f"{subject}{message} ({dtype}, {n_terms} terms, at {at} of {left.numel()})"
    assert bool(((difference <= bound) & difference.isfinite()).all()), message


def _tensor(numbers: Numbers) -> Tensor:
    """Whole numbers and Python's floats as float64."""
    tensor = torch.as_tensor(numbers) if hasattr(numbers, "dtype") else torch.tensor(numbers, dtype=torch.float64)
    return tensor if tensor.is_floating_point() else tensor.double()

"""Columns of numbers as text that a page unpacks into typed arrays without parsing a number.

A column is {"type": ..., "data": base64 of the little-endian array}. Floats lose nothing: they are stored with 32 bits
only where each survives that.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

INTEGERS = (("u1", 0xFF), ("u2", 0xFFFF), ("u4", 0xFFFFFFFF))
Column = dict[str, Any]


def integers(values: Sequence[int]) -> Column:
    """The column in the narrowest unsigned type that holds it; values are >= 0."""
    largest = max(values, default=0)
    return _column(values, next(name for name, most in INTEGERS if largest <= most))


def floats(values: Sequence[float | None]) -> Column:
    """The column in 32 bits if that is exact, else in 64; None becomes NaN, which stands for absent."""
    array = np.array([np.nan if value is None else value for value in values], dtype="<f8")
    with np.errstate(over="ignore"):
        exact = np.array_equal(array.astype("<f4").astype("<f8"), array, equal_nan=True)
    return _column(array, "f4" if exact else "f8")


def _column(values: Any, name: str) -> Column:
    data = np.asarray(values, dtype=f"<{name}").tobytes()
    return {"type": name, "data": base64.b64encode(data).decode("ascii")}

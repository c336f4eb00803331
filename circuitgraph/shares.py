"""What a graph explains of its metric, and what 100 % of it is: every share and every relative threshold rests on these."""

from __future__ import annotations

_ROUNDING = 1e-6  # relative; metrics are means of float32 numbers at worst


def metric_change(clean: float, corrupted: float | None) -> float:
    """What a graph explains: clean - corrupted, or clean where there is no corrupted prompt."""
    return clean if corrupted is None else clean - corrupted


def full_share(clean: float, corrupted: float | None) -> float:
    """What 100 % is, in the metric's unit: |clean - corrupted|, or |clean| where there is no corrupted prompt.

    It is |clean| also where the two are equal up to rounding, so that a share is never one of a rounding error.
    """
    change = abs(metric_change(clean, corrupted))
    return change if change > _ROUNDING * abs(clean) else abs(clean)

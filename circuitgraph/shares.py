"""What a graph explains of its metric, and what 100 % of it is: all shares and relative thresholds rest on these."""

from __future__ import annotations

_ROUNDING = 1e-6  # relative; metrics are means of float32 numbers at worst


def metric_change(clean: float, corrupted: float | None) -> float:
    """What a graph explains: clean - corrupted, or clean where there is no corrupted prompt."""
    return clean if corrupted is None else clean - corrupted


def unit_of_shares(clean: float, corrupted: float | None) -> float:
    """|clean - corrupted|, or |clean| where there is no corrupted prompt; 0.0 where that is only a rounding error."""
    change = abs(metric_change(clean, corrupted))
    return change if change > _ROUNDING * abs(clean) else 0.0


def full_share(clean: float, corrupted: float | None, typical: float | None = None) -> float:
    """What 100 % is, in the metric's unit: `unit_of_shares`, or |clean| where that is 0.

    Args:
        clean: The metric's mean over the examples in the clean run.
        corrupted: The same in the corrupted run; None where there is none.
        typical: The mean of |clean| over the examples; it is 100 % where examples cancel in both means.
    """
    typical = abs(clean) if typical is None else typical
    sizes = [unit_of_shares(clean, corrupted), abs(clean)]
    return next((size for size in sizes if size > _ROUNDING * typical), typical)

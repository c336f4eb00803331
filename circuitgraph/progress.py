"""How long functions report that they advance: they call `progress(stage, done, total)` now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

# (what is being done, how many parts of it are done, how many there are); 0 of 1 where the number is unknown.
Progress: TypeAlias = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing: the default of every function that takes `progress`."""

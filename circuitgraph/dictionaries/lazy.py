"""Values that are made when they are asked for, and that go when nobody holds them.

In come a function that makes a value and, for weights, their sizes; out comes the value, made anew whenever no one has
kept the last one. This module knows neither files nor dictionaries.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from circuitgraph_kernels import SaeWeights

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value that `get` makes; while someone holds it, the same one again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: Callable[[], T | None] = lambda: None

    def get(self) -> T:
        value = self._made()
        if value is None:
            value = self._make()
            self._made = weakref.ref(value)
        return value


class DeferredWeights(Deferred[SaeWeights]):
    """Weights whose sizes are known before they are read."""

    def __init__(self, make: Callable[[], SaeWeights], *, d_in: int, d_sae: int, d_out: int) -> None:
        super().__init__(make)
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out

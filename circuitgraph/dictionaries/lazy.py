"""Values that are made when they are asked for, and freed when nobody holds them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from circuitgraph_kernels import SaeWeights

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value that `get` makes; as long as someone holds it, `get` gives the same one again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._last: Callable[[], T | None] = lambda: None

    def get(self) -> T:
        value = self._last()
        if value is None:
            value = self._make()
            self._last = weakref.ref(value)
        return value


class DeferredWeights(Deferred[SaeWeights]):
    """Weights whose sizes, activation and normalisation are known before they are read."""

    def __init__(
        self, make: Callable[[], SaeWeights], d_in: int, d_sae: int, d_out: int, activation: str, normalize: str
    ) -> None:
        super().__init__(make)
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.activation, self.normalize = activation, normalize

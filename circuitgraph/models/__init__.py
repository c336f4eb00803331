"""Models: loading one, running it while reading and replacing activations, its tokens and formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.models.load import load_model as load_model
    from circuitgraph.models.model import Model as Model

_HOMES = {"Model": "model", "load_model": "load"}

__all__ = ["Model", "load_model"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

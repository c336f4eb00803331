"""Dictionaries (SAEs, transcoders, cross-layer transcoders, neurons) and how every published format of them is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.dictionaries.collection import Dictionaries as Dictionaries
    from circuitgraph.dictionaries.dictionary import Dictionary as Dictionary
    from circuitgraph.dictionaries.load import load_dictionaries as load_dictionaries

__all__ = ["Dictionaries", "Dictionary", "load_dictionaries"]

__getattr__, __dir__ = lazy_names(
    __name__, {"Dictionaries": "collection", "Dictionary": "dictionary", "load_dictionaries": "load"}
)

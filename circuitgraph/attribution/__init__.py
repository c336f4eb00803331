"""Attributions: the runs, gradients and tables that give every node its estimated effect on the metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.attribution.attribute import Attribution as Attribution
    from circuitgraph.attribution.attributions import Attributions as Attributions
    from circuitgraph.attribution.attributions import load_attributions as load_attributions
    from circuitgraph.attribution.targets import Probe as Probe

_HOMES = {
    "Attribution": "attribute",
    "Attributions": "attributions",
    "Probe": "targets",
    "load_attributions": "attributions",
}

__all__ = ["Attribution", "Attributions", "Probe", "load_attributions"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

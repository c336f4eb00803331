"""Studies of the methods themselves, on transformers whose circuit is known because somebody wrote it.

python -m circuitgraph.studies.ground_truth       does measuring edges find the circuit?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.studies.ground_truth import edge_effects as edge_effects
    from circuitgraph.studies.programs import Program as Program
    from circuitgraph.studies.programs import build_model as build_model
    from circuitgraph.studies.programs import gate as gate
    from circuitgraph.studies.programs import histogram as histogram
    from circuitgraph.studies.programs import read_tracr as read_tracr

__all__ = ["Program", "build_model", "edge_effects", "gate", "histogram", "read_tracr"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Program": "programs",
        "build_model": "programs",
        "edge_effects": "ground_truth",
        "gate": "programs",
        "histogram": "programs",
        "read_tracr": "programs",
    },
)

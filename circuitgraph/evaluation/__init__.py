"""Evaluation: what a circuit does when the model really runs, against what its graph estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.evaluation.dictionary_check import check_dictionaries as check_dictionaries
    from circuitgraph.evaluation.evidence import attach_evidence as attach_evidence
    from circuitgraph.evaluation.evidence import evaluate as evaluate
    from circuitgraph.evaluation.evidence import measure as measure
    from circuitgraph.evaluation.report import Evaluation as Evaluation

_HOMES = {
    "Evaluation": "report",
    "attach_evidence": "evidence",
    "check_dictionaries": "dictionary_check",
    "evaluate": "evidence",
    "measure": "evidence",
}

__all__ = ["Evaluation", "attach_evidence", "check_dictionaries", "evaluate", "measure"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

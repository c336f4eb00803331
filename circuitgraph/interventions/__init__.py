"""Interventions: their language, what they do at a site, running and generating under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.interventions.attention import compare_attention as compare_attention
    from circuitgraph.interventions.generation import generate as generate
    from circuitgraph.interventions.language import parse_intervention as parse_intervention
    from circuitgraph.interventions.run import run_with_interventions as run_with_interventions

_HOMES = {
    "compare_attention": "attention",
    "generate": "generation",
    "parse_intervention": "language",
    "run_with_interventions": "run",
}

__all__ = ["compare_attention", "generate", "parse_intervention", "run_with_interventions"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

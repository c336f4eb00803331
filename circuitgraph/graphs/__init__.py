"""Graphs: their schema, building and pruning one, where it came from, and its summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.graphs.pruning import prune as prune
    from circuitgraph.graphs.schema import check_graph as check_graph
    from circuitgraph.graphs.schema import metric_scale as metric_scale
    from circuitgraph.graphs.summary import summary_text as summary_text

_HOMES = {"check_graph": "schema", "metric_scale": "schema", "prune": "pruning", "summary_text": "summary"}

__all__ = ["check_graph", "metric_scale", "prune", "summary_text"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

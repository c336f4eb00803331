"""Edges: typed, exact, traced from the targets down; influence on the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitgraph.lazy_names import lazy_names

if TYPE_CHECKING:
    from circuitgraph.edges.table import EdgeTable as EdgeTable
    from circuitgraph.edges.trace import TracedEdges as TracedEdges
    from circuitgraph.edges.trace import trace_edges as trace_edges

_HOMES = {"EdgeTable": "table", "TracedEdges": "trace", "trace_edges": "trace"}

__all__ = ["EdgeTable", "TracedEdges", "trace_edges"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

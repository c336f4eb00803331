"""Which nodes edges are traced between: the strongest, at each position or summed over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from circuitgraph.attribution.attribute import Attribution
from circuitgraph.attribution.strongest import strongest_nodes
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.edges.position_sums import sum_positions, terms
from circuitgraph.settings import Edges


@dataclass(frozen=True, eq=False)
class Candidates:
    """The nodes between which edges are traced.

    Args:
        nodes: The nodes of the graph to be.
        columns: The nodes at single positions that they are made of: the same tables, unless positions are summed.
        report: A line that says how many were chosen.
    """

    nodes: Sequence[NodeTable]
    columns: Sequence[NodeTable]
    report: str


def choose_candidates(run: Attribution, settings: Edges) -> Candidates:
    """The settings.max_nodes nodes with the largest |attribution|.

    With qk "ablate" nodes without attribution are candidates too, after all others: a saturated head gives none to a
    source that keeps it saturated.
    """
    tables = list(run.tables)
    sums = settings.positions == "sum"
    totals = [sum_positions(table) for table in tables] if sums else tables
    nodes, report = strongest_nodes(totals, settings.max_nodes, saturated=settings.qk == "ablate")
    return Candidates(nodes, list(map(terms, tables, nodes)) if sums else nodes, report)

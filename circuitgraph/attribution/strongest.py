"""Nodes in order of their attribution, and the strongest of them, between which edges are traced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from circuitgraph.attribution.tables import NodeTable
from circuitgraph.nodes import Node


def rank_nodes(tables: Iterable[NodeTable]) -> list[tuple[float, Node]]:
    """(mean attribution over the examples, node) of every node, largest absolute value first, ties in forward order."""
    ranked = [item for table in tables for item in zip(table.attribution.mean(0).tolist(), table.nodes(), strict=True)]
    return sorted(ranked, key=lambda item: (-abs(item[0]), item[1].order))


def strongest_nodes(
    tables: Sequence[NodeTable], max_nodes: int, *, saturated: bool = False
) -> tuple[list[NodeTable], str]:
    """The tables cut down to their strongest nodes, and a line that says so.

    Args:
        tables: The nodes.
        max_nodes: How many of those with the largest |attribution| to keep.
        saturated: Keep nodes with an attribution of 0 too, after all others. A saturated head gives none to a source
            that keeps it saturated.
    """
    ranked = [(value, node) for value, node in rank_nodes(tables) if value != 0 or saturated]
    chosen = {node for _, node in ranked[:max_nodes]}
    kept = []
    for table in tables:
        mask = [node in chosen for node in table.nodes()]
        kept.append(table.take(torch.tensor(mask, dtype=torch.bool, device=table.pos.device)))
    which = "nodes" if saturated else "nodes with a non-zero attribution"
    return kept, f"max_nodes {max_nodes}: {len(chosen)} of {len(ranked)} {which} are candidates"

"""What traced targets read in all, and how much of it the edges into them carry."""

from __future__ import annotations

import torch

from circuitgraph.edges.table import EdgeTable
from circuitgraph.edges.trace import TracedEdges
from circuitgraph.nodes import EDGE_KINDS


def input_of(traced: TracedEdges, edges: EdgeTable, qk: str) -> dict[int, tuple[float, float]]:
    """What each traced target reads, and how much of that no edge explains, by the target's number.

    Args:
        traced: What the targets read of the change of the streams.
        edges: The edges that explain it, after pruning.
        qk: As of `settings.Edges`. q and k edges by ablation are not additive and are excluded.
    """
    if qk == "ablate":
        patterns = torch.tensor([EDGE_KINDS.index("q"), EDGE_KINDS.index("k")])
        edges = edges.take(~torch.isin(edges.kind, patterns.to(edges.kind)))
    explained = torch.zeros(len(edges.nodes), dtype=torch.float64)
    explained.index_add_(0, edges.target.long(), edges.local_weight.to(torch.float64))
    rest = explained.tolist()
    return {i: (value, value - rest[i]) for i, value in traced.stream_input.items()}


def input_report(traced: TracedEdges) -> list[str]:
    """How much of what the traced targets read comes from candidates, over the targets."""
    missing = [
        abs(value - traced.total_input[i]) / max(abs(value), abs(traced.total_input[i]))
        for i, value in traced.stream_input.items()
        if value
    ]
    if not missing:
        return []
    shares = torch.tensor(missing).quantile(torch.tensor([0.5, 0.9])).tolist()
    return [
        f"inputs: of what {len(missing)} targets read, nodes that are no candidates carry {shares[0]:.1%} (median),"
        f" {shares[1]:.1%} (90th percentile)"
    ]

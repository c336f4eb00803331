"""How much of the targets passes through each node and edge, counting every path: influence, and pruning by it.

In comes an `EdgeTable`; out come influences per node, smaller tables and two scores. Everything works on the edges that are
there (no matrix of nodes by nodes). After the attribution graphs of Ameisen et al. 2025, as circuit-tracer computes them.

    share(u -> v)    = |local_weight(u -> v)| / sum over all u' of |local_weight(u' -> v)|
    influence(u)     = sum over v of share(u -> v) * (influence(v) + weight of v as a target)

Edges run forward, so one sweep from the targets down gives the infinite sum of all path lengths exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.edge_table import EdgeTable
from circuitgraph.errors import CircuitGraphError


@dataclass(frozen=True)
class GraphScores:
    """replacement: influence of inputs and biases / that of inputs, biases and errors: how much of the targets is explained
    from end to end. completeness: the same counted per node's own inputs: 1 - share of errors, weighted by influence.
    None for a graph without influence."""

    replacement: float | None
    completeness: float | None


def node_influence(table: EdgeTable, weights: Tensor, *, signed: bool = False) -> Tensor:
    """Influence [n_nodes] (float64) on the targets, whose weights [n_nodes] are 0 for every other node.

    signed: shares keep the sign of the edge, so that suppression and support cancel.
    """
    share = _shares(table, signed)
    influence = torch.zeros(len(table.nodes), dtype=torch.float64)
    carried = weights.to(torch.float64)
    for edges in table.by_target_depth:
        source, target = table.source[edges].long(), table.target[edges].long()
        influence.index_add_(0, source, share[edges] * (influence[target] + carried[target]))
    return influence


def edge_influence(table: EdgeTable, weights: Tensor) -> Tensor:
    """What passes along each edge, [m] float64: share times influence plus weight of its target."""
    total = node_influence(table, weights) + weights.to(torch.float64)
    return _shares(table, signed=False) * total[table.target.long()]


def graph_scores(table: EdgeTable, weights: Tensor) -> GraphScores:
    """Replacement and completeness of an unpruned table."""
    influence = node_influence(table, weights)
    kinds = [node.kind for node in table.nodes]
    error = torch.tensor([kind == "error" for kind in kinds])
    leaf = torch.tensor([kind in ("embedding", "pos_embedding", "bias") for kind in kinds])
    explained, unexplained = float(influence[leaf].sum()), float(influence[error].sum())
    total = influence + weights.to(torch.float64)
    share = _shares(table, signed=False)
    missed = torch.zeros_like(influence)
    from_error = error[table.source.long()]
    missed.index_add_(0, table.target[from_error].long(), share[from_error])
    reading = torch.zeros_like(influence).index_add_(0, table.target.long(), share) > 0
    weighed = float(total[reading].sum())
    return GraphScores(
        explained / (explained + unexplained) if explained + unexplained > 0 else None,
        float(((1 - missed) * total)[reading].sum()) / weighed if weighed > 0 else None,
    )


def prune_by_influence(
    table: EdgeTable, weights: Tensor, *, node_share: float = 0.8, edge_share: float = 0.98
) -> EdgeTable:
    """The edges between the most influential nodes that together carry node_share of all influence, of these edges the
    most influential that carry edge_share, without features that lost their inputs or outputs.

    Embeddings and targets stay whatever their influence, and so do edges between targets and the metric they make up.
    CircuitGraphError for a share that is not above 0 and at most 1.
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0 < share <= 1:
            raise CircuitGraphError(f"{name} is {share}; expected a cumulative share above 0 and at most 1")
    kinds = [node.kind for node in table.nodes]
    above = torch.tensor([kind in ("logit", "probe") for kind in kinds])[table.source.long()]
    whole, table = table, table.take(~above)
    index = (~above).nonzero()[:, 0]

    def narrow(mask: Tensor) -> None:
        nonlocal table, index
        table, index = table.take(mask), index[mask]

    influence = node_influence(table, weights)
    kept = influence >= _cut(influence, node_share)
    kept |= torch.tensor([kind == "embedding" for kind in kinds]) | (weights != 0)
    narrow(kept[table.source.long()] & kept[table.target.long()])
    passing = edge_influence(table, weights)
    narrow(passing >= _cut(passing, edge_share))
    feature = torch.tensor([kind == "feature" for kind in kinds])
    while len(table):
        inputs, outputs = (torch.zeros(len(kinds), dtype=torch.bool) for _ in range(2))
        inputs[table.target.long()] = True
        outputs[table.source.long()] = True
        dead = (feature & ~inputs) | (~outputs & (weights == 0))
        alive = ~dead[table.source.long()] & ~dead[table.target.long()]
        if bool(alive.all()):
            break
        narrow(alive)
    above[index] = True
    return whole.take(above)


def _shares(table: EdgeTable, signed: bool) -> Tensor:
    size = table.local_weight.to(torch.float64)
    target = table.target.long()
    total = torch.zeros(len(table.nodes), dtype=torch.float64).index_add_(0, target, size.abs())
    return (size if signed else size.abs()) / total[target].clamp(min=torch.finfo(torch.float64).tiny)


def _cut(values: Tensor, share: float) -> float:
    """The value from which on the largest make up that share of the sum."""
    ordered = torch.sort(values, descending=True).values
    if not len(ordered) or float(ordered.sum()) <= 0:
        return 0.0
    if share == 1:  # the smallest ones vanish in the sum
        return float(ordered[ordered > 0][-1])
    cumulative = ordered.cumsum(0) / ordered.sum()
    last = min(int((cumulative < share - 1e-12).sum()), len(ordered) - 1)
    return float(ordered[last])

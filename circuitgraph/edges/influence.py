"""How much of the targets passes through each node and edge, counting every path: influence, and pruning by it.

After the attribution graphs of Ameisen et al. 2025, as circuit-tracer computes them, but on the edges that there are,
without a matrix of nodes by nodes.

    share(u -> v)    = |local_weight(u -> v)| / sum over all u' of |local_weight(u' -> v)|
    influence(u)     = sum over v of share(u -> v) * (influence(v) + |weight of v as a target|)

It counts what passes, whichever way it pushes: a target with a negative weight (a logit that is to fall) counts as one
with a positive. Edges run forward, so one sweep from the targets down gives the sum over all path lengths exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from circuitgraph.edges.table import EdgeTable
from circuitgraph.errors import CircuitGraphError
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Edges


@dataclass(frozen=True)
class GraphScores:
    """How much of the targets an unpruned graph explains; None for a graph without influence.

    replacement: From end to end: the influence of inputs and biases, over that of inputs, biases and errors.
    completeness: By each node's own inputs: 1 - the share of errors in them, averaged by the nodes' influence.
    """

    replacement: float | None
    completeness: float | None


def node_influence(table: EdgeTable, weights: Float[Tensor, " n_nodes"]) -> Float[Tensor, " n_nodes"]:
    """The influence of every node on the targets, float64.

    Args:
        table: The edges.
        weights: The weights of the targets in the metric, 0 for every other node.
    """
    share, source, target = _shares(table), table.source.numpy(), table.target.numpy()
    influence = np.zeros(len(table.nodes))
    carried = weights.abs().to(torch.float64).numpy()
    for edges in (part.numpy() for part in table.by_target_depth):
        passed = share[edges] * (influence + carried)[target[edges]]
        influence += np.bincount(source[edges], passed, minlength=len(influence))
    return torch.from_numpy(influence)


def edge_influence(table: EdgeTable, weights: Float[Tensor, " n_nodes"]) -> Float[Tensor, " m"]:
    """What passes along each edge, float64: its share times (influence + |weight|) of its target."""
    total = node_influence(table, weights) + weights.to(torch.float64).abs()
    return torch.from_numpy(_shares(table)) * total[table.target]


def graph_scores(table: EdgeTable, weights: Tensor, influence: Tensor | None = None) -> GraphScores:
    """Replacement and completeness of an unpruned table. influence: `node_influence` of it, if that is known."""
    influence = node_influence(table, weights) if influence is None else influence
    kinds = [node.kind for node in table.nodes]
    error = torch.tensor([kind == "error" for kind in kinds])
    leaf = torch.tensor([kind in ("embedding", "pos_embedding", "bias") for kind in kinds])
    explained, unexplained = float(influence[leaf].sum()), float(influence[error].sum())
    total = influence + weights.to(torch.float64).abs()
    size = table.local_weight.abs()
    read, from_error = (_per_target(table, x) for x in (size, size * error[table.source]))
    reading = read > 0
    missed = from_error / read.clamp(min=torch.finfo(torch.float64).tiny)
    weighed = float(total[reading].sum())
    return GraphScores(
        explained / (explained + unexplained) if explained + unexplained > 0 else None,
        float(((1 - missed) * total)[reading].sum()) / weighed if weighed > 0 else None,
    )


def prune_by_influence(
    table: EdgeTable,
    weights: Tensor,
    *,
    node_share: float = 0.8,
    edge_share: float = 0.98,
    influence: Tensor | None = None,
) -> EdgeTable:
    """The part of the graph that carries most of the influence.

    These are the edges between the most influential nodes that together carry node_share of all influence; of these the
    most influential that carry edge_share; without features that lost all their inputs or outputs. Embeddings and
    targets stay whatever their influence, and so do the edges from the objective's nodes to the metric.

    Args:
        table: The edges.
        weights: The weights of the targets in the metric, 0 for every other node.
        node_share: The share of influence that nodes keep, above 0 and at most 1.
        edge_share: The share that edges keep.
        influence: `node_influence` of the table, if that is known.

    Raises CircuitGraphError for a share outside its range.
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0 < share <= 1:
            raise CircuitGraphError(f"{name} is {share}; expected a cumulative share above 0 and at most 1")
    influence = node_influence(table, weights) if influence is None else influence
    kinds = [node.kind for node in table.nodes]
    to_metric = torch.tensor([kind in ("logit", "probe") for kind in kinds])[table.source]
    kept = influence >= _threshold(influence, node_share)
    kept |= torch.tensor([kind == "embedding" for kind in kinds]) | (weights != 0)
    left = (kept[table.source] & kept[table.target] & ~to_metric).nonzero()[:, 0]
    narrowed = table.take(_mask(left, len(table)))
    passing = edge_influence(narrowed, weights)
    left = left[passing >= _threshold(passing, edge_share)]
    source, target = table.source[left], table.target[left]
    feature = torch.tensor([kind == "feature" for kind in kinds])
    while len(left):
        inputs, outputs = (torch.zeros(len(kinds), dtype=torch.bool) for _ in range(2))
        inputs[target] = True
        outputs[source] = True
        dead = (feature & ~inputs) | (~outputs & (weights == 0))
        alive = ~dead[source] & ~dead[target]
        if bool(alive.all()):
            break
        left, source, target = left[alive], source[alive], target[alive]
    return table.take(to_metric | _mask(left, len(table)))


@dataclass(frozen=True, eq=False)
class PrunedEdges:
    """The edges that are left; the scores of all and a line that says how many stayed, None if nothing was pruned."""

    table: EdgeTable
    scores: GraphScores | None = None
    report: str | None = None


def prune_edges(table: EdgeTable, weights: Tensor, settings: Edges, progress: Progress = no_progress) -> PrunedEdges:
    """The edges that carry settings.node_influence and settings.edge_influence; all where neither is given.

    Args:
        table: The edges.
        weights: [n_nodes]: of the targets in the metric, 0 for every other node.
        settings: The shares to keep.
        progress: Told once.
    """
    if settings.node_influence is None and settings.edge_influence is None:
        return PrunedEdges(table)
    progress("pruning by influence", 0, 1)
    influence = node_influence(table, weights)
    node_share, edge_share = settings.node_influence or 1.0, settings.edge_influence or 1.0
    left = prune_by_influence(table, weights, node_share=node_share, edge_share=edge_share, influence=influence)
    report = f"influence: {len(left)} of {len(table)} edges kept"
    return PrunedEdges(left, graph_scores(table, weights, influence), report)


def _mask(chosen: Tensor, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[chosen] = True
    return mask


def _per_target(table: EdgeTable, values: Tensor) -> Tensor:
    """Sums [n_nodes] (float64) of one value per edge."""
    return torch.from_numpy(np.bincount(table.target.numpy(), values.numpy(), minlength=len(table.nodes)))


def _shares(table: EdgeTable) -> npt.NDArray[np.float64]:
    """|local_weight| as a share of all |local_weight| of its target, [m]."""
    size = table.local_weight.abs().to(torch.float64)
    total = _per_target(table, size).clamp(min=torch.finfo(torch.float64).tiny).numpy()
    shares: npt.NDArray[np.float64] = size.numpy() / total[table.target.numpy()]
    return shares


def _threshold(values: Tensor, share: float) -> float:
    """The smallest of the largest values that together make up that share of the sum."""
    ordered = torch.sort(values, descending=True).values
    if not len(ordered) or float(ordered.sum()) <= 0:
        return 0.0
    if share == 1:  # the smallest ones vanish in the sum
        return float(ordered[ordered > 0][-1])
    cumulative = ordered.cumsum(0) / ordered.sum()
    last = min(int((cumulative < share - 1e-12).sum()), len(ordered) - 1)
    return float(ordered[last])

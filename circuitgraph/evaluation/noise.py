"""Noising and denoising: a circuit's nodes on the way from their corrupted to their clean value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.evaluation.circuits import CircuitMask, NodeValues, circuit_mask, circuit_metrics
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.nodes import Node

SHARES = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class NoisePoint:
    """The metric with the circuit's features and errors `share` of the way from their corrupted to their clean value.

    All else runs freely, on the clean prompts (noising) and on the corrupted ones (denoising). Embeddings stay those of
    the prompt; without them the two would be one curve, as all differences enter there.
    """

    share: float
    noising: float
    denoising: float


def noise_curve(
    model: Model,
    dictionaries: Dictionaries,
    clean_tokens: Tensor,
    corrupted_tokens: Tensor,
    clean: NodeValues,
    corrupted: NodeValues,
    metric: Metric,
    nodes: Sequence[Node],
) -> tuple[NoisePoint, ...]:
    """The metric's means at eleven shares from 0 (corrupted) to 1 (clean).

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        clean_tokens: The clean prompts, [batch, pos].
        corrupted_tokens: The corrupted prompts, [batch, pos].
        clean: The nodes of the clean run.
        corrupted: The nodes of the corrupted run.
        metric: The metric.
        nodes: The circuit; only its features and errors are moved.
    """
    n_pos = clean_tokens.shape[1]
    nodes = [node for node in nodes if node.kind in ("feature", "error")]

    def others() -> CircuitMask:
        return circuit_mask(model, dictionaries, nodes, n_pos, "circuit", complement=True)

    points = []
    for share in SHARES:
        baseline_nodes = corrupted.mixed(clean, share)
        noising, denoising = (
            float(circuit_metrics(model, dictionaries, tokens, baseline_nodes, metric, [others]).mean())
            for tokens in (clean_tokens, corrupted_tokens)
        )
        points.append(NoisePoint(share, noising, denoising))
    return tuple(points)

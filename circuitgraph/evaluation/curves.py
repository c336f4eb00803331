"""Curves: how a circuit's metric grows with its size, and between the corrupted and the clean value of its nodes.

In come node tables, a circuit's nodes and node values; out come points, and the areas that MIB calls CPR and CMD. Everything is
measured with `intervene`; this module attributes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.evaluation.circuits import CircuitMask, Errors, NodeValues, circuit_mask, circuit_metrics
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.nodes import Node

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # Mueller et al. 2025, MIB
SHARES = tuple(step / 10 for step in range(11))
ORDERS = ("absolute", "signed", "random")


@dataclass(frozen=True)
class Point:
    """The circuit of the first n_nodes nodes of an order, and its complement."""

    fraction: float
    n_nodes: int
    faithfulness: float
    complement_faithfulness: float


@dataclass(frozen=True)
class Curve:
    """Circuits of growing size: nodes by |attribution| ("absolute"), attribution ("signed") or drawn with the seed ("random")."""

    order: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class NoisePoint:
    """The metric with the circuit's features and errors `share` of the way from their corrupted to their clean value, all else
    free to run: on the clean prompts (noising) and on the corrupted ones (denoising). Embeddings stay those of the prompt;
    without them the two would be one curve, as all differences enter there."""

    share: float
    noising: float
    denoising: float


def size_curves(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    baseline_nodes: NodeValues,
    metric: Metric,
    ranked: Sequence[tuple[float, Node]],
    full: float,
    empty: float,
    *,
    errors: Errors = "circuit",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Curve, ...]:
    """One curve per order over all nodes, of which (attribution, node) are ranked. `full` and `empty` are the metric's means
    with every and with no node."""
    drawn = [node for _, node in ranked]
    random.Random(seed).shuffle(drawn)
    by_order = {
        "absolute": [node for _, node in sorted(ranked, key=lambda item: (-abs(item[0]), item[1].order))],
        "signed": [node for _, node in sorted(ranked, key=lambda item: (-item[0], item[1].order))],
        "random": drawn,
    }
    sizes = [int(len(ranked) * fraction) for fraction in FRACTIONS]
    n_pos = tokens.shape[1]
    circuits = [
        lambda nodes=by_order[order][:size], other=other: circuit_mask(
            model, dictionaries, nodes, n_pos, errors, complement=other
        )
        for order in ORDERS
        for size in sizes
        for other in (False, True)
    ]
    means = (
        circuit_metrics(model, dictionaries, tokens, baseline_nodes, metric, circuits, progress=progress)
        .double()
        .mean(1)
    )
    values = ((means - empty) / (full - empty)).view(len(ORDERS), len(sizes), 2).tolist()
    return tuple(
        Curve(order, tuple(Point(f, n, *pair) for f, n, pair in zip(FRACTIONS, sizes, rows, strict=True)))
        for order, rows in zip(ORDERS, values, strict=True)
    )


def area(fractions: Sequence[float], values: Sequence[float]) -> float:
    """The area under the points by the trapezoid rule on the linear axis of fractions."""
    heights, places = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, fractions))
    return float(torch.trapezoid(heights, places))


def cpr(curve: Curve) -> float:
    """The area under faithfulness from 0.1 % to 100 % of the nodes, which MIB takes of the signed order."""
    return area([point.fraction for point in curve.points], [point.faithfulness for point in curve.points])


def cmd(curve: Curve) -> float:
    """The area of |1 - faithfulness| from 0.1 % to 100 % of the nodes, which MIB takes of the absolute order."""
    return area([point.fraction for point in curve.points], [abs(1 - point.faithfulness) for point in curve.points])


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
    """The metric's means at eleven shares from 0 (corrupted) to 1 (clean)."""
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

"""Circuits of edges between heads and MLPs, measured as MIB measures them: faithfulness, CPR and CMD over edges.

In come a graph of components with a score for each edge (an EAP-IG or MIB file), the model and prompt pairs; out comes a
`ComponentEvaluation`. There is no edge version for graphs of dictionary features: MIB's percentages are shares of all edges of a
model, each of which has a score and can be cut because every component reads one sum of all writers before it. A feature
graph has the edges that were traced and passed a threshold, and every feature at every position would read a stream of its
own; `evaluate` measures such circuits by their nodes, and their edges one by one. This module attributes nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.components.run import ComponentRun, component_metrics, component_shape, run_components
from circuitgraph.components.shape import ComponentScores, component_scores, edge_order, first_edges, prune_edges
from circuitgraph.errors import CircuitGraphError, GraphError, PromptError, did_you_mean
from circuitgraph.evaluation.agreement import Interval, ratio
from circuitgraph.evaluation.curves import FRACTIONS, ORDERS, area
from circuitgraph.evaluation.report import interval_text, number_text, plain_values
from circuitgraph.interventions.run import resample_rows
from circuitgraph.metrics import MetricFunction, build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import PromptPair, pairs_to_text
from circuitgraph.text import table_text

COMPONENT_BASELINES = ("corrupted", "zero", "mean", "resample")


@dataclass(frozen=True)
class EdgeSetting:
    """The circuit C, its complement and no edge at all (0) where dropped edges bring one baseline.

    faithfulness = (m(C) - m(0)) / (m(M) - m(0)), complement_faithfulness the same of the complement; None where m(M) = m(0).
    """

    baseline: str
    metric_empty: float
    metric_circuit: float
    metric_complement: float
    faithfulness: Interval | None
    complement_faithfulness: Interval | None


@dataclass(frozen=True)
class EdgePoint:
    """The circuit of the first n_chosen edges of an order, of which n_edges lie on a path from input to logits."""

    fraction: float
    n_chosen: int
    n_edges: int
    faithfulness: float


@dataclass(frozen=True)
class EdgeCurve:
    """Circuits of growing size: edges by |score| ("absolute"), score ("signed") or drawn with the seed ("random")."""

    order: str
    points: tuple[EdgePoint, ...]


@dataclass(frozen=True)
class ComponentEvaluation:
    """Measured facts about a circuit C of edges of the model M, means over the examples.

    n_edges are the circuit's that lie on a path from input to logits, of n_given; n_model the model's. Per baseline, the first
    of which the curves use: `settings`. cpr: area under the signed curve, cmd: that of |1 - faithfulness| of the absolute one,
    both from 0.1 % to 100 % of the model's edges; None without a score for every edge, or where m(M) = m(0).
    """

    metric: str
    selection: str
    prompts: str
    seed: int
    n_examples: int
    n_model: int
    n_scored: int
    n_given: int
    n_edges: int
    metric_clean: float
    settings: tuple[EdgeSetting, ...]
    cpr: float | None
    cmd: float | None
    curves: tuple[EdgeCurve, ...]

    def record(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return plain_values(asdict(self))  # type: ignore[no-any-return]

    def summary(self) -> dict[str, Any]:
        """The record with the faithfulness and complement_faithfulness of the first baseline beside it: a graph's evidence."""
        first = self.settings[0]
        measured = {"faithfulness": first.faithfulness, "complement_faithfulness": first.complement_faithfulness}
        values = {name: interval.value for name, interval in measured.items() if interval is not None}
        return self.record() | {"baseline": first.baseline} | values


def evaluate_components(
    graph: nx.MultiDiGraph,
    model: Model,
    pairs: Sequence[PromptPair],
    *,
    metric: str | MetricFunction = "logit_difference",
    baselines: Sequence[str] | None = None,
    selection: str = "top-n",
    curves: bool = True,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ComponentEvaluation:
    """Run the graph's circuit, and circuits of growing size by its scores, on the clean prompts.

    What a component reads is the sum of what the kept edges bring and, for dropped ones, of what their writer has in the
    baseline: the corrupted run (MIB's), nothing (zero), the mean over the corrupted prompts per position, or the corrupted run
    of another pair (resample). Circuits are pruned to paths from input to logits. selection: "top-n" or "greedy", as in EAP-IG.
    Raises GraphError for a graph that is not of components, or not of this model's.
    """
    found = component_scores(graph)
    _check_shape(found, graph, model)
    pairs, names = list(pairs), _baselines(baselines, len(pairs))
    shape, exists = found.shape, found.shape.edges()
    orders = {}
    whole = bool((found.scored == exists).all())
    for order in ORDERS[:2]:
        orders[order] = edge_order(shape, found.scores, absolute=order == "absolute", selection=selection)
    drawn = orders["absolute"].sort().values.tolist()
    random.Random(seed).shuffle(drawn)
    orders["random"] = torch.tensor(drawn)

    progress("running the model", 0, 1)
    tokens = tokenize_pairs(model, pairs)
    score = build_metric(metric, tokens.answers, tokens.wrong_answers)
    clean = run_components(model, tokens.clean.to(model.device))
    if tokens.corrupted is None:
        raise PromptError("the pairs have no corrupted prompts, with which circuits of heads and MLPs are compared")
    corrupted = run_components(model, tokens.corrupted.to(model.device))
    full = score(clean.logits)
    circuit = prune_edges(shape, found.circuit)
    settings, empties = [], {}
    for name in names:
        other = _other(model, clean, corrupted, name, seed)
        three = [torch.zeros_like(exists), circuit, prune_edges(shape, exists & ~circuit)]
        empty, inside, outside = component_metrics(model, clean, other, score, three)
        same = name == "corrupted" and torch.equal(tokens.clean, tokens.corrupted)
        empties[name] = full if same else empty  # which differ by roundings
        total = full - empties[name]
        bounds = [ratio(values - empty, total, seed=seed) for values in (inside, outside)]
        means = [float(values.mean()) for values in (empty, inside, outside)]
        settings.append(EdgeSetting(name, means[0], means[1], means[2], bounds[0], bounds[1]))

    drawn_curves: tuple[EdgeCurve, ...] = ()
    empty = empties[names[0]]
    if curves and whole and float(full.mean()) != float(empty.mean()):
        other = _other(model, clean, corrupted, names[0], seed)
        drawn_curves = _curves(
            model, clean, other, score, found, orders, float(full.mean()), float(empty.mean()), progress
        )
    by_order = {curve.order: curve.points for curve in drawn_curves}
    return ComponentEvaluation(
        metric=score.name,
        selection=selection,
        prompts=hashlib.sha256(pairs_to_text(pairs).encode()).hexdigest(),
        seed=seed,
        n_examples=len(pairs),
        n_model=int(exists.sum()),
        n_scored=int(found.scored.sum()),
        n_given=int(found.circuit.sum()),
        n_edges=int(circuit.sum()),
        metric_clean=float(full.mean()),
        settings=tuple(settings),
        cpr=area(FRACTIONS, [p.faithfulness for p in by_order["signed"]]) if by_order else None,
        cmd=area(FRACTIONS, [abs(1 - p.faithfulness) for p in by_order["absolute"]]) if by_order else None,
        curves=drawn_curves,
    )


def component_evaluation_text(evaluation: ComponentEvaluation) -> str:
    """The table that `circuitgraph evaluate` prints for a graph of components."""
    e = evaluation
    lines = [
        f"circuit    {e.n_edges} of {e.n_model} edges ({e.n_given} given, the others on no path from input to logits);"
        f" {e.n_examples} examples, prompts {e.prompts[:12]}, seed {e.seed}",
        f"metric     {e.metric}, clean {e.metric_clean:.4f}",
        "",
        *table_text(
            ["baseline", "m(empty)", "m(circuit)", "faithfulness", "m(complement)", "complement_faithfulness"],
            [
                [
                    row.baseline,
                    number_text(row.metric_empty),
                    number_text(row.metric_circuit),
                    interval_text(row.faithfulness),
                    number_text(row.metric_complement),
                    interval_text(row.complement_faithfulness),
                ]
                for row in e.settings
            ],
        ),
    ]
    if e.cpr is not None and e.cmd is not None:
        where = f"over edges, {e.selection}, baseline {e.settings[0].baseline}"
        lines += ["", f"CPR {e.cpr:.4f} (signed order)  CMD {e.cmd:.4f} (absolute order)  {where}", ""]
        header = ["edges", *(f"{curve.order} {part}" for curve in e.curves for part in ("kept", "f"))]
        points = zip(*(curve.points for curve in e.curves), strict=True)
        rows = [
            [str(p[0].n_chosen), *(cell for q in p for cell in (str(q.n_edges), number_text(q.faithfulness)))]
            for p in points
        ]
        lines += table_text(header, rows)
    elif e.n_scored < e.n_model:
        lines += ["", f"CPR and CMD need a score for each of the model's {e.n_model} edges; the graph has {e.n_scored}"]
    return "\n".join(lines) + "\n"


def _curves(
    model: Model,
    clean: ComponentRun,
    other: Tensor,
    score: Any,
    found: ComponentScores,
    orders: dict[str, Tensor],
    full: float,
    empty: float,
    progress: Progress,
) -> tuple[EdgeCurve, ...]:
    """One curve per order; MIB's sizes are int(share * number of edges)."""
    n_model = len(orders["absolute"])
    sizes = [int(fraction * n_model) for fraction in FRACTIONS]
    circuits = [first_edges(found.shape, orders[order], size) for order in ORDERS for size in sizes]
    values = component_metrics(
        model,
        clean,
        other,
        score,
        circuits,
        progress=lambda done, total: progress("circuits of growing size", done, total),
    )
    shares = ((values.double().mean(1) - empty) / (full - empty)).view(len(ORDERS), -1).tolist()
    counts = torch.stack([circuit.sum() for circuit in circuits]).view(len(ORDERS), -1).tolist()
    return tuple(
        EdgeCurve(order, tuple(EdgePoint(*point) for point in zip(FRACTIONS, sizes, kept, row, strict=True)))
        for order, kept, row in zip(ORDERS, counts, shares, strict=True)
    )


def _other(model: Model, clean: ComponentRun, corrupted: ComponentRun, baseline: str, seed: int) -> Tensor:
    """What dropped edges bring, [writers, batch, pos, d_model]; with baseline zero positions stay, as they are no component."""
    written = corrupted.written
    if baseline == "mean":
        return written.mean(1, keepdim=True).expand_as(written)
    if baseline == "resample":
        return written[:, resample_rows(written.shape[1], seed)]
    if baseline == "corrupted":
        return written
    zero = torch.zeros_like(written)
    site = Site("pos_embed")
    if model.has(site):
        zero[0] = model.run(clean.tokens, record=[site])[1][site]
    return zero


def _baselines(given: Sequence[str] | None, n_pairs: int) -> list[str]:
    if given is None:
        given = COMPONENT_BASELINES if n_pairs > 1 else COMPONENT_BASELINES[:2]
    for name in given:
        if name not in COMPONENT_BASELINES:
            raise CircuitGraphError(
                f"baseline {name!r} is unknown; expected one of {', '.join(COMPONENT_BASELINES)}."
                f"{did_you_mean(name, COMPONENT_BASELINES)}"
            )
        if name in ("mean", "resample") and n_pairs < 2:
            raise CircuitGraphError(f"baseline {name!r} needs at least two pairs; got {n_pairs}")
    return list(dict.fromkeys(given or ("corrupted",)))


def _check_shape(found: ComponentScores, graph: nx.MultiDiGraph, model: Model) -> None:
    own, d_model = component_shape(model), graph.graph["components"].get("d_model", model.d_model)
    if found.shape != own or d_model != model.d_model:
        raise GraphError(
            f"the graph is of {_shape_text(found.shape, d_model)}; {model.name} has {_shape_text(own, model.d_model)}"
        )


def _shape_text(shape: Any, d_model: int) -> str:
    parallel = ", attention and MLP in parallel" if shape.parallel else ""
    return f"{shape.n_layers} layers of {shape.n_heads} heads, d_model {d_model}{parallel}"

"""Circuits of edges between heads and MLPs, measured as MIB measures them: faithfulness, CPR and CMD over edges.

A graph of components has a score for each edge (an EAP-IG or MIB file). There is no edge version for graphs of
dictionary features: MIB's percentages are shares of all edges of a model, each of which has a score and can be cut
because every component reads one sum of all writers before it. A feature graph has the edges that were traced and
passed a threshold, and every feature at every position would read a stream of its own; `evaluate` measures such
circuits by their nodes, and their edges one by one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.components.edge_masks import (
    ComponentScores,
    all_edges,
    component_scores,
    edge_order,
    first_edges,
    prune_edges,
)
from circuitgraph.components.run import component_circuits, component_shape
from circuitgraph.components.shape import ComponentShape
from circuitgraph.doors import ModelLike, PairsLike, as_model, as_pairs, choose_pairs
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.conditions import (
    ORDERS,
    Curve,
    SizedCircuit,
    choose_baselines,
    circuit_sizes,
    measure_conditions,
    size_curves,
    total_effect,
)
from circuitgraph.evaluation.report import Evidence, conditions_table, curves_lines, prompts_text
from circuitgraph.graphs.schema import require_graph
from circuitgraph.models.model import Model
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import pairs_to_text
from circuitgraph.settings import ComponentEvaluating, as_record, resolve


@dataclass(frozen=True, kw_only=True)
class ComponentEvaluation(Evidence):
    """Measured facts about a circuit C of edges of the model M, means over the examples.

    n_edges are the circuit's that lie on a path from input to logits, of n_given; n_model the model's, of which
    n_scored have a score. The curves, over shares of the model's edges, need a score for every edge.
    """

    n_model: int
    n_scored: int
    n_given: int
    n_edges: int

    def __repr__(self) -> str:
        return component_evaluation_text(self, short=True).rstrip()


def evaluate_components(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    prompts: PairsLike,
    *,
    baselines: Sequence[str] | None = None,
    settings: ComponentEvaluating | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> ComponentEvaluation:
    """Run the graph's circuit, and circuits of growing size by its scores, on the clean prompts.

    What a component reads is the sum of what the kept edges bring and, for dropped ones, of what their writer has in
    the baseline. Circuits are pruned to paths from input to logits.

    Args:
        graph: A graph of components, as EAP-IG and MIB files are read.
        model: The model that it is of, in any form that `discover` takes.
        prompts: The prompts, likewise.
        baselines: What dropped edges bring: the corrupted run (MIB's), nothing (zero), the mean over the corrupted
            prompts per position, or the corrupted run of another pair (resample). The first one is that of the curves;
            None for all that the prompts allow.
        settings: The metric, and how circuits of growing size are chosen; None for the defaults.
        progress: Told (stage, steps done, steps in all).
        **changes: Fields of `settings.ComponentEvaluating` over `settings`: metric, selection, curves, length,
            examples, seed.

    Raises GraphError for a graph that is not of components, or not of this model's, and a CircuitGraphError for
    settings, baselines or prompts that do not fit, before the model runs.
    """
    require_graph(graph)
    chosen = resolve(ComponentEvaluating, settings, changes)
    scores, given = component_scores(graph), as_pairs(prompts)
    model = as_model(model)
    _check_shape(scores, graph, model)
    pairs = choose_pairs(given, model, chosen)
    names = choose_baselines(baselines, len(pairs), corrupted=all(pair.corrupted is not None for pair in pairs))

    progress("running the model", 0, 1)
    runner = component_circuits(model, pairs, chosen.metric, seed=chosen.seed)
    exists = all_edges(scores.shape)
    circuit = prune_edges(scores.shape, scores.circuit)
    complement = prune_edges(scores.shape, exists & ~circuit)
    nothing = torch.zeros_like(exists)
    conditions = measure_conditions(runner, names, {None: (circuit, complement)}, nothing, seed=chosen.seed)
    full, empty = float(runner.clean_metric.mean()), conditions[0].metric_empty
    total = total_effect(full, empty, runner.rounding)
    curves: tuple[Curve, ...] = ()
    if chosen.curves and total is not None and bool((scores.scored == exists).all()):
        orders = _sized_circuits(scores, chosen.selection, chosen.seed)
        stage = "circuits of growing size"
        curves = size_curves(runner, names[0], orders, empty, total, lambda done, of: progress(stage, done, of))
    return ComponentEvaluation(
        prompts=hashlib.sha256(pairs_to_text(pairs).encode()).hexdigest(),
        settings=as_record(chosen) | {"metric": runner.metric.name},
        n_examples=len(pairs),
        n_model=int(exists.sum()),
        n_scored=int(scores.scored.sum()),
        n_given=int(scores.circuit.sum()),
        n_edges=int(circuit.sum()),
        metric_clean=full,
        conditions=conditions,
        curves=curves,
    )


def component_evaluation_text(evaluation: ComponentEvaluation, *, short: bool = False) -> str:
    """The tables that `circuitgraph evaluate` prints for a graph of components.

    Args:
        evaluation: What was measured.
        short: Without the points of the curves.
    """
    e = evaluation
    lines = [
        f"circuit    {e.n_edges} of {e.n_model} edges ({e.n_given} given, the others on no path from input to logits);"
        f" {prompts_text(e)}",
        f"metric     {e.settings['metric']}, clean {e.metric_clean:.4f}",
        "",
        *conditions_table(e.conditions),
        *curves_lines(e, "edges", note=f"  over edges, {e.settings['selection']}, baseline {e.baseline}", short=short),
    ]
    if e.n_scored < e.n_model:
        lines += ["", f"CPR and CMD need a score for each of the model's {e.n_model} edges; the graph has {e.n_scored}"]
    return "\n".join(lines) + "\n"


def _sized_circuits(scores: ComponentScores, selection: str, seed: int) -> dict[str, list[SizedCircuit[Tensor]]]:
    """The circuits of every order, pruned."""
    shape = scores.shape
    by_order = {
        order: edge_order(shape, scores.scores, absolute=order == "absolute", selection=selection)
        for order in ("absolute", "signed")
    }
    drawn = by_order["absolute"].sort().values.tolist()
    random.Random(seed).shuffle(drawn)
    by_order["random"] = torch.tensor(drawn)
    circuits = {}
    for order in ORDERS:
        sizes = circuit_sizes(len(by_order[order]))
        masks = [first_edges(shape, by_order[order], n) for n in sizes]
        circuits[order] = [SizedCircuit(n, int(mask.sum()), mask) for n, mask in zip(sizes, masks, strict=True)]
    return circuits


def _check_shape(scores: ComponentScores, graph: nx.MultiDiGraph, model: Model) -> None:
    own, d_model = component_shape(model), graph.graph["components"].get("d_model", model.d_model)
    if scores.shape != own or d_model != model.d_model:
        raise GraphError(
            f"the graph is of {_shape_text(scores.shape, d_model)}; {model.name} has {_shape_text(own, model.d_model)}"
        )


def _shape_text(shape: ComponentShape, d_model: int) -> str:
    parallel = ", attention and MLP in parallel" if shape.parallel else ""
    return f"{shape.n_layers} layers of {shape.n_heads} heads, d_model {d_model}{parallel}"

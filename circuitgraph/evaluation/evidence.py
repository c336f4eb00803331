"""What the circuit of a graph does when the model really runs, against what the graph estimates.

`evaluate` measures and returns an `Evaluation`; `attach_evidence` puts one into a copy of the graph;
`measure` does both, for the effects of single nodes and edges.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch

from circuitgraph.attribution.strongest import rank_nodes
from circuitgraph.doors import (
    DictionariesLike,
    ModelLike,
    PairsLike,
    as_dictionaries,
    as_model,
    as_pairs,
    as_words,
    choose_pairs,
)
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.agreement import Agreement, compare
from circuitgraph.evaluation.circuits import ERRORS, node_values
from circuitgraph.evaluation.conditions import (
    EVALUATION_BASELINES,
    ORDERS,
    Condition,
    Curve,
    SizedCircuit,
    choose_baselines,
    circuit_sizes,
    measure_conditions,
    size_curves,
    total_effect,
)
from circuitgraph.evaluation.edge_effects import check_freeze, measure_edges
from circuitgraph.evaluation.node_circuits import NodeCircuit, NodeCircuits, built_from, circuit_nodes, node_circuits
from circuitgraph.evaluation.noise import NoisePoint, noise_curve
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.evaluation.report import Evaluation, Evidence
from circuitgraph.graphs.schema import require_graph
from circuitgraph.metrics import MetricFunction
from circuitgraph.nodes import EDGE_KINDS, Node
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import pairs_to_text
from circuitgraph.settings import Evaluating, Measuring, as_record, resolve


def evaluate(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    dictionaries: DictionariesLike | None = None,
    *,
    prompts: PairsLike | None = None,
    metric: str | MetricFunction | None = None,
    baselines: Sequence[str] | None = None,
    freeze: Sequence[str] = (),
    settings: Evaluating | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> Evaluation:
    """Run the circuit of the graph, patch its nodes, measure its edges, and compare with what the graph says.

    Args:
        graph: A graph that `discover` built, or a part of one.
        model: The model that it is of, in any form that `discover` takes.
        dictionaries: The dictionaries that it was built from, likewise.
        prompts: Other prompts of the same length, or with the same roles for a graph that is aligned by them, in any
            form that `discover` takes; None for the graph's own.
        metric: Another metric than the graph's; needed only if the graph was built with a function of the user's.
        baselines: Further baselines (corrupted, zero, mean, resample) under which faithfulness is measured; None for
            all that the prompts allow. The graph's own is always measured, and the first.
        freeze: What keeps its clean value while edges are measured: "norms", "attention".
        settings: How much to measure; None for the defaults.
        progress: Told (stage, steps done, steps in all).
        **changes: Fields of `settings.Evaluating` over `settings`: n_patched, n_edges, n_dropped, curves, top_k,
            length, examples, seed.

    Raises GraphError for a graph without provenance or with nodes that the model and dictionaries do not have, and a
    CircuitGraphError for settings, baselines or prompts that do not fit, before the model runs.
    """
    require_graph(graph)
    chosen = resolve(Evaluating, settings, changes)
    freeze = as_words(freeze, "freeze")
    check_freeze(freeze)
    baselines = None if baselines is None else as_words(baselines, "baselines")
    runner, names = _runner(graph, model, dictionaries, prompts, metric, baselines, chosen, progress)
    pairs = list(runner.attribution.pairs)
    nodes = circuit_nodes(graph, runner.attribution.dictionaries)
    conditions = _conditions(runner, nodes, names, chosen.seed)
    full, empty = float(runner.clean_metric.mean()), conditions[0].metric_empty
    total = total_effect(full, empty, runner.rounding)
    estimates = {node: graph.nodes[str(node)]["attribution"] for node in nodes}
    effects, node_agreement = _patch_nodes(runner, estimates, chosen, pairs != built_from(graph)[0], progress)
    drops = {} if total is None else _drop_nodes(runner, estimates, chosen.n_dropped, total, progress)
    edge_effects, edge_agreement = _measure_edges(runner, graph, chosen, freeze, progress)
    curves = _size_curves(runner, empty, total, chosen.seed, progress) if chosen.curves and total is not None else ()
    return Evaluation(
        prompts=hashlib.sha256(pairs_to_text(pairs).encode()).hexdigest(),
        settings={"metric": runner.metric.name, "freeze": list(freeze), **as_record(chosen)},
        n_examples=len(pairs),
        n_nodes=len(nodes),
        n_edges=graph.number_of_edges(),
        metric_clean=full,
        conditions=conditions,
        nodes=node_agreement,
        edges=edge_agreement,
        curves=curves,
        noise=_noise(runner, nodes, progress) if chosen.curves else (),
        effects=effects,
        drops=drops,
        edge_effects=edge_effects,
    )


def measure(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    dictionaries: DictionariesLike | None = None,
    *,
    prompts: PairsLike | None = None,
    metric: str | MetricFunction | None = None,
    freeze: Sequence[str] = (),
    settings: Measuring | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> nx.MultiDiGraph:
    """A copy of the graph with the measured `effect` of its strongest nodes and edges, and its evidence.

    The graph's own baseline is the only one, no node is dropped and no curve is drawn.

    Args:
        graph, model, dictionaries, prompts, metric, freeze, progress: As of `evaluate`.
        settings: How much to measure; None for the defaults.
        **changes: Fields of `settings.Measuring` over `settings`: n_patched, n_edges, length, examples, seed.

    Raises as `evaluate` does.
    """
    chosen = resolve(Measuring, settings, changes)
    require_graph(graph)
    own, given = graph.graph["metric"]["name"], getattr(metric, "__name__", metric)
    if metric is not None and given != own:
        raise GraphError(
            f"the graph's numbers are of metric {own!r}, and effects in metric {given!r} cannot stand beside them; use"
            " evaluate for another metric"
        )
    evaluation = evaluate(
        graph,
        model,
        dictionaries,
        prompts=prompts,
        metric=metric,
        baselines=(),
        freeze=freeze,
        progress=progress,
        n_dropped=0,
        curves=False,
        **as_record(chosen),
    )
    return attach_evidence(graph, evaluation)


def attach_evidence(graph: nx.MultiDiGraph, evaluation: Evidence) -> nx.MultiDiGraph:
    """A copy of the graph with what was measured.

    Args:
        graph: The graph that was evaluated.
        evaluation: An `Evaluation` or a `ComponentEvaluation`. Its summary becomes the graph's `evidence`, each
            measured effect the `effect` of its node, or of the edges of all kinds between two nodes together.
    """
    require_graph(graph)
    result = graph.copy()
    result.graph["evidence"] = evaluation.summary()
    nx.set_node_attributes(result, evaluation.effects, "effect")
    for source, target, attributes in result.edges(data=True):
        if (source, target) in evaluation.edge_effects:
            attributes["effect"] = evaluation.edge_effects[source, target]
    return result


def _runner(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    prompts: PairsLike | None,
    metric: str | MetricFunction | None,
    baselines: Sequence[str] | None,
    settings: Evaluating,
    progress: Progress,
) -> tuple[NodeCircuits, list[str]]:
    """What runs circuits, and the names of the baselines, out of what the caller handed in."""
    own_pairs, own_settings = built_from(graph)
    given = own_pairs if prompts is None else as_pairs(prompts)
    loaded = as_model(model)
    known = as_dictionaries(dictionaries, loaded)
    circuit_nodes(graph, known)
    pairs = choose_pairs(given, loaded, settings)
    names = choose_baselines(
        baselines,
        len(pairs),
        corrupted=all(pair.corrupted is not None for pair in pairs),
        own=own_settings["baseline"],
        known=[name for name in EVALUATION_BASELINES if name != "resample" or own_settings.get("align") != "role"],
    )
    return node_circuits(graph, loaded, known, pairs, metric, seed=settings.seed, progress=progress), names


def _conditions(
    runner: NodeCircuits, nodes: Sequence[Node], baselines: Sequence[str], seed: int
) -> tuple[Condition, ...]:
    """The circuit of these nodes under every baseline and treatment of errors."""
    circuits: dict[str | None, tuple[NodeCircuit, NodeCircuit]] = {
        errors: (NodeCircuit(nodes, errors), NodeCircuit(nodes, errors, complement=True)) for errors in ERRORS
    }
    return measure_conditions(runner, baselines, circuits, NodeCircuit((), "remove"), seed=seed)


def _patch_nodes(
    runner: NodeCircuits,
    estimates: Mapping[Node, float],
    settings: Evaluating,
    other_prompts: bool,
    progress: Progress,
) -> tuple[dict[str, float], Agreement]:
    """The mean measured effect of each of the strongest nodes, and how well the attributions agree with these.

    On other prompts than the graph's, a feature that is active in neither run has no effect.
    """
    run = runner.attribution
    strongest = sorted(estimates, key=lambda node: (-abs(estimates[node]), node.order))[: settings.n_patched]
    active = {node for table in run.tables for node in table.nodes()}
    patched = [node for node in strongest if node in active or not other_prompts]
    measured = patch_effects(
        runner.model,
        run.dictionaries,
        runner.tokens.clean,
        run.clean.values,
        runner.nodes_of(run.baseline.kind),
        runner.metric,
        run.tables,
        patched,
        progress=progress,
    ).mean(1)
    by_node = dict(zip(patched, measured.tolist(), strict=True))
    effects = {str(node): by_node.get(node, 0.0) for node in strongest}
    predicted = torch.tensor([estimates[node] for node in strongest])
    in_order = torch.tensor(list(effects.values()), dtype=measured.dtype)
    return effects, compare(list(effects), predicted, in_order, top_k=settings.top_k)


def _drop_nodes(
    runner: NodeCircuits, estimates: Mapping[Node, float], n: int, total: float, progress: Progress
) -> dict[str, float]:
    """The loss of faithfulness (errors of the circuit) without each of the n weakest nodes."""
    weakest = sorted(estimates, key=lambda node: (abs(estimates[node]), node.order))[:n]
    if not weakest:
        return {}
    circuits = [NodeCircuit([other for other in estimates if other != node]) for node in [None, *weakest]]
    baseline = runner.attribution.baseline.kind
    metrics = runner.metric_of(circuits, baseline, lambda done, of: progress("dropping nodes", done, of))
    whole, *without = metrics.mean(1).tolist()
    return {str(node): (whole - value) / total for node, value in zip(weakest, without, strict=True)}


def _measure_edges(
    runner: NodeCircuits, graph: nx.MultiDiGraph, settings: Evaluating, freeze: Sequence[str], progress: Progress
) -> tuple[dict[tuple[str, str], float], Agreement | None]:
    """The measured effect of the pairs of nodes with the largest |weight|, and how well local_weight agrees with it.

    Targets are features, targets of the graph or the metric. Weights are summed over the kinds of edges between two
    nodes; with frozen attention there are no q and k edges.
    """
    kinds = set(EDGE_KINDS) - ({"q", "k"} if "attention" in freeze else set())
    run = runner.attribution
    active = {str(node) for table in run.tables for node in table.nodes()}
    weights: dict[tuple[str, str], list[float]] = {}
    for source, target, data in graph.edges(data=True):
        has_value = graph.nodes[target]["kind"] in ("feature", "probe", "logit", "metric")
        if has_value and data["kind"] in kinds and source in active:
            sums = weights.setdefault((source, target), [0.0, 0.0])
            sums[0] += data["weight"]
            sums[1] += data["local_weight"]
    if not settings.n_edges or not weights:
        return {}, None
    ranked = sorted(weights, key=lambda ends: (-abs(weights[ends][0]), Node.parse(ends[0]).order, ends[1]))
    strongest = ranked[: settings.n_edges]
    measured = measure_edges(
        runner.model,
        run.dictionaries,
        runner.tokens.clean,
        runner.metric,
        run.tables,
        [(Node.parse(source), Node.parse(target)) for source, target in strongest],
        treatment=run.treatment,
        freeze=freeze,
        targets=runner.targets,
        progress=progress,
    ).mean(1)
    predicted = torch.tensor([weights[ends][1] for ends in strongest])
    agreement = compare([" -> ".join(ends) for ends in strongest], predicted, measured, top_k=settings.top_k)
    return dict(zip(strongest, measured.tolist(), strict=True)), agreement


def _size_curves(runner: NodeCircuits, empty: float, total: float, seed: int, progress: Progress) -> tuple[Curve, ...]:
    """Circuits of growing size out of every node that differs between the clean run and the baseline."""
    baseline, tables = runner.attribution.baseline.kind, runner.attribution.tables
    constant = {"pos_embedding"} | ({"bias"} if baseline == "zero" else set())
    ranked = [(value, node) for value, node in rank_nodes(tables) if node.kind not in constant]
    drawn = [node for _, node in ranked]
    random.Random(seed).shuffle(drawn)
    by_order = {
        "absolute": [node for _, node in sorted(ranked, key=lambda item: (-abs(item[0]), item[1].order))],
        "signed": [node for _, node in sorted(ranked, key=lambda item: (-item[0], item[1].order))],
        "random": drawn,
    }
    orders = {
        order: [
            SizedCircuit(n, n, NodeCircuit(by_order[order][:n]), NodeCircuit(by_order[order][:n], complement=True))
            for n in circuit_sizes(len(ranked))
        ]
        for order in ORDERS
    }
    stage = "circuits of growing size"
    return size_curves(runner, baseline, orders, empty, total, lambda done, of: progress(stage, done, of))


def _noise(runner: NodeCircuits, nodes: Sequence[Node], progress: Progress) -> tuple[NoisePoint, ...]:
    """The noise curve; there is none where the corrupted prompts are missing."""
    run, corrupted = runner.attribution, runner.tokens.corrupted
    if corrupted is None:
        return ()
    progress("noising and denoising", 0, 1)
    return noise_curve(
        runner.model,
        run.dictionaries,
        runner.tokens.clean,
        corrupted,
        node_values(runner.model, run.dictionaries, run.clean.values, run.treatment),
        runner.nodes_of("corrupted"),
        runner.metric,
        nodes,
    )

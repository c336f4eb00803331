"""What the circuit of a graph does when the model really runs, against what the graph estimates.

`evaluate_circuit` measures and returns an `Evaluation`; `attach_evidence` puts one into a copy of the graph; `measure_graph`
does both, for the effects of single nodes and edges.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

import networkx as nx
import torch

from circuitgraph.attribution.strongest import rank_nodes
from circuitgraph.discover import Progress
from circuitgraph.doors import DictionariesLike, ModelLike, PairsLike, as_dictionaries, as_model, as_pairs
from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.agreement import Agreement, compare
from circuitgraph.evaluation.circuits import ERRORS, node_values
from circuitgraph.evaluation.conditions import (
    BASELINES,
    ORDERS,
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
from circuitgraph.metrics import MetricFunction
from circuitgraph.nodes import EDGE_KINDS, Node
from circuitgraph.prompts import pairs_to_text


def evaluate_circuit(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    *,
    pairs: PairsLike | None = None,
    metric: str | MetricFunction | None = None,
    baselines: Sequence[str] | None = None,
    n_patched: int = 50,
    n_edges: int = 200,
    n_dropped: int = 200,
    curves: bool = True,
    top_k: int = 10,
    freeze: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Run the circuit of the graph, patch its strongest nodes one by one, measure its edges, and compare with the graph.

    Args:
        graph: A graph that `discover_circuit` built, or a part of one.
        model: The model that it is of: loaded, a name, a folder, or a model of TransformerLens.
        dictionaries: The dictionaries that it was built from, in any form that `discover_circuit` takes.
        pairs: Other prompts of the same length, or with the same roles for a graph that is aligned by them; None for the
            graph's own.
        metric: Another metric than the graph's; needed only if the graph was built with a function of the user's.
        baselines: Further baselines (corrupted, zero, mean, resample) under which faithfulness is measured; None for all
            that the prompts allow. The graph's own is always measured.
        n_patched: How many of the strongest nodes to patch, one by one.
        n_edges: How many of the strongest pairs of connected nodes to measure.
        n_dropped: How many of the weakest nodes to drop, one by one.
        curves: Whether to run circuits of growing size, and to noise and denoise the circuit.
        top_k: How many of the strongest nodes and edges to compare, estimated against measured.
        freeze: What keeps its clean value while edges are measured: "norms", "attention".
        seed: Of resampling, bootstrap and random order.
        progress: Told (stage, steps done, steps in all).

    Raises GraphError for a graph without provenance or with nodes that the model and dictionaries do not have, and a
    CircuitGraphError for counts, baselines or prompts that do not fit.
    """
    own, settings = built_from(graph)
    _check_counts(n_patched=n_patched, n_edges=n_edges, n_dropped=n_dropped, top_k=top_k)
    check_freeze(freeze)
    pairs = own if pairs is None else as_pairs(pairs)
    known = BASELINES[:3] if settings.get("align") == "role" else BASELINES
    has_corrupted = all(pair.corrupted is not None for pair in pairs)
    names = choose_baselines(baselines, len(pairs), corrupted=has_corrupted, own=settings["baseline"], known=known)
    model = as_model(model)
    dictionaries = as_dictionaries(dictionaries, model)
    nodes = circuit_nodes(graph, dictionaries)
    attribution = {node: graph.nodes[str(node)]["attribution"] for node in nodes}

    progress("running the model", 0, 1)
    runner = node_circuits(graph, model, dictionaries, pairs, metric, names, seed)
    circuits: dict[str | None, tuple[NodeCircuit, NodeCircuit]] = {
        errors: (NodeCircuit(nodes, errors), NodeCircuit(nodes, errors, complement=True)) for errors in ERRORS
    }
    conditions = measure_conditions(runner, names, circuits, NodeCircuit((), "remove"), seed=seed)
    total = total_effect(float(runner.clean_metric.mean()), conditions[0].metric_empty, runner.rounding)

    effects, node_agreement = _patch_nodes(runner, attribution, n_patched, top_k, pairs != own, progress)
    drops = {} if total is None else _drop_nodes(runner, attribution, n_dropped, total, progress)
    edge_effects, edge_agreement = _measure_edges(runner, graph, n_edges, freeze, top_k, progress)
    sizes: tuple[Curve, ...] = ()
    if curves and total is not None:
        sizes = _size_curves(runner, conditions[0].metric_empty, total, seed, progress)
    return Evaluation(
        prompts=hashlib.sha256(pairs_to_text(pairs).encode()).hexdigest(),
        seed=seed,
        n_examples=len(pairs),
        length=runner.length,
        n_nodes=len(nodes),
        n_edges=graph.number_of_edges(),
        metric_clean=float(runner.clean_metric.mean()),
        conditions=conditions,
        nodes=node_agreement,
        edges=edge_agreement,
        curves=sizes,
        noise=_noise(runner, nodes, progress) if curves and has_corrupted else (),
        effects=effects,
        drops=drops,
        edge_effects=edge_effects,
    )


def measure_graph(
    graph: nx.MultiDiGraph,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    *,
    pairs: PairsLike | None = None,
    metric: str | MetricFunction | None = None,
    n_patched: int = 1000,
    n_edges: int = 1000,
    freeze: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> nx.MultiDiGraph:
    """A copy of the graph with the measured `effect` of its strongest nodes and edges, and its evidence.

    The arguments are those of `evaluate_circuit`; the graph's own baseline is the only one, no node is dropped and no curve
    drawn.
    """
    evaluation = evaluate_circuit(
        graph,
        model,
        dictionaries,
        pairs=pairs,
        metric=metric,
        baselines=(),
        n_patched=n_patched,
        n_edges=n_edges,
        freeze=freeze,
        n_dropped=0,
        curves=False,
        seed=seed,
        progress=progress,
    )
    return attach_evidence(graph, evaluation)


def attach_evidence(graph: nx.MultiDiGraph, evaluation: Evidence) -> nx.MultiDiGraph:
    """A copy of the graph with what was measured.

    Args:
        graph: The graph that was evaluated.
        evaluation: An `Evaluation` or a `ComponentEvaluation`. Its summary becomes the graph's `evidence`, each measured
            effect the `effect` of its node, or of the edges of all kinds between two nodes together.
    """
    result = graph.copy()
    result.graph["evidence"] = evaluation.summary()
    nx.set_node_attributes(result, evaluation.effects, "effect")
    for source, target, attributes in result.edges(data=True):
        if (source, target) in evaluation.edge_effects:
            attributes["effect"] = evaluation.edge_effects[source, target]
    return result


def _patch_nodes(
    runner: NodeCircuits,
    attribution: Mapping[Node, float],
    n: int,
    top_k: int,
    other_prompts: bool,
    progress: Progress,
) -> tuple[dict[str, float], Agreement]:
    """The mean measured effect of each of the n strongest nodes, and how well the attributions agree with these.

    On other prompts than the graph's, a feature that is active in neither run has no effect.
    """
    strongest = sorted(attribution, key=lambda node: (-abs(attribution[node]), node.order))[:n]
    active = {node for table in runner.tables for node in table.nodes()}
    patched = [node for node in strongest if node in active or not other_prompts]
    measured = patch_effects(
        runner.model,
        runner.dictionaries,
        runner.tokens.clean,
        runner.clean.values,
        runner.nodes_of(runner.baseline),
        runner.metric,
        runner.tables,
        patched,
        progress=progress,
    )
    by_node = dict(zip(patched, measured.mean(1).tolist(), strict=True))
    effects = {str(node): by_node.get(node, 0.0) for node in strongest}
    estimates = torch.tensor([attribution[node] for node in strongest])
    return effects, compare(
        list(effects), estimates, torch.tensor(list(effects.values()), dtype=measured.dtype), top_k=top_k
    )


def _drop_nodes(
    runner: NodeCircuits, attribution: Mapping[Node, float], n: int, total: float, progress: Progress
) -> dict[str, float]:
    """The loss of faithfulness (errors of the circuit) without each of the n weakest nodes."""
    weakest = sorted(attribution, key=lambda node: (abs(attribution[node]), node.order))[:n]
    if not weakest:
        return {}
    circuits = [NodeCircuit([other for other in attribution if other != node]) for node in [None, *weakest]]
    metrics = runner.metric_of(circuits, runner.baseline, lambda done, of: progress("dropping nodes", done, of))
    whole, *without = metrics.mean(1).tolist()
    return {str(node): (whole - value) / total for node, value in zip(weakest, without, strict=True)}


def _measure_edges(
    runner: NodeCircuits, graph: nx.MultiDiGraph, n: int, freeze: Sequence[str], top_k: int, progress: Progress
) -> tuple[dict[tuple[str, str], float], Agreement | None]:
    """The measured effect of the n pairs of nodes with the largest |weight|, and how well local_weight agrees with it.

    Targets are features, targets of the graph or the metric. Weights are summed over the kinds of edges between two nodes;
    with frozen attention there are no q and k edges.
    """
    kinds = set(EDGE_KINDS) - ({"q", "k"} if "attention" in freeze else set())
    active = {str(node) for table in runner.tables for node in table.nodes()}
    weights: dict[tuple[str, str], list[float]] = {}
    for source, target, data in graph.edges(data=True):
        has_value = graph.nodes[target]["kind"] in ("feature", "probe", "logit", "metric")
        if has_value and data["kind"] in kinds and source in active:
            sums = weights.setdefault((source, target), [0.0, 0.0])
            sums[0] += data["weight"]
            sums[1] += data["local_weight"]
    if not n or not weights:
        return {}, None
    strongest = sorted(weights, key=lambda ends: (-abs(weights[ends][0]), Node.parse(ends[0]).order, ends[1]))[:n]
    measured = measure_edges(
        runner.model,
        runner.dictionaries,
        runner.tokens.clean,
        runner.metric,
        runner.tables,
        [(Node.parse(source), Node.parse(target)) for source, target in strongest],
        treatment=runner.treatment,
        freeze=freeze,
        targets=runner.targets,
        progress=progress,
    ).mean(1)
    predicted = torch.tensor([weights[ends][1] for ends in strongest])
    agreement = compare([" -> ".join(ends) for ends in strongest], predicted, measured, top_k=top_k)
    return dict(zip(strongest, measured.tolist(), strict=True)), agreement


def _size_curves(runner: NodeCircuits, empty: float, total: float, seed: int, progress: Progress) -> tuple[Curve, ...]:
    """Circuits of growing size out of every node that differs between the clean run and the baseline."""
    constant = {"pos_embedding"} | ({"bias"} if runner.baseline == "zero" else set())
    ranked = [(value, node) for value, node in rank_nodes(runner.tables) if node.kind not in constant]
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
    return size_curves(runner, runner.baseline, orders, empty, total, lambda done, of: progress(stage, done, of))


def _noise(runner: NodeCircuits, nodes: Sequence[Node], progress: Progress) -> tuple[NoisePoint, ...]:
    progress("noising and denoising", 0, 1)
    clean = node_values(runner.model, runner.dictionaries, runner.clean.values, runner.treatment)
    return noise_curve(
        runner.model,
        runner.dictionaries,
        runner.tokens.clean,
        runner.tokens.corrupted,
        clean,
        runner.nodes_of("corrupted"),
        runner.metric,
        nodes,
    )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise CircuitGraphError(f"{name} is {count}; expected 0 or more")

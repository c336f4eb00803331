"""Evidence: what the circuit does when the model really runs, against what the graph estimates.

In come a graph, the model and dictionaries it was built from; out comes an `Evaluation` that can be attached to a copy
of the graph. Everything here is measured; this module attributes nothing of its own.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.attribution.runs import BASELINES
from circuitgraph.attribution.strongest import rank_nodes
from circuitgraph.components.evaluate import ComponentEvaluation
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, GraphError, did_you_mean
from circuitgraph.evaluation.agreement import Agreement, Interval, compare, ratio
from circuitgraph.evaluation.case import Case, build_case, built_from
from circuitgraph.evaluation.circuits import ERRORS, CircuitMask, circuit_mask, circuit_metrics, node_values
from circuitgraph.evaluation.curves import Curve, NoisePoint, cmd, cpr, noise_curve, size_curves
from circuitgraph.evaluation.edge_effects import check_freeze, measure_edges
from circuitgraph.evaluation.patching import patch_effects
from circuitgraph.evaluation.report import NOT_NEEDED, Evaluation, Setting
from circuitgraph.metrics import MetricFunction
from circuitgraph.models.model import Model
from circuitgraph.nodes import EDGE_KINDS, Node
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import PromptPair, pairs_to_text

EVALUATION_BASELINES = (*BASELINES, "resample")


def evaluate_circuit(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    *,
    pairs: Sequence[PromptPair] | None = None,
    metric: str | MetricFunction | None = None,
    baselines: Sequence[str] | None = None,
    n_patched: int = 50,
    n_edges: int = 200,
    n_dropped: int = 200,
    curves: bool = True,
    top_k: int = 10,
    freeze: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Evaluation:
    """Run the circuit of the graph and patch its n_patched strongest nodes, on the prompts and baseline it was built from.

    pairs: other prompts of the same length, or with the same treatment for a graph that is aligned by them. metric: needed only if the graph was built with a function of the user's.
    baselines: further ones (corrupted, zero, mean, resample) under which faithfulness and complement_faithfulness are measured; None:
    all that the number of pairs allows.
    n_edges: the strongest pairs of connected nodes to measure, with "norms" and "attention" frozen if said; n_dropped: the weakest nodes to drop one by one;
    curves: circuits of growing size over all nodes, noising and denoising. seed: resampling, bootstrap and random order.
    Raises GraphError for a graph without provenance or with nodes that the model and dictionaries do not have.
    """
    own, settings = built_from(graph)
    _check_counts(n_patched=n_patched, n_edges=n_edges, n_dropped=n_dropped, top_k=top_k)
    check_freeze(freeze)
    pairs = own if pairs is None else list(pairs)
    if baselines is None:
        several = BASELINES if settings.get("align") == "role" else EVALUATION_BASELINES
        baselines = several if len(pairs) > 1 else ("corrupted", "zero")
    names = list(dict.fromkeys([settings["baseline"], *baselines]))
    for name in names:
        if name not in EVALUATION_BASELINES:
            raise CircuitGraphError(
                f"baseline {name!r} is unknown; expected one of {', '.join(EVALUATION_BASELINES)}."
                f"{did_you_mean(name, EVALUATION_BASELINES)}"
            )
    nodes = _nodes(graph, dictionaries)
    case = build_case(graph, model, dictionaries, pairs, metric, settings, names, seed)
    full = case.clean.metric
    measured = [row for name in names for row in _measure_settings(case, name, nodes, seed)]
    by_errors = {row.errors: row for row in measured if row.baseline == names[0]}

    strongest = sorted(nodes, key=lambda n: (-abs(graph.nodes[str(n)]["attribution"]), n.order))[:n_patched]
    effects = _patch(case, strongest, missing_is_nothing=pairs != own, progress=progress)
    estimates = torch.tensor([graph.nodes[str(n)]["attribution"] for n in strongest])
    agreement = compare([str(node) for node in strongest], estimates, effects, top_k=top_k)

    progress("dropping nodes", 0, 1)
    drops = _drop_nodes(case, graph, nodes, n_dropped, float(full.mean()) - by_errors["keep"].metric_empty, progress)
    edges, edge_effects = _edges(case, graph, n_edges, freeze, top_k, progress)
    found, noise = _curves(case, nodes, by_errors["keep"].metric_empty, seed, progress) if curves else ((), ())
    by_order = {curve.order: curve for curve in found}

    return Evaluation(
        baseline=names[0],
        prompts=hashlib.sha256(pairs_to_text(case.pairs).encode()).hexdigest(),
        seed=seed,
        n_examples=len(case.pairs),
        n_nodes=len(nodes),
        n_edges=graph.number_of_edges(),
        metric_clean=float(full.mean()),
        metric_empty=by_errors["keep"].metric_empty,
        faithfulness=_value(by_errors["keep"].faithfulness),
        faithfulness_errors_of_circuit=_value(by_errors["circuit"].faithfulness),
        faithfulness_errors_removed=_value(by_errors["remove"].faithfulness),
        complement_faithfulness=_value(by_errors["keep"].complement_faithfulness),
        pearson_r=agreement.pearson_r,
        n_patched=len(strongest),
        nodes=agreement,
        edges=edges,
        settings=tuple(measured),
        n_dropped=len(drops),
        n_not_needed=sum(drop < NOT_NEEDED for drop in drops.values()) if drops else None,
        cpr=cpr(by_order["signed"]) if found else None,
        cmd=cmd(by_order["absolute"]) if found else None,
        curves=found,
        noise=noise,
        effects={str(node): float(effect) for node, effect in zip(strongest, effects, strict=True)},
        drops=drops,
        edge_effects=edge_effects,
    )


def measure_graph(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    *,
    pairs: Sequence[PromptPair] | None = None,
    metric: str | MetricFunction | None = None,
    n_patched: int = 1000,
    n_edges: int = 1000,
    freeze: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = no_progress,
) -> nx.MultiDiGraph:
    """A copy of the graph with the measured `effect` of its strongest nodes and edges, and its evidence under its own baseline."""
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


def attach_evidence(graph: nx.MultiDiGraph, evaluation: Evaluation | ComponentEvaluation) -> nx.MultiDiGraph:
    """A copy of the graph with the evaluation as `evidence` and, of a graph of features, each measured `effect` at its node,
    or at the edges of all kinds between two nodes together."""
    result = graph.copy()
    result.graph["evidence"] = evaluation.summary()
    if isinstance(evaluation, ComponentEvaluation):
        return result
    nx.set_node_attributes(result, evaluation.effects, "effect")
    for source, target, attributes in result.edges(data=True):
        if (source, target) in evaluation.edge_effects:
            attributes["effect"] = evaluation.edge_effects[source, target]
    return result


def _measure_settings(case: Case, baseline: str, nodes: Sequence[Node], seed: int) -> list[Setting]:
    """Circuit and complement under every treatment of errors, in one forward pass where they fit."""
    masks = functools.partial(circuit_mask, case.model, case.dictionaries, n_pos=case.tokens.clean.shape[1])
    circuits: list[Callable[[], CircuitMask]] = [lambda: masks([], errors="remove")]
    for errors in ERRORS:
        for other in (False, True):
            circuits.append(functools.partial(masks, nodes, errors=errors, complement=other))
    empty, *rest = _metrics(case, baseline, circuits)
    total = case.clean.metric - empty
    return [
        Setting(
            baseline,
            errors,
            float(empty.mean()),
            float(inside.mean()),
            float(outside.mean()),
            ratio(inside - empty, total, seed=seed),
            ratio(outside - empty, total, seed=seed),
        )
        for errors, inside, outside in zip(ERRORS, rest[::2], rest[1::2], strict=True)
    ]


def _metrics(
    case: Case,
    baseline: str,
    circuits: Sequence[Callable[[], CircuitMask]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    baseline_nodes = node_values(case.model, case.dictionaries, case.bases[baseline].values, case.treatment)
    return circuit_metrics(
        case.model, case.dictionaries, case.tokens.clean, baseline_nodes, case.metric, circuits, progress=progress
    )


def _patch(case: Case, nodes: Sequence[Node], *, missing_is_nothing: bool, progress: Progress) -> Tensor:
    """The mean measured effect of each node; on other prompts a feature that is active in neither run has none."""
    there = {node for table in case.tables for node in table.nodes()}
    chosen = [node for node in nodes if not missing_is_nothing or node in there]
    model, dictionaries, tokens = case.model, case.dictionaries, case.tokens.clean
    baseline_nodes = node_values(model, dictionaries, case.bases[case.baseline].values, case.treatment)
    clean, score = case.clean.values, case.metric
    found = patch_effects(
        model, dictionaries, tokens, clean, baseline_nodes, score, case.tables, chosen, progress=progress
    )
    by_node = dict(zip(chosen, found.mean(1).tolist(), strict=True))
    return torch.tensor([by_node.get(node, 0.0) for node in nodes], dtype=found.dtype)


def _drop_nodes(
    case: Case, graph: nx.MultiDiGraph, nodes: Sequence[Node], n: int, total: float, progress: Progress
) -> dict[str, float]:
    """Loss of faithfulness (errors of the circuit) without each of the n weakest nodes; empty where it is undefined."""
    weakest = sorted(nodes, key=lambda node: (abs(graph.nodes[str(node)]["attribution"]), node.order))[:n]
    if not weakest or total == 0:
        return {}
    masks = functools.partial(circuit_mask, case.model, case.dictionaries, n_pos=case.tokens.clean.shape[1])
    circuits = [functools.partial(masks, [n for n in nodes if n != node]) for node in [None, *weakest]]
    whole, *without = (
        _metrics(case, case.baseline, circuits, lambda done, of: progress("dropping nodes", done, of)).mean(1).tolist()
    )
    return {str(node): (whole - value) / total for node, value in zip(weakest, without, strict=True)}


def _edges(
    case: Case, graph: nx.MultiDiGraph, n: int, freeze: Sequence[str], top_k: int, progress: Progress
) -> tuple[Agreement | None, dict[tuple[str, str], float]]:
    """local_weight, summed over kinds, against the measured effect, of the n pairs of nodes with the largest |weight| whose
    target is a feature, a target of the graph or the metric. With frozen attention there are no q and k edges."""
    kinds = set(EDGE_KINDS) - ({"q", "k"} if "attention" in freeze else set())
    there = {str(node) for table in case.tables for node in table.nodes()}
    weights: dict[tuple[str, str], list[float]] = {}
    for source, target, data in graph.edges(data=True):
        direct = graph.nodes[target]["kind"] in ("feature", "probe", "logit", "metric") and data["kind"] in kinds
        if direct and source in there:
            pair = weights.setdefault((source, target), [0.0, 0.0])
            pair[0] += data["weight"]
            pair[1] += data["local_weight"]
    if not n or not weights:
        return None, {}
    strongest = sorted(weights, key=lambda pair: (-abs(weights[pair][0]), Node.parse(pair[0]).order, pair[1]))[:n]
    pairs = [(Node.parse(source), Node.parse(target)) for source, target in strongest]
    tokens, clean = case.tokens.clean, case.metric
    settings: dict[str, Any] = {
        "treatment": case.treatment,
        "freeze": freeze,
        "targets": case.targets,
        "progress": progress,
    }
    measured = measure_edges(case.model, case.dictionaries, tokens, clean, case.tables, pairs, **settings).mean(1)
    predicted = torch.tensor([weights[pair][1] for pair in strongest])
    agreement = compare([" -> ".join(pair) for pair in strongest], predicted, measured, top_k=top_k)
    return agreement, dict(zip(strongest, measured.tolist(), strict=True))


def _curves(
    case: Case, nodes: Sequence[Node], empty: float, seed: int, progress: Progress
) -> tuple[tuple[Curve, ...], tuple[NoisePoint, ...]]:
    """Curves over circuit size, empty where m(M) = m(0), and between corrupted and clean."""
    model, dictionaries, tokens = case.model, case.dictionaries, case.tokens
    constant = {"pos_embedding"} | ({"bias"} if case.bases[case.baseline].values is None else set())
    ranked = [(value, node) for value, node in rank_nodes(case.tables) if node.kind not in constant]
    full = float(case.clean.metric.mean())
    found: tuple[Curve, ...] = ()
    if full != empty:
        found = size_curves(
            model,
            dictionaries,
            tokens.clean,
            node_values(model, dictionaries, case.bases[case.baseline].values, case.treatment),
            case.metric,
            ranked,
            full,
            empty,
            seed=seed,
            progress=lambda done, total: progress("circuits of growing size", done, total),
        )
    progress("noising and denoising", 0, 1)
    clean, corrupted = (
        node_values(model, dictionaries, run, case.treatment)
        for run in (case.clean.values, case.bases["corrupted"].values)
    )
    noise = noise_curve(model, dictionaries, tokens.clean, tokens.corrupted, clean, corrupted, case.metric, nodes)
    return found, noise


def _nodes(graph: nx.MultiDiGraph, dictionaries: Dictionaries) -> list[Node]:
    """The graph's nodes but the targets and the metric, checked against the dictionaries."""
    nodes = [Node.parse(key) for key, kind in graph.nodes(data="kind") if kind not in ("probe", "logit", "metric")]
    for node in nodes:
        if node.kind == "feature" and (node.site not in dictionaries or node.feature >= dictionaries[node.site].d_sae):  # type: ignore[operator]
            known = ", ".join(map(str, dictionaries)) or "none"
            raise GraphError(
                f"node {str(node)!r} is in no given dictionary (sites: {known}); give the dictionaries the graph was built with"
            )
    return nodes


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise CircuitGraphError(f"{name} is {count}; expected 0 or more")


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value

"""Evidence: what the circuit does when the model really runs, against what the graph estimates.

In come a graph, the model and dictionaries it was built from; out comes an `Evaluation` that can be attached to a copy
of the graph. Everything here is measured; this module attributes nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.activations import Baseline, run_baseline, run_clean, sites_of
from circuitgraph.attribution import attribute_nodes
from circuitgraph.dictionary import Dictionary
from circuitgraph.discover import Progress, node_gradients
from circuitgraph.errors import GraphError
from circuitgraph.intervene import Errors, kept_nodes, patch_effects, run_with_nodes
from circuitgraph.metrics import Metric, MetricFunction, build_metric
from circuitgraph.model import Model
from circuitgraph.nodes import Node, Site
from circuitgraph.prompts import PromptPair
from circuitgraph.tokens import TokenizedPairs, tokenize_pairs


@dataclass(frozen=True)
class Evaluation:
    """Measured facts about a circuit C of the model M, means over the examples.

    faithfulness = (m(C) - m(0)) / (m(M) - m(0)); 0 is the run with every node at its baseline value. In C the nodes of
    the graph run freely and every other node has its baseline value; `faithfulness` lets all error nodes run freely too
    (against a corrupted baseline they carry only what the circuit puts into them: without any other node the corrupted
    run comes out), `faithfulness_errors_of_circuit` those among its nodes, `faithfulness_errors_removed` none. None where
    m(M) = m(0).
    pearson_r compares attribution and measured patching effect of the n_patched strongest nodes; None if undefined.
    effects: node -> measured effect, metric clean - metric with that node alone at its baseline value.
    """

    baseline: str
    n_nodes: int
    n_edges: int
    metric_clean: float
    metric_empty: float
    faithfulness: float | None
    faithfulness_errors_of_circuit: float | None
    faithfulness_errors_removed: float | None
    pearson_r: float | None
    n_patched: int
    effects: dict[str, float] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The evaluation without the effects of single nodes, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "effects"}


def evaluate_circuit(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    *,
    metric: str | MetricFunction | None = None,
    n_patched: int = 50,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Run the circuit of the graph and patch its n_patched strongest nodes, on the prompts and baseline it was built from.

    metric: needed only if the graph was built with a function of the user's. Raises GraphError for a graph without
    provenance or with nodes that the model and dictionaries do not have.
    """
    pairs, settings = _provenance(graph)
    tokens = tokenize_pairs(model, pairs)
    score = build_metric(metric if metric is not None else settings["metric"], tokens.answers, tokens.wrong_answers)
    nodes = _nodes(graph, dictionaries)
    sites = sites_of(model, dictionaries.values())
    clean = run_clean(model, tokens, sites, score)
    base = run_baseline(model, tokens, sites, score, settings["baseline"])

    gradients = node_gradients(model, dictionaries, tokens, clean, base, score, method="gradient", steps=1, rule="left")
    tables = attribute_nodes(model, dictionaries, clean.values, base, gradients)
    strongest = sorted(nodes, key=lambda n: (-abs(graph.nodes[str(n)]["attribution"]), n.order))[:n_patched]
    effects = patch_effects(model, tokens.clean, clean.values, score, tables, strongest, progress=progress).mean(1)
    estimates = torch.tensor([graph.nodes[str(n)]["attribution"] for n in strongest])

    def metric_of(kept: list[Node], errors: Errors) -> float:
        return _circuit_metric(model, dictionaries, tokens, base, score, kept, errors)

    full, empty = float(clean.metric.mean()), metric_of([], "remove")

    def faithfulness(value: float) -> float | None:
        return None if full == empty else (value - empty) / (full - empty)

    return Evaluation(
        baseline=base.kind,
        n_nodes=len(nodes),
        n_edges=graph.number_of_edges(),
        metric_clean=full,
        metric_empty=empty,
        faithfulness=faithfulness(metric_of(nodes, "keep")),
        faithfulness_errors_of_circuit=faithfulness(metric_of(nodes, "circuit")),
        faithfulness_errors_removed=faithfulness(metric_of(nodes, "remove")),
        pearson_r=_pearson(estimates.to(effects), effects),
        n_patched=len(strongest),
        effects={str(node): float(effect) for node, effect in zip(strongest, effects, strict=True)},
    )


def attach_evidence(graph: nx.MultiDiGraph, evaluation: Evaluation) -> nx.MultiDiGraph:
    """A copy of the graph with the evaluation as `evidence` and each measured `effect` at its node."""
    result = graph.copy()
    result.graph["evidence"] = evaluation.summary()
    nx.set_node_attributes(result, evaluation.effects, "effect")
    return result


def _circuit_metric(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    tokens: TokenizedPairs,
    base: Baseline,
    metric: Metric,
    nodes: list[Node],
    errors: Errors,
) -> float:
    kept = kept_nodes(model, dictionaries, nodes, tokens.clean.shape[1], errors)
    return float(metric(run_with_nodes(model, dictionaries, tokens.clean, base, kept)).mean())


def _provenance(graph: nx.MultiDiGraph) -> tuple[list[PromptPair], dict[str, Any]]:
    provenance = graph.graph.get("provenance", {})
    if not provenance.get("prompts") or not {"metric", "baseline"} <= set(provenance.get("settings", {})):
        raise GraphError(
            "the graph has no provenance (prompts and settings); evaluate a graph that discover_circuit built"
        )
    pairs = [
        PromptPair(p["clean"], p["corrupted"], tuple(p["answers"]), tuple(p["wrong_answers"]))
        for p in provenance["prompts"]
    ]
    return pairs, provenance["settings"]


def _nodes(graph: nx.MultiDiGraph, dictionaries: Mapping[Site, Dictionary]) -> list[Node]:
    """The graph's nodes but the metric, checked against the dictionaries."""
    nodes = [Node.parse(key) for key, kind in graph.nodes(data="kind") if kind != "metric"]
    for node in nodes:
        if node.kind == "feature" and (node.site not in dictionaries or node.feature >= dictionaries[node.site].d_sae):  # type: ignore[operator]
            known = ", ".join(map(str, dictionaries)) or "none"
            raise GraphError(
                f"node {str(node)!r} is in no given dictionary (sites: {known}); give the dictionaries the graph was built with"
            )
    return nodes


def _pearson(x: Tensor, y: Tensor) -> float | None:
    """Correlation of two vectors; None for fewer than two values or no variance."""
    if len(x) < 2 or not bool(x.std()) or not bool(y.std()):
        return None
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])

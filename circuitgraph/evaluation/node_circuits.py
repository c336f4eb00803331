"""Circuits of nodes that can be run: a graph's nodes on its prompts, under every baseline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import Tensor

from circuitgraph.attribution.aligned_model import align_model
from circuitgraph.attribution.alignment import align_pairs
from circuitgraph.attribution.node_attribution import attribute_nodes
from circuitgraph.attribution.node_gradients import node_gradients
from circuitgraph.attribution.runs import Baseline, CleanRun, run_baseline, run_clean, sites_of
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.attribution.targets import Target, recorded_objective
from circuitgraph.attribution.treatment import ComponentTreatment, frozen_components
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.position_sums import ALL
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.evaluation.circuits import CircuitMask, Errors, NodeValues, circuit_mask, circuit_metrics, node_values
from circuitgraph.evaluation.conditions import metric_rounding
from circuitgraph.interventions.run import resample_rows
from circuitgraph.metrics import Metric, MetricFunction, build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs, tokenize_pairs
from circuitgraph.nodes import Node
from circuitgraph.prompts import PromptPair, pair_of


@dataclass(frozen=True, eq=False)
class NodeCircuit:
    """The nodes that run freely, or with `complement` all others; errors: which error nodes do (`circuits.ERRORS`)."""

    nodes: Sequence[Node]
    errors: Errors = "circuit"
    complement: bool = False


@dataclass(frozen=True, eq=False)
class NodeCircuits:
    """Runs circuits of nodes (a `conditions.CircuitRunner`), with the runs that every measurement shares.

    model and tokens are those by aligned position. baselines: name -> what nodes outside a circuit are; `baseline` is the
    graph's own. tables: every node's attribution. targets: what the graph's targets stand for, none in a graph of a metric.
    length: tokens per prompt, None where prompts differ.
    """

    model: Model
    dictionaries: Dictionaries
    pairs: Sequence[PromptPair]
    tokens: TokenizedPairs
    metric: Metric
    clean: CleanRun
    baselines: Mapping[str, Baseline]
    tables: Sequence[NodeTable]
    baseline: str
    treatment: ComponentTreatment
    targets: Mapping[Node, Target]
    length: int | None

    @property
    def clean_metric(self) -> Tensor:
        return self.clean.metric

    @functools.cached_property
    def rounding(self) -> float:
        return metric_rounding(self.model, self.metric, self.clean.logits, self.clean.values)

    def nodes_of(self, baseline: str) -> NodeValues:
        """What every node is in a baseline."""
        return node_values(self.model, self.dictionaries, self.baselines[baseline].values, self.treatment)

    def metric_of(
        self,
        circuits: Sequence[NodeCircuit],
        baseline: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """The metric of each circuit, [circuits, batch], where all other nodes have their value in the baseline."""
        masks = [functools.partial(self._mask, circuit) for circuit in circuits]
        nodes, tokens = self.nodes_of(baseline), self.tokens.clean
        return circuit_metrics(self.model, self.dictionaries, tokens, nodes, self.metric, masks, progress=progress)

    def _mask(self, circuit: NodeCircuit) -> CircuitMask:
        n_pos, complement = self.tokens.clean.shape[1], circuit.complement
        return circuit_mask(self.model, self.dictionaries, circuit.nodes, n_pos, circuit.errors, complement=complement)


def node_circuits(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    metric: str | MetricFunction | None,
    names: Sequence[str],
    seed: int,
) -> NodeCircuits:
    """What runs circuits on these prompts, with the graph's settings.

    Args:
        graph: A graph with provenance.
        model: The model that it is of.
        dictionaries: The dictionaries that it is of.
        pairs: The prompts.
        metric: The metric; None for the graph's.
        names: The baselines, the graph's first.
        seed: Of resampling.

    Raises GraphError for prompts of another length, CircuitGraphError for a baseline that they do not have.
    """
    settings = graph.graph["provenance"]["settings"]
    align, length = settings.get("align", "position"), len(graph.graph["tokens"]["clean"])
    tokens = tokenize_pairs(model, pairs, by_role=align == "role")
    alignment = align_pairs(tokens, align, graph.graph["provenance"].get("alignment", {}).get("places", ()))
    if align == "position" and tokens.clean.shape[1] != length:
        raise GraphError(
            f"the prompts have {tokens.clean.shape[1]} tokens, the graph's have {length}; nodes are aligned by position"
        )
    targets = settings.get("targets")
    objective = recorded_objective(model, dictionaries, targets, length) if isinstance(targets, list) else None
    if metric is None and objective is not None:
        score = objective.metric()
    else:
        chosen = metric if metric is not None else settings["metric"]
        score = build_metric(chosen, tokens.answers, tokens.wrong_answers)
    treatment = ComponentTreatment(settings.get("attention", "node"), settings.get("mlp", "node"))
    sites = sites_of(model, dictionaries.values(), neurons=treatment.mlp == "frozen")
    clean = run_clean(model, tokens, sites, score)
    corrupted = run_baseline(model, tokens, sites, score, "corrupted")
    assert corrupted.values is not None
    baselines = {"corrupted": corrupted}
    if "resample" in names and not alignment.trivial:
        raise CircuitGraphError(
            "baseline 'resample' takes another example's activations, which has other places here; expected corrupted, zero"
            " or mean for a graph of prompts of different form"
        )
    for name in names:
        if name == "resample":
            rows = resample_rows(len(pairs), seed)
            # rotary angles have one row for all examples
            values = {s: value[rows] if len(value) == len(rows) else value for s, value in corrupted.values.items()}
            baselines[name] = Baseline("corrupted", values, corrupted.logits, corrupted.metric)
        elif name != "corrupted":
            mean = None if alignment.trivial else alignment.mean
            baselines[name] = run_baseline(model, tokens, sites, score, name, mean=mean)
    settings = {"method": "gradient", "steps": 1, "rule": "left"} | settings
    how: dict[str, Any] = {key: settings[key] for key in ("method", "steps", "rule")}
    gradients = node_gradients(model, dictionaries, tokens, clean, baselines[names[0]], score, **how)
    frozen = frozen_components(model, dictionaries, clean, treatment, alignment)
    clean = alignment.of_run(model, clean)
    baselines = {name: alignment.of_baseline(base) for name, base in baselines.items()}
    base, gradients = baselines[names[0]], alignment.gather(gradients)
    tables = attribute_nodes(model, dictionaries, clean.values, base, gradients, treatment=treatment, frozen=frozen)
    own_length = tokens.clean.shape[1] if tokens.lengths is None else None
    model, tokens = align_model(model, tokens, alignment)
    targets = {} if objective is None else dict(zip(objective.nodes(length), objective.targets, strict=True))
    tables = alignment.mask(tables)
    return NodeCircuits(
        model, dictionaries, pairs, tokens, score, clean, baselines, tables, names[0], treatment, targets, own_length
    )


def built_from(graph: nx.MultiDiGraph) -> tuple[list[PromptPair], dict[str, Any]]:
    """The prompt pairs and settings that the graph was built with; GraphError for a graph that does not say."""
    provenance = graph.graph.get("provenance", {})
    if "components" in graph.graph:
        raise GraphError(
            "a graph of heads and MLPs is measured by its edges: use evaluate_components, or `circuitgraph evaluate`"
        )
    if not provenance.get("prompts") or not {"metric", "baseline"} <= set(provenance.get("settings", {})):
        raise GraphError(
            "the graph has no provenance (prompts and settings); evaluate a graph that discover_circuit built"
        )
    if provenance["settings"].get("positions") == "sum":
        raise GraphError(
            f"the graph's nodes are sums over {ALL}, which are not measured; evaluate a graph built with positions 'each'"
        )
    return [pair_of(record) for record in provenance["prompts"]], provenance["settings"]


def circuit_nodes(graph: nx.MultiDiGraph, dictionaries: Dictionaries) -> list[Node]:
    """The graph's nodes but the targets and the metric; GraphError for one that the dictionaries do not have."""
    nodes = [Node.parse(key) for key, kind in graph.nodes(data="kind") if kind not in ("probe", "logit", "metric")]
    for node in nodes:
        if node.kind == "feature" and (node.site not in dictionaries or node.feature >= dictionaries[node.site].d_sae):  # type: ignore[operator]
            known = ", ".join(map(str, dictionaries)) or "none"
            raise GraphError(
                f"node {str(node)!r} is in no given dictionary (sites: {known}); give the dictionaries the graph was built with"
            )
    return nodes

"""Circuits of nodes that can be run: a graph's nodes on its prompts, under every baseline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch import Tensor

from circuitgraph.attribution.aligned_model import align_model
from circuitgraph.attribution.attribute import Attribution, run_attribution
from circuitgraph.attribution.objective import recorded_objective
from circuitgraph.attribution.targets import Target
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.position_sums import ALL
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.circuits import CircuitMask, Errors, NodeValues, circuit_mask, circuit_metrics, node_values
from circuitgraph.evaluation.conditions import metric_rounding
from circuitgraph.metrics import Metric, MetricFunction
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Node
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import PromptPair, pair_of
from circuitgraph.settings import Nodes


@dataclass(frozen=True, eq=False)
class NodeCircuit:
    """The nodes that run freely, or with `complement` all others; errors: which error nodes do (`circuits.ERRORS`)."""

    nodes: Sequence[Node]
    errors: Errors = "circuit"
    complement: bool = False


@dataclass(frozen=True, eq=False)
class NodeCircuits:
    """Runs circuits of nodes (a `conditions.CircuitRunner`) on the prompts of an attribution.

    model and tokens are by aligned position, as the attribution's activations and tables. targets: what the graph's
    targets stand for, none in a graph of a metric. seed: of resampling.
    """

    attribution: Attribution
    model: Model
    tokens: TokenizedPairs
    targets: Mapping[Node, Target]
    seed: int

    @property
    def metric(self) -> Metric:
        return self.attribution.metric

    @property
    def clean_metric(self) -> Tensor:
        return self.attribution.clean.metric

    @functools.cached_property
    def rounding(self) -> float:
        return metric_rounding(self.model, self.metric, self.attribution.clean.logits, self.attribution.clean.values)

    def nodes_of(self, baseline: str) -> NodeValues:
        """What every node is in a baseline."""
        values = self.attribution.baseline_of(baseline, seed=self.seed).values
        return node_values(self.model, self.attribution.dictionaries, values, self.attribution.treatment)

    def metric_of(
        self,
        circuits: Sequence[NodeCircuit],
        baseline: str,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Tensor:
        """The metric of each circuit, [circuits, batch], where all other nodes have their value in the baseline."""
        masks = [functools.partial(self._mask, circuit) for circuit in circuits]
        nodes, tokens = self.nodes_of(baseline), self.tokens.clean
        return circuit_metrics(
            self.model, self.attribution.dictionaries, tokens, nodes, self.metric, masks, progress=progress
        )

    def _mask(self, circuit: NodeCircuit) -> CircuitMask:
        n_pos, complement = self.tokens.clean.shape[1], circuit.complement
        return circuit_mask(
            self.model, self.attribution.dictionaries, circuit.nodes, n_pos, circuit.errors, complement=complement
        )


def node_circuits(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    metric: str | MetricFunction | None,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> NodeCircuits:
    """What runs circuits on these prompts, with the graph's settings and baseline.

    Args:
        graph: A graph with provenance.
        model: The model that it is of.
        dictionaries: The dictionaries that it is of.
        pairs: The prompts.
        metric: The metric; None for the graph's.
        seed: Of resampling.
        progress: Told (stage, steps done, steps in all).

    Raises GraphError for prompts of another length than the graph's.
    """
    settings, length = graph.graph["provenance"]["settings"], len(graph.graph["tokens"]["clean"])
    targets = settings.get("targets")
    objective = recorded_objective(model, dictionaries, targets, length) if isinstance(targets, list) else None
    own = ("baseline", "method", "steps", "rule", "attention", "mlp", "align")
    known = {name: settings[name] for name in own if name in settings}
    if metric is not None or objective is None:
        known["metric"] = settings["metric"] if metric is None else metric
    nodes, n_tokens = Nodes(**known), len(model.tokens(pairs[0].clean))
    if nodes.align == "position" and n_tokens != length:
        raise GraphError(
            f"the prompts have {n_tokens} tokens, the graph's have {length}; nodes are aligned by position"
        )
    attribution = run_attribution(
        model,
        dictionaries,
        pairs,
        nodes,
        objective=objective if metric is None else None,
        known_positions=graph.graph["provenance"].get("alignment", {}).get("positions", ()),
        progress=progress,
    )
    aligned, tokens = align_model(model, attribution.tokens, attribution.alignment)
    by_node = {} if objective is None else dict(zip(objective.nodes(length), objective.targets, strict=True))
    return NodeCircuits(attribution, aligned, tokens, by_node, seed)


def built_from(graph: nx.MultiDiGraph) -> tuple[list[PromptPair], dict[str, Any]]:
    """The prompt pairs and settings that the graph was built with; GraphError for a graph that does not say."""
    provenance = graph.graph.get("provenance", {})
    if "components" in graph.graph:
        raise GraphError(
            "a graph of heads and MLPs is measured by its edges: use evaluate_components, or `circuitgraph evaluate`"
        )
    if not provenance.get("prompts") or not {"metric", "baseline"} <= set(provenance.get("settings", {})):
        raise GraphError("the graph has no provenance (prompts and settings); evaluate a graph that discover built")
    if provenance["settings"].get("positions") == "sum":
        raise GraphError(
            f"the graph's nodes are sums over {ALL}, which are not measured; evaluate a graph built with positions"
            " 'each'"
        )
    return [pair_of(record) for record in provenance["prompts"]], provenance["settings"]


def circuit_nodes(graph: nx.MultiDiGraph, dictionaries: Dictionaries) -> list[Node]:
    """The graph's nodes but the targets and the metric; GraphError for one that the dictionaries do not have."""
    nodes = [Node.parse(key) for key, kind in graph.nodes(data="kind") if kind not in ("probe", "logit", "metric")]
    for node in nodes:
        if node.kind != "feature":
            continue
        n_features = dictionaries[node.site].d_sae if node.site in dictionaries else 0
        if (node.feature or 0) >= n_features:
            known = ", ".join(map(str, dictionaries)) or "none"
            raise GraphError(
                f"node {str(node)!r} is in no given dictionary (sites: {known}); give the dictionaries the graph was"
                " built with"
            )
    built_with = graph.graph.get("provenance", {}).get("dictionaries")
    if isinstance(built_with, Mapping) and set(built_with) != set(map(str, dictionaries)):
        raise GraphError(
            f"the graph was built with dictionaries at {', '.join(built_with) or 'no site'}, and those given are at"
            f" {', '.join(map(str, dictionaries)) or 'no site'}; give the same"
        )
    return nodes

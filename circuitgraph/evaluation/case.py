"""What an evaluation rests on: the clean run, every baseline and the node tables of a graph's prompts, run once.

In come a graph, the model and dictionaries it was built from and the prompts; out comes a `Case`. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from circuitgraph.attribution.aligned_model import align_model
from circuitgraph.attribution.attribute import run_attribution
from circuitgraph.attribution.runs import Baseline, CleanRun
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.attribution.targets import Target, recorded_objective
from circuitgraph.attribution.treatment import ComponentTreatment
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.position_sums import ALL
from circuitgraph.errors import GraphError
from circuitgraph.metrics import Metric, MetricFunction
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Node
from circuitgraph.prompts import PromptPair, pair_of
from circuitgraph.settings import Nodes


@dataclass(frozen=True, eq=False)
class Case:
    """The runs that every measurement shares; bases[name] for each baseline, of which `baseline` is the graph's. targets: what
    the graph's targets stand for, none in a graph of a metric."""

    model: Model
    dictionaries: Dictionaries
    pairs: Sequence[PromptPair]
    tokens: TokenizedPairs
    metric: Metric
    clean: CleanRun
    bases: Mapping[str, Baseline]
    tables: Sequence[NodeTable]
    baseline: str
    treatment: ComponentTreatment
    targets: Mapping[Node, Target]


def build_case(
    graph: nx.MultiDiGraph,
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    metric: str | MetricFunction | None,
    settings: Mapping[str, Any],
    names: Sequence[str],
    seed: int,
) -> Case:
    """The case of these prompts, with the graph's settings; names: the baselines, of which the first is the graph's.

    Raises GraphError for prompts of another length, CircuitGraphError for a baseline that they do not have.
    """
    length = len(graph.graph["tokens"]["clean"])
    targets = settings.get("targets")
    objective = recorded_objective(model, dictionaries, targets, length) if isinstance(targets, list) else None
    if metric is not None:
        objective = None
    known = {
        each: settings[each] for each in ("method", "steps", "rule", "attention", "mlp", "align") if each in settings
    }
    nodes = Nodes(metric=settings["metric"] if metric is None else metric, baseline=names[0], **known)
    own = graph.graph["provenance"].get("alignment", {}).get("positions", ())
    run = run_attribution(model, dictionaries, pairs, nodes, objective=objective, known_positions=own)
    if nodes.align == "position" and run.tokens.clean.shape[1] != length:
        raise GraphError(
            f"the prompts have {run.tokens.clean.shape[1]} tokens, the graph's have {length}; nodes are aligned by position"
        )
    bases = {names[0]: run.baseline} | {name: run.baseline_of(name, seed=seed) for name in names[1:]}
    if "corrupted" not in bases and run.corrupted is not None:
        bases["corrupted"] = run.baseline_of("corrupted")
    aligned, tokens = align_model(model, run.tokens, run.alignment)
    by_node = {} if objective is None else dict(zip(objective.nodes(length), objective.targets, strict=True))
    return Case(
        aligned, dictionaries, pairs, tokens, run.metric, run.clean, bases, run.tables, names[0], run.treatment, by_node
    )


def built_from(graph: nx.MultiDiGraph) -> tuple[list[PromptPair], dict[str, Any]]:
    """The prompt pairs and settings that the graph was built with."""
    provenance = graph.graph.get("provenance", {})
    if "components" in graph.graph:
        raise GraphError(
            "a graph of heads and MLPs is measured by its edges: use evaluate_components, or `circuitgraph evaluate`"
        )
    if not provenance.get("prompts") or not {"metric", "baseline"} <= set(provenance.get("settings", {})):
        raise GraphError("the graph has no provenance (prompts and settings); evaluate a graph that discover built")
    if provenance["settings"].get("positions") == "sum":
        raise GraphError(
            f"the graph's nodes are sums over {ALL}, which are not measured; evaluate a graph built with positions 'each'"
        )
    return [pair_of(record) for record in provenance["prompts"]], provenance["settings"]

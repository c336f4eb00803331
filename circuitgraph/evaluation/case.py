"""What an evaluation rests on: the clean run, every baseline and the node tables of a graph's prompts, run once.

In come a graph, the model and dictionaries it was built from and the prompts; out comes a `Case`. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

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
from circuitgraph.interventions.run import resample_rows
from circuitgraph.metrics import Metric, MetricFunction, build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs, tokenize_pairs
from circuitgraph.nodes import Node
from circuitgraph.prompts import PromptPair, pair_of


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
    pairs: list[PromptPair],
    metric: str | MetricFunction | None,
    settings: dict[str, Any],
    names: Sequence[str],
    seed: int,
) -> Case:
    """The case of these prompts, with the graph's settings; names: the baselines, of which the first is the graph's. GraphError
    for prompts of another length, CircuitGraphError for a baseline that they do not have."""
    align, length = settings.get("align", "position"), len(graph.graph["tokens"]["clean"])
    tokens = tokenize_pairs(model, pairs, by_role=align == "role")
    places = align_pairs(tokens, align, graph.graph["provenance"].get("alignment", {}).get("places", ()))
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
    bases = {"corrupted": corrupted}
    if "resample" in names and not places.trivial:
        raise CircuitGraphError(
            "baseline 'resample' takes another example's activations, which has other places here; expected corrupted, zero"
            " or mean for a graph of prompts of different form"
        )
    for name in names:
        if name == "resample":
            rows = resample_rows(len(pairs), seed)
            # rotary angles have one row for all examples
            values = {s: value[rows] if len(value) == len(rows) else value for s, value in corrupted.values.items()}
            bases[name] = Baseline("corrupted", values, corrupted.logits, corrupted.metric)
        elif name != "corrupted":
            bases[name] = run_baseline(model, tokens, sites, score, name, mean=None if places.trivial else places.mean)
    settings = {"method": "gradient", "steps": 1, "rule": "left"} | settings
    how: dict[str, Any] = {key: settings[key] for key in ("method", "steps", "rule")}
    gradients = node_gradients(model, dictionaries, tokens, clean, bases[names[0]], score, **how)
    frozen = frozen_components(model, dictionaries, clean, treatment, places)
    # from here on, places stand where positions were
    clean, bases = places.of_run(model, clean), {name: places.of_baseline(base) for name, base in bases.items()}
    base, gradients = bases[names[0]], places.gather(gradients)
    tables = attribute_nodes(model, dictionaries, clean.values, base, gradients, treatment=treatment, frozen=frozen)
    model, tokens = align_model(model, tokens, places)
    targets = {} if objective is None else dict(zip(objective.nodes(length), objective.targets, strict=True))
    return Case(
        model, dictionaries, pairs, tokens, score, clean, bases, places.mask(tables), names[0], treatment, targets
    )


def built_from(graph: nx.MultiDiGraph) -> tuple[list[PromptPair], dict[str, Any]]:
    """The prompt pairs and settings that the graph was built with."""
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

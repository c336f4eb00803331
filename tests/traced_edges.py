"""Edges of small random models with every role that a component may have, traced as discover_circuit does it.

In come a model, dictionaries, pairs and settings; out comes a `Traced`, with everything on the way to the edges. Knows nothing
of graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from dictionary_kinds import random_kind

from circuitgraph.attribution.gradients import metric_gradients, mlp_slopes
from circuitgraph.attribution.node_attribution import attribute_nodes
from circuitgraph.attribution.node_gradients import node_gradients
from circuitgraph.attribution.runs import run_baseline, run_clean, sites_of
from circuitgraph.attribution.tables import FeatureTable
from circuitgraph.attribution.targets import Objective, target_nodes
from circuitgraph.attribution.treatment import ComponentTreatment, frozen_outputs
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.trace import TracedEdges, attribute_edges
from circuitgraph.metrics import build_metric
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.paths.linear_maps import frozen_component


@dataclass
class Traced:
    """Node tables and what edges are traced from; `edges` traces them."""

    model: Any
    clean: Any
    base: Any
    tables: Any
    gradient: Any
    targets: Any
    slopes: Any
    frozen: Any
    tokens: Any

    @property
    def nodes(self) -> list:
        """The nodes of all tables, in the order in which edges number them."""
        return [node for table in self.tables for node in table.nodes()]

    def edges(self, **settings: Any) -> TracedEdges:
        return attribute_edges(
            self.model,
            settings.pop("tables", self.tables),
            self.clean.values,
            self.gradient,
            base=self.base.values,
            targets=self.targets,
            slopes=self.slopes,
            maps=list(self.frozen.values()),
            **settings,
        )


def trace(
    model: Any,
    dictionaries: Any,
    pairs: Any,
    *,
    baseline: str = "corrupted",
    attention: str = "node",
    mlp: str = "node",
    metric: Any = "logit_difference",
    objective: Objective | None = None,
    method: str = "gradient",
    steps: int = 1,
    errors_as_targets: bool = False,
) -> Traced:
    """Everything up to the edges of these dictionaries, (reads, writes, activation, settings) each or made already."""
    if isinstance(dictionaries, dict):
        dictionaries = Dictionaries(dictionaries)
    elif not isinstance(dictionaries, Dictionaries):
        made = [random_kind(model, *kind[:3], **(kind[3] if kind[3:] else {})) for kind in dictionaries]
        dictionaries = Dictionaries(made)
    treatment, tokens = ComponentTreatment(attention, mlp), tokenize_pairs(model, pairs)
    score = objective.metric() if objective else build_metric(metric, tokens.answers, tokens.wrong_answers)
    reads = objective.reads if objective else []
    sites = sites_of(model, dictionaries.values(), reads=reads, neurons=True, scores=True)
    clean, base = run_clean(model, tokens, sites, score), run_baseline(model, tokens, sites, score, baseline)
    gradients = node_gradients(
        model,
        dictionaries,
        tokens,
        clean,
        base,
        score,
        method=method,
        steps=steps,
        rule="midpoint" if steps > 1 else "left",
    )
    slopes = mlp_slopes(clean, [], range(model.n_layers))
    passing = frozen_outputs(model, dictionaries, treatment)
    frozen = {site: frozen_component(model, site, clean.values, slopes) for site in passing}
    tables = attribute_nodes(
        model,
        dictionaries,
        clean.values,
        base,
        gradients,
        treatment=treatment,
        frozen=frozen,
        errors_as_targets=errors_as_targets,
    )
    last = Site("resid_post", model.n_layers - 1)
    targets = target_nodes(model, objective, clean, base) if objective else []
    gradient = metric_gradients(clean, [last])[last]
    return Traced(model, clean, base, tables, gradient, targets, slopes, frozen, tokens.clean)


def vector(table: Any, column: int) -> torch.Tensor:
    """What a node of a one-example table adds to the stream in all, clean minus baseline, [d_model]."""
    if isinstance(table, FeatureTable):
        return table.writes[column].sum(0) * table.amount[0, column]
    return table.vectors[0, column]


def shrunk(table: Any, factor: float) -> Any:
    """The table with every difference between clean and baseline multiplied by the factor."""
    if isinstance(table, FeatureTable):
        return replace(table, baseline_acts=table.acts - factor * table.delta)
    return replace(table, vectors=factor * table.vectors)

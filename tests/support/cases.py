"""Everything up to node tables, for tests of what is computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from circuitgraph.attribution.attribute import run_attribution
from circuitgraph.attribution.gradients import integrated_gradients
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.trace import trace_edges
from circuitgraph.nodes import Site
from circuitgraph.settings import Edges, Nodes


@dataclass
class Case:
    """One run of everything up to node tables."""

    run: Any
    model: Any
    dictionaries: Any
    tokens: Any
    metric: Any
    clean: Any
    corrupted: Any
    base: Any
    gradients: Any
    tables: Any

    @property
    def last(self) -> Site:
        return Site("resid_post", self.model.n_layers - 1)

    def edges(self, **settings: Any) -> list:
        traced = trace_edges(self.run, self.tables, Edges(**{"edge_threshold": 0, **settings}))
        return list(traced.table)

    def total(self, site: Site, kinds: tuple[str, ...] = ("feature", "error")) -> torch.Tensor:
        """Summed attribution [batch, pos] of the tables at a site."""
        total = torch.zeros(self.tokens.clean.shape, dtype=torch.float64)
        for table in self.tables:
            if table.site == site and table.kind in kinds:
                total.index_add_(1, table.pos, table.attribution)
        return total


def build_case(
    model,
    dictionaries,
    pairs,
    *,
    baseline="corrupted",
    method="gradient",
    steps=10,
    rule="gauss-legendre",
    metric="logit_difference",
):
    settings = Nodes(baseline=baseline, method=method, steps=steps, rule=rule, metric=metric)
    run = run_attribution(model, Dictionaries(dictionaries), pairs, settings)
    return Case(
        run,
        model,
        run.dictionaries,
        run.tokens,
        run.metric,
        run.clean,
        run.corrupted,
        run.baseline,
        run.gradients,
        run.tables,
    )


def integrated_sum(case, site, **settings):
    """Integrated gradients at a site times its change, summed over positions and widths, [batch]."""
    gradient = integrated_gradients(
        case.model, case.tokens, case.clean.values, {site: case.base.values[site]}, case.metric, **settings
    )[site]
    return (gradient * (case.clean.values[site] - case.base.values[site])).sum((1, 2))

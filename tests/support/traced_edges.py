"""Edges of small random models with every treatment of components, traced as discover does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from circuitgraph.attribution.attribute import run_attribution
from circuitgraph.attribution.tables import FeatureTable
from circuitgraph.attribution.targets import Objective
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.edges.trace import TracedEdges, trace_edges
from circuitgraph.settings import Compute, Edges, Nodes
from support.close import assert_close
from support.dictionary_kinds import random_kind


@dataclass
class Traced:
    """Node tables and what edges are traced from; `edges` traces them."""

    run: Any
    model: Any
    clean: Any
    corrupted: Any
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

    def edges(self, *, tables: Any = None, memory: int = 1 << 30, **settings: Any) -> TracedEdges:
        """All edges, or those that the settings keep; memory in bytes."""
        run, compute = replace(self.run, clean=self.clean), Compute(memory=memory / (1 << 30))
        return trace_edges(run, tables or self.tables, Edges(**{"edge_threshold": 0, **settings}), compute)


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
    rule = "midpoint" if steps > 1 else "left"
    settings = Nodes(
        baseline=baseline, attention=attention, mlp=mlp, metric=metric, method=method, steps=steps, rule=rule,
        errors_as_targets=errors_as_targets,
    )  # fmt: skip
    run = run_attribution(model, dictionaries, pairs, settings, objective=objective, scores=True)
    return Traced(
        run, model, run.clean, run.corrupted, run.baseline, run.tables, run.stream_gradient, run.targets, run.slopes, run.frozen,
        run.tokens.clean,
    )  # fmt: skip


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


def assert_explained(nodes: Iterable[Mapping[str, Any]], **rule: Any) -> None:
    """What each target reads of the stream is what the edges into it bring: `unexplained` is rounding beside `stream_input`."""
    rows = [node for node in nodes if "stream_input" in node]
    read = torch.tensor([row["stream_input"] for row in rows], dtype=torch.float64)
    left = torch.tensor([row["unexplained"] for row in rows], dtype=torch.float64)
    assert rows and float(read.abs().max()) > 1e-3
    assert_close(read - left, read, **rule)

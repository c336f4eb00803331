"""Node tables and edges -> the circuit graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.attribution.attribute import Attribution
from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import TargetNode
from circuitgraph.edges.candidates import Candidates
from circuitgraph.edges.influence import PrunedEdges
from circuitgraph.edges.inputs import input_of, input_report
from circuitgraph.edges.table import EdgeTable
from circuitgraph.edges.trace import TracedEdges
from circuitgraph.graphs.provenance import graph_facts
from circuitgraph.models.model import Model
from circuitgraph.nodes import EDGE_KINDS
from circuitgraph.settings import Discovery, Edges, as_record
from circuitgraph.shares import metric_change

N_TOP_TOKENS = 5


def graph_of_edges(
    run: Attribution, settings: Discovery, candidates: Candidates, traced: TracedEdges, edges: PrunedEdges
) -> nx.MultiDiGraph:
    """The graph of what discovery found: the edges that are left, where they came from, and a report on every step.

    Args:
        run: Runs, node tables and targets.
        settings: Everything that decided what was found.
        candidates: The nodes between which edges were traced.
        traced: What the targets read in all.
        edges: The edges that are left.
    """
    facts = graph_facts(run, sums=settings.positions == "sum")
    facts["provenance"]["settings"] |= as_record(settings, of=Edges)
    if edges.scores is not None:
        facts["scores"] = {key: value for key, value in asdict(edges.scores).items() if value is not None}
    inputs = input_of(traced, edges.table, settings.qk)
    graph = build_graph(run.model, candidates.nodes, edges.table, facts, targets=run.targets, inputs=inputs)
    reached = len(graph) - len(run.targets) - 1
    unreached = sum(map(len, candidates.nodes)) - reached
    reports = [candidates.report, *input_report(traced), *([] if edges.report is None else [edges.report])]
    reports.append(
        f"edge_threshold {settings.edge_threshold:g}: {unreached} of them have no path of such edges to the metric"
    )
    if not reached:
        reports.append(_why_empty(run))
    graph.graph["reports"] = reports
    return graph


def _why_empty(run: Attribution) -> str:
    if not any(bool(table.attribution.any()) for table in run.tables):
        return "the graph is empty: no node changes the metric between clean and baseline"
    cancelled = ", or pairs cancel in the mean" if len(run.pairs) > 1 else ""
    return f"the graph is empty: no edges above the thresholds reach the metric{cancelled}"


def build_graph(
    model: Model,
    tables: Sequence[NodeTable],
    edges: EdgeTable,
    facts: dict[str, Any],
    *,
    targets: Sequence[TargetNode] = (),
    inputs: Mapping[int, tuple[float, float]] | None = None,
) -> nx.MultiDiGraph:
    """The graph of these edges, their end nodes and the metric.

    Args:
        tables: the nodes that the edges number first, one table after the other.
        edges: numbered by the nodes of the tables, then the targets, then the metric.
        facts: become the graph attributes; facts["metric"] holds what the metric node's attribution is made of.
        targets: what the graph explains in place of the metric.
        inputs: number of a target -> (what it reads, what of it no edge explains).
    """
    graph = nx.MultiDiGraph(**facts)
    used = torch.zeros(len(edges.nodes), dtype=torch.bool)
    used[edges.source.long()] = used[edges.target.long()] = True
    rows: dict[int, dict[str, Any]] = {}
    first = 0
    for table in tables:
        columns = used[first : first + len(table)].nonzero()[:, 0]
        rows |= _node_rows(model, table, first, columns.to(table.pos.device))
        first += len(table)
    top = (edges.source >= first).nonzero()[:, 0]
    for i, weight in zip(edges.source[top].tolist(), edges.weight[top].tolist(), strict=True):
        target = targets[i - first]
        rows[i] = {"attribution": weight, "target": target.name, "target_weight": float(target.weight.mean())}
        rows[i] |= {"token": target.name} if target.node.kind == "logit" else {"label": target.name}
    rows[len(edges.nodes) - 1] = {"attribution": metric_change(facts["metric"]["clean"], facts["metric"]["corrupted"])}
    names = {i: str(edges.nodes[i]) for i in rows}
    for i, attributes in rows.items():
        if i in (inputs or {}):
            attributes["stream_input"], attributes["unexplained"] = (inputs or {})[i]
        graph.add_node(names[i], **edges.nodes[i].fields, **attributes)
    loadings = dict(zip(edges.head_of.tolist(), edges.heads.tolist(), strict=True))
    columns_ = (edges.source, edges.target, edges.kind, edges.weight, edges.local_weight, edges.weight_abs)
    for i, (u, v, k, w, lw, m) in enumerate(zip(*(column.tolist() for column in columns_), strict=True)):
        kind = EDGE_KINDS[k]
        attributes = {"kind": kind, "weight": w, "local_weight": lw, "weight_abs": m}
        if i in loadings:
            attributes["heads"] = loadings[i]
        graph.add_edge(names[u], names[v], key=kind, **attributes)
    return graph


def _node_rows(model: Model, table: NodeTable, first: int, columns: Tensor) -> dict[int, dict[str, Any]]:
    """number -> attributes of these columns of a table whose first column has the number `first`."""
    table = table.take(columns)
    rows = [{"attribution": value} for value in table.attribution.mean(0).tolist()]
    if isinstance(table, FeatureTable) and rows:
        acts, baseline = table.acts.mean(0).tolist(), table.baseline_acts.mean(0).tolist()
        top = model.logit_lens(table.writes.sum(1)).topk(N_TOP_TOKENS).indices.tolist()
        for row, act, base, tokens in zip(rows, acts, baseline, top, strict=True):
            row |= {"activation": act, "baseline_activation": base, "top_tokens": model.token_strings(tokens)}
    return dict(zip((columns + first).tolist(), rows, strict=True))

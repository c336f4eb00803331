"""Node tables and edges -> the circuit graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import TargetNode
from circuitgraph.edges.table import EdgeTable
from circuitgraph.graphs.schema import metric_change
from circuitgraph.models.model import Model
from circuitgraph.nodes import EDGE_KINDS

N_TOP_TOKENS = 5


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
    rows[len(edges.nodes) - 1] = {"attribution": metric_change(facts["metric"])}
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

"""The circuit graph: a plain networkx.MultiDiGraph with documented attributes.

In come node tables, edges and the facts of the run; out comes a graph whose nodes are keyed by their text form and whose
edges are keyed by kind. Attributes are finite Python values. This module attributes and draws nothing.

Node attributes
    kind                  embedding, pos_embedding, bias, feature, error, metric
    site, layer, pos, feature   where it stands; layer is None for embeddings and the metric, feature for all but features
    attribution           estimated contribution to the metric's difference, mean over the examples
    activation, baseline_activation   mean over the examples, features only
    top_tokens            tokens that the write vector promotes directly, features only
    effect                measured contribution, once it was measured
    label                 the user's words
Edge attributes
    kind                  ov, q, k, mlp, metric (also the edge key)
    weight                estimated contribution to the metric through the target, mean over the examples
    local_weight          contribution to the target's pre-activation, mean over the examples
    weight_abs            mean of |weight| over the examples: how much the mean hides
    heads                 local_weight by attention head, on ov, q and k
Graph attributes
    tokens, logits, metric, n_layers, n_examples, provenance, reports, evidence
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx

from circuitgraph.edges import Edge
from circuitgraph.errors import GraphError
from circuitgraph.model import Model
from circuitgraph.nodes import EDGE_KINDS, NODE_KINDS, Node, Site
from circuitgraph.tables import FeatureTable, NodeTable

N_TOP_TOKENS = 5


def build_graph(
    model: Model, tables: Sequence[NodeTable], edges: Iterable[Edge], facts: dict[str, Any]
) -> nx.MultiDiGraph:
    """The graph of these edges, their end nodes and the metric. `facts` become the graph attributes.

    facts["metric"] holds the metric's clean and corrupted means, whose difference is the metric node's attribution.
    """
    graph = nx.MultiDiGraph(**facts)
    edges = list(edges)
    used = {edge.source for edge in edges} | {edge.target for edge in edges}
    metric = Node("metric", Site("metric"), len(facts["tokens"]["clean"]) - 1)
    rows = [row for table in tables for row in _node_rows(model, table, used)]
    rows.append((metric, {"attribution": facts["metric"]["clean"] - facts["metric"]["corrupted"]}))
    for node, attributes in rows:
        place = {
            "kind": node.kind,
            "site": str(node.site),
            "layer": node.site.layer,
            "pos": node.pos,
            "feature": node.feature,
        }
        graph.add_node(str(node), **place, **attributes)
    for edge in edges:
        attributes = {"weight": edge.weight, "local_weight": edge.local_weight, "weight_abs": edge.weight_abs}
        if edge.heads:
            attributes["heads"] = list(edge.heads)
        graph.add_edge(str(edge.source), str(edge.target), key=edge.kind, kind=edge.kind, **attributes)
    return graph


def _node_rows(model: Model, table: NodeTable, used: set[Node]) -> list[tuple[Node, dict[str, Any]]]:
    columns = [i for i in range(len(table)) if table.node(i) in used]
    attribution = table.attribution.mean(0).tolist()
    rows = [(table.node(i), {"attribution": attribution[i]}) for i in columns]
    if isinstance(table, FeatureTable) and columns:
        acts, baseline = table.acts.mean(0).tolist(), table.baseline_acts.mean(0).tolist()
        top = model.logit_lens(table.write[columns]).topk(N_TOP_TOKENS).indices.tolist()
        for (_, attributes), i, tokens in zip(rows, columns, top, strict=True):
            attributes |= {
                "activation": acts[i],
                "baseline_activation": baseline[i],
                "top_tokens": model.token_strings(tokens),
            }
    return rows


def metric_node(graph: nx.MultiDiGraph) -> str:
    """The key of the graph's metric node; GraphError unless there is exactly one."""
    found: list[str] = [node for node, kind in graph.nodes(data="kind") if kind == "metric"]
    if len(found) != 1:
        raise GraphError(f"the graph has {len(found)} metric nodes; expected exactly one")
    return found[0]


def check_graph(graph: nx.MultiDiGraph) -> None:
    """GraphError unless the graph keeps the schema: parseable node keys that match their attributes, known kinds, finite
    numbers, and edges that run forward."""
    for key, attributes in graph.nodes(data=True):
        node = Node.parse(key)
        for name, expected in (
            ("kind", node.kind),
            ("site", str(node.site)),
            ("pos", node.pos),
            ("feature", node.feature),
        ):
            if attributes.get(name) != expected:
                raise GraphError(f"node {key!r} has {name} {attributes.get(name)!r}; its name says {expected!r}")
        if node.kind not in NODE_KINDS:
            raise GraphError(f"node {key!r} has kind {node.kind!r}; expected one of {', '.join(NODE_KINDS)}")
        _check_finite(f"node {key!r}", attributes, ("attribution",))
    for source, target, kind, attributes in graph.edges(keys=True, data=True):
        where = f"edge {source!r} -> {target!r} ({kind})"
        if kind not in EDGE_KINDS or attributes.get("kind") != kind:
            raise GraphError(f"{where}: kind must be one of {', '.join(EDGE_KINDS)} and equal the edge's key")
        if Node.parse(source).site.depth >= Node.parse(target).site.depth:
            raise GraphError(f"{where} does not run forward through the model")
        _check_finite(where, attributes, ("weight", "local_weight"))
    metric_node(graph)


def _check_finite(where: str, attributes: dict[str, Any], required: Sequence[str]) -> None:
    for name in required:
        if name not in attributes:
            raise GraphError(f"{where} has no {name}")
    for name, value in attributes.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise GraphError(f"{where}: {name} is {value}; expected a finite number")

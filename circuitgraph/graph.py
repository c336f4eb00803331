"""The circuit graph: a plain networkx.MultiDiGraph with documented attributes.

In come node tables, edges and the facts of the run; out comes a graph whose nodes are keyed by their text form and whose
edges are keyed by kind. Attributes are finite Python values. This module attributes and draws nothing.

Node attributes
    kind                  embedding, pos_embedding, bias, feature, error, metric
    site, layer, pos, feature   where it stands; layer is None for embeddings and the metric, feature for all but features
    attribution           estimated contribution to the metric clean - baseline, mean over the examples; the metric node
                          has the measured clean - corrupted
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
from circuitgraph.nodes import EDGE_KINDS, Node, Site
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
        graph.add_node(str(node), **node.place, **attributes)
    for edge in edges:
        attributes = {"weight": edge.weight, "local_weight": edge.local_weight, "weight_abs": edge.weight_abs}
        if edge.heads:
            attributes["heads"] = list(edge.heads)
        graph.add_edge(str(edge.source), str(edge.target), key=edge.kind, kind=edge.kind, **attributes)
    return graph


def _node_rows(model: Model, table: NodeTable, used: set[Node]) -> list[tuple[Node, dict[str, Any]]]:
    nodes, attribution = table.nodes(), table.attribution.mean(0).tolist()
    columns = [i for i, node in enumerate(nodes) if node in used]
    rows = [(nodes[i], {"attribution": attribution[i]}) for i in columns]
    if isinstance(table, FeatureTable) and columns:
        acts, baseline = table.acts.mean(0).tolist(), table.baseline_acts.mean(0).tolist()
        top = model.logit_lens(table.writes[columns].sum(1)).topk(N_TOP_TOKENS).indices.tolist()
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
    """GraphError unless the graph keeps the schema: graph attributes of the right types, parseable node keys that match
    their attributes, known kinds, finite numbers, edges that run forward, and one metric."""
    _check_facts(graph.graph)
    for key, attributes in graph.nodes(data=True):
        for name, expected in Node.parse(key).place.items():
            if name not in attributes or attributes[name] != expected:
                raise GraphError(f"node {key!r} has {name} {attributes.get(name)!r}; its name says {expected!r}")
        _check_numbers(f"node {key!r}", attributes, ("attribution",))
    for source, target, kind, attributes in graph.edges(keys=True, data=True):
        where = f"edge {source!r} -> {target!r} ({kind})"
        if kind not in EDGE_KINDS or attributes.get("kind") != kind:
            raise GraphError(f"{where}: kind must be one of {', '.join(EDGE_KINDS)} and equal the edge's key")
        if Node.parse(source).site.depth >= Node.parse(target).site.depth:
            raise GraphError(f"{where} does not run forward through the model")
        _check_numbers(where, attributes, ("weight", "local_weight"))
    metric_node(graph)


def _check_facts(facts: dict[str, Any]) -> None:
    """GraphError unless the graph attributes that every reader uses are there, with their types."""
    metric, tokens = facts.get("metric"), facts.get("tokens")
    if (
        not isinstance(metric, dict)
        or not isinstance(metric.get("name"), str)
        or not all(map(_is_number, (metric.get("clean"), metric.get("corrupted"))))
    ):
        raise GraphError("graph.metric must hold name and the finite numbers clean and corrupted")
    if not isinstance(tokens, dict) or not all(_is_strings(tokens.get(run)) for run in ("clean", "corrupted")):
        raise GraphError("graph.tokens must hold the lists of strings clean and corrupted")
    if not _is_strings(facts.get("reports")):
        raise GraphError("graph.reports must be a list of strings")
    for name, kind in (("n_layers", int), ("n_examples", int), ("provenance", dict), ("evidence", dict)):
        if name in facts and not isinstance(facts[name], kind) or name not in facts and name != "evidence":
            raise GraphError(
                f"graph.{name} is {facts.get(name)!r}; expected {'an object' if kind is dict else 'a whole number'}"
            )


def _check_numbers(where: str, attributes: dict[str, Any], required: Sequence[str]) -> None:
    for name in (
        *required,
        *(n for n in ("effect", "weight_abs", "activation", "baseline_activation") if n in attributes),
    ):
        if not _is_number(attributes.get(name)):
            raise GraphError(f"{where} has {name} {attributes.get(name)!r}; expected a finite number")
    for name in ("heads", "top_tokens"):
        if name in attributes and not isinstance(attributes[name], list):
            raise GraphError(f"{where} has {name} {attributes[name]!r}; expected a list")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

"""Smaller graphs: thresholds, top-k and node counts, always reachable from the metric.

The result is a sub-graph with a line in `reports` for what each step removed. One number changes: what no edge explains
of a target's input.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from circuitgraph.errors import CircuitGraphError
from circuitgraph.graphs.schema import metric_node, metric_scale, require_graph
from circuitgraph.nodes import Node
from circuitgraph.settings import Pruning, resolve


def prune(graph: nx.MultiDiGraph, *, settings: Pruning | None = None, **changes: Any) -> nx.MultiDiGraph:
    """The sub-graph of the strongest nodes and edges from which the metric can be reached.

    Evidence about the larger circuit is dropped with its parts: measure the smaller one again. Effects of single nodes
    stay. Ties keep forward order, and pruning twice is pruning once.

    Args:
        graph: The graph; it is not changed.
        settings: The defaults, or all settings at once.
        **changes: Fields of `settings.Pruning` over them:
            node_threshold: smallest |attribution| of a node, as a share of `metric_scale`.
            edge_threshold: smallest |weight| of an edge, as a share of the same.
            top_k: keep so many inputs of each node, the strongest.
            max_nodes: keep so many nodes, the strongest and the metric.

    Raises CircuitGraphError for a negative threshold, one above 1 that nothing reaches, or a count that is too small.
    """
    require_graph(graph)
    chosen = resolve(Pruning, settings, changes)
    node_threshold, edge_threshold = chosen.node_threshold, chosen.edge_threshold
    top_k, max_nodes = chosen.top_k, chosen.max_nodes
    metric = metric_node(graph)
    result = graph.copy()
    result.graph["reports"] = list(graph.graph.get("reports", ()))

    attribution = {node: abs(value) for node, value in graph.nodes(data="attribution") if node != metric}
    least = _in_units_of_the_metric(result, node_threshold=node_threshold, edge_threshold=edge_threshold)
    sizes = {"node": attribution.values(), "edge": [abs(w) for *_, w in graph.edges(data="weight")]}
    for kind, values in sizes.items():
        value = getattr(chosen, f"{kind}_threshold")
        if value > 1 and values and least[f"{kind}_threshold"] > max(values):
            raise CircuitGraphError(
                f"{kind}_threshold is {value:g}, and no {kind} is that strong: it is a fraction of the metric's"
                " difference, so 5 % is 0.05"
            )
    weak = [node for node, value in attribution.items() if value < least["node_threshold"]]
    _remove_nodes(result, weak, f"node_threshold {node_threshold:g}")
    light = [(u, v, k) for u, v, k, w in result.edges(keys=True, data="weight") if abs(w) < least["edge_threshold"]]
    _remove_edges(result, light, f"edge_threshold {edge_threshold:g}")
    _remove_unreachable(result, metric)
    if max_nodes is not None:
        ranked = sorted((n for n in result if n != metric), key=lambda n: (-attribution[n], Node.parse(n).order))
        _remove_nodes(result, ranked[max_nodes - 1 :], f"max_nodes {max_nodes}")
    if top_k is not None:
        _remove_edges(result, [edge for node in result for edge in _beyond(result, node, top_k)], f"top_k {top_k}")
    _remove_unreachable(result, metric)
    _explain_less(graph, result)
    smaller = (len(result), result.number_of_edges()) != (len(graph), graph.number_of_edges())
    if smaller and result.graph.pop("evidence", None):
        result.graph["reports"].append("evidence of the larger circuit dropped")
    if len(result) == 1 and len(graph) > 1:
        result.graph["reports"].append("nothing is left: every path to the metric was removed")
    return result


def _in_units_of_the_metric(result: nx.MultiDiGraph, **thresholds: float) -> dict[str, float]:
    """The thresholds times what 100 % is; where that is 0 they remove nothing, which the reports say."""
    scale = metric_scale(result)
    if scale:
        return {name: value * scale for name, value in thresholds.items()}
    result.graph["reports"] += [
        f"{name} {value:g} removed nothing: the metric is {_no_change(result)}, so shares of it are undefined"
        for name, value in thresholds.items()
        if value
    ]
    return dict.fromkeys(thresholds, 0.0)


def _no_change(graph: nx.MultiDiGraph) -> str:
    return "0" if graph.graph["metric"]["corrupted"] is None else "the same clean and corrupted"


def _explain_less(graph: nx.MultiDiGraph, result: nx.MultiDiGraph) -> None:
    """Add what removed edges explained to `unexplained` of their targets; ablated q and k edges are in neither."""
    settings = graph.graph.get("provenance", {}).get("settings", {})
    left_out = ("q", "k") if settings.get("qk") == "ablate" else ()
    for node, unexplained in result.nodes(data="unexplained"):
        if unexplained is not None:
            before, after = (
                sum(w for _, _, kind, w in g.in_edges(node, keys=True, data="local_weight") if kind not in left_out)
                for g in (graph, result)
            )
            result.nodes[node]["unexplained"] = unexplained + before - after


def _beyond(graph: nx.MultiDiGraph, node: str, top_k: int) -> list[tuple[str, str, str]]:
    """The inputs of a node after its top_k strongest."""
    inputs = sorted(
        graph.in_edges(node, keys=True, data="weight"), key=lambda e: (-abs(e[3]), Node.parse(e[0]).order, e[2])
    )
    return [(u, v, k) for u, v, k, _ in inputs[top_k:]]


def _remove_unreachable(graph: nx.MultiDiGraph, metric: str) -> None:
    reachable = nx.ancestors(graph, metric) | {metric}
    _remove_nodes(graph, [node for node in graph if node not in reachable], "no path to the metric")


def _remove_nodes(graph: nx.MultiDiGraph, nodes: list[str], why: str) -> None:
    if nodes:
        edges = graph.number_of_edges()
        graph.remove_nodes_from(nodes)
        graph.graph["reports"].append(f"{why}: removed {len(nodes)} nodes and {edges - graph.number_of_edges()} edges")


def _remove_edges(graph: nx.MultiDiGraph, edges: list[tuple[str, str, str]], why: str) -> None:
    if edges:
        graph.remove_edges_from(edges)
        graph.graph["reports"].append(f"{why}: removed {len(edges)} edges")

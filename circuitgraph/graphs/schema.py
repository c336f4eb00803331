"""The circuit graph: a plain networkx.MultiDiGraph with documented attributes.

Nodes are keyed by their text form, edges by their kind; attributes are finite Python values.

Node attributes
    kind                  embedding, pos_embedding, bias, feature, error, probe, logit, metric
    site, layer, pos, feature   where it stands; layer is None for embeddings, logits and the metric; pos counts in
                          tokens; feature is a feature's index, a logit's token id, a probe's number
    attribution           estimated contribution to the metric clean - baseline, mean over the examples; the metric node
                          has the measured clean - corrupted, or clean where there is no corrupted prompt
    activation, baseline_activation   mean over the examples, features only
    top_tokens            tokens that the write vector promotes directly, features only
    token                 the text of a logit's token
    target, target_weight what a logit or probe stands for, in words, and d metric / d target
    stream_input, unexplained   what a target reads of clean minus baseline through its (linear) paths, measured on the
                          streams, and the part of it that none of its edges explains; only of targets whose inputs
                          were traced
    effect                measured contribution, once it was measured
    label, note           the user's words
Edge attributes
    kind                  ov, q, k, mlp, residual, metric (also the edge key)
    weight                estimated contribution to the metric through the target, mean over the examples
    local_weight          contribution to the target's pre-activation, mean over the examples
    weight_abs            mean of |weight| over the examples: how much the mean hides
    heads                 local_weight by attention head, on ov, q and k
    effect                measured: what the target loses without the source, all kinds between the two nodes together
Graph attributes
    tokens, logits, metric, n_layers, n_examples, provenance, reports, evidence; scores where influence was computed
    metric {name, clean, corrupted}   means over the examples; corrupted is None where there is no corrupted prompt
    tokens {clean, corrupted}   of the first pair, corrupted None as there; of aligned pairs what they share at an
                          aligned position, or its name, and provenance.alignment {positions, index [example][aligned
                          position]: position or -1}; of sums one position
    groups [{label, nodes}], pins [node]    what the user put together; provenance.neuronpedia {model, sources}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.nodes import EDGE_KINDS, Node
from circuitgraph.shares import unit_of_shares

VERSION = 3  # of what is described above, as graph files name it
_OPTIONAL = ("effect", "weight_abs", "activation", "baseline_activation")


def metric_node(graph: nx.MultiDiGraph) -> str:
    """The key of the graph's metric node; GraphError unless there is exactly one."""
    found: list[str] = [node for node, kind in graph.nodes(data="kind") if kind == "metric"]
    if len(found) != 1:
        raise GraphError(f"the graph has {len(found)} metric nodes; expected exactly one")
    return found[0]


def metric_scale(graph: nx.MultiDiGraph) -> float:
    """What 100 % is, in the metric's unit: |clean - corrupted|, or |clean| where there is no corrupted prompt.

    0.0 where the metric does not change: shares of it are then undefined, and whoever shows one says so.
    """
    metric = graph.graph["metric"]
    return unit_of_shares(metric["clean"], metric["corrupted"])


def require_graph(graph: object, *, with_metric: bool = True) -> None:
    """GraphError unless this is a networkx.MultiDiGraph: what every function that takes a graph asks first.

    Args:
        graph: What was handed in.
        with_metric: Whether it must have a metric; pictures and files need none.
    """
    if not isinstance(graph, nx.MultiDiGraph):
        raise GraphError(
            f"the graph is of type {type(graph).__name__}; expected a networkx.MultiDiGraph of circuitgraph"
            " (circuitgraph.load reads a file)"
        )
    if with_metric and not isinstance(graph.graph.get("metric"), Mapping):
        raise GraphError("the graph has no metric; expected one that circuitgraph built or read")


def check_graph(graph: nx.MultiDiGraph) -> None:
    """GraphError unless the graph keeps the schema.

    The graph attributes have the right types; each node's key parses and matches its attributes; kinds are known,
    numbers finite, edges run forward through the model, and there is one metric.

    Args:
        graph: The graph to check.
    """
    require_graph(graph, with_metric=False)
    _check_facts(graph.graph)
    depth: dict[str, int] = {}
    for key, attributes in graph.nodes(data=True):
        node = Node.parse(key)
        depth[key] = node.site.depth
        for name, expected in node.fields.items():
            if name not in attributes or attributes[name] != expected:
                raise GraphError(f"node {key!r} has {name} {attributes.get(name)!r}; its name says {expected!r}")
        if fault := _fault(attributes, ("attribution",)):
            raise GraphError(f"node {key!r} has {fault}")
    for source, target, kind, attributes in graph.edges(keys=True, data=True):
        fault = ""
        if kind not in EDGE_KINDS or attributes.get("kind") != kind:
            fault = f": kind must be one of {', '.join(EDGE_KINDS)} and equal the edge's key"
        elif depth[source] >= depth[target]:
            fault = " does not run forward through the model"
        elif found := _fault(attributes, ("weight", "local_weight")):
            fault = f" has {found}"
        if fault:
            raise GraphError(f"edge {source!r} -> {target!r} ({kind}){fault}")
    metric_node(graph)


def _fault(attributes: dict[str, Any], required: tuple[str, ...]) -> str:
    """What is wrong with the numbers and lists of a node or an edge; the empty string if nothing is."""
    for name in (*required, *(name for name in _OPTIONAL if name in attributes)):
        if not _is_number(attributes.get(name)):
            return f"{name} {attributes.get(name)!r}; expected a finite number"
    for name in ("heads", "top_tokens"):
        if name in attributes and not isinstance(attributes[name], list):
            return f"{name} {attributes[name]!r}; expected a list"
    return ""


def _check_facts(facts: dict[str, Any]) -> None:
    """GraphError unless the graph attributes that every reader uses are there, with their types."""
    metric, tokens = facts.get("metric"), facts.get("tokens")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or not _is_number(metric.get("clean")):
        raise GraphError("graph.metric must hold name and the finite number clean")
    if "corrupted" not in metric or not (metric["corrupted"] is None or _is_number(metric["corrupted"])):
        raise GraphError(
            "graph.metric must hold the finite number corrupted, or null where there is no corrupted prompt"
        )
    if not isinstance(tokens, dict) or not _is_strings(tokens.get("clean")):
        raise GraphError("graph.tokens must hold the list of strings clean")
    if "corrupted" not in tokens or not (tokens["corrupted"] is None or _is_strings(tokens["corrupted"])):
        raise GraphError(
            "graph.tokens must hold the list of strings corrupted, or null where there is no corrupted prompt"
        )
    if (metric["corrupted"] is None) != (tokens["corrupted"] is None):
        raise GraphError("graph.metric.corrupted and graph.tokens.corrupted must both be null, or neither")
    if not _is_strings(facts.get("reports")):
        raise GraphError("graph.reports must be a list of strings")
    for name, kind in (("n_layers", int), ("n_examples", int), ("provenance", dict), ("evidence", dict)):
        if name in facts and not isinstance(facts[name], kind) or name not in facts and name != "evidence":
            raise GraphError(
                f"graph.{name} is {facts.get(name)!r}; expected {'an object' if kind is dict else 'a whole number'}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

"""Attribution-graph JSON of Neuronpedia and circuit-tracer -> a graph.

From a file that circuitgraph wrote the exact graph comes back out of its extra block,
with the groups and pins that were changed since. From any other file the graph is rebuilt from nodes and links:

- A link is the source's contribution to the target's pre-activation: `local_weight`. In these graphs a feature's
  activation is the sum of its inputs and the graph is linear, so that the metric's derivative by a feature's
  pre-activation is its attribution / activation; weight = local_weight * that, and a node's attribution is the sum of
  the weights that leave it.
- The metric is the sum of the logits, each times its probability (of `(p=...)` or token_prob). The logits themselves
  are kept in graph["neuronpedia"]["logits"], and each edge into the metric has its links to them as `logit_weights`.
- `qk_tracing_results` become q and k edges, by their marginal contributors: the part of a score that a query and a key
  source make together has two sources, which no edge has; how many were left out is reported. The edge of an attention
  feature is ov, of all others mlp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.errors import GraphError
from circuitgraph.formats.build import Builder, check
from circuitgraph.formats.groups import groups_of, pins_of
from circuitgraph.formats.native import value_to_graph
from circuitgraph.formats.neuronpedia import ids_of
from circuitgraph.formats.neuronpedia_names import ATTENTION_SITES, layer_of, node_of
from circuitgraph.formats.untrusted import parse_json, read_text, reading
from circuitgraph.formats.values import take_list, take_number, take_object, take_string
from circuitgraph.nodes import Node, Site

_PROBABILITY = re.compile(r"\(p=([0-9.eE+-]{1,40})\)")


@dataclass
class Parts:
    """What a graph of this kind consists of, whatever file it comes from. Logits are (id, label, probability)."""

    tokens: list[str]
    n_layers: int
    nodes: dict[str, Node]
    attributes: dict[str, dict[str, Any]]
    logits: dict[str, tuple[str, float]]
    links: list[tuple[str, str, str, float]]  # source id, target id, kind or "" to tell from the target, weight
    n_pairs: int = 0  # of a query and a key source, which no edge holds
    facts: dict[str, Any] = field(default_factory=dict)


def read_neuronpedia(path: str | Path) -> nx.MultiDiGraph:
    """The graph of an attribution-graph JSON file."""
    with reading(path):
        return value_from_neuronpedia(parse_json(read_text(path)))


def value_from_neuronpedia(value: Any) -> nx.MultiDiGraph:
    """The graph of the JSON value of such a file."""
    data = take_object(value, "the file")
    for name, kind in (("metadata", dict), ("qParams", dict), ("nodes", list), ("links", list)):
        if not isinstance(data.get(name), kind):
            raise GraphError(
                f"{name!r} is missing or no {kind.__name__}; expected the attribution-graph JSON of Neuronpedia"
            )
    if "circuitgraph" not in data:
        return graph_of_parts(_parts(data))
    graph = value_to_graph(take_object(data["circuitgraph"], "the block circuitgraph"))
    ids = ids_of(graph)
    there = {row.get("node_id") for row in data["nodes"] if isinstance(row, dict)}
    there |= take_object(data.get("qk_only_nodes", {}), "qk_only_nodes").keys()
    _take_marks(graph, data["qParams"], {theirs: ours for ours, theirs in ids.items()})
    kinds = dict(graph.nodes(data="kind"))
    whole = "metric" if {"logit", "probe"} & set(kinds.values()) else None  # shown by the targets that make it up
    if not {ids[key] for key, kind in kinds.items() if kind != whole} <= there:
        graph.graph["reports"] = [
            *graph.graph["reports"],
            "the Neuronpedia file lists other nodes than its block circuitgraph, which was read",
        ]
    check(graph)
    return graph


def graph_of_parts(parts: Parts) -> nx.MultiDiGraph:
    """The graph of nodes, links and logits; GraphError for links that name no node or go backward."""
    metric = Node("metric", Site("metric"), max(0, len(parts.tokens) - 1))
    keys = {name: str(node) for name, node in parts.nodes.items()} | dict.fromkeys(parts.logits, str(metric))
    if len(set(keys.values())) < len(parts.nodes) + bool(parts.logits):
        raise GraphError("two of its nodes are one: the same kind, layer, feature and position")
    if not parts.logits:
        raise GraphError("it has no logit node, and a graph is about one")
    edges = _edges(parts, keys, str(metric))
    by_target: dict[str, list[dict[str, Any]]] = {}
    leaving: dict[str, list[dict[str, Any]]] = {key: [] for key in keys.values()}
    for edge in edges:
        leaving[edge["source"]].append(edge)
        by_target.setdefault(edge["target"], []).append(edge)
    attribution: dict[str, float] = {}
    silent = 0
    order = sorted(((node, keys[name]) for name, node in parts.nodes.items()), key=lambda item: item[0].order)
    slopes = {str(metric): 1.0}
    names = {key: name for name, key in keys.items()}
    for _, key in reversed(order):
        for edge in leaving[key]:
            edge["weight"] = edge["local_weight"] * slopes.get(edge["target"], 0.0)
        attribution[key] = sum(edge["weight"] for edge in leaving[key])
        activation = parts.attributes[names[key]].get("activation")
        slopes[key] = attribution[key] / activation if activation else 0.0
        silent += not activation and key in by_target
    total = sum(edge["weight"] for edge in by_target.get(str(metric), []))
    builder = Builder(_facts(parts, total, silent))
    for name, node in parts.nodes.items():
        builder.add_node(keys[name], node.fields | {"attribution": attribution[keys[name]]} | parts.attributes[name])
    builder.add_node(str(metric), metric.fields | {"attribution": total})
    for edge in edges:
        builder.add_edge(edge.pop("source"), edge.pop("target"), edge)
    return builder.finished()


def _edges(parts: Parts, keys: dict[str, str], metric: str) -> list[dict[str, Any]]:
    """The edges with their local weights; links to several logits are one edge to the metric."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for i, (source, target, given, weight) in enumerate(parts.links):
        for end in (source, target):
            if end not in keys:
                raise GraphError(f"link {i + 1} names {end[:80]!r}, which is not among the nodes")
        if source in parts.logits:
            raise GraphError(f"link {i + 1} leaves the logit {source[:80]!r}; links run forward")
        start = keys[source]
        if target in parts.logits:
            edge = found.setdefault(
                (start, metric, "metric"),
                {"source": start, "target": metric, "kind": "metric", "local_weight": 0.0, "logit_weights": {}},
            )
            if target in edge["logit_weights"]:
                raise GraphError(f"link {i + 1} repeats {source[:80]!r} -> {target[:80]!r}")
            edge["logit_weights"][target] = weight
            edge["local_weight"] += weight * parts.logits[target][1]
            continue
        node = parts.nodes[target]
        if parts.nodes[source].site.depth >= node.site.depth:
            raise GraphError(
                f"link {i + 1}, {source[:80]!r} -> {target[:80]!r}, does not run forward through the model"
            )
        kind = given or ("ov" if node.site.kind in ATTENTION_SITES else "mlp")
        if (start, keys[target], kind) in found:
            raise GraphError(f"link {i + 1} repeats {source[:80]!r} -> {target[:80]!r}")
        found[start, keys[target], kind] = {
            "source": start, "target": keys[target], "kind": kind, "local_weight": weight, "weight": 0.0,
        }  # fmt: skip
    return list(found.values())


def _facts(parts: Parts, total: float, silent: int) -> dict[str, Any]:
    reports = [
        "read from an attribution graph of one prompt: the metric is the sum of the links into the logits times their"
        " probability"
    ]
    if silent:
        reports.append(
            f"{silent} nodes with inputs have no activation: what reaches the metric through them is not counted"
        )
    if parts.n_pairs:
        reports.append(
            f"{parts.n_pairs} contributions of a query and a key together were left out: an edge has one source"
        )
    logits = {name: {"label": label, "probability": p} for name, (label, p) in parts.logits.items()}
    facts = {
        "tokens": {"clean": parts.tokens, "corrupted": None},
        "metric": {"name": "probability_weighted_logits", "clean": total, "corrupted": None},
        "n_layers": parts.n_layers,
        "n_examples": 1,
        "logits": {"clean": [[label, p] for label, p in parts.logits.values()]},
        "provenance": {"source": "attribution graph"},
        "reports": reports,
    }
    return facts | parts.facts | {"neuronpedia": {"logits": logits} | parts.facts.get("neuronpedia", {})}


def _parts(data: dict[str, Any]) -> Parts:
    metadata = data["metadata"]
    tokens = [
        take_string(token, "a token") for token in take_list(metadata.get("prompt_tokens"), "metadata.prompt_tokens")
    ]
    coded = metadata.get("schema_version") == 1 or "neuronpedia_source_set" in (metadata.get("feature_details") or {})
    rows = [take_object(row, f"node {i + 1}") for i, row in enumerate(data["nodes"])]
    only = take_object(data.get("qk_only_nodes", {}), "qk_only_nodes")
    rows += [take_object(row, f"qk_only_nodes {name[:80]!r}") for name, row in only.items()]
    nodes: dict[str, Node] = {}
    attributes: dict[str, dict[str, Any]] = {}
    logits: dict[str, tuple[str, float]] = {}
    links = []
    taken: set[Node] = set()
    top = n_pairs = 0
    for i, row in enumerate(rows):
        where = f"node {i + 1}"
        name = take_string(row.get("node_id"), f"{where}: node_id")
        if name in nodes or name in logits:
            raise GraphError(f"{where} repeats the id {name[:80]!r}")
        if row.get("feature_type") == "unknown":
            continue  # a placeholder
        node = node_of(row, where, coded)
        label = take_string(row.get("clerp"), f"{where}: clerp")
        if node is None:
            logits[name] = (label, _probability(row, label, where))
            top = max(top, layer_of(row.get("layer"), where))
            continue
        nodes[name] = node = _apart(node, taken)
        taken.add(node)
        if node.pos >= len(tokens):
            raise GraphError(f"{where} stands at position {node.pos}; the prompt has {len(tokens)} tokens")
        attributes[name] = _attributes(row, label, where)
        links += _traced(row, name, where)
        n_pairs += len(take_list(_qk(row, where).get("pair_wise_contributors", []), f"{where}: pair_wise_contributors"))
    for i, link in enumerate(data["links"]):
        where = f"link {i + 1}"
        row = take_object(link, where)
        ends = [take_string(row.get(end), f"{where}: {end}") for end in ("source", "target")]
        links.append((ends[0], ends[1], "", take_number(row.get("weight"), f"{where}: weight")))
    layers = [node.site.layer + 1 for node in nodes.values() if node.site.layer is not None]
    kept = {name: metadata[name] for name in ("slug", "scan", "transcoder_list", "info") if name in metadata}
    provenance = {"source": "attribution graph", "model": str(metadata.get("scan", "")), "prompts": _prompts(metadata)}
    parts = Parts(tokens, max(layers, default=max(1, top)), nodes, attributes, logits, links, n_pairs)
    parts.facts = {"provenance": provenance, "neuronpedia": {"metadata": kept}} | _marks(
        data["qParams"], {name: str(node) for name, node in nodes.items()}
    )
    return parts


def _apart(node: Node, taken: set[Node]) -> Node:
    """The node, or what a second one of its place stands for: the position's embedding, the bias of the MLP."""
    if node in taken and node.kind == "embedding":
        return Node("pos_embedding", Site("pos_embed"), node.pos)
    if node in taken and node.kind == "bias":
        return Node("bias", Site("mlp_out", node.site.layer), node.pos)
    return node


def _attributes(row: dict[str, Any], label: str, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {"label": label} if label else {}
    for name in ("activation", "influence"):
        if row.get(name) is not None:
            found[name] = take_number(row[name], f"{where}: {name}")
    return found


def _qk(row: dict[str, Any], where: str) -> dict[str, Any]:
    found = row.get("qk_tracing_results")
    return {} if found is None else take_object(found, f"{where}: qk_tracing_results")


def _traced(row: dict[str, Any], name: str, where: str) -> list[tuple[str, str, str, float]]:
    """The q and k edges that reach a node."""
    results, found = _qk(row, where), []
    for kind in ("q", "k"):
        key = f"top_{kind}_marginal_contributors"
        for pair in take_list(results.get(key, []), f"{where}: {key}"):
            source, weight = (*take_list(pair, f"{where}: {key}"), None, None)[:2]
            weight = take_number(weight, f"{where}: {key}")
            found.append((take_string(source, f"{where}: {key}"), name, kind, weight))
    return found


def _probability(row: dict[str, Any], label: str, where: str) -> float:
    match, given = _PROBABILITY.search(label), row.get("token_prob")
    probability = 0.0 if given is None else take_number(given, f"{where}: token_prob")
    if not probability and match is not None:
        try:
            probability = float(match[1])
        except ValueError:
            raise GraphError(f"{where}: {label[:80]!r} holds no probability") from None
    elif given is None:
        raise GraphError(f"{where} is a logit without a probability: neither token_prob nor (p=...) in its label")
    if not 0 <= probability <= 1.001:
        raise GraphError(f"{where} has probability {probability}; expected 0 to 1")
    return probability


def _prompts(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = metadata.get("prompt")
    return [{"clean": prompt}] if isinstance(prompt, str) else []


def _marks(params: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """groups and pins of qParams, with our names; ids that name no node are passed over, as their pages do."""
    groups = []
    for i, supernode in enumerate(take_list(params.get("supernodes") or [], "qParams.supernodes")):
        members = [take_string(item, f"supernode {i + 1}") for item in take_list(supernode, f"supernode {i + 1}")]
        if members:
            groups.append({"label": members[0], "nodes": _known(members[1:], keys)})
    pins = _known(take_list(params.get("pinnedIds") or [], "qParams.pinnedIds"), keys)
    return ({"groups": groups} if groups else {}) | ({"pins": pins} if pins else {})


def _known(names: Iterable[Any], keys: dict[str, str]) -> list[str]:
    return [keys[name] for name in names if isinstance(name, str) and name in keys]


def _take_marks(graph: nx.MultiDiGraph, params: dict[str, Any], keys: dict[str, str]) -> None:
    """Give the graph the groups and pins of qParams unless they are its own: their page writes them there."""
    marks = _marks(params, keys)
    groups = [(group["label"], group["nodes"]) for group in marks.get("groups", [])]
    if groups != [(label, members) for label, members in groups_of(graph) if members]:
        graph.graph["groups"] = marks.get("groups", [])
    if marks.get("pins", []) != pins_of(graph):
        graph.graph["pins"] = marks.get("pins", [])

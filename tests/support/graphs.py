"""A synthetic circuit graph with the schema of `circuitgraph.graph`, for every test that needs some graph.

In come sizes and a seed, out comes a networkx.MultiDiGraph that looks like an indirect-object circuit. It knows
no model: weights are drawn at random, but nodes, kinds, positions and the direction of edges obey the schema.
"""

from __future__ import annotations

import random
from typing import Any

import networkx as nx

from circuitgraph.nodes import Node, Site

CLEAN = [
    "<bos>",
    "When",
    " Mary",
    " and",
    " John",
    " went",
    " to",
    " the",
    " store",
    ",",
    " John",
    " gave",
    " a",
    " drink",
    " to",
]
HOSTILE = [
    "</script><img src=x onerror=window.PWNED=1>",
    "<!--<script>",
    "</style><script>window.PWNED=2</script>",
    "]]>&amp;&lt;",
    "\"'`${1}",
    "\\",
    "\\N\\",
    "\x00\x07\x1b\x7f",
    "\n\t\r",
    "\u2028\u2029\u202e\ufeff",
    "\ud800",
    "{{script}}{{data}}",
    "<b>hi</b>",
    "__proto__",
    "漢字🙂",
    "<svg onload=window.PWNED=3>",
    "<iframe srcdoc='<script>parent.PWNED=4</script>'>",
    "javascript:window.PWNED=5",
    "' onmouseover='window.PWNED=6",
    '" autofocus onfocus="window.PWNED=7',
    "&#60;script&#62;window.PWNED=8&#60;/script&#62;",
    "</title></textarea><script>window.PWNED=9</script>",
    "<math><mtext><img src=x onerror=window.PWNED=10>",
    "-->",
    "<![CDATA[",
    "<?xml version='1.0'?>",
    "constructor",
    "%3Cscript%3E#[",
    "\udfff\ud83d",
    "a\u0301\u200d\u2066",
    "',alert(1)//",
    "\\u003cscript\\u003e",
]
HEADS = 4


def example_graph(
    n_layers: int = 4,
    n_pos: int = 15,
    n_nodes: int = 120,
    seed: int = 0,
    n_edges: int | None = None,
    hostile: bool = False,
) -> nx.MultiDiGraph:
    """A graph of `n_nodes` nodes (the metric included) and about `n_edges` edges (default 3.4 per node)."""
    rng = random.Random(seed)
    clean, corrupted = _tokens(n_pos, hostile)
    graph = nx.MultiDiGraph(**_graph_attributes(clean, corrupted, n_layers))
    if n_nodes == 0:
        return graph
    _add_node(
        graph,
        Node("metric", Site("metric"), n_pos - 1),
        graph.graph["metric"]["clean"] - graph.graph["metric"]["corrupted"],
    )
    for node in _choose_nodes(rng, n_layers, n_pos, n_nodes - 1):
        _add_node(graph, node, rng.gauss(0.15, 0.3) * rng.random() ** 2, rng, hostile)
    _add_edges(graph, rng, round(3.4 * n_nodes) if n_edges is None else n_edges)
    return graph


def with_targets(graph: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """The graph with two logits and a probe between the metric and its inputs, each of which goes to one of them."""
    metric = next(node for node, kind in graph.nodes(data="kind") if kind == "metric")
    pos = graph.nodes[metric]["pos"]
    result = nx.MultiDiGraph(graph)
    targets = [Node("logit", Site("logit"), pos, 7), Node("logit", Site("logit"), pos, 9)]
    targets.append(Node("probe", Site("resid_post", graph.graph["n_layers"] - 1), pos, 2))
    for number, (node, text) in enumerate(zip(targets, (" Mary", " John", "a direction"), strict=True)):
        _add_node(result, node, (2.5, -1.25, 0.75)[number])
        words = {"token": text} if node.kind == "logit" else {"label": text}
        result.nodes[str(node)].update(words, target=text, target_weight=(0.75, -0.25, 1.0)[number])
        weight = (2.5, -1.25, 0.75)[number]
        result.add_edge(str(node), metric, key="metric", kind="metric", weight=weight, local_weight=weight)
    for number, (source, _, data) in enumerate(sorted(graph.in_edges(metric, data=True), key=lambda edge: edge[0])):
        result.remove_edge(source, metric, "metric")
        result.add_edge(source, str(targets[number % 3]), key="metric", **data)
    return result


def _tokens(n_pos: int, hostile: bool) -> tuple[list[str], list[str]]:
    source = HOSTILE if hostile else CLEAN
    clean = [source[i % len(source)] for i in range(n_pos)]
    corrupted = [" Anna" if i == min(10, n_pos - 1) else token for i, token in enumerate(clean)]
    return clean, corrupted


def _graph_attributes(clean: list[str], corrupted: list[str], n_layers: int) -> dict[str, Any]:
    names = [" Mary", " John", " the", " Anna", " her"]
    return {
        "tokens": {"clean": clean, "corrupted": corrupted},
        "n_layers": n_layers,
        "n_examples": 32,
        "metric": {"name": "logit_difference", "clean": 3.4213, "corrupted": -2.9508},
        "logits": {
            "clean": [[name, prob] for name, prob in zip(names, (0.71, 0.08, 0.05, 0.02, 0.01), strict=True)],
            "corrupted": [
                [name, prob] for name, prob in zip(reversed(names), (0.4, 0.3, 0.1, 0.03, 0.02), strict=True)
            ],
        },
        "provenance": {"model": "example-4l", "settings": {"method": "integrated gradients", "steps": 10}},
        "evidence": {
            "faithfulness": 0.8312,
            "faithfulness_errors_removed": 0.5527,
            "pearson_r": 0.9371,
            "n_patched": 64,
        },
        "reports": ["node threshold 0.8: kept 119 of 5,214 nodes", "edge threshold 0.98: kept 405 of 9,120 edges"],
    }


def _choose_nodes(rng: random.Random, n_layers: int, n_pos: int, count: int) -> list[Node]:
    nodes: list[Node] = [Node("embedding", Site("embed"), pos) for pos in range(n_pos)][:count]
    biased = [Node("bias", Site(kind, layer), n_pos - 1) for layer in range(n_layers) for kind in ("z", "mlp_out")]
    nodes += biased[: max(0, min(4, count - len(nodes)))]
    chosen = dict.fromkeys(nodes)
    while len(chosen) < count:
        site = Site(rng.choice(("z", "mlp_out", "mlp_out")), rng.randrange(n_layers))
        pos = n_pos - 1 if rng.random() < 0.3 else rng.randrange(n_pos)
        error = rng.random() < 0.12
        chosen[Node("error", site, pos) if error else Node("feature", site, pos, rng.randrange(4096))] = None
    return list(chosen)


def _add_node(
    graph: nx.MultiDiGraph, node: Node, attribution: float, rng: random.Random | None = None, hostile: bool = False
) -> None:
    feature = node.kind == "feature"
    graph.add_node(
        str(node),
        kind=node.kind,
        site=str(node.site),
        layer=node.site.layer,
        pos=node.pos,
        feature=node.feature,
        attribution=attribution,
    )
    if rng and feature:
        graph.nodes[str(node)].update(activation=rng.uniform(0, 8), baseline_activation=rng.uniform(0, 1))
        words = HOSTILE if hostile else [" Mary", " John", " name", " store", " she", " gave"]
        if rng.random() < 0.5:
            graph.nodes[str(node)]["top_tokens"] = rng.sample(words, 4)
        if rng.random() < 0.3:
            graph.nodes[str(node)]["effect"] = attribution * rng.uniform(0.7, 1.2)
        if rng.random() < 0.08:
            graph.nodes[str(node)]["label"] = (
                rng.choice(words) if hostile else rng.choice(("name mover", "duplicate token", "S-inhibition"))
            )


def _add_edges(graph: nx.MultiDiGraph, rng: random.Random, count: int) -> None:
    nodes = sorted((Node.parse(key) for key in graph), key=lambda node: node.order)
    targets = [node for node in nodes if node.kind in ("feature", "metric")]
    pairs = [(u, v) for v in targets for u in nodes if _may_read(u, v)]
    for _ in range(20 * count if pairs else 0):
        if count <= 0:
            break
        source, target = rng.choice(pairs)
        kind = {"metric": "metric", "mlp_out": "mlp"}.get(target.site.kind) or rng.choice(_typed(source, target))
        count -= not graph.has_edge(str(source), str(target), kind)
        weight = rng.gauss(0, 1) * rng.random() ** 4
        heads = [rng.gauss(0, abs(weight)) for _ in range(HEADS)] if kind in ("ov", "q", "k") else None
        attributes = {
            "weight": weight,
            "local_weight": sum(heads) if heads else 1.7 * weight,
            "weight_abs": abs(weight) * 1.1,
        }
        graph.add_edge(
            str(source), str(target), key=kind, kind=kind, **attributes, **({"heads": heads} if heads else {})
        )


def _may_read(source: Node, target: Node) -> bool:
    if source.site.depth >= target.site.depth or (target.kind == "feature" and source.site.depth == target.site.depth):
        return False
    if target.site.kind == "z":
        return source.pos <= target.pos
    return source.pos == target.pos


def _typed(source: Node, target: Node) -> tuple[str, ...]:
    return ("ov", "q", "k") if source.pos == target.pos else ("ov", "k")

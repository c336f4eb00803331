"""Graphs that look for trouble, for the tests of graph files.

In comes hypothesis' data or a size, out comes a graph that keeps the schema: any text (controls, lone surrogates, markup), names
of attributes that formats keep for themselves, missing and nested values, parallel edges, one node.
"""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import networkx as nx

from circuitgraph.nodes import EDGE_KINDS, Node, Site
from support.graphs import HOSTILE

TEXT = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(HOSTILE)
NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-310, 1.7e308])
NAMES = st.sampled_from(
    [
        "label",
        "type",
        "weight",
        "Name",
        "kind ",
        "json_heads",
        "cg_label",
        "json_cg_x",
        "x",
        "viz",
        "SUID",
        "__proto__",
        "key",
        "node_for_adding",
    ]
) | TEXT.filter(lambda text: text not in ("id", "source", "target"))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
OWN = {"kind", "site", "layer", "pos", "feature", "attribution", "heads", "weight", "local_weight", "weight_abs", "label"} | {
    "top_tokens", "effect", "activation", "baseline_activation", "note",
}  # fmt: skip
EXTRA = st.dictionaries(NAMES.filter(lambda name: name not in OWN), VALUE, max_size=3)


@st.composite
def graphs(draw: st.DrawFn) -> nx.MultiDiGraph:
    """A graph of one to about ten nodes with any edges between them."""
    n_pos, n_layers = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    graph = nx.MultiDiGraph()
    graph.graph.update(_facts(draw, n_pos, n_layers))
    metric = Node("metric", Site("metric"), n_pos - 1)
    sites = st.builds(
        Site, st.sampled_from(["z", "attn_out", "mlp_out", "mlp_post", "resid_post"]), st.integers(0, n_layers - 1)
    )
    pos = st.integers(0, n_pos - 1)
    nodes = draw(
        st.lists(
            st.builds(Node, st.just("feature"), sites, pos, st.integers(0, 2**20))
            | st.builds(Node, st.sampled_from(["error", "bias"]), sites, pos)
            | st.builds(Node, st.just("probe"), sites, pos, st.integers(0, 9))
            | st.builds(lambda p: Node("embedding", Site("embed"), p), pos)
            | st.builds(lambda p: Node("pos_embedding", Site("pos_embed"), p), pos),
            unique=True,
            max_size=8,
        )
    )
    for node in [*nodes, metric]:
        extra = draw(EXTRA) | {"attribution": draw(NUMBER)}
        if node.kind == "feature" and draw(st.booleans()):
            extra |= {"activation": draw(NUMBER), "top_tokens": draw(st.lists(TEXT, max_size=2)), "label": draw(TEXT)}
        graph.add_nodes_from([(str(node), node.fields | extra)])
    pairs = [(a, b) for a in nodes for b in [*nodes, metric] if a.site.depth < b.site.depth]
    for source, target in draw(st.lists(st.sampled_from(pairs), max_size=8)) if pairs else []:
        kind = draw(st.sampled_from(EDGE_KINDS))
        weight = st.floats(-1e6, 1e6)
        data: dict[str, Any] = {"kind": kind, "weight": draw(weight), "local_weight": draw(weight)}
        if draw(st.booleans()):
            data |= {"heads": draw(st.lists(weight, max_size=3)), "weight_abs": draw(weight)}
        graph.add_edges_from([(str(source), str(target), kind, draw(EXTRA) | data)])
    keys = [str(node) for node in nodes]
    if keys and draw(st.booleans()):
        graph.graph["groups"] = [
            {"label": draw(TEXT), "nodes": draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3))}
        ]
        graph.graph["pins"] = draw(st.lists(st.sampled_from(keys), max_size=2))
    return graph


def _facts(draw: st.DrawFn, n_pos: int, n_layers: int) -> dict[str, Any]:
    tokens = st.lists(TEXT, min_size=n_pos, max_size=n_pos)
    extra = draw(
        st.dictionaries(st.sampled_from(["extra", "name", "node_default", "incoming_graph_data"]), VALUE, max_size=2)
    )
    return extra | {
        "tokens": {"clean": draw(tokens), "corrupted": draw(tokens)},
        "metric": {"name": draw(TEXT), "clean": draw(NUMBER), "corrupted": draw(NUMBER)},
        "n_layers": n_layers,
        "n_examples": 1,
        "provenance": draw(st.dictionaries(st.just("settings"), st.dictionaries(TEXT, VALUE, max_size=2))),
        "reports": draw(st.lists(TEXT, max_size=2)),
    }


def large_graph(n_edges: int = 100_000, seed: int = 0) -> nx.MultiDiGraph:
    """A graph of 1,001 nodes and n_edges edges."""
    rng = random.Random(seed)
    graph = nx.MultiDiGraph()
    graph.graph.update(
        tokens={"clean": [" a"] * 10, "corrupted": [" b"] * 10}, metric={"name": "logit", "clean": 2.0, "corrupted": 1.0},
        n_layers=10, n_examples=1, provenance={}, reports=[],
    )  # fmt: skip
    nodes = [Node("feature", Site("mlp_out", i % 10), i // 10 % 10, i) for i in range(1000)]
    for node in [*nodes, Node("metric", Site("metric"), 9)]:
        graph.add_node(str(node), **node.fields, attribution=rng.random())
    names = [str(node) for node in nodes]
    forward = [(names[i], names[j]) for i in range(1000) for j in range(1000) if i % 10 < j % 10]  # by layer
    chosen = [(*pair, kind) for pair in rng.sample(forward, n_edges // 4) for kind in ("mlp", "ov", "q", "k")]
    for source, target, kind in chosen:
        graph.add_edge(source, target, key=kind, kind=kind, weight=rng.random(), local_weight=rng.random())
    return graph

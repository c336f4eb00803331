"""EAP-IG / MIB JSON: scores of edges between attention heads and MLPs. Both ways; what is read is written back equal.

A component is a node like any other:

    input    embed@0                  a3.h7   z.3/f7@0   head 7 is feature 7 of the z vectors of layer 3
    logits   metric@0                 m3      mlp_out.3/f0@0
    u->v<q>  an edge of kind q        u->v<k> k          u->v<v> ov          u->m3 mlp          u->logits metric

These files know no positions, so every node stands at 0. The graph attribute `components` ({"n_heads", "d_model",
"parallel_attn_mlp", "n_edges"}) says that a graph is one of these. Score is the weight of an edge; it is also its
local_weight, for want of another. `in_graph` on nodes and edges is membership in a circuit; `score`, `neurons` and
`neurons_scores` of nodes are kept. Attribution of a node is the sum of the scores of its outgoing edges, its
first-order effect in EAP.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.components.shape import ComponentShape
from circuitgraph.errors import GraphError
from circuitgraph.files import write_atomically
from circuitgraph.formats.build import Builder, check
from circuitgraph.formats.untrusted import parse_json, read_text, reading
from circuitgraph.formats.values import plain_graph, take_number, take_object, take_whole
from circuitgraph.nodes import Node, Site

KINDS = {"q": "q", "k": "k", "v": "ov"}
MAX_LAYERS, MAX_HEADS = 512, 512
_COMPONENT = re.compile(r"input|logits|a(?P<attention>\d{1,4})\.h(?P<head>\d{1,4})|m(?P<mlp>\d{1,4})")
_KEPT = ("score", "neurons", "neurons_scores")


def read_eap(path: str | Path) -> nx.MultiDiGraph:
    """The graph of an EAP-IG or MIB JSON file, with all of its edges; `in_graph` says which are its circuit."""
    with reading(path):
        return value_from_eap(parse_json(read_text(path)))


def write_eap(graph: nx.MultiDiGraph, path: str | Path) -> None:
    """Write a graph of components as EAP-IG JSON; GraphError for any other graph."""
    write_atomically(path, json.dumps(eap_value(graph), allow_nan=False))


def value_from_eap(value: Any) -> nx.MultiDiGraph:
    """The graph of the JSON value of such a file."""
    data = take_object(value, "the file")
    config, nodes, edges = (take_object(data.get(name), name) for name in ("cfg", "nodes", "edges"))
    n_layers = take_whole(config.get("n_layers"), "cfg.n_layers", 1, MAX_LAYERS)
    n_heads = take_whole(config.get("n_heads"), "cfg.n_heads", 1, MAX_HEADS)
    parallel = config.get("parallel_attn_mlp", False)
    if not isinstance(parallel, bool):
        raise GraphError("cfg.parallel_attn_mlp is no true or false")
    components = {"n_heads": n_heads, "parallel_attn_mlp": parallel, "n_edges": len(edges)}
    if "d_model" in config:
        components["d_model"] = take_whole(config["d_model"], "cfg.d_model", 1)
    rows = [
        _edge(name, take_object(edge, f"edge {name!r}"), n_layers, n_heads, parallel) for name, edge in edges.items()
    ]
    sent: dict[str, float] = {}
    for source, _, attributes in rows:
        sent[source] = sent.get(source, 0.0) + attributes["weight"]
    total = float(sum(a["weight"] for *_, a in rows if a["kind"] == "metric"))
    builder = Builder(_facts(n_layers, components, total))
    for name, given in nodes.items():
        key = _key(name, n_layers, n_heads)
        kept = {k: v for k, v in take_object(given, f"node {name!r}").items() if k in _KEPT}
        in_graph = _membership(given, f"node {name!r}")
        attribution = total if name == "logits" else sent.get(key, 0.0)
        place = Node.parse(key).fields
        builder.add_node(key, place | {"label": name, "in_graph": in_graph, "attribution": attribution} | kept)
    for source, target, attributes in rows:
        builder.add_edge(source, target, attributes)
    return builder.finished()


def eap_value(graph: nx.MultiDiGraph) -> dict[str, Any]:
    """The JSON value of a graph of components. Nodes and edges stand in the order of EAP-IG, input to logits.

    A graph that has all the edges of its file keeps their `in_graph`; of one that was pruned, the edges that are left
    are the circuit, and the others are written with score 0.0, since every edge of the model must be there.
    """
    graph = plain_graph(graph)
    check(graph)
    config, components = _config(graph)
    whole = graph.number_of_edges() == components.get("n_edges")
    n_layers, n_heads, parallel = config["n_layers"], config["n_heads"], config["parallel_attn_mlp"]
    named = {name: _key(name, n_layers, n_heads) for name in component_names(n_layers, n_heads)}
    unknown = set(graph) - set(named.values())
    if unknown:
        raise GraphError(f"node {min(unknown)!r} is no head, MLP, input or logits; EAP-IG files hold nothing else")
    nodes: dict[str, Any] = {}
    for name, key in named.items():
        data = graph.nodes.get(key)
        if data is None and whole:
            continue
        data = data or {}
        in_graph = bool(data.get("in_graph", True)) if whole else key in graph and (graph.degree(key) > 0)
        nodes[name] = {"in_graph": in_graph} | {k: data[k] for k in _KEPT if k in data}
    edges: dict[str, Any] = {}
    for source, target, letter in component_edges(n_layers, n_heads, parallel):
        kind = KINDS.get(letter) or ("metric" if target == "logits" else "mlp")
        data = graph.get_edge_data(named[source], named[target], kind)
        if data is None and whole:
            continue
        name = f"{source}->{target}" + (f"<{letter}>" if letter else "")
        in_graph = bool((data or {}).get("in_graph", True)) if whole else data is not None
        edges[name] = {"score": 0.0 if data is None else data["weight"], "in_graph": in_graph}
    written = sum(1 for edge in edges.values() if whole or edge["in_graph"])
    if written < graph.number_of_edges():
        raise GraphError(
            f"{graph.number_of_edges() - written} edges join components that no transformer of this shape joins"
        )
    return {"cfg": config, "nodes": nodes, "edges": edges}


def component_names(n_layers: int, n_heads: int) -> Iterator[str]:
    """input, a0.h0, ..., m0, a1.h0, ..., logits."""
    yield "input"
    for layer in range(n_layers):
        yield from (f"a{layer}.h{head}" for head in range(n_heads))
        yield f"m{layer}"
    yield "logits"


def component_edges(n_layers: int, n_heads: int, parallel: bool) -> Iterator[tuple[str, str, str]]:
    """(source, target, "q", "k", "v" or "") of every edge of a transformer of that shape, in the order of EAP-IG."""
    shape = ComponentShape(n_layers, n_heads, parallel)
    *writers, logits = component_names(n_layers, n_heads)
    for layer in range(n_layers):
        stream, heads = writers[: shape.writers_before(layer)], writers[shape.heads(layer)]
        yield from ((source, head, letter) for source in stream for head in heads for letter in KINDS)
        yield from ((source, f"m{layer}", "") for source in writers[: shape.writers_before(layer, mlp=True)])
    yield from ((source, logits, "") for source in writers)


def edge_place(shape: ComponentShape, name: str) -> tuple[int, int]:
    """The row and column of an edge, such as a3.h7->a5.h1<q>, in the masks of `components.edge_masks`."""
    source, _, rest = name.partition("->")
    target, _, letter = rest.partition("<")
    writer, reader = (Node.parse(_key(end, shape.n_layers, shape.n_heads)) for end in (source, target))
    return shape.writer(writer), shape.reader(reader, KINDS.get(letter[:1], ""))


@functools.lru_cache(maxsize=1 << 14)  # a file names each component once per edge
def _key(name: str, n_layers: int, n_heads: int) -> str:
    match = _COMPONENT.fullmatch(name)
    if match is None:
        raise GraphError(f"component {name[:60]!r} is none of input, a3.h7, m3, logits")
    if match["attention"] is not None:
        layer, head = int(match["attention"]), int(match["head"])
        if layer < n_layers and head < n_heads:
            return str(Node("feature", Site("z", layer), 0, head))
    elif match["mlp"] is not None:
        if int(match["mlp"]) < n_layers:
            return str(Node("feature", Site("mlp_out", int(match["mlp"])), 0, 0))
    else:
        return "embed@0" if name == "input" else "metric@0"
    raise GraphError(f"component {name!r} is not in a model of {n_layers} layers with {n_heads} heads")


def _edge(
    name: str, edge: dict[str, Any], n_layers: int, n_heads: int, parallel: bool
) -> tuple[str, str, dict[str, Any]]:
    where = f"edge {name[:60]!r}"
    source, arrow, rest = name.partition("->")
    target, bracket, letter = rest.partition("<")
    kind = {"a": KINDS.get(letter.removesuffix(">")), "m": "mlp", "l": "metric"}.get(target[:1])
    if not arrow or kind is None or bool(bracket) != (target[:1] == "a") or (bracket and not letter.endswith(">")):
        raise GraphError(f"{where} does not parse: expected for instance 'a3.h7->a5.h1<q>', 'm3->m4' or 'm3->logits'")
    ends = _key(source, n_layers, n_heads), _key(target, n_layers, n_heads)
    if parallel and source[0] == "a" and target[0] == "m" and source[1:].partition(".")[0] == target[1:]:
        raise GraphError(f"{where}: attention and MLP of one layer run in parallel in this model")
    take_number(edge.get("score"), f"{where}: score")
    score = edge["score"]
    return *ends, {"kind": kind, "weight": score, "local_weight": score, "in_graph": _membership(edge, where)}


def _membership(given: dict[str, Any], where: str) -> bool:
    value = given.get("in_graph")
    if not isinstance(value, bool):
        raise GraphError(f"{where}: in_graph is {str(value)[:40]}; expected true or false")
    return value


def _facts(n_layers: int, components: dict[str, Any], total: float) -> dict[str, Any]:
    return {
        "tokens": {"clean": ["all positions"], "corrupted": None},
        "metric": {"name": "score", "clean": total, "corrupted": None},
        "n_layers": n_layers,
        "n_examples": 1,
        "components": components,
        "provenance": {"source": "EAP-IG JSON"},
        "reports": [
            "read from EAP-IG JSON: the metric is the sum of the scores into the logits; it names no prompts",
            "local_weight is the score: the file has no other number for an edge",
        ],
    }


def _config(graph: nx.MultiDiGraph) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cfg of the file and the graph attribute `components`; GraphError for a graph without it."""
    if "components" not in graph.graph:
        raise GraphError(
            "EAP-IG files hold scores between heads and MLPs; this graph has dictionary features and no attribute"
            " `components`. Export it in another format"
        )
    components = take_object(graph.graph["components"], "graph.components")
    config = {
        "n_layers": take_whole(graph.graph["n_layers"], "graph.n_layers", 1, MAX_LAYERS),
        "n_heads": take_whole(components.get("n_heads"), "components.n_heads", 1, MAX_HEADS),
        "parallel_attn_mlp": bool(components.get("parallel_attn_mlp", False)),
    }
    if "d_model" in components:
        config["d_model"] = take_whole(components["d_model"], "components.d_model", 1)
    return config, components

"""The circuit graph: a plain networkx.MultiDiGraph with documented attributes.

In come node tables, edges and the facts of the run; out comes a graph whose nodes are keyed by their text form and whose
edges are keyed by kind. Attributes are finite Python values. This module attributes and draws nothing.

Node attributes
    kind                  embedding, pos_embedding, bias, feature, error, probe, logit, metric
    site, layer, pos, feature   where it stands; layer is None for embeddings, logits and the metric; pos counts in tokens;
                          feature is a feature's index, a logit's token id, a probe's number
    attribution           estimated contribution to the metric clean - baseline, mean over the examples; the metric node
                          has the measured clean - corrupted
    activation, baseline_activation   mean over the examples, features only
    top_tokens            tokens that the write vector promotes directly, features only
    token                 the text of a logit's token
    target, target_weight what a logit or probe stands for, in words, and d metric / d target
    stream_input, unexplained   what a target reads of clean minus baseline through its (linear) paths, measured on the streams,
                          and the part of it that none of its edges explains; targets whose inputs were traced only
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
    tokens {clean, corrupted}   of the first pair; of aligned pairs what they share at a place, or its name, and
                          provenance.alignment {places, index [example][place]: position, -1}; of sums one place
    groups [{label, nodes}], pins [node]    what the user put together; provenance.neuronpedia {model, sources}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.attribution.targets import TargetNode
from circuitgraph.edges.table import EdgeTable
from circuitgraph.errors import GraphError
from circuitgraph.models.model import Model
from circuitgraph.nodes import EDGE_KINDS, Node

N_TOP_TOKENS = 5
_OPTIONAL = ("effect", "weight_abs", "activation", "baseline_activation")


def build_graph(
    model: Model,
    tables: Sequence[NodeTable],
    edges: EdgeTable,
    facts: dict[str, Any],
    *,
    targets: Sequence[TargetNode] = (),
    inputs: Mapping[int, tuple[float, float]] | None = None,
) -> nx.MultiDiGraph:
    """The graph of these edges, their end nodes and the metric. `facts` become the graph attributes.

    The edges' nodes are those of the tables, one table after the other, then the targets and the metric. inputs: number of a
    target -> (what it reads, what of it no edge explains). facts["metric"] holds the metric's clean and corrupted means,
    whose difference is the metric node's attribution.
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
    rows[len(edges.nodes) - 1] = {"attribution": facts["metric"]["clean"] - facts["metric"]["corrupted"]}
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
    depth: dict[str, int] = {}
    for key, attributes in graph.nodes(data=True):
        node = Node.parse(key)
        depth[key] = node.site.depth
        for name, expected in node.fields.items():
            if name not in attributes or attributes[name] != expected:
                raise GraphError(f"node {key!r} has {name} {attributes.get(name)!r}; its name says {expected!r}")
        _check_numbers(f"node {key!r}", attributes, ("attribution",))
    if not _has_plain_edges(graph, depth):
        for source, target, kind, attributes in graph.edges(keys=True, data=True):
            _check_edge(source, target, kind, attributes, depth)
    metric_node(graph)


def _has_plain_edges(graph: nx.MultiDiGraph, depth: Mapping[str, int]) -> bool:
    """Whether all edges run forward and hold floats where most do, looked at as columns; if not, each is looked at."""
    rows = [data for _, inner in graph.adjacency() for keyed in inner.values() for data in keyed.values()]
    keys = [kind for _, inner in graph.adjacency() for keyed in inner.values() for kind in keyed]
    held = set(chain.from_iterable(rows))
    numbers = [data.get(name) for name in ("weight", "local_weight") for data in rows]
    numbers += [data[name] for name in _OPTIONAL if name in held for data in rows if name in data]
    lists = [data[name] for name in ("heads", "top_tokens") if name in held for data in rows if name in data]
    return (
        all(depth[source] < depth[target] for source, inner in graph.adjacency() for target in inner)
        and keys == [data.get("kind") for data in rows]
        and set(keys) <= set(EDGE_KINDS)
        and {float}.issuperset(map(type, numbers))
        and all(map(math.isfinite, numbers))
        and {list}.issuperset(map(type, lists))
    )


def _check_edge(source: str, target: str, kind: str, attributes: dict[str, Any], depth: Mapping[str, int]) -> None:
    where = f"edge {source!r} -> {target!r} ({kind})"
    if kind not in EDGE_KINDS or attributes.get("kind") != kind:
        raise GraphError(f"{where}: kind must be one of {', '.join(EDGE_KINDS)} and equal the edge's key")
    if depth[source] >= depth[target]:
        raise GraphError(f"{where} does not run forward through the model")
    _check_numbers(where, attributes, ("weight", "local_weight"))


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
    for name in (*required, *(n for n in _OPTIONAL if n in attributes)):
        if not _is_number(attributes.get(name)):
            raise GraphError(f"{where} has {name} {attributes.get(name)!r}; expected a finite number")
    for name in ("heads", "top_tokens"):
        if name in attributes and not isinstance(attributes[name], list):
            raise GraphError(f"{where} has {name} {attributes[name]!r}; expected a list")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

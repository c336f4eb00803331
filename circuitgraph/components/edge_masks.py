"""Circuits of components as masks [writers, readers]: a graph's circuit, circuits of growing size, pruning to paths."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.components.shape import INPUTS, ComponentShape
from circuitgraph.errors import GraphError
from circuitgraph.nodes import Node


def all_edges(shape: ComponentShape) -> Tensor:
    """Which pairs of writers and readers are edges of the model, [writers, readers]."""
    exists = torch.zeros(shape.n_writers, shape.n_readers, dtype=torch.bool)
    for layer in range(shape.n_layers):
        inputs = shape.head_inputs(layer)
        exists[: shape.writers_before(layer), inputs] = True
        exists[: shape.writers_before(layer, mlp=True), inputs.stop] = True
    exists[:, -1] = True
    return exists


def owners(shape: ComponentShape) -> Tensor:
    """The writer that each reader is the input of, [readers]; -1 for logits."""
    writers = torch.full((shape.n_readers,), -1)
    for layer in range(shape.n_layers):
        inputs, heads = shape.head_inputs(layer), shape.heads(layer)
        writers[inputs] = torch.arange(heads.start, heads.stop).repeat(3)
        writers[inputs.stop] = heads.stop
    return writers


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """A graph of components as matrices [writers, readers]: scores, which edges have one, which are the circuit."""

    shape: ComponentShape
    scores: Tensor
    scored: Tensor
    circuit: Tensor


def component_scores(graph: nx.MultiDiGraph) -> ComponentScores:
    """The matrices of a graph of components, as EAP-IG and MIB files are read; GraphError for any other graph.

    Of a graph with every edge of its file `in_graph` says which are its circuit; of one that was pruned all that are
    left.
    """
    facts = graph.graph.get("components")
    if not isinstance(facts, dict) or not isinstance(facts.get("n_heads"), int):
        raise GraphError(
            "this is no graph of heads and MLPs: it has no attribute `components`, which EAP-IG and MIB files give"
        )
    shape = ComponentShape(graph.graph["n_layers"], facts["n_heads"], bool(facts.get("parallel_attn_mlp", False)))
    exists = all_edges(shape)
    scores = torch.zeros(exists.shape, dtype=torch.float64)
    scored, circuit = torch.zeros_like(exists), torch.zeros_like(exists)
    whole = graph.number_of_edges() == facts.get("n_edges")
    nodes = {key: _component(shape, key) for key in graph}
    for source, target, kind, data in graph.edges(keys=True, data=True):
        place = shape.writer(nodes[source]), shape.reader(nodes[target], kind)
        if not exists[place] or (nodes[target].site.kind == "z") != (kind in INPUTS):
            raise GraphError(
                f"edge {source!r} -> {target!r} ({kind}) joins components that no model of this shape joins"
            )
        scores[place] = data["weight"]
        scored[place] = True
        circuit[place] = bool(data.get("in_graph", True)) or not whole
    partial = [key for key, kept in graph.nodes(data="neurons") if kept is not None and not all(kept)]
    if partial:
        raise GraphError(
            f"node {partial[0]!r} keeps only some of its dimensions (`neurons`); whole components are evaluated"
        )
    return ComponentScores(shape, scores, scored, circuit)


def _component(shape: ComponentShape, key: str) -> Node:
    """The node of this name; GraphError unless it is input, a head or an MLP of the shape, or the metric."""
    node = Node.parse(key)
    size = {"z": shape.n_heads, "mlp_out": 1}.get(node.site.kind, 0)
    inside = node.kind == "feature" and node.site.block < shape.n_layers and (node.feature or 0) < size
    if not inside and node.kind not in ("embedding", "metric"):
        raise GraphError(
            f"node {key!r} is no head or MLP of {shape.n_layers} layers with {shape.n_heads} heads; give the graph"
            " as it was read from its EAP-IG or MIB file"
        )
    return node


def edge_order(shape: ComponentShape, scores: Tensor, *, absolute: bool, selection: str = "top-n") -> Tensor:
    """The edges as flat indices, in the order in which circuits of growing size take them.

    Args:
        shape: The model's shape.
        scores: One score per edge, [writers, readers].
        absolute: Whether |score| counts in place of the score.
        selection: "top-n", the largest first, or "greedy", the largest first among those into logits or into a
            component that an edge before it starts from, as EAP-IG's greedy search does.
    """
    exists = all_edges(shape)
    values = (scores.abs() if absolute else scores).masked_fill(~exists, -torch.inf).flatten()
    ranked = values.argsort(descending=True, stable=True)[: int(exists.sum())]
    return ranked if selection == "top-n" else torch.tensor(_greedy(shape, exists, ranked))


def first_edges(shape: ComponentShape, order: Tensor, n: int) -> Tensor:
    """The circuit of the first n edges of an order, pruned, [writers, readers]."""
    circuit = torch.zeros(shape.n_writers * shape.n_readers, dtype=torch.bool)
    circuit[order[:n]] = True
    return prune_edges(shape, circuit.view(shape.n_writers, shape.n_readers))


def prune_edges(shape: ComponentShape, circuit: Tensor) -> Tensor:
    """The edges that lie on a path from input to logits: the others carry nothing of the clean run to the logits."""
    writer_of = owners(shape)
    while True:
        writes = circuit.any(1)
        reads = torch.zeros(shape.n_writers, dtype=torch.bool)
        reads[0] = True  # input reads nothing
        reads[writer_of[:-1][circuit[:, :-1].any(0)]] = True
        alive = writes & reads
        readers = torch.cat([alive[writer_of[:-1]], torch.ones(1, dtype=torch.bool)])
        pruned = circuit & alive[:, None] & readers
        if torch.equal(pruned, circuit):
            return circuit
        circuit = pruned


def _greedy(shape: ComponentShape, exists: Tensor, ranked: Tensor) -> list[int]:
    """All edges, each the best ranked of those that end in what is reached from logits."""
    rank = torch.empty(exists.numel(), dtype=torch.long)
    rank[ranked] = torch.arange(len(ranked))
    by_rank, rank = ranked.tolist(), rank.view(exists.shape)
    readers: dict[int, list[int]] = {}
    for reader, owner in enumerate(owners(shape).tolist()):
        readers.setdefault(owner, []).append(reader)

    def into(component: int) -> list[int]:
        columns = readers.get(component, [])
        ranks: list[int] = rank[:, columns][exists[:, columns]].tolist()
        return ranks

    heap, reached, order = into(-1), {-1}, []
    heapq.heapify(heap)
    while heap:
        order.append(by_rank[heapq.heappop(heap)])
        writer = order[-1] // shape.n_readers
        if writer not in reached:
            reached.add(writer)
            for item in into(writer):
                heapq.heappush(heap, item)
    return order

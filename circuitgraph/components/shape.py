"""Edges between components (input, heads, MLPs, logits) as a matrix, and which of them make a circuit.

In comes the shape of a model, or a graph of components with its scores; out come matrices [writers, readers] in the order
of EAP-IG: writers are input, then the heads and the MLP of each layer; readers are the q, k and v inputs of all heads and the
MLP of each layer, then logits. This module runs no model.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.errors import CircuitGraphError, GraphError, did_you_mean
from circuitgraph.nodes import Node

SELECTIONS = ("top-n", "greedy")
_INPUTS = ("q", "k", "ov")  # kinds of the edges into a head, in the order of its readers


@dataclass(frozen=True)
class ComponentShape:
    """How many components there are and who can read whom. parallel: attention and MLP of a layer read the same stream."""

    n_layers: int
    n_heads: int
    parallel: bool

    @property
    def n_writers(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_readers(self) -> int:
        return self.n_layers * (3 * self.n_heads + 1) + 1

    def writers_before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers stand before the attention of the layer, or before its MLP; those are the first ones."""
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if mlp and not self.parallel else 0)

    def heads(self, layer: int) -> slice:
        """The writers that are the heads of the layer; its MLP is the next one."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def head_inputs(self, layer: int) -> slice:
        """The readers that are the q inputs, then k, then v of the layer's heads; its MLP is the next one."""
        first = layer * (3 * self.n_heads + 1)
        return slice(first, first + 3 * self.n_heads)

    def edges(self) -> Tensor:
        """Which pairs are edges of the model, [writers, readers]."""
        exists = torch.zeros(self.n_writers, self.n_readers, dtype=torch.bool)
        for layer in range(self.n_layers):
            inputs = self.head_inputs(layer)
            exists[: self.writers_before(layer), inputs] = True
            exists[: self.writers_before(layer, mlp=True), inputs.stop] = True
        exists[:, -1] = True
        return exists

    def owners(self) -> Tensor:
        """The writer that each reader is the input of, [readers]; -1 for logits."""
        owners = torch.full((self.n_readers,), -1)
        for layer in range(self.n_layers):
            inputs, heads = self.head_inputs(layer), self.heads(layer)
            owners[inputs] = torch.arange(heads.start, heads.stop).repeat(3)
            owners[inputs.stop] = heads.stop
        return owners

    def writer(self, node: Node) -> int:
        """The row of a graph's node."""
        if node.kind == "embedding":
            return 0
        first = self.writers_before(node.site.block)
        return first + (node.feature or 0 if node.site.kind == "z" else self.n_heads)

    def reader(self, node: Node, kind: str) -> int:
        """The column of a graph's edge of that kind into the node."""
        if node.kind == "metric":
            return self.n_readers - 1
        first = node.site.block * (3 * self.n_heads + 1)
        if node.site.kind != "z":
            return first + 3 * self.n_heads
        return first + (_INPUTS.index(kind) if kind in _INPUTS else 0) * self.n_heads + (node.feature or 0)


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """A graph of components as matrices [writers, readers]: its scores, which edges have one, and which are its circuit."""

    shape: ComponentShape
    scores: Tensor
    scored: Tensor
    circuit: Tensor


def component_scores(graph: nx.MultiDiGraph) -> ComponentScores:
    """The matrices of a graph of components, as EAP-IG and MIB files are read; GraphError for any other graph.

    Of a graph with every edge of its file `in_graph` says which are its circuit; of one that was pruned all that are left.
    """
    facts = graph.graph.get("components")
    if not isinstance(facts, dict) or not isinstance(facts.get("n_heads"), int):
        raise GraphError(
            "this is no graph of heads and MLPs: it has no attribute `components`, which EAP-IG and MIB files give"
        )
    shape = ComponentShape(graph.graph["n_layers"], facts["n_heads"], bool(facts.get("parallel_attn_mlp", False)))
    exists = shape.edges()
    scores = torch.zeros(exists.shape, dtype=torch.float64)
    scored, circuit = torch.zeros_like(exists), torch.zeros_like(exists)
    whole = graph.number_of_edges() == facts.get("n_edges")
    nodes = {key: _component(shape, key) for key in graph}
    for source, target, kind, data in graph.edges(keys=True, data=True):
        place = shape.writer(nodes[source]), shape.reader(nodes[target], kind)
        if not exists[place] or (nodes[target].site.kind == "z") != (kind in _INPUTS):
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
            f"node {key!r} is no head or MLP of {shape.n_layers} layers with {shape.n_heads} heads; give the graph as it was"
            " read from its EAP-IG or MIB file"
        )
    return node


def check_selection(selection: str) -> None:
    """CircuitGraphError for a way of choosing edges that is unknown."""
    if selection not in SELECTIONS:
        raise CircuitGraphError(
            f"selection {selection!r} is unknown; expected one of {', '.join(SELECTIONS)}."
            f"{did_you_mean(selection, SELECTIONS)}"
        )


def edge_order(shape: ComponentShape, scores: Tensor, *, absolute: bool, selection: str = "top-n") -> Tensor:
    """The edges as flat indices, in the order in which circuits of growing size take them.

    top-n: by score (or |score|), the largest first. greedy: the largest first among those into logits or into a component
    that an edge before it starts from, as EAP-IG's greedy search does.
    """
    check_selection(selection)
    exists = shape.edges()
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
    owners = shape.owners()
    while True:
        writes = circuit.any(1)
        reads = torch.zeros(shape.n_writers, dtype=torch.bool)
        reads[0] = True  # input reads nothing
        reads[owners[:-1][circuit[:, :-1].any(0)]] = True
        alive = writes & reads
        readers = torch.cat([alive[owners[:-1]], torch.ones(1, dtype=torch.bool)])
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
    for reader, owner in enumerate(shape.owners().tolist()):
        readers.setdefault(owner, []).append(reader)

    def into(component: int) -> list[int]:
        columns = readers.get(component, [])
        found: list[int] = rank[:, columns][exists[:, columns]].tolist()
        return found

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

"""The tensors of a graph hold what the graph holds."""

from __future__ import annotations

import torch
from support.close import assert_close
from support.graphs import example_graph

from circuitgraph.graphs.tensors import tensors
from circuitgraph.nodes import Node


def test_every_node_and_the_sum_of_parallel_edges_is_in_the_tensors():
    graph = example_graph()
    found = tensors(graph)
    names = [str(node) for node in found.nodes]
    assert sorted(names) == sorted(graph) and names[-1] == "metric@14"
    assert found.nodes == sorted(found.nodes, key=lambda node: node.order)
    assert found.attribution.tolist() == [graph.nodes[name]["attribution"] for name in names]
    dense, summed, parallel = found.adjacency.to_dense(), 0, 0
    for i, target in enumerate(names):
        for j, source in enumerate(names):
            weights = [data["weight"] for data in (graph.get_edge_data(source, target) or {}).values()]
            assert_close(float(dense[i, j]), float(sum(weights)), zeros=not weights)
            summed, parallel = summed + len(weights), parallel + (len(weights) > 1)
    assert summed == graph.number_of_edges() > 400 and parallel > 10
    assert found.adjacency.is_sparse and found.adjacency.dtype == torch.float64
    assert float(dense.triu().abs().max()) == 0 < float(dense.abs().max())  # rows are targets: all edges run forward


def test_the_index_says_where_each_node_stands():
    found = tensors(example_graph())
    row = dict(zip(map(str, found.nodes), found.index.tolist(), strict=True))
    assert row["embed@3"] == [-1, 3, -1] and row["metric@14"] == [-1, 14, -1]
    feature = next(node for node in found.nodes if node.kind == "feature")
    assert row[str(feature)] == [feature.site.layer, feature.pos, feature.feature]
    assert found.index.shape == (120, 3) and found.index.dtype == torch.int64


def test_a_graph_of_the_metric_alone_has_an_empty_matrix():
    graph = example_graph(n_nodes=1)
    found = tensors(graph.subgraph([n for n in graph if n.startswith("metric")]))
    assert found.nodes == [Node.parse("metric@14")] and found.adjacency.shape == (1, 1) and found.adjacency._nnz() == 0
    assert repr(found) == "GraphTensors of 1 nodes and 0 connected pairs"

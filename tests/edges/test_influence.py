"""Influence and pruning by it, against dense matrices and against circuit-tracer's rule written out plainly."""

from __future__ import annotations

import pytest
import torch
from support.close import assert_close

from circuitgraph.edges.influence import edge_influence, graph_scores, node_influence, prune_by_influence
from circuitgraph.edges.table import EdgeCollector, EdgeTable
from circuitgraph.errors import CircuitGraphError
from circuitgraph.nodes import Node, Site

N_LAYERS = 4


def make(nodes, edges):
    """A table of (source, target, local weight[, kind]) between numbered nodes."""
    collector = EdgeCollector(nodes)
    for source, target, weight, *kind in edges:
        values = torch.tensor([weight], dtype=torch.float64)
        heads = values[:, None] if kind else None
        ids = (torch.tensor([source]), torch.tensor([target]))
        collector.add(kind[0] if kind else "mlp", *ids, 2 * values, values, 2 * values.abs(), heads)
    return collector.table()


def random_dag(seed):
    """Embeddings, features and errors of four layers and three logits, half of all forward edges, some of two kinds."""
    generator = torch.Generator().manual_seed(seed)
    nodes = [Node("embedding", Site("embed"), p) for p in range(2)] + [Node("pos_embedding", Site("pos_embed"), 0)]
    for layer in range(N_LAYERS):
        nodes += [Node("feature", Site("z", layer), 1, i) for i in range(2)]
        nodes += [Node("feature", Site("mlp_out", layer), 1, i) for i in range(3)]
        nodes += [Node("error", Site("mlp_out", layer), 1), Node("bias", Site("mlp_out", layer), 1)]
    nodes += [Node("logit", Site("logit"), 1, token) for token in range(3)]
    edges = []
    for v, target in enumerate(nodes):
        for u, source in enumerate(nodes):
            forward = source.site.depth < target.site.depth and source.kind != "logit"
            if forward and target.kind in ("feature", "logit") and torch.rand((), generator=generator) < 0.5:
                weight = float(torch.randn((), generator=generator)) ** 3
                edges.append((u, v, weight))
                if target.site.kind == "z":
                    edges.append((u, v, -0.3 * weight, "q"))
    order = torch.randperm(len(edges), generator=generator).tolist()
    weights = torch.zeros(len(nodes), dtype=torch.float64)
    weights[-3:] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return make(nodes, [edges[i] for i in order]), weights


def dense(table):
    """N [target, source]: each row's entries divided by the sum of their absolute values, edge by edge."""
    total, matrix = (torch.zeros(len(table.nodes), len(table.nodes), dtype=torch.float64) for _ in range(2))
    for u, v, w in zip(table.source.tolist(), table.target.tolist(), table.local_weight.tolist(), strict=True):
        total[v, u] += abs(w)
        matrix[v, u] += abs(w)
    rows = total.sum(1, keepdim=True)
    return torch.where(rows > 0, matrix / rows.clamp(min=1e-300), 0)


def all_paths(matrix, weights):
    """weights (N + N^2 + ...), as many powers as there are nodes."""
    total, step = torch.zeros_like(weights), weights
    for _ in range(len(weights)):
        step = step @ matrix
        total = total + step
    return total


seeds = pytest.mark.parametrize("seed", range(6))


@seeds
def test_influence_is_the_sum_of_all_powers_of_the_normalised_matrix(seed):
    table, weights = random_dag(seed)
    influence = node_influence(table, weights)
    assert influence.dtype == torch.float64
    assert_close(influence, all_paths(dense(table), weights))


@seeds
def test_what_passes_the_edges_of_a_source_is_its_influence(seed):
    table, weights = random_dag(seed)
    passing = edge_influence(table, weights)
    sums = torch.zeros(len(table.nodes), dtype=torch.float64).index_add_(0, table.source.long(), passing)
    assert_close(sums, node_influence(table, weights))
    # every target passes all that it has on to its inputs
    inputs = torch.zeros_like(sums).index_add_(0, table.target.long(), passing)
    assert_close(inputs[-3:], weights[-3:])


@seeds
def test_a_target_with_a_negative_weight_has_as_much_influence_and_is_pruned_alike(seed):
    table, weights = random_dag(seed)
    falls = weights * torch.tensor([-1.0] * (len(weights) - 2) + [1.0, -1.0], dtype=torch.float64)
    assert_close(node_influence(table, falls), node_influence(table, weights))
    assert_close(edge_influence(table, falls), edge_influence(table, weights))
    assert graph_scores(table, falls) == graph_scores(table, weights)
    one, other = (prune_by_influence(table, w, node_share=0.7, edge_share=0.9) for w in (weights, falls))
    assert list(one) == list(other) and 0 < len(one) < len(table)


def test_suppression_and_support_count_alike():
    nodes = [Node("embedding", Site("embed"), 0), *(Node("feature", Site("mlp_out", 0), 0, i) for i in range(2))]
    nodes.append(Node("metric", Site("metric"), 0))
    table = make(nodes, [(0, 1, 2.0), (0, 2, 5.0), (1, 3, 1.0), (2, 3, -3.0)])
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert node_influence(table, weights).tolist() == [1.0, 0.25, 0.75, 0.0]


def plain_prune(table, weights, node_share, edge_share):
    """circuit-tracer's rule with dense matrices: the (target, source) pairs that stay."""
    kinds = [node.kind for node in table.nodes]

    def cut(values, share):
        ordered = values.flatten().sort(descending=True).values
        return ordered[min(int((ordered.cumsum(0) / ordered.sum() < share - 1e-12).sum()), len(ordered) - 1)]

    size = torch.zeros(len(kinds), len(kinds), dtype=torch.float64)
    for u, v, w in zip(table.source.tolist(), table.target.tolist(), table.local_weight.tolist(), strict=True):
        size[v, u] += abs(w)

    def normal(matrix):
        return matrix / matrix.sum(1, keepdim=True).clamp(min=1e-300)

    influence = all_paths(normal(size), weights)
    keep = influence >= cut(influence, node_share)
    keep |= torch.tensor([kind in ("embedding", "logit") for kind in kinds])
    size = torch.where(keep[:, None] & keep[None], size, 0)
    scores = normal(size) * (all_paths(normal(size), weights) + weights)[:, None]
    edges = (scores >= cut(scores, edge_share)) & (scores > 0)
    while True:
        outputs, inputs = edges.any(0), edges.any(1)
        alive = torch.ones(len(kinds), dtype=torch.bool)
        for i, kind in enumerate(kinds):
            if kind in ("feature", "error", "bias", "pos_embedding"):
                alive[i] = bool(outputs[i]) and (kind != "feature" or bool(inputs[i]))
        after = edges & alive[:, None] & alive[None]
        if bool((after == edges).all()):
            return {(v, u) for v, u in edges.nonzero().tolist()}
        edges = after


def one_kind(seed):
    """A random table without edges of a second kind, which circuit-tracer does not have."""
    table, weights = random_dag(seed)
    return table.take(table.kind == table.kind[table.weight.argmax()]), weights


@seeds
@pytest.mark.parametrize("shares", [(0.8, 0.98), (0.5, 0.9), (0.95, 0.5), (1.0, 0.7), (0.6, 1.0)])
def test_pruning_is_circuit_tracers(seed, shares):
    table, weights = one_kind(seed)
    pruned = prune_by_influence(table, weights, node_share=shares[0], edge_share=shares[1])
    expected = plain_prune(table, weights, *shares)
    assert set(zip(pruned.target.tolist(), pruned.source.tolist(), strict=True)) == expected
    assert 0 < len(expected) < len(table)


@seeds
def test_pruned_edges_are_rows_of_the_table_and_lead_from_inputs_to_targets(seed):
    table, weights = random_dag(seed)
    before = list(table)
    pruned = prune_by_influence(table, weights)
    rows = list(pruned)
    assert rows == [row for row in before if row in rows] and 0 < len(rows) < len(before)
    targets, sources = {row.target for row in rows}, {row.source for row in rows}
    assert all(node in targets for node in sources if node.kind == "feature")
    assert all(node in sources or node.kind == "logit" for node in targets)


@seeds
def test_shares_of_one_keep_everything_that_has_influence(seed):
    table, weights = random_dag(seed)
    size = table.local_weight.clone()
    size[::7] *= 1e-15  # influence that vanishes in a sum beside 1
    tiny = EdgeTable(
        table.nodes, table.source, table.target, table.kind, size, size, size.abs(), table.heads, table.head_of
    )
    pruned = prune_by_influence(tiny, weights, node_share=1.0, edge_share=1.0)
    inputs = {int(v) for v in tiny.target}
    dead = {i for i, node in enumerate(tiny.nodes) if node.kind == "feature" and i not in inputs}
    influence = edge_influence(tiny, weights)
    expected = [
        i
        for i, (u, v) in enumerate(zip(tiny.source.tolist(), tiny.target.tolist(), strict=True))
        if influence[i] > 0 and u not in dead and v not in dead
    ]
    assert list(pruned) == [list(tiny)[i] for i in expected] and len(expected) > 100


def test_edges_from_targets_to_the_metric_stay_whatever_their_influence():
    nodes = [Node("embedding", Site("embed"), 0), Node("feature", Site("mlp_out", 0), 0, 1)]
    nodes += [Node("logit", Site("logit"), 0, token) for token in (1, 2)] + [Node("metric", Site("metric"), 0)]
    table = make(nodes, [(0, 1, 1.0), (2, 4, 1e-9, "metric"), (1, 2, 1.0), (3, 4, -5.0, "metric"), (0, 3, 1.0)])
    weights = torch.tensor([0.0, 0.0, 0.999, 0.001, 0.0])
    pruned = prune_by_influence(table, weights, node_share=0.8, edge_share=0.5)
    assert {(2, 4), (3, 4)} <= set(zip(pruned.source.tolist(), pruned.target.tolist(), strict=True))
    assert len(pruned) == 4


def test_scores_of_six_nodes_by_hand():
    """
    embed -(3)-> f1 -(1)-> metric, error0 -(1)-> f1; embed -(1)-> metric; error1 -(2)-> metric; a bias nobody reads.
    Shares into the metric: f1 1/4, embed 1/4, error1 1/2; into f1: embed 3/4, error0 1/4.
    """
    nodes = [
        Node("embedding", Site("embed"), 0),
        Node("error", Site("z", 0), 0),
        Node("bias", Site("z", 0), 0),
        Node("feature", Site("mlp_out", 0), 0, 1),
        Node("error", Site("mlp_out", 0), 0),
        Node("metric", Site("metric"), 0),
    ]
    table = make(nodes, [(0, 3, 3.0), (1, 3, -1.0), (3, 5, 1.0), (0, 5, -1.0), (4, 5, 2.0)])
    weights = torch.tensor([0.0, 0, 0, 0, 0, 1])
    assert node_influence(table, weights).tolist() == [1 / 4 + 3 / 16, 1 / 16, 0, 1 / 4, 1 / 2, 0]
    scores = graph_scores(table, weights)
    assert scores.replacement == pytest.approx((7 / 16) / (7 / 16 + 9 / 16))
    # f1 reads 3/4 from no error with weight 1/4, the metric 1/2 with weight 1
    assert scores.completeness == pytest.approx((3 / 4 * 1 / 4 + 1 / 2 * 1) / (1 / 4 + 1))


def test_without_edges_there_is_no_influence_and_no_score():
    nodes = [Node("embedding", Site("embed"), 0), Node("metric", Site("metric"), 0)]
    table, weights = make(nodes, []), torch.tensor([0.0, 1.0])
    assert node_influence(table, weights).tolist() == [0.0, 0.0]
    assert graph_scores(table, weights).replacement is None and graph_scores(table, weights).completeness is None
    assert len(prune_by_influence(table, weights)) == 0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    table, weights = random_dag(0)
    for name in ("node_share", "edge_share"):
        with pytest.raises(CircuitGraphError, match=f"{name} is {share}; expected a cumulative share"):
            prune_by_influence(table, weights, **{name: share})

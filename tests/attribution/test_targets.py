"""Logits as targets: their values, their edges to the metric and to the nodes, and the graph that has them."""

from __future__ import annotations

import json

import pytest
import torch
from support.close import assert_close
from support.families import FAMILIES
from support.traced_edges import assert_explained, trace

from circuitgraph.attribution.objective import given_targets, likeliest_logits
from circuitgraph.attribution.runs import CleanRun
from circuitgraph.attribution.targets import LogitTarget, Objective, target_nodes
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError, MetricError
from circuitgraph.formats.native import graph_to_text, text_to_graph
from circuitgraph.formats.neuronpedia import neuronpedia_value
from circuitgraph.formats.neuronpedia_read import value_from_neuronpedia
from circuitgraph.graphs.schema import check_graph
from circuitgraph.nodes import Node, Site

TOKENS = (6, 9, 4)
CHOSEN = Objective(tuple(LogitTarget(n, (t,)) for n, t in zip("dgb", TOKENS, strict=True)), (0.5, 0.3, 0.2))


def tokens_of(objective):
    return [token for target in objective.targets for token in target.tokens]


@pytest.fixture(scope="module")
def zero(tiny_model, tiny_dictionaries, tiny_pairs):
    return trace(tiny_model, tiny_dictionaries, tiny_pairs, baseline="zero", objective=CHOSEN)


def test_a_logit_is_its_value_above_the_mean_logit_of_both_runs(zero):
    assert [target.node for target in zero.targets] == [Node("logit", Site("logit"), 5, token) for token in (6, 9, 4)]
    for target, token, weight in zip(zero.targets, TOKENS, CHOSEN.weights, strict=True):
        for value, logits in ((target.clean, zero.clean.logits), (target.corrupted, zero.corrupted.logits)):
            assert_close(value, logits[:, -1, token] - logits[:, -1].mean(-1))
        assert target.weight.tolist() == [weight, weight]
    assert [target.name for target in zero.targets] == ["d", "g", "b"]


def test_a_logits_reading_vector_is_its_gradient_with_the_final_norms_scale_frozen(zero, tiny_model):
    """Autograd through the final norm written out, its scale a constant."""
    final = tiny_model.library.ln_final
    stream = zero.clean.values[Site("resid_post", 1)].clone().requires_grad_()
    centred = stream - stream.mean(-1, keepdim=True)
    normed = centred / zero.clean.values[Site("final_scale")] * final.weight + final.bias
    logits = normed @ tiny_model.library.W_U + tiny_model.library.unembed.b_U
    assert_close(logits.detach(), zero.clean.logits)
    for target, token in zip(zero.targets, TOKENS, strict=True):
        value = (logits[:, -1, token] - logits[:, -1].mean(-1)).sum()
        (gradient,) = torch.autograd.grad(value, stream, retain_graph=True)
        assert_close(target.gradient, gradient)


def test_a_soft_cap_on_the_logits_is_differentiated(loaded, tiny_pairs):
    """Gemma 2: autograd through the frozen norm, the unembedding and the cap, written out."""
    model = loaded("gemma2")
    chosen = Objective((LogitTarget("d", (6,)), LogitTarget("b -a", (4, 3), (1.0, -1.0))), (0.7, -2.0))
    case = trace(model, Dictionaries(), tiny_pairs, objective=chosen)
    stream = case.clean.values[Site("resid_post", 1)].clone().requires_grad_()
    normed = model.layout.norm(model.library, "ln_final").apply(stream) / case.clean.values[Site("final_scale")]
    logits = 2.5 * torch.tanh(normed @ model.library.W_U.double() / 2.5)
    precision = FAMILIES["gemma2"].precision
    assert_close(logits, case.clean.logits, dtype=precision)
    assert float(logits[:, -1].abs().max()) > 1.5  # where the cap bends
    values = (logits[:, -1, 6] - logits[:, -1].mean(-1), logits[:, -1, 4] - logits[:, -1, 3])
    for target, value in zip(case.targets, values, strict=True):
        (gradient,) = torch.autograd.grad(value.sum(), stream, retain_graph=True)
        assert float(gradient.abs().max()) > 1e-2
        assert_close(target.gradient, gradient, dtype=precision)


def test_what_the_logits_bring_to_the_metric_is_the_metric(zero, tiny_model, tiny_dictionaries, tiny_pairs):
    def brought(traced):
        return sum(edge.weight for edge in traced.edges().table if edge.target.kind == "metric")

    assert abs(float(zero.clean.metric.mean())) > 0.01
    assert_close(brought(zero), float(zero.clean.metric.mean()))
    corrupted = trace(tiny_model, tiny_dictionaries, tiny_pairs, objective=CHOSEN)
    difference = float((corrupted.clean.metric - corrupted.corrupted.metric).mean())
    assert abs(difference) > 0.01
    assert_close(brought(corrupted), difference)


def test_what_a_logit_reads_is_its_value_less_what_is_constant(zero, tiny_model):
    """The final norm's bias and the unembedding's; every source is a node."""
    library, found = tiny_model.library, zero.edges()
    constants = library.ln_final.bias @ library.W_U + library.unembed.b_U
    n = len(zero.nodes)
    for i, token in enumerate(TOKENS):
        expected = float(zero.targets[i].clean.mean() - constants[token] + constants.mean())
        assert abs(expected) > 1e-3
        assert_close([found.total_input[n + i], found.stream_input[n + i]], [expected, expected], scale=5)
        edges = [e for e in found.table if e.target.feature == token and e.target.kind == "logit"]
        assert len(edges) > 20
        assert_close(sum(e.local_weight for e in edges), expected, scale=sum(abs(e.local_weight) for e in edges))
        assert_close([e.weight for e in edges], [CHOSEN.weights[i] * e.local_weight for e in edges])
    assert found.weights[n:].tolist() == [0.5, 0.3, 0.2, 0.0] and not found.weights[:n].any()


def test_the_likeliest_logits_have_the_asked_mass_and_weights_that_sum_to_one(tiny_model):
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.3, 0.45, 0.05, 0.2]], dtype=torch.float64).log()[:, None]
    found = likeliest_logits(tiny_model, logits, mass=0.7)  # means 0.4, 0.35, 0.1, 0.15
    assert tokens_of(found) == [0, 1] and found.weights == pytest.approx((0.4 / 0.75, 0.35 / 0.75))
    assert tokens_of(likeliest_logits(tiny_model, logits, mass=0.76)) == [0, 1, 3]
    assert tokens_of(likeliest_logits(tiny_model, logits, mass=1.0, limit=3)) == [0, 1, 3]
    assert sum(likeliest_logits(tiny_model, logits, mass=1.0, limit=100).weights) == pytest.approx(1)
    # the metric's gradient is that of the targets together
    last = found.metric()(logits)
    assert_close(last, logits[:, 0, :2] @ torch.tensor(found.weights, dtype=torch.float64) - logits[:, 0].mean(-1))


def test_given_tokens_have_equal_weights(tiny_model):
    found = given_targets(tiny_model, Dictionaries(), [" c", " a", " b"], 6)
    assert tokens_of(found) == [5, 3, 4] and found.weights == (1 / 3,) * 3


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "targets is an empty list; expected token texts"),
        ([" a b"], "target ' a b' is 2 tokens; expected one token"),
        ([""], "target '' is 0 tokens; expected one token"),
        ([" zebra"], "target ' zebra' is not in the model's vocabulary"),
        ([" a", "a"], "target 'a' is given twice"),
        ([7], "a target is of type int; expected a token's text"),
    ],
)
def test_what_is_no_token_is_one_line(tiny_model, tiny_dictionaries, tiny_pairs, tokens, message):
    with pytest.raises(MetricError) as error:
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=tokens)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_targets_that_are_a_text_are_explained(tiny_model, tiny_dictionaries, tiny_pairs):
    with pytest.raises(CircuitGraphError, match=r"targets is 'logit'; expected 'metric', 'logits' or a list"):
        discover(tiny_pairs, tiny_model, tiny_dictionaries, targets="logit")


@pytest.mark.parametrize("targets", ["logits", [" c", " a"]])
@pytest.mark.parametrize("baseline", ["zero", "corrupted"])
def test_the_graph_has_one_node_per_logit_and_survives_a_file(
    tiny_model, tiny_dictionaries, tiny_pairs, targets, baseline
):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=targets, baseline=baseline, edge_threshold=0.0)
    check_graph(graph)
    logits = {node: d for node, d in graph.nodes(data=True) if d["kind"] == "logit"}
    if targets == "logits":
        clean, _ = tiny_model.run(torch.tensor([[1, 3, 4, 5, 6, 7], [1, 5, 3, 10, 4, 6]]))
        expected = tokens_of(likeliest_logits(tiny_model, clean))
    else:
        expected = [5, 3]
    assert set(logits) == {f"logit/t{token}@5" for token in expected} and len(logits) > 1
    for node, attributes in logits.items():
        assert str(Node.parse(node)) == node
        assert [attributes["token"]] == tiny_model.token_strings([attributes["feature"]])
        assert attributes["target"] == attributes["token"] and attributes["target_weight"] > 0
        assert list(graph.successors(node)) == ["metric@5"] and graph.in_degree(node) > 5
        assert_explained([attributes])
        assert attributes["attribution"] == graph.edges[node, "metric@5", "metric"]["weight"] != 0
    value = json.loads(json.dumps(neuronpedia_value(graph, slug="logits")))
    assert graph_to_text(value_from_neuronpedia(value)) == graph_to_text(graph)
    again = text_to_graph(graph_to_text(graph))
    assert graph_to_text(again) == graph_to_text(graph) and dict(again.nodes(data=True)) == dict(graph.nodes(data=True))


@pytest.mark.parametrize("targets", ["metric", "logits"])
def test_the_report_counts_the_candidates_that_are_not_in_the_graph(tiny_model, tiny_dictionaries, tiny_pairs, targets):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=targets, max_nodes=30)
    nodes = [kind for _, kind in graph.nodes(data="kind") if kind not in ("logit", "metric")]
    assert graph.graph["reports"][-1].startswith(f"edge_threshold 0.001: {30 - len(nodes)} of them have no path")


def test_without_any_difference_the_empty_graph_is_said(tiny_model, tiny_dictionaries, tiny_pairs):
    same = [type(p)(p.clean, p.clean, p.answers, p.wrong_answers) for p in tiny_pairs]
    graph = discover(same, tiny_model, tiny_dictionaries, targets=[" a", " b"])
    assert {kind for _, kind in graph.nodes(data="kind")} == {"logit", "metric"}
    assert graph.graph["reports"][-1].startswith("the graph is empty")


@pytest.mark.parametrize("settings", [{}, {"qk": "ablate"}, {"attention": "frozen", "mlp": "frozen"}])
def test_what_no_edge_explains_is_nothing_where_every_node_is_a_candidate(
    tiny_model, tiny_dictionaries, tiny_pairs, settings
):
    """q and k edges by ablation are no part of what is read along linear paths."""
    graph = discover(
        tiny_pairs[:1], tiny_model, tiny_dictionaries, baseline="zero", edge_threshold=0.0, max_nodes=10**6, **settings
    )
    rows = {n: d for n, d in graph.nodes(data=True) if "stream_input" in d}
    assert len(rows) > 50 and any(d["site"].startswith("z") for d in rows.values())
    assert_explained(rows.values())
    few = discover(
        tiny_pairs[:1], tiny_model, tiny_dictionaries, baseline="zero", edge_threshold=0.0, max_nodes=60, **settings
    )
    assert max(abs(d["unexplained"]) for _, d in few.nodes(data=True) if "stream_input" in d) > 0.01


def test_the_preset_of_attribution_graphs_explains_everything_before_it_prunes(
    tiny_model, tiny_dictionaries, tiny_pairs
):
    """Transcoders in every layer, attention passed: nothing that a logit reads is missing; scores and shares are there."""
    transcoders = {site: d for site, d in tiny_dictionaries.items() if site.kind == "mlp_out"}
    graph = discover(tiny_pairs[:1], tiny_model, transcoders, preset="attribution-graph")
    check_graph(graph)
    assert {"replacement", "completeness"} == set(graph.graph["scores"])
    assert all(0 < score < 1 for score in graph.graph["scores"].values())
    report = next(line for line in graph.graph["reports"] if line.startswith("inputs"))
    assert "carry 0.0% (median), 0.0% (90th percentile)" in report
    whole = discover(
        tiny_pairs[:1], tiny_model, transcoders, preset="attribution-graph", node_influence=None, edge_influence=None
    )
    assert "scores" not in whole.graph and set(graph.edges(keys=True)) < set(whole.edges(keys=True))
    assert_explained(d for _, d in whole.nodes(data=True) if "stream_input" in d)
    assert any(abs(d["unexplained"]) > 1e-3 for _, d in graph.nodes(data=True) if "stream_input" in d)


def test_a_models_targets_without_a_final_norm_scale_are_not_divided(zero, tiny_model):
    scale = zero.clean.attached[Site("final_scale")]
    without = CleanRun(
        zero.clean.logits,
        zero.clean.attached_metric,
        {site: value for site, value in zero.clean.attached.items() if site != Site("final_scale")},
    )
    plain = target_nodes(tiny_model, CHOSEN, without, zero.corrupted)
    for target, other in zip(plain, zero.targets, strict=True):
        assert_close(target.gradient / scale, other.gradient)

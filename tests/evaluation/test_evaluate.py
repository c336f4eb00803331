"""Evaluations: every number against a naive computation that knows nothing of masks, batches and splices, and the statistics
against numbers worked out by hand."""

from __future__ import annotations

import json

import networkx as nx
import pytest
import torch
from support.naive_circuits import Naive

from circuitgraph.attribution.attribute import attribute
from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.discovery import discover
from circuitgraph.embedded import MODEL, circuit_dictionaries
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.evaluation.agreement import auroc, compare, pearson, spearman
from circuitgraph.evaluation.conditions import FRACTIONS, Curve, Point, cmd, cpr, ratio
from circuitgraph.evaluation.edge_effects import measure_edges
from circuitgraph.evaluation.evaluate import attach_evidence, evaluate_circuit
from circuitgraph.evaluation.report import evaluation_text
from circuitgraph.graphs.prune import prune_graph
from circuitgraph.graphs.schema import check_graph
from circuitgraph.interventions.language import Patch, SitePart
from circuitgraph.interventions.run import run_with_interventions
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Node
from circuitgraph.tasks import make_pairs

# statistics ----------------------------------------------------------------------------------------------------------


def test_agreement_of_numbers_worked_out_by_hand():
    agreement = compare(
        list("abcd"), torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([2.0, -4.0, -1.0, 1.0]), top_k=2
    )
    assert agreement.n == 4 and agreement.top_k == 2
    # x - mean = .5 -2.5 2.5 -.5, y - mean = 2.5 -3.5 -.5 1.5
    assert agreement.pearson_r == pytest.approx((1.25 + 8.75 - 1.25 - 0.75) / (13 * 21) ** 0.5)
    assert agreement.spearman_r == pytest.approx(0.4)  # ranks 2 0 3 1 and 3 0 1 2: 1 - 6 * (1 + 0 + 4 + 1) / 60
    assert agreement.sign_agreement == pytest.approx(2 / 3) and agreement.top_k_overlap == 0.5
    assert agreement.worst[0] == ("c", 3.0, -1.0) and agreement.worst[1] == ("b", -2.0, -4.0)


def test_agreement_that_is_undefined_is_none():
    agreement = compare(["a"], torch.tensor([1.0]), torch.tensor([0.0]))
    assert (agreement.pearson_r, agreement.spearman_r, agreement.sign_agreement) == (None, None, None)
    assert compare([], torch.zeros(0), torch.zeros(0)).top_k_overlap is None


def test_equal_values_share_their_ranks():
    """Ranks 1.5 0 1.5 3 and 0 1 2 3: their differences from the mean 1.5 are 0 -1.5 0 1.5 and -1.5 -.5 .5 1.5."""
    values = spearman(torch.tensor([5.0, 1.0, 5.0, 7.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values == pytest.approx((0.75 + 2.25) / (4.5 * 5) ** 0.5)


def test_the_correlation_with_numbers_that_are_all_equal_is_undefined():
    """0.1 has no exact mean in floating point, so that a variance of roundings could be taken for one."""
    equal, other = torch.full((7,), 0.1, dtype=torch.float64), torch.arange(7.0, dtype=torch.float64)
    assert pearson(equal, other) is None and spearman(other, equal) is None
    assert pearson(other[:1], other[:1]) is None and spearman(other[:0], other[:0]) is None


def test_auroc_is_the_share_of_pairs_in_order():
    truth = torch.tensor([True, False, True, False])
    assert auroc(torch.tensor([3.0, 1.0, 2.0, 2.0]), truth) == pytest.approx(3.5 / 4)
    assert auroc(torch.zeros(4), truth) == 0.5
    assert auroc(torch.ones(2), torch.tensor([True, True])) is None


def test_the_bootstrap_brackets_the_ratio_and_depends_on_nothing_but_the_seed():
    generator = torch.Generator().manual_seed(0)
    below = 5 + torch.randn(200, generator=generator)
    above = 0.5 * below + 0.3 * torch.randn(200, generator=generator)
    interval = ratio(above, below, seed=1)
    assert interval == ratio(above, below, seed=1) != ratio(above, below, seed=2)
    assert interval.low < interval.value < interval.high
    # the standard error of the ratio: sd(above - r * below) / (mean(below) * sqrt(n)), 1.96 of it to each side
    error = float((above - interval.value * below).std() / below.mean() / 200**0.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert ratio(above, torch.zeros(200), seed=1) is None
    alone = ratio(above[:1], below[:1], seed=1)
    assert alone.value == pytest.approx(float(above[0] / below[0])) and alone.low is alone.high is None


def test_cpr_and_cmd_are_mibs_areas():
    """Their trapezoids over the listed percentages, on the linear axis."""
    curve = Curve("signed", tuple(Point(f, 0, 0, 2 * f, 0.0) for f in FRACTIONS))
    assert cpr(curve) == pytest.approx(1 - 0.001**2)  # the integral of 2 x
    # |1 - 2 x| is linear between the points, of which 0.5 is one
    assert cmd(curve) == pytest.approx((0.499 * 0.998 + 0.5 * 1) / 2)
    assert [point.fraction for point in curve.points] == [n / 100 for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)]


# the demo circuit, naively -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gendered-pronoun", "ioi"])
def trained(request):
    """A circuit of the embedded model in float64, its evaluation, and the naive one."""
    model = load_model(MODEL, dtype=torch.float64)
    dictionaries = load_dictionaries(circuit_dictionaries(), model)
    pairs = make_pairs(request.param, 2, template=0)
    graph = prune_graph(discover(pairs, model, dictionaries), max_nodes=40)
    evaluation = evaluate_circuit(graph, model, dictionaries, n_patched=12, n_dropped=6, curves=False)
    return graph, evaluation, Naive(model, dictionaries, attribute(pairs, model, dictionaries))


def _nodes(graph):
    return {Node.parse(key) for key, kind in graph.nodes(data="kind") if kind != "metric"}


def test_faithfulness_and_completeness_are_those_of_the_naive_runs(trained):
    graph, evaluation, naive = trained
    circuit = _nodes(graph)
    full = float(naive.case.clean.metric.mean())
    empty = naive.metric(lambda node: False)
    assert naive.metric(lambda node: True) == pytest.approx(full, abs=1e-9)
    assert evaluation.metric_empty == pytest.approx(empty, abs=1e-9) and full - empty > 1
    by_errors = {row.errors: row for row in evaluation.conditions if row.baseline == "corrupted"}
    keeps = {
        "keep": (lambda n: n.kind == "error" or n in circuit, lambda n: n.kind == "error" or n not in circuit),
        "circuit": (lambda n: n in circuit, lambda n: n not in circuit),
        "remove": (lambda n: n.kind != "error" and n in circuit, lambda n: n.kind != "error" and n not in circuit),
    }
    for errors, (inside, outside) in keeps.items():
        row = by_errors[errors]
        assert row.metric_circuit == pytest.approx(naive.metric(inside), abs=1e-9), errors
        assert row.metric_complement == pytest.approx(naive.metric(outside), abs=1e-9), errors
        assert row.faithfulness.value == pytest.approx((row.metric_circuit - empty) / (full - empty))
        assert row.complement_faithfulness.value == pytest.approx((row.metric_complement - empty) / (full - empty))
    assert len({row.metric_circuit for row in evaluation.conditions}) >= 3
    assert by_errors["stream"].metric_circuit == by_errors["remove"].metric_circuit  # no residual dictionaries here


def test_effects_of_single_nodes_are_those_of_one_naive_run_each(trained):
    graph, evaluation, naive = trained
    full = float(naive.case.clean.metric.mean())
    assert len(evaluation.effects) == 12
    for key, effect in list(evaluation.effects.items())[::3]:
        node = Node.parse(key)
        assert effect == pytest.approx(full - naive.metric(lambda n, node=node: n != node), abs=1e-9)
    assert min(map(abs, evaluation.effects.values())) > 1e-6


def test_drops_are_those_of_one_naive_run_each(trained):
    graph, evaluation, naive = trained
    circuit = _nodes(graph)
    total = evaluation.metric_clean - evaluation.metric_empty
    whole = naive.metric(lambda n: n in circuit)
    assert len(evaluation.drops) == evaluation.n_dropped == 6
    for key, drop in evaluation.drops.items():
        without = circuit - {Node.parse(key)}
        assert drop == pytest.approx((whole - naive.metric(lambda n, w=without: n in w)) / total, abs=1e-9)
    assert evaluation.n_not_needed == sum(drop < 0.001 for drop in evaluation.drops.values())
    assert any(evaluation.drops.values())


# the rest on the tiny model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_graph(tiny_model, tiny_dictionaries, tiny_pairs):
    whole = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    return whole, prune_graph(whole, max_nodes=30)


@pytest.fixture(scope="module")
def evaluation(tiny_graph, tiny_model, tiny_dictionaries):
    return evaluate_circuit(
        tiny_graph[1],
        tiny_model,
        tiny_dictionaries,
        baselines=("zero", "mean", "resample"),
        n_edges=40,
        n_dropped=100,
        curves=True,
        seed=4,
    )


def test_every_baseline_is_measured_with_every_treatment_of_errors(evaluation):
    rows = [(row.baseline, row.errors) for row in evaluation.conditions]
    errors = ["keep", "circuit", "stream", "remove"]
    assert rows == [(b, e) for b in ("corrupted", "zero", "mean", "resample") for e in errors]
    assert len({row.metric_circuit for row in evaluation.conditions}) >= 12
    assert all(row.faithfulness.low <= row.faithfulness.high for row in evaluation.conditions)


def test_with_two_pairs_resampling_is_the_corrupted_run_of_the_other(
    tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs, evaluation
):
    """Which is to say: the same as the corrupted baseline with the corrupted prompts exchanged."""
    first, second = tiny_pairs
    crossed = [
        type(first)(first.clean, second.corrupted, first.answers, first.wrong_answers),
        type(first)(second.clean, first.corrupted, second.answers, second.wrong_answers),
    ]
    other = evaluate_circuit(tiny_graph[1], tiny_model, tiny_dictionaries, prompts=crossed, n_patched=5)
    resampled = {row.errors: row for row in evaluation.conditions if row.baseline == "resample"}
    corrupted = [row for row in other.conditions if row.baseline == "corrupted"]
    assert len(corrupted) == len(resampled) >= 3
    for row in corrupted:
        assert row.metric_circuit == pytest.approx(resampled[row.errors].metric_circuit, abs=1e-9)
    assert other.prompts != evaluation.prompts and other.metric_clean == pytest.approx(evaluation.metric_clean)


def test_curves_end_at_the_whole_model_and_the_orders_differ(evaluation):
    absolute, signed, drawn = evaluation.curves
    assert [curve.order for curve in evaluation.curves] == ["absolute", "signed", "random"]
    for curve in evaluation.curves:
        assert curve.points[-1].faithfulness == pytest.approx(1, abs=1e-9)
        assert curve.points[-1].complement_faithfulness == pytest.approx(0, abs=1e-9)
        assert curve.points[0].n_chosen == 0 and curve.points[0].complement_faithfulness == pytest.approx(1, abs=1e-9)
    assert evaluation.cpr == cpr(signed) and evaluation.cmd == cmd(absolute) and evaluation.cmd < cmd(drawn)


def test_a_point_of_the_curve_is_the_circuit_of_that_many_nodes(tiny_graph, tiny_model, tiny_dictionaries, evaluation):
    """The first nodes by attribution as a graph of their own give the same faithfulness."""
    point = evaluation.curves[0].points[7]
    whole = tiny_graph[0]
    keys = sorted(
        (key for key, kind in whole.nodes(data="kind") if kind != "metric"),
        key=lambda key: -abs(whole.nodes[key]["attribution"]),
    )
    graph = whole.subgraph([*keys[: point.n_chosen], "metric@5"]).copy()
    alone = evaluate_circuit(graph, tiny_model, tiny_dictionaries, n_patched=1)
    assert point.n_chosen > 10 and alone.faithfulness_errors_of_circuit == pytest.approx(point.faithfulness, abs=1e-9)


def test_noising_and_denoising_go_from_corrupted_to_clean(
    tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs, evaluation
):
    noise = evaluation.noise
    assert [point.share for point in noise] == [n / 10 for n in range(11)]
    assert noise[-1].noising == pytest.approx(evaluation.metric_clean, abs=1e-9)
    assert noise[0].denoising == pytest.approx(tiny_graph[1].graph["metric"]["corrupted"], abs=1e-9)
    score = attribute(tiny_pairs, tiny_model, tiny_dictionaries).metric
    circuit = [node for node in _nodes(tiny_graph[1]) if node.kind in ("feature", "error")]
    prompts = {"clean": [p.clean for p in tiny_pairs], "corrupted": [p.corrupted for p in tiny_pairs]}
    for value, on, other in (
        (noise[0].noising, "clean", "corrupted"),
        (noise[10].denoising, "corrupted", "clean"),
    ):
        patches = [Patch(SitePart.of(node), "other") for node in circuit]
        runs = {"other": prompts[other]}
        run = run_with_interventions(tiny_model, tiny_dictionaries, prompts[on], patches, references=runs)
        assert value == pytest.approx(float(score(run.logits).mean()), abs=1e-9)
    values = [point.noising for point in noise]
    assert len(set(values)) == 11


def test_the_measured_edges_of_a_small_change_are_the_predicted_ones_where_norms_are_frozen(
    tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs
):
    """A small change: what is left of the difference to local_weight is its square."""
    run = attribute(tiny_pairs, tiny_model, tiny_dictionaries)
    edges: dict[tuple, float] = {}
    for source, target, weight in tiny_graph[0].edges(data="local_weight"):
        ends = Node.parse(source), Node.parse(target)
        edges[ends] = edges.get(ends, 0.0) + weight
    pairs = list(edges)[::17]
    kinds = {target.site.kind for _, target in pairs}
    assert {"z", "mlp_out", "metric"} <= kinds and len(pairs) > 50
    errors = []
    for size in (1e-3, 1e-4):
        tables = [_scaled(table, size) for table in run.tables]
        found = measure_edges(
            tiny_model,
            tiny_dictionaries,
            run.tokens.clean,
            run.metric,
            tables,
            pairs,
            freeze=["norms"],
            batch_rows=64,
        )
        predicted = torch.tensor([edges[pair] for pair in pairs], dtype=torch.float64)
        errors.append(float((found.mean(1) / size - predicted).abs().max()))
        assert errors[-1] < 20 * size < 0.1 * float(predicted.abs().max())
    assert errors[0] > 1e-9 and errors[0] / errors[1] == pytest.approx(10, rel=0.2)


def _scaled(table, size):
    from dataclasses import replace

    if table.kind == "feature":
        return replace(table, acts=table.baseline_acts + size * (table.acts - table.baseline_acts))
    return replace(table, vectors=size * table.vectors)


def test_evidence_is_json_readable_and_attached_with_its_provenance(tiny_graph, evaluation):
    record = json.loads(json.dumps(evaluation.record(), allow_nan=False))
    assert len(record["prompts"]) == 64 and record["settings"]["seed"] == 4 and record["n_examples"] == 2
    attached = attach_evidence(tiny_graph[1], evaluation)
    check_graph(attached)
    evidence = attached.graph["evidence"]
    assert "effects" not in evidence and evidence["cpr"] == evaluation.cpr and "evidence" not in tiny_graph[1].graph
    assert len(nx.get_node_attributes(attached, "effect")) == evaluation.n_patched
    with_effect = [data["effect"] for *_, data in attached.edges(data=True) if "effect" in data]
    assert len(evaluation.edge_effects) == evaluation.edges.n == 40 <= len(with_effect) and any(with_effect)
    text = evaluation_text(evaluation)
    for part in ("complement_faithfulness", "CPR", "CMD", "resample", "minimality", "denoising", "spearman", "seed 4"):
        assert part in text


def test_a_graph_with_its_evidence_is_written_and_read_back(tiny_graph, evaluation, tmp_path):
    from circuitgraph.formats import load, save

    attached = attach_evidence(tiny_graph[1], evaluation)
    save(attached, tmp_path / "graph.json")
    assert load(tmp_path / "graph.json").graph["evidence"] == attached.graph["evidence"]


def test_what_cannot_be_evaluated_is_refused(tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs):
    def run(**settings):
        evaluate_circuit(tiny_graph[1], tiny_model, tiny_dictionaries, **settings)

    with pytest.raises(CircuitGraphError, match="baseline 'maen' is unknown.*Did you mean 'mean'"):
        run(baselines=["maen"])
    with pytest.raises(CircuitGraphError, match="n_edges is -1; expected a whole number >= 0"):
        run(n_edges=-1)
    with pytest.raises(GraphError, match="the prompts have 3 tokens, the graph's have 6"):
        run(prompts=[type(tiny_pairs[0])("a b", "a c", (" g",), (" h",))])
    with pytest.raises(CircuitGraphError, match="needs at least two pairs; got 1"):
        run(prompts=tiny_pairs[:1], baselines=["resample"])

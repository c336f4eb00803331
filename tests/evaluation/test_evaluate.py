"""Evaluations: every number against a naive computation that knows nothing of masks, batches and splices."""

from __future__ import annotations

import json

import networkx as nx
import pytest
import torch
from support.close import assert_close
from support.naive_circuits import Naive

from circuitgraph.attribution.attribute import attribute
from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.discovery import discover
from circuitgraph.embedded import MODEL, circuit_dictionaries
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.evaluation.conditions import cmd, cpr
from circuitgraph.evaluation.edge_effects import measure_edges
from circuitgraph.evaluation.evidence import attach_evidence, evaluate
from circuitgraph.evaluation.report import evaluation_text
from circuitgraph.graphs.pruning import prune
from circuitgraph.graphs.schema import check_graph
from circuitgraph.interventions.language import Patch, SitePart
from circuitgraph.interventions.run import run_with_interventions
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Node
from circuitgraph.tasks import make_pairs

# the demo circuit, naively -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gendered-pronoun", "ioi"])
def trained(request):
    """A circuit of the embedded model in float64, its evaluation, and the naive one."""
    model = load_model(MODEL, dtype=torch.float64)
    dictionaries = load_dictionaries(circuit_dictionaries(), model)
    pairs = make_pairs(request.param, 2, template=0)
    graph = prune(discover(pairs, model, dictionaries), max_nodes=40)
    evaluation = evaluate(graph, model, dictionaries, n_patched=12, n_dropped=6, curves=False)
    return graph, evaluation, Naive(model, dictionaries, attribute(pairs, model, dictionaries))


def _nodes(graph):
    return {Node.parse(key) for key, kind in graph.nodes(data="kind") if kind != "metric"}


def test_faithfulness_and_completeness_are_those_of_the_naive_runs(trained):
    graph, evaluation, naive = trained
    circuit = _nodes(graph)
    full = float(naive.case.clean.metric.mean())
    empty = naive.metric(lambda node: False)
    assert_close([naive.metric(lambda node: True), evaluation.metric_empty], [full, empty])
    assert full - empty > 1
    by_errors = {row.errors: row for row in evaluation.conditions if row.baseline == "corrupted"}
    keeps = {
        "keep": (lambda n: n.kind == "error" or n in circuit, lambda n: n.kind == "error" or n not in circuit),
        "circuit": (lambda n: n in circuit, lambda n: n not in circuit),
        "remove": (lambda n: n.kind != "error" and n in circuit, lambda n: n.kind != "error" and n not in circuit),
    }
    for errors, (inside, outside) in keeps.items():
        row = by_errors[errors]
        metrics, shares = [row.metric_circuit, row.metric_complement], [row.faithfulness, row.complement_faithfulness]
        assert_close(metrics, [naive.metric(inside), naive.metric(outside)], name=errors)
        assert_close([share.value for share in shares], [(value - empty) / (full - empty) for value in metrics])
    assert len({row.metric_circuit for row in evaluation.conditions}) >= 3
    assert by_errors["stream"].metric_circuit == by_errors["remove"].metric_circuit  # no residual dictionaries here


def test_effects_of_single_nodes_are_those_of_one_naive_run_each(trained):
    graph, evaluation, naive = trained
    full = float(naive.case.clean.metric.mean())
    assert len(evaluation.effects) == 12
    for key, effect in list(evaluation.effects.items())[::3]:
        node = Node.parse(key)
        assert_close(effect, full - naive.metric(lambda n, node=node: n != node), scale=abs(full))
    assert min(map(abs, evaluation.effects.values())) > 1e-6


def test_drops_are_those_of_one_naive_run_each(trained):
    graph, evaluation, naive = trained
    circuit = _nodes(graph)
    total = evaluation.metric_clean - evaluation.metric_empty
    whole = naive.metric(lambda n: n in circuit)
    assert len(evaluation.drops) == evaluation.n_dropped == 6
    for key, drop in evaluation.drops.items():
        without = circuit - {Node.parse(key)}
        expected = (whole - naive.metric(lambda n, w=without: n in w)) / total
        assert_close(drop, expected, scale=abs(whole / total), zeros=True)
    assert evaluation.n_not_needed == sum(drop < 0.001 for drop in evaluation.drops.values())
    assert any(evaluation.drops.values())


# the rest on the tiny model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_graph(tiny_model, tiny_dictionaries, tiny_pairs):
    whole = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0)
    return whole, prune(whole, max_nodes=30)


@pytest.fixture(scope="module")
def evaluation(tiny_graph, tiny_model, tiny_dictionaries):
    return evaluate(
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
    other = evaluate(tiny_graph[1], tiny_model, tiny_dictionaries, prompts=crossed, n_patched=5)
    resampled = {row.errors: row for row in evaluation.conditions if row.baseline == "resample"}
    corrupted = [row for row in other.conditions if row.baseline == "corrupted"]
    assert len(corrupted) == len(resampled) >= 3
    metrics = [resampled[row.errors].metric_circuit for row in corrupted]
    assert_close([row.metric_circuit for row in corrupted], metrics)
    assert other.prompts != evaluation.prompts
    assert_close(other.metric_clean, evaluation.metric_clean)


def test_curves_end_at_the_whole_model_and_the_orders_differ(evaluation):
    absolute, signed, drawn = evaluation.curves
    assert [curve.order for curve in evaluation.curves] == ["absolute", "signed", "random"]
    for curve in evaluation.curves:
        first, last = curve.points[0], curve.points[-1]
        assert_close([last.faithfulness, last.complement_faithfulness, first.complement_faithfulness], [1, 0, 1])
        assert first.n_chosen == 0
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
    alone = evaluate(graph, tiny_model, tiny_dictionaries, n_patched=1)
    assert point.n_chosen > 10
    assert_close(alone.faithfulness_errors_of_circuit, point.faithfulness)


def test_noising_and_denoising_go_from_corrupted_to_clean(
    tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs, evaluation
):
    noise = evaluation.noise
    assert [point.share for point in noise] == [n / 10 for n in range(11)]
    assert_close(noise[-1].noising, evaluation.metric_clean)
    assert_close(noise[0].denoising, tiny_graph[1].graph["metric"]["corrupted"])
    score = attribute(tiny_pairs, tiny_model, tiny_dictionaries).metric
    circuit = [node for node in _nodes(tiny_graph[1]) if node.kind in ("feature", "error")]
    prompts = {"clean": [p.clean for p in tiny_pairs], "corrupted": [p.corrupted for p in tiny_pairs]}
    for value, on, other in (
        (noise[0].noising, "clean", "corrupted"),
        (noise[10].denoising, "corrupted", "clean"),
    ):
        patches = [Patch(SitePart.of(node), "other") for node in circuit]
        runs = {"other": prompts[other]}
        run = run_with_interventions(prompts[on], tiny_model, tiny_dictionaries, patches, references=runs)
        assert_close(value, float(score(run.logits).mean()))
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


def test_with_frozen_attention_q_and_k_edges_are_neither_measured_nor_compared(
    tiny_graph, tiny_model, tiny_dictionaries
):
    """A pair of nodes that only q and k edges connect is left out, and of other pairs these kinds are not counted."""
    whole = tiny_graph[0].copy()
    attended = sorted({(u, v) for u, v, kind in whole.edges(keys=True) if kind in ("q", "k")})
    only_qk = attended[::20]
    whole.remove_edges_from([(u, v, "ov") for u, v in only_qk])
    settings = {"n_patched": 0, "n_edges": 10**6, "n_dropped": 0, "curves": False, "baselines": ()}
    predicted: dict[bool, dict] = {False: {}, True: {}}
    for source, target, data in whole.edges(data=True):
        for frozen in (False, True):
            if not (frozen and data["kind"] in ("q", "k")):
                sums = predicted[frozen]
                sums[source, target] = sums.get((source, target), 0.0) + data["local_weight"]
    both = {pair for pair in predicted[True] if predicted[True][pair] != predicted[False][pair]}
    assert len(both) > 10 < len(only_qk) == len(predicted[False]) - len(predicted[True])
    for frozen, freeze in ((False, ["norms"]), (True, ["norms", "attention"])):
        found = evaluate(whole, tiny_model, tiny_dictionaries, freeze=freeze, **settings)
        assert set(found.edge_effects) == set(predicted[frozen]) and found.settings["freeze"] == freeze
        pairs = [tuple(name.split(" -> ")) for name, *_ in found.edges.worst]
        assert_close(
            [number for _, number, _ in found.edges.worst],
            [predicted[frozen][pair] for pair in pairs],
            dtype=torch.float32,
            n_terms=1,
        )
    # frozen patterns leave the value paths, and these are linear
    effects = [found.edge_effects[pair] for pair in both]
    assert_close(effects, [predicted[True][pair] for pair in both], scale=abs(found.metric_clean))


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


def test_an_evaluation_shows_its_table_in_a_few_lines(evaluation):
    lines = repr(evaluation).splitlines()
    assert len(lines) < 30 and max(map(len, lines)) < 200
    assert lines[0].startswith(f"circuit    {evaluation.n_nodes} nodes") and lines[3].startswith("baseline   errors")
    text = evaluation_text(evaluation)
    assert set(lines) <= set(text.splitlines()) and len(text.splitlines()) > len(lines) + 20
    assert "CPR" in lines[-1] and "worst" not in repr(evaluation)


def test_a_graph_with_its_evidence_is_written_and_read_back(tiny_graph, evaluation, tmp_path):
    from circuitgraph.formats import load, save

    attached = attach_evidence(tiny_graph[1], evaluation)
    save(attached, tmp_path / "graph.json")
    assert load(tmp_path / "graph.json").graph["evidence"] == attached.graph["evidence"]


def test_what_cannot_be_evaluated_is_refused(tiny_graph, tiny_model, tiny_dictionaries, tiny_pairs):
    def run(**settings):
        evaluate(tiny_graph[1], tiny_model, tiny_dictionaries, **settings)

    with pytest.raises(CircuitGraphError, match="baseline 'maen' is unknown.*Did you mean 'mean'"):
        run(baselines=["maen"])
    with pytest.raises(CircuitGraphError, match="n_edges is -1; expected a whole number >= 0"):
        run(n_edges=-1)
    with pytest.raises(GraphError, match="the prompts have 3 tokens, the graph's have 6"):
        run(prompts=[type(tiny_pairs[0])("a b", "a c", (" g",), (" h",))])
    with pytest.raises(CircuitGraphError, match="needs at least two pairs; got 1"):
        run(prompts=tiny_pairs[:1], baselines=["resample"])

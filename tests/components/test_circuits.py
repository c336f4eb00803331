"""Circuits of edges between components: against a naive run of each head by itself, gates whose answers are known, and the way
in which MIB chooses edges."""

from __future__ import annotations

import json
from dataclasses import replace

import networkx as nx
import pytest
import torch
from support.close import assert_close
from support.command import model_options, run
from support.families import FAMILIES, TOKENS
from support.graph_files import component_graph

from circuitgraph.components.edge_masks import (
    all_edges,
    component_scores,
    edge_order,
    first_edges,
    owners,
    prune_edges,
)
from circuitgraph.components.evaluate import component_evaluation_text, evaluate_components
from circuitgraph.components.run import ComponentCircuits, component_shape, run_component_circuits, run_components
from circuitgraph.components.shape import ComponentShape
from circuitgraph.errors import CircuitGraphError, GraphError, ModelError
from circuitgraph.evaluation.conditions import FRACTIONS
from circuitgraph.evaluation.evidence import attach_evidence, evaluate
from circuitgraph.formats import load, save
from circuitgraph.formats.eap import component_edges, component_names, value_from_eap
from circuitgraph.metrics import Metric
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site
from circuitgraph.render import render_html
from circuitgraph.studies.programs import build_model, gate

OTHER = torch.tensor([[1, 4, 4, 7, 6, 9, 10], [1, 9, 4, 5, 3, 8, 11]])


def columns(shape: ComponentShape) -> dict[tuple[str, str], int]:
    """(reader, letter) -> column, in the words of EAP-IG."""
    names = []
    for layer in range(shape.n_layers):
        names += [(f"a{layer}.h{head}", letter) for letter in "qkv" for head in range(shape.n_heads)]
        names.append((f"m{layer}", ""))
    return {name: i for i, name in enumerate([*names, ("logits", "")])}


class Naive:
    """One circuit by itself: every head gets its own three runs of its layer, and only the model's own modules compute.

    A component is held as what it is before the output projection (z of a head), so that this knows no weights and no norms.
    """

    def __init__(self, model, tokens, kept):
        self.model, self.shape, self.tokens, self.kept = model, component_shape(model), tokens, kept
        self.rows = {name: i for i, name in enumerate(component_names(model.n_layers, model.n_heads))}
        self.columns = columns(self.shape)

    def run(self, other):
        """Logits, and z and MLP outputs; `other` are those of another run, None for none (all edges kept)."""
        start = self.model.run(self.tokens, record=[Site("resid_pre", 0)])[1][Site("resid_pre", 0)]
        self.own, self.other = {"input": start}, other or {"input": start}
        size, n_heads = self.model.d_head, self.model.n_heads
        for layer in range(self.model.n_layers):
            zs = []
            for head in range(n_heads):
                name, fixed = f"a{layer}.h{head}", {}
                for letter in "qkv":
                    site = Site(letter, layer)
                    value = self.of(layer, site, self.read(name, letter, layer, 0))
                    group = n_heads * size // value.shape[-1]
                    at = slice(head // group * size, (head // group + 1) * size) if letter != "q" else None
                    at = at or slice(head * size, (head + 1) * size)
                    fixed[site] = lambda x, recorded, value=value, at=at: _with(x, value, at)
                z = self.of(layer, Site("z", layer), start, fixed)
                zs.append(z[..., head * size : (head + 1) * size])
            self.own |= {f"a{layer}.h{head}": z for head, z in enumerate(zs)}
            read = self.read(f"m{layer}", "", layer, 0 if self.model.parallel else 1)
            no_attention = {} if self.model.parallel else {Site("attn_out", layer): lambda x, recorded: 0 * x}
            self.own[f"m{layer}"] = self.of(layer, Site("mlp_out", layer), read, no_attention)
        last = Site("resid_post", self.model.n_layers - 1)
        end = self.read("logits", "", self.model.n_layers, 0)
        return self.model.run(self.tokens, replace={last: lambda x, recorded: end})[0]

    def of(self, layer, site, stream, replace=None):
        entry = Site("resid_pre", layer)
        replace = {entry: lambda x, recorded: stream} | (replace or {})
        return self.model.run(self.tokens, record=[site], replace=replace)[1][site]

    def read(self, reader, letter, n_layers, n_attention):
        """What a component reads: the sum over the layers before it, and over the attention of its own layer (n_attention)."""

        def take(writer):
            kept = self.kept[self.rows[writer], self.columns[reader, letter]]
            return (self.own if kept else self.other)[writer]

        total = take("input")
        for layer in range(n_layers + n_attention):
            z = torch.cat([take(f"a{layer}.h{head}") for head in range(self.model.n_heads)], -1)
            mixed = {Site("z", layer): lambda x, recorded, z=z: z}
            total = total + self.of(layer, Site("attn_out", layer), self.own["input"], mixed)
            if layer < n_layers:
                total = total + take(f"m{layer}")
        return total


def _with(x, value, at):
    x = x.clone()
    x[..., at] = value[..., at]
    return x


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def family(request, loaded):
    return loaded(request.param), FAMILIES[request.param].precision


def test_all_edges_are_the_model_and_none_the_other_run(family):
    model, precision = family
    clean, other = run_components(model, TOKENS), run_components(model, OTHER)
    edges = all_edges(component_shape(model))
    whole, nothing = run_component_circuits(model, clean, other.written, torch.stack([edges, edges & False]))
    assert_close(whole, model.run(TOKENS)[0], dtype=precision)
    assert_close(nothing, model.run(OTHER)[0], dtype=precision)
    assert float((whole - nothing).abs().max()) > 1


def test_circuits_are_those_of_the_naive_runs(family):
    model, precision = family
    clean, other = run_components(model, TOKENS), run_components(model, OTHER)
    edges, generator = all_edges(component_shape(model)), torch.Generator().manual_seed(3)
    circuits = [edges & (torch.rand(edges.shape, generator=generator) < share) for share in (0.5, 0.9)]
    found = run_component_circuits(model, clean, other.written, torch.stack(circuits))
    naive_other = Naive(model, OTHER, edges)
    naive_other.run(None)
    for circuit, logits in zip(circuits, found, strict=True):
        expected = Naive(model, TOKENS, circuit).run(naive_other.own)
        assert_close(logits, expected, dtype=precision)
        assert float((logits - clean.logits).abs().max()) > 0.1 < float((logits - other.logits).abs().max())


def test_many_circuits_and_examples_are_those_run_one_by_one(tiny_model, monkeypatch):
    clean, other = run_components(tiny_model, TOKENS), run_components(tiny_model, OTHER)
    edges, generator = all_edges(component_shape(tiny_model)), torch.Generator().manual_seed(0)
    circuits = [edges & (torch.rand(edges.shape, generator=generator) < 0.7) for _ in range(5)]
    metric = Metric("first", lambda logits: logits[:, -1, 3])
    runner = ComponentCircuits(tiny_model, clean, other, metric, seed=0)
    together = runner.metric_of(circuits, "corrupted")
    monkeypatch.setattr("circuitgraph.components.run._ELEMENTS", 1)
    alone = runner.metric_of(circuits, "corrupted")
    assert_close(together, alone)
    assert len(set(together.flatten().tolist())) == 10


@pytest.mark.parametrize(("name", "without_one"), [("and", 0.0), ("or", 1.0)])
def test_the_true_edges_of_a_gate_are_enough_and_an_or_gate_needs_one_input_only(name, without_one):
    program = gate(name)
    model = build_model(program)
    clean, other = run_components(model, program.clean), run_components(model, program.corrupted)
    shape = component_shape(model)
    rows = {n: i for i, n in enumerate(component_names(1, 2))}
    place = columns(shape)

    def output(edges):
        kept = torch.zeros(1, shape.n_writers, shape.n_readers, dtype=torch.bool)
        for source, target, letter in edges:
            kept[0, rows[source], place[target, letter]] = True
        return float(run_component_circuits(model, clean, other.written, kept)[0, 0, -1, 0])

    true = [
        ("input", "a0.h0", "v"),
        ("input", "a0.h1", "v"),
        ("a0.h0", "m0", ""),
        ("a0.h1", "m0", ""),
        ("m0", "logits", ""),
    ]
    assert output(true) == 1 and output([]) == output(true[:4]) == 0
    assert output([true[0], true[2], true[4]]) == output([true[1], true[3], true[4]]) == without_one
    assert (
        output([edge for edge in true if edge != true[1]]) == without_one
    )  # a head that reads nothing brings the other run
    assert output([*true, ("input", "a0.h0", "q"), ("input", "logits", "")]) == 1


def test_a_model_that_its_components_do_not_make_up_is_refused(tiny_model, monkeypatch):
    layout = type(tiny_model.layout)
    original = layout.apply
    monkeypatch.setattr(
        layout, "apply", lambda self, layer, part, x: original(self, layer, part, x) * (1.01 if part == "mlp" else 1)
    )
    with pytest.raises(ModelError, match="with every edge kept the logits differ by .* from the model's"):
        run_components(tiny_model, TOKENS)


# choosing edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_the_matrix_has_the_edges_of_eap(parallel):
    shape = ComponentShape(3, 2, parallel)
    rows, place = list(component_names(3, 2)), columns(shape)
    expected = {(rows.index(s), place[t, letter]) for s, t, letter in component_edges(3, 2, parallel)}
    assert {tuple(edge) for edge in all_edges(shape).nonzero().tolist()} == expected
    assert (shape.n_writers, shape.n_readers) == (len(rows) - 1, len(place))
    writers = owners(shape).tolist()
    assert all(writers[i] == (-1 if name == "logits" else rows.index(name)) for (name, _), i in place.items())


def naive_circuit(shape, scores, n, absolute, greedy):
    """The first n edges and pruning, edge by edge on names."""
    rows, place = list(component_names(shape.n_layers, shape.n_heads)), columns(shape)
    value = {}
    for source, target, letter in component_edges(shape.n_layers, shape.n_heads, shape.parallel):
        number = float(scores[rows.index(source), place[target, letter]])
        value[source, target, letter] = abs(number) if absolute else number
    chosen, reached = [], {"logits"}
    while len(chosen) < n:
        free = [edge for edge in value if edge not in chosen and (not greedy or edge[1] in reached)]
        chosen.append(max(free, key=value.__getitem__))
        reached.add(chosen[-1][0])
    for _ in chosen:
        sources, targets = {edge[0] for edge in chosen}, {edge[1] for edge in chosen}
        chosen = [e for e in chosen if (e[0] == "input" or e[0] in targets) and (e[1] == "logits" or e[1] in sources)]
    kept = torch.zeros(shape.n_writers, shape.n_readers, dtype=torch.bool)
    for source, target, letter in chosen:
        kept[rows.index(source), place[target, letter]] = True
    return kept


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("selection", ["top-n", "greedy"])
def test_edges_are_chosen_and_pruned_as_one_would_by_hand(absolute, selection):
    shape = ComponentShape(2, 2, False)
    scores = torch.randn(shape.n_writers, shape.n_readers, generator=torch.Generator().manual_seed(5))
    order = edge_order(shape, scores, absolute=absolute, selection=selection)
    sizes = []
    for n in (0, 3, 8, 15, 30, 42):
        found = first_edges(shape, order, n)
        assert torch.equal(found, naive_circuit(shape, scores, n, absolute, selection == "greedy"))
        sizes.append(int(found.sum()))
    assert sizes[0] == 0 < sizes[2] < 8 < sizes[4] < 30 or sizes[-1] == 42
    assert sorted(order.tolist()) == all_edges(shape).flatten().nonzero()[:, 0].tolist()


# evaluation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(tiny_model, tiny_pairs):
    graph = value_from_eap(component_graph(tiny_model))
    return graph, evaluate_components(graph, tiny_model, tiny_pairs, seed=2)


def naive_metric(model, pairs, circuit, baseline="corrupted"):
    """The mean logit difference of a circuit, edge by edge, naively."""
    ids = {side: torch.tensor([model.tokens(getattr(p, side)) for p in pairs]) for side in ("clean", "corrupted")}
    other = Naive(model, ids["corrupted"], all_edges(component_shape(model)))
    other.run(None)
    values = other.own
    if baseline == "mean":
        values = {name: value.mean(0, keepdim=True).expand_as(value) for name, value in values.items()}
    logits = Naive(model, ids["clean"], circuit).run(values)[:, -1]
    right, wrong = (
        [model.continuation(getattr(p, name)[0])[0] for p in pairs] for name in ("answers", "wrong_answers")
    )
    rows = torch.arange(len(pairs))
    return float((logits[rows, right] - logits[rows, wrong]).mean())


def test_faithfulness_and_completeness_are_those_of_naive_runs(evaluated, tiny_model, tiny_pairs):
    graph, evaluation = evaluated
    found = component_scores(graph)
    rows = {row.baseline: row for row in evaluation.conditions}
    assert list(rows) == ["corrupted", "zero", "mean", "resample"] and evaluation.n_given == int(found.circuit.sum())
    edges = all_edges(found.shape)
    full = naive_metric(tiny_model, tiny_pairs, edges)
    circuit = prune_edges(found.shape, found.circuit)
    assert_close(evaluation.metric_clean, full)
    assert evaluation.n_edges == int(circuit.sum())
    for name in ("corrupted", "mean"):
        empty = naive_metric(tiny_model, tiny_pairs, edges & False, name)
        inside = naive_metric(tiny_model, tiny_pairs, circuit, name)
        row = rows[name]
        assert_close([row.metric_empty, row.metric_circuit], [empty, inside], scale=max(abs(full), abs(empty)))
        share, scale = (inside - empty) / (full - empty), max(abs(full), abs(empty)) / abs(full - empty)
        assert_close(row.faithfulness.value, share, scale=scale)
        assert abs(inside - empty) > 1e-3 < abs(inside - full)
    assert len({row.metric_circuit for row in evaluation.conditions}) == 4


def test_the_evidence_goes_into_the_graphs_file_and_its_page(evaluated, tmp_path):
    graph, evaluation = evaluated
    with_evidence = attach_evidence(graph, evaluation)
    save(with_evidence, tmp_path / "graph.json")
    found = load(tmp_path / "graph.json").graph["evidence"]
    assert "evidence" not in graph.graph and found == json.loads(json.dumps(evaluation.summary()))
    first = evaluation.conditions[0]
    assert found["faithfulness"] == first.faithfulness.value != 0 and found["baseline"] == first.baseline == "corrupted"
    assert found["prompts"] == evaluation.prompts and found["cpr"] == evaluation.cpr
    assert f"{found['faithfulness']:.0%}".replace("-", "\u2212") in render_html(with_evidence)


def test_cpr_and_cmd_are_the_areas_of_naive_runs_at_mibs_sizes(evaluated, tiny_model, tiny_pairs):
    graph, evaluation = evaluated
    found = component_scores(graph)
    full = naive_metric(tiny_model, tiny_pairs, all_edges(found.shape))
    empty = naive_metric(tiny_model, tiny_pairs, all_edges(found.shape) & False)
    areas = []
    for absolute in (False, True):
        values = []
        for fraction in FRACTIONS:
            circuit = naive_circuit(found.shape, found.scores, int(fraction * 46), absolute, False)
            values.append((naive_metric(tiny_model, tiny_pairs, circuit) - empty) / (full - empty))
        heights = [abs(1 - value) for value in values] if absolute else values
        steps = zip(FRACTIONS[:-1], FRACTIONS[1:], heights[:-1], heights[1:], strict=True)
        areas.append(sum((b - a) * (x + y) / 2 for a, b, x, y in steps))
        curve = {curve.order: curve for curve in evaluation.curves}["absolute" if absolute else "signed"]
        assert_close([point.faithfulness for point in curve.points], values)
    assert evaluation.n_model == 46
    assert_close([evaluation.cpr, evaluation.cmd], areas)
    assert abs(areas[0]) > 0.01 < areas[1]


def test_greedy_circuits_waste_fewer_edges_and_the_report_says_so(evaluated, tiny_model, tiny_pairs):
    graph, evaluation = evaluated
    greedy = evaluate_components(graph, tiny_model, tiny_pairs, baselines=["corrupted"], selection="greedy", seed=2)
    kept = [[point.n_kept for point in found.curves[0].points] for found in (evaluation, greedy)]
    assert sum(kept[1]) > sum(kept[0]) and greedy.cpr != evaluation.cpr
    text = component_evaluation_text(greedy)
    for part in ("CPR", "CMD", "over edges, greedy, baseline corrupted", "of 46 edges", "complement_faithfulness"):
        assert part in text
    assert json.loads(json.dumps(greedy.record(), allow_nan=False))["curves"][2]["order"] == "random"


def test_a_pruned_graph_is_a_circuit_without_a_curve(evaluated, tiny_model, tiny_pairs):
    graph, evaluation = evaluated
    small = graph.copy()
    small.remove_edges_from([(u, v, k) for u, v, k, kept in graph.edges(keys=True, data="in_graph") if not kept])
    found = evaluate_components(small, tiny_model, tiny_pairs, seed=2)
    assert found.conditions == evaluation.conditions and found.curves == () and found.cpr is None
    assert f"the graph has {small.number_of_edges()}" in component_evaluation_text(found)


def test_prompts_that_are_the_same_have_no_faithfulness(evaluated, tiny_model, tiny_pairs):
    """The two runs differ by roundings, of which no share is taken."""
    same = [replace(pair, corrupted=pair.clean) for pair in tiny_pairs]
    found = evaluate_components(evaluated[0], tiny_model, same, baselines=["corrupted", "zero"])
    assert found.conditions[0].faithfulness is None and found.conditions[0].complement_faithfulness is None
    assert found.conditions[1].faithfulness is not None and found.cpr is None and found.cmd is None


def test_prompts_without_corrupted_ones_are_measured_against_nothing(evaluated, tiny_model, tiny_pairs):
    """As with the baseline zero where there are corrupted prompts; any other one is refused."""
    graph, evaluation = evaluated
    alone = [replace(pair, corrupted=None) for pair in tiny_pairs]
    found = evaluate_components(graph, tiny_model, alone, seed=2)
    (row,) = found.conditions
    assert row == next(row for row in evaluation.conditions if row.baseline == "zero") and row.faithfulness is not None
    assert len(found.curves) == 3 and found.cpr != evaluation.cpr
    with pytest.raises(CircuitGraphError, match="baseline 'corrupted' needs corrupted prompts, and there are none"):
        evaluate_components(graph, tiny_model, alone, baselines=["corrupted"])


def test_a_folder_and_a_single_pair_are_as_good_as_a_model_and_a_list(evaluated, tiny_folder, tiny_pairs):
    graph, settings = evaluated[0], {"curves": False, "seed": 7, "length": 6}
    found = evaluate_components(graph, str(tiny_folder), tiny_pairs[0], **settings)
    listed = evaluate_components(graph, load_model(tiny_folder), [tiny_pairs[0]], **settings)
    assert found.record() == listed.record() and found.curves == ()
    assert found.settings == {"metric": "logit_difference", "selection": "top-n", "examples": None, **settings}
    lines = repr(found).splitlines()
    assert lines[0].endswith(f"1 examples of 6 tokens, prompts {found.prompts[:12]}, seed 7") and len(lines) < 10
    with pytest.raises(CircuitGraphError, match="'pairs' is no setting"):
        evaluate_components(graph, tiny_folder, tiny_pairs, pairs=tiny_pairs)


def test_what_cannot_be_evaluated_is_refused(evaluated, tiny_model, tiny_pairs, tmp_path):
    graph, _ = evaluated
    with pytest.raises(CircuitGraphError, match="selection 'gredy' is unknown.*Did you mean 'greedy'"):
        evaluate_components(graph, tiny_model, tiny_pairs, selection="gredy")
    with pytest.raises(CircuitGraphError, match="baseline 'mena' is unknown"):
        evaluate_components(graph, tiny_model, tiny_pairs, baselines=["mena"])
    with pytest.raises(CircuitGraphError, match="baseline 'mean' .* needs at least two pairs; got 1"):
        evaluate_components(graph, tiny_model, tiny_pairs[:1], baselines=["mean"])
    with pytest.raises(GraphError, match="measured by its edges: use evaluate_components"):
        evaluate(graph, tiny_model, None)
    value = component_graph(tiny_model)
    value["cfg"]["n_layers"] = 3
    with pytest.raises(
        GraphError, match="the graph is of 3 layers of 2 heads, d_model 16; tiny has 2 layers of 2 heads"
    ):
        evaluate_components(value_from_eap(value), tiny_model, tiny_pairs)
    value = component_graph(tiny_model)
    value["nodes"]["a0.h1"]["neurons"] = [True] * 15 + [False]
    with pytest.raises(GraphError, match="keeps only some of its dimensions"):
        evaluate_components(value_from_eap(value), tiny_model, tiny_pairs)
    head, mlp = value_from_eap(component_graph(tiny_model)), value_from_eap(component_graph(tiny_model))
    for name in ("z.7/f0@0", "z.1/f2@0", "mlp_out.0/f9@0", "mlp_out.0/error@0"):
        other = nx.relabel_nodes(graph, {"mlp_out.0/f0@0": name})
        with pytest.raises(GraphError, match=f"node '{name}' is no head or MLP of 2 layers with 2 heads"):
            evaluate_components(other, tiny_model, tiny_pairs)
    head.add_edge("embed@0", "z.0/f0@0", key="mlp", weight=1.0)
    mlp.add_edge("embed@0", "mlp_out.0/f0@0", key="q", weight=1.0)
    for other in (head, mlp):
        with pytest.raises(GraphError, match=r"joins components that no model of this shape joins"):
            evaluate_components(other, tiny_model, tiny_pairs)
    del graph.graph["components"]
    with pytest.raises(GraphError, match="no graph of heads and MLPs"):
        evaluate_components(graph, tiny_model, tiny_pairs)


def test_the_command_evaluates_a_file_of_eap(tiny_model, workplace, tiny_folder, tmp_path):
    file, out = tmp_path / "scores.json", tmp_path / "report.json"
    file.write_text(json.dumps(component_graph(tiny_model)))
    common = ["--model", tiny_folder, "-o", out, "--length", 6, "--quiet", "--selection", "greedy"]
    result = run(
        "evaluate", file, workplace / "pairs.jsonl", *common, "--plots", tmp_path / "plots", "--metric", "logit"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["settings"]["metric"] == "logit" and report["n_examples"] == 2 and report["cpr"] is not None
    assert "CPR" in result.stdout and str(tmp_path / "plots" / "edge_curves.html") in result.stdout
    result = run("evaluate", file, *model_options(tiny_folder, workplace), "-o", out)
    assert result.exit_code == 1 and "which names no prompts; give PROMPTS behind it" in result.stderr

"""A graph of prompts of different form is measured as the average of what its nodes do in each of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.aligned_pairs import ALIGNED, EVERYTHING, FIRST, SECOND, aligned_names, counted
from support.close import assert_close
from support.dictionary_kinds import dictionary_set
from support.families import FAMILIES

from circuitgraph.attribution.aligned_model import align_model
from circuitgraph.attribution.alignment import align_pairs
from circuitgraph.attribution.attribute import attribute
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.evaluation.circuits import ERRORS, circuit_mask, run_with_nodes
from circuitgraph.evaluation.evidence import evaluate, measure
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Node, Site
from circuitgraph.prompts import PromptPair

ALL_MEASURED = {"n_patched": 10_000, "n_edges": 10_000, "n_dropped": 0, "curves": False, "baselines": ("zero",)}


def name_of(key, aligned):
    return key.rpartition("@")[0], aligned[Node.parse(key).pos]


@pytest.mark.parametrize(("family", "baseline"), [("gpt2", "corrupted"), ("llama", "zero")])
def test_effects_and_faithfulness_are_means_over_the_prompts_own(loaded, family, baseline):
    model = loaded(family)
    found = dictionary_set(model, "transcoders")
    both = discover([FIRST, SECOND], model, found, align="role", baseline=baseline, **EVERYTHING)
    strong = sorted(both, key=lambda node: -abs(both.nodes[node]["attribution"]))[:40]
    circuit = both.subgraph({*strong, *(node for node in both if node.startswith("metric"))})
    whole = evaluate(circuit, model, found, **ALL_MEASURED)
    names = aligned_names(both)
    parts = []
    for pair, aligned in zip((FIRST, SECOND), ALIGNED, strict=True):
        own = discover([pair], model, found, baseline=baseline, **EVERYTHING)
        here = [
            node for node in own if name_of(node, counted(model, aligned)) in {name_of(node, names) for node in circuit}
        ]
        part = evaluate(own.subgraph(here), model, found, **ALL_MEASURED)
        effects = {name_of(node, counted(model, aligned)): effect for node, effect in part.effects.items()}
        edges = {tuple(name_of(n, counted(model, aligned)) for n in ends): x for ends, x in part.edge_effects.items()}
        parts.append((part, effects, edges))

    assert (
        len(whole.effects) == len(circuit) - 1 > 35
        and sum(abs(effect) > 1e-3 for effect in whole.effects.values()) > 30
    )
    rounding = {"dtype": FAMILIES[family].precision, "scale": max(abs(part[0].metric_clean) for part in parts)}
    means = [sum(part[1].get(name_of(node, names), 0.0) for part in parts) / 2 for node in whole.effects]
    assert_close(list(whole.effects.values()), means, **rounding)
    shared = {}
    for ends, effect in whole.edge_effects.items():
        key = tuple(name_of(node, names) for node in ends)
        if all(key in part[2] for part in parts):
            shared[key] = effect
    assert sum(abs(effect) > 1e-3 for effect in shared.values()) > 10
    assert_close(list(shared.values()), [sum(part[2][key] for part in parts) / 2 for key in shared], **rounding)
    found_by_hand = {}
    for pair, aligned in zip((FIRST, SECOND), ALIGNED, strict=True):
        at = {name: i for i, name in enumerate(counted(model, aligned))}
        nodes = [replace(Node.parse(n), pos=at[name_of(n, names)[1]]) for n in circuit if name_of(n, names)[1] in at]
        run = attribute([pair], model, found, baseline=baseline)
        for errors in ERRORS:
            for complement in (False, True):
                mask = circuit_mask(model, found, nodes, len(at), errors, complement=complement)
                logits = run_with_nodes(model, found, run.tokens.clean, run.baseline, mask)
                found_by_hand.setdefault((errors, complement), []).append(float(run.metric(logits)))
    for row in whole.conditions:
        if row.baseline == baseline:
            each = [sum(found_by_hand[row.errors, complement]) / 2 for complement in (False, True)]
            assert_close([row.metric_circuit, row.metric_complement], each, **rounding)
    assert len({round(sum(values), 3) for values in found_by_hand.values()}) > 2


def test_a_model_by_place_computes_what_it_computes_of_each_prompt_alone(loaded):
    model = loaded("llama")
    tokens = tokenize_pairs(model, [FIRST, SECOND], by_role=True)
    alignment = align_pairs(tokens, "role")
    there, ids = align_model(model, tokens, alignment)
    site, n = Site("resid_post", 1), len(alignment.names)
    assert ids.clean.shape == (2, n) and ids.lengths is None
    logits, recorded = there.run(ids.clean.repeat(3, 1), record=[site])
    alone, seen = model.run(tokens.clean[:1, : tokens.lengths[0]], record=[site])
    for copy in (0, 2, 4):
        assert_close(logits[copy, -1], alone[0, -1], dtype=FAMILIES["llama"].precision, n_terms=100)
        at = [alignment.names.index(name) for name in counted(model, ALIGNED[0])]
        assert_close(recorded[site][copy, at], seen[site][0], dtype=FAMILIES["llama"].precision, n_terms=100)
    change = torch.randn(3 * 2, n, 16, dtype=torch.float64)
    edited, _ = there.run(ids.clean.repeat(3, 1), replace={Site("embed"): lambda x, recorded: x + change})
    by_hand, _ = model.run(
        tokens.clean[:1, : tokens.lengths[0]], replace={Site("embed"): lambda x, recorded: x + change[4:5, at]}
    )
    assert_close(edited[4, -1], by_hand[0, -1], dtype=FAMILIES["llama"].precision, n_terms=100)
    assert float((edited[4, -1] - logits[4, -1]).abs().max()) > 0.1


def test_a_run_by_aligned_position_starts_at_a_layer(loaded):
    model = loaded("llama")
    tokens = tokenize_pairs(model, [FIRST, SECOND], by_role=True)
    there, ids = align_model(model, tokens, align_pairs(tokens, "role"))
    before = Site("resid_post", 0)
    logits, recorded = there.run(ids.clean, record=[before])
    again, _ = there.run(ids.clean, start=(1, recorded[before]))
    assert_close(again[:, -1], logits[:, -1])
    other, _ = there.run(ids.clean, start=(1, 2 * recorded[before]))
    assert float((other[:, -1] - logits[:, -1]).abs().max()) > 1e-3


def test_a_pattern_that_is_put_back_by_place_changes_nothing_and_another_does(loaded):
    model = loaded("llama")
    tokens = tokenize_pairs(model, [FIRST, SECOND], by_role=True)
    there, ids = align_model(model, tokens, align_pairs(tokens, "role"))
    site = Site("pattern", 0)
    logits, _ = there.run(ids.clean)
    same, _ = there.run(ids.clean, replace={site: lambda x, recorded: x.clone()})
    assert_close(same[:, -1], logits[:, -1])
    other, _ = there.run(ids.clean, replace={site: lambda x, recorded: x.roll(1, -1)})
    assert float((other[:, -1] - logits[:, -1]).abs().max()) > 1e-3


def test_places_that_are_positions_leave_the_model_as_it_is(tiny_model):
    tokens = tokenize_pairs(tiny_model, [FIRST, FIRST], by_role=True)
    assert align_model(tiny_model, tokens, align_pairs(tokens, "role")) == (tiny_model, tokens)


def test_the_whole_circuit_is_faithful_and_curves_end_there(loaded):
    model = loaded("gpt2")
    found = dictionary_set(model, "transcoders")
    graph = discover([FIRST, SECOND], model, found, align="role", **EVERYTHING)
    evaluation = evaluate(graph, model, found, n_patched=5, n_edges=5, n_dropped=3)
    assert {row.baseline for row in evaluation.conditions} == {"corrupted", "zero", "mean"}
    for curve in evaluation.curves:
        assert_close([curve.points[-1].faithfulness, curve.points[-1].complement_faithfulness], [1, 0])
        assert abs(curve.points[5].faithfulness - 1) > 0.05
    assert_close(evaluation.noise[-1].noising, evaluation.metric_clean)
    assert len(evaluation.drops) == 3


def test_other_pairs_are_measured_at_the_graphs_aligned_positions(loaded):
    """A third form has an aligned position that the graph does not have, and lacks some of its own."""
    model = loaded("gpt2")
    found = dictionary_set(model, "transcoders")
    graph = discover([FIRST, SECOND], model, found, align="role", baseline="zero", **EVERYTHING)
    third = PromptPair("a b f g e e e e g h", "a b f g e e e e h h", (" c",), (" d",), {"IO": 2, "S1": 3, "S2": 8})
    evaluation = evaluate(graph, model, found, prompts=[third], n_patched=10_000, n_edges=5, n_dropped=0, curves=False)
    alone = discover([third], model, found, baseline="zero", **EVERYTHING)
    assert_close(evaluation.metric_clean, alone.graph["metric"]["clean"])
    own = evaluate(alone, model, found, n_patched=10_000, n_edges=0, n_dropped=0, curves=False).effects
    aligned = ["start", "start+1", "start+2", "IO", "S1", "S1+1", "S1+2", "S1+3", "S1+4", "S2", "END"]
    expected = {name_of(node, aligned): effect for node, effect in own.items()}
    found_here = {name_of(node, aligned_names(graph)): effect for node, effect in evaluation.effects.items()}
    both = set(expected) & set(found_here)
    assert len(found_here) == len(graph) - 1 and sum(abs(found_here[key]) > 1e-4 for key in both) > 4
    assert_close([found_here[key] for key in both], [expected[key] for key in both], scale=abs(evaluation.metric_clean))
    absent = {key for key in found_here if key[1] not in aligned}
    assert absent
    effects = [found_here[key] for key in absent]
    assert_close(effects, [0.0] * len(absent), scale=abs(evaluation.metric_clean), zeros=True)


def test_measuring_an_aligned_graph_gives_its_nodes_their_effects(loaded):
    model = loaded("gpt2")
    found = dictionary_set(model, "transcoders")
    graph = discover([FIRST, SECOND], model, found, align="role", edge_threshold=0.02)
    measured = measure(graph, model, found)
    assert all("effect" in data for _, data in measured.nodes(data=True) if data["kind"] != "metric")


def test_what_cannot_be_measured_is_refused_in_one_line(loaded):
    model = loaded("gpt2")
    found = dictionary_set(model, "transcoders")
    graph = discover([FIRST, SECOND], model, found, align="role", edge_threshold=0.02)
    with pytest.raises(
        CircuitGraphError, match="baseline 'resample' takes another example's activations, which has other"
    ):
        evaluate(graph, model, found, baselines=("resample",))
    summed = discover([FIRST], model, found, positions="sum", edge_threshold=0.02)
    with pytest.raises(GraphError, match="the graph's nodes are sums over all positions, which are not measured"):
        evaluate(summed, model, found)
    with pytest.raises(
        CircuitGraphError, match="target 'mlp_out.0/f1@3' stands at one position, and these prompts differ in form"
    ):
        discover([FIRST, SECOND], model, found, align="role", targets=["mlp_out.0/f1@3"])
    with pytest.raises(
        CircuitGraphError, match=r"align 'roles' is unknown; expected one of position, role. Did you mean"
    ):
        discover([FIRST], model, found, align="roles")
    with pytest.raises(CircuitGraphError, match="positions 'all' is unknown; expected one of each, sum"):
        discover([FIRST], model, found, positions="all")

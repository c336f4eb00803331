"""Circuits of nodes that are run: complements, prompts without a difference, and what callers may hand in."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from support.close import assert_close
from support.dictionary_kinds import dictionary_set, in_dtype

from circuitgraph.attribution.attribute import attribute
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError, DictionaryError, ModelError, PromptError
from circuitgraph.evaluation.evidence import evaluate, measure
from circuitgraph.evaluation.node_circuits import NodeCircuit, node_circuits
from circuitgraph.graphs.pruning import prune
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Node, Site

FEW = {"n_patched": 5, "n_edges": 5, "n_dropped": 3}


@pytest.fixture(scope="module")
def graph(tiny_model, tiny_dictionaries, tiny_pairs):
    return prune(discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0), max_nodes=30)


@pytest.mark.parametrize("baseline", ["corrupted", "mean"])
def test_the_complement_of_a_circuit_is_the_circuit_of_all_other_nodes(tiny_model, tiny_pairs, baseline):
    """Features, errors, embeddings, and the biases of dictionaries that normalise what they read."""
    dictionaries = dictionary_set(tiny_model, "output_saes")
    graph = discover(tiny_pairs, tiny_model, dictionaries)
    runner = node_circuits(graph, tiny_model, dictionaries, tiny_pairs, None, seed=0)
    every = [Node("embedding", Site("embed"), pos) for pos in range(6)]
    for site, dictionary in dictionaries.items():
        features = [Node("feature", site, pos, i) for pos in range(6) for i in range(dictionary.d_sae)]
        every += features + [Node(kind, site, pos) for kind in ("error", "bias") for pos in range(6)]
    inside = set(random.Random(1).sample(every, len(every) // 2))
    outside = [node for node in every if node not in inside]
    for kind in ("feature", "error", "embedding", "bias"):
        assert any(node.kind == kind for node in inside) and any(node.kind == kind for node in outside), kind
    complement, others, nothing, whole, empty = runner.metric_of(
        [
            NodeCircuit(list(inside), complement=True),
            NodeCircuit(outside),
            NodeCircuit(every, complement=True),
            NodeCircuit([], complement=True),
            NodeCircuit([]),
        ],
        baseline,
    )
    assert_close(complement, others)
    assert_close(nothing, empty)
    assert torch.equal(whole, runner.clean_metric)
    assert min(float((complement - value).abs().max()) for value in (whole, empty)) > 1e-4


def test_prompts_that_are_the_same_have_no_faithfulness(graph, tiny_folder, tiny_dictionaries, tiny_pairs):
    """The circuit without any node is the model up to rounding, of which no share is taken."""
    model = load_model(tiny_folder)
    narrow = [in_dtype(dictionary, torch.float32) for dictionary in tiny_dictionaries.values()]
    same = [replace(pair, corrupted=pair.clean) for pair in tiny_pairs]
    found = evaluate(graph, model, narrow, prompts=same, baselines=["zero"], **FEW)
    by_baseline = {name: [row for row in found.conditions if row.baseline == name] for name in ("corrupted", "zero")}
    assert 0 < abs(found.metric_clean - found.metric_empty) < 1e-5 < abs(found.metric_clean)
    assert all(row.faithfulness is row.complement_faithfulness is None for row in by_baseline["corrupted"])
    assert all(row.faithfulness is not None for row in by_baseline["zero"])
    assert (found.faithfulness, found.cpr, found.cmd, found.n_not_needed, found.drops) == (None, None, None, None, {})
    assert "undefined" in repr(found)


def test_a_prompt_without_a_corrupted_one_is_measured_against_nothing(tiny_model, tiny_dictionaries):
    graph = discover("a b c d e", tiny_model, tiny_dictionaries, preset="attribution-graph")
    found = evaluate(graph, tiny_model, tiny_dictionaries, **FEW)
    assert {row.baseline for row in found.conditions} == {"zero"} and len(found.conditions) == 4
    assert abs(found.faithfulness) > 1e-3 and found.noise == () and len(found.curves) == 3 and len(found.effects) == 5
    assert found.settings["metric"] == "logits" and found.edges.n == 5
    for name in ("corrupted", "mean", "resample"):
        with pytest.raises(CircuitGraphError, match=f"baseline '{name}' needs corrupted prompts, and there are none"):
            evaluate(graph, tiny_model, tiny_dictionaries, baselines=[name])


def test_a_graph_of_pairs_is_not_measured_on_a_prompt_without_a_corrupted_one(graph, tiny_model, tiny_dictionaries):
    with pytest.raises(CircuitGraphError, match="baseline 'corrupted' needs corrupted prompts"):
        evaluate(graph, tiny_model, tiny_dictionaries, prompts="a b c d e")


def test_another_metric_is_measured_and_the_targets_of_the_graph_are_still_values(
    tiny_model, tiny_dictionaries, tiny_pairs
):
    """Edges into targets are measured whatever the metric is."""
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, targets=[" g", "mlp_out.1/f3@5"])
    found = evaluate(graph, tiny_model, tiny_dictionaries, metric="logit_difference", **{**FEW, "n_edges": 200})
    targets = {target for _, target in found.edge_effects}
    assert found.settings["metric"] == "logit_difference" and any(found.edge_effects.values())
    assert {graph.nodes[target]["kind"] for target in targets} >= {"logit", "probe"}
    run = attribute(tiny_pairs, tiny_model, tiny_dictionaries)
    assert_close(found.metric_clean, run.metric_means["clean"])


def test_names_folders_lists_and_texts_are_as_good_as_loaded_things(workplace, tiny_folder):
    folder, text = workplace / "dictionaries", "a b c d e"
    dictionaries = sorted(map(str, folder.iterdir()))
    graph = discover(text, str(tiny_folder), dictionaries, preset="attribution-graph")
    loaded = load_model(tiny_folder)
    values = [
        evaluate(graph, str(tiny_folder), dictionaries, n_dropped=0, curves=False),
        evaluate(graph, loaded.library, folder, n_dropped=0, curves=False, prompts=text),
        evaluate(graph, loaded, dictionaries, n_dropped=0, curves=False, prompts=[text]),
    ]
    assert values[0].record() == values[1].record() == values[2].record() and values[0].faithfulness
    measured = measure(graph, tiny_folder, folder, prompts=text, n_patched=4, n_edges=0)
    assert measured.graph["evidence"]["settings"]["n_patched"] == 4
    assert sum("effect" in data for _, data in measured.nodes(data=True)) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 7}, ModelError, "model is .*int; expected a name, a folder"),
        ({"dictionaries": 7}, DictionaryError, "int"),
        ({"prompts": 7}, PromptError, "the prompts are of type int; expected a text"),
        ({"prompts": []}, PromptError, "there are no prompts; expected at least one"),
        ({"n_patchd": 7}, CircuitGraphError, "'n_patchd' is no setting; .* Did you mean 'n_patched'"),
        ({"top_k": 1.5}, CircuitGraphError, "top_k is 1.5; expected a whole number >= 0"),
        ({"freeze": ["norm"]}, CircuitGraphError, "'norm' cannot be frozen .*Did you mean 'norms'"),
        ({"length": 9}, PromptError, "no pair has 9 tokens; the lengths are 6"),
    ],
)
def test_what_makes_no_sense_is_one_line(graph, tiny_model, tiny_dictionaries, arguments, error, message):
    given = {"model": tiny_model, "dictionaries": tiny_dictionaries} | arguments
    with pytest.raises(error, match=message) as raised:
        evaluate(graph, **given)
    assert "\n" not in str(raised.value)


def test_settings_choose_among_the_prompts_and_are_recorded(graph, tiny_model, tiny_dictionaries, tiny_pairs):
    few = {"n_patched": 3, "n_edges": 0, "n_dropped": 0, "curves": False}
    found = evaluate(graph, tiny_model, tiny_dictionaries, length=6, examples=1, seed=5, **few)
    chosen = random.Random(5).sample(tiny_pairs, 1)
    alone = evaluate(graph, tiny_model, tiny_dictionaries, prompts=chosen, seed=5, **few)
    assert found.n_examples == 1 and found.prompts == alone.prompts and found.conditions == alone.conditions
    own = {name: found.settings[name] for name in ("length", "examples", "seed", "n_patched", "freeze", "metric")}
    assert own == {"length": 6, "examples": 1, "seed": 5, "n_patched": 3, "freeze": [], "metric": "logit_difference"}
    assert "1 examples of 6 tokens" in repr(found) and "seed 5" in repr(found)

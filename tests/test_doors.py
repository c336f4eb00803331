"""What people hand in: names, folders, one of a thing or many; each is taken, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy
import pytest
import torch
from support.sae_lens_files import save

import circuitgraph as cg
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.doors import as_dictionaries, as_model, as_pairs, choose_pairs
from circuitgraph.embedded import circuit_dictionaries
from circuitgraph.errors import CircuitGraphError, DictionaryError, GraphError, MetricError, ModelError, PromptError
from circuitgraph.nodes import Site
from circuitgraph.prompts import PromptPair
from circuitgraph.settings import Prompts

PAIR = PromptPair("a b c d e", "a b f d e", " g", " h")


# prompts ---------------------------------------------------------------------------------------------------------------


def test_a_text_is_a_prompt_and_a_list_of_texts_are_prompts():
    assert as_pairs("a b") == [PromptPair("a b")] and as_pairs("a b")[0].corrupted is None
    assert as_pairs(["a b", PAIR]) == [PromptPair("a b"), PAIR]
    assert as_pairs(PAIR) == as_pairs((PAIR,)) == as_pairs(pair for pair in [PAIR]) == [PAIR]


def test_a_prompt_file_is_named_by_a_path_or_a_text(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"clean": "a b", "corrupted": "a c", "answers": " d"}) + "\n")
    assert as_pairs(path) == as_pairs(str(path)) == [PromptPair("a b", "a c", (" d",))]
    assert as_pairs("Read my file.json") == [PromptPair("Read my file.json")]  # several words that name no file
    for missing in (tmp_path / "none.jsonl", "none.jsonl", str(tmp_path / "none.json")):
        with pytest.raises(PromptError, match="does not exist"):
            as_pairs(missing)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (3, "the prompts are of type int; expected a text, a PromptPair, or a list"),
        (b"a b", "of type bytes"),
        ({"clean": "a"}, "of type dict"),
        (None, "of type NoneType"),
        ([], "there are no prompts"),
        (["a", 3], "prompt 1 is of type int"),
        ([["a", "b"]], "prompt 0 is of type list"),
        ("", "clean is ''; expected a text that is not empty"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(PromptError, match=message):
        as_pairs(prompts)


def test_a_text_as_an_answer_is_one_answer_and_not_its_letters():
    pair = PromptPair("a b", "a c", " Paris", [" Rome", " Oslo"])
    assert pair.answers == (" Paris",) and pair.wrong_answers == (" Rome", " Oslo")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((3,), "clean is 3; expected a text"),
        (("a", 3), "corrupted is 3; expected a text, or None"),
        (("a", ["b"]), r"corrupted is \['b'\]; expected a text"),
        (("a", "b", 3), "answers is 3; expected a text or a list of texts"),
        (("a", "b", [3]), "answers holds 3; expected texts"),
        (("a", "b", " c", {" d": 1}), "wrong_answers is {' d': 1}; expected a text or a list"),
        (("a", "b", b"c"), "answers is b'c'; expected a text"),
        (("a", "b", [None]), "answers holds None"),
    ],
)
def test_a_pair_of_other_things_is_refused(values, message):
    with pytest.raises(PromptError, match=message):
        PromptPair(*values)


def test_some_pairs_with_and_some_without_a_corrupted_prompt_are_refused(tiny_model, tiny_dictionaries):
    with pytest.raises(
        PromptError, match="pair 2 has no corrupted prompt and others have one; give all pairs one, or none"
    ):
        cg.discover([PAIR, "a b c d e"], tiny_model, tiny_dictionaries, metric="logit")


@pytest.mark.parametrize("baseline", ["corrupted", "mean"])
def test_a_baseline_that_needs_corrupted_prompts_is_refused_without_them(tiny_model, tiny_dictionaries, baseline):
    with pytest.raises(
        CircuitGraphError, match=f"baseline '{baseline}' needs corrupted prompts, .* or take baseline 'zero'"
    ):
        cg.discover("a b c d e", tiny_model, tiny_dictionaries, baseline=baseline, targets="logits")


def test_pairs_are_chosen_by_length_and_drawn_with_the_seed(tiny_model):
    pairs = [PromptPair("a b"), *(PromptPair(f"a b {word}") for word in "abcdefgh")]
    assert choose_pairs(pairs, tiny_model, Prompts(length=3)) == pairs[:1]
    drawn = choose_pairs(pairs, tiny_model, Prompts(length=4, examples=3, seed=1))
    assert len(drawn) == 3 and drawn == choose_pairs(pairs, tiny_model, Prompts(length=4, examples=3, seed=1))
    assert drawn != choose_pairs(pairs, tiny_model, Prompts(length=4, examples=3, seed=2))
    with pytest.raises(PromptError, match="no pair has 9 tokens; the lengths are 3, 4"):
        choose_pairs(pairs, tiny_model, Prompts(length=9))


def test_the_choice_of_pairs_is_in_the_provenance_from_every_door(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = cg.discover(tiny_pairs, tiny_model, tiny_dictionaries, length=6, examples=1, seed=5)
    assert {"length": 6, "examples": 1, "seed": 5}.items() <= graph.graph["provenance"]["settings"].items()
    assert graph.graph["n_examples"] == 1
    plain = cg.discover(tiny_pairs, tiny_model, tiny_dictionaries)
    assert not {"length", "examples", "seed"} & set(plain.graph["provenance"]["settings"])


# graphs and the rest -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circuit(tiny_model, tiny_dictionaries, tiny_pairs):
    return cg.prune(cg.discover(tiny_pairs, tiny_model, tiny_dictionaries), max_nodes=10)


TAKE_A_GRAPH = [
    cg.prune,
    cg.summary_text,
    cg.tensors,
    cg.render_html,
    cg.render_svg,
    cg.render_dot,
    cg.check_graph,
    cg.show,
]


@pytest.mark.parametrize("function", TAKE_A_GRAPH, ids=lambda function: function.__name__)
@pytest.mark.parametrize("graph", ["c.json", None, 3, nx.Graph()], ids=["text", "none", "int", "plain"])
def test_what_is_no_graph_is_refused(function, graph):
    with pytest.raises(GraphError, match="the graph is of type .*circuitgraph.load reads a file"):
        function(graph)


@pytest.mark.parametrize("function", [cg.prune, cg.summary_text, cg.tensors, cg.check_graph])
def test_a_graph_without_a_metric_is_refused_where_one_is_needed(function):
    with pytest.raises(GraphError, match=r"the graph has no metric|graph\.metric must hold"):
        function(nx.MultiDiGraph())


def test_evaluation_takes_the_graphs_own_dictionaries_and_nothing_else(circuit, tiny_model, tiny_dictionaries):
    few = Dictionaries(d for d in tiny_dictionaries.values() if d.writes.layer == 1)
    graph = cg.discover(PAIR, tiny_model, few, max_nodes=10)
    for function in (cg.evaluate, cg.measure):
        with pytest.raises(
            GraphError, match=r"built with dictionaries at z\.1, mlp_out\.1, and those given are at z\.0, "
        ):
            function(graph, tiny_model, tiny_dictionaries)
        with pytest.raises(GraphError, match="the graph is of type str"):
            function("c.json", tiny_model, tiny_dictionaries)
        with pytest.raises(CircuitGraphError, match="expected norms or attention"):
            function(circuit, tiny_model, tiny_dictionaries, freeze="norm")
    with pytest.raises(
        GraphError, match="of metric 'logit_difference', and effects in metric 'logit' cannot stand beside"
    ):
        cg.measure(circuit, tiny_model, tiny_dictionaries, metric="logit")


def test_words_may_be_one_text_or_be_given_once_only(circuit, tiny_model, tiny_dictionaries):
    few = {"n_patched": 2, "n_edges": 3, "n_dropped": 0, "curves": False}
    one, other = (
        cg.evaluate(circuit, tiny_model, tiny_dictionaries, freeze=freeze, baselines=baselines, **few)
        for freeze, baselines in (("norms", "zero"), (iter(["norms"]), iter(["zero"])))
    )
    assert one.settings["freeze"] == other.settings["freeze"] == ["norms"] and repr(one) == repr(other)
    for wrong in (5, [None], b"norms"):
        with pytest.raises(CircuitGraphError, match="freeze (is|holds) .*; expected"):
            cg.evaluate(circuit, tiny_model, tiny_dictionaries, freeze=wrong)


def test_a_metric_that_targets_would_hide_is_refused(tiny_model, tiny_dictionaries):
    for function in (cg.discover, cg.attribute):
        with pytest.raises(MetricError, match="metric 'logit' and targets 'logits' are both given"):
            function(PAIR, tiny_model, tiny_dictionaries, targets="logits", metric="logit")


def test_numbers_of_numpy_become_pythons(tmp_path, tiny_model, tiny_dictionaries):
    graph = cg.discover(
        PAIR, tiny_model, tiny_dictionaries, max_nodes=numpy.int64(20), edge_threshold=numpy.float32(0.5)
    )
    settings = graph.graph["provenance"]["settings"]
    assert type(settings["max_nodes"]) is int and type(settings["edge_threshold"]) is float
    cg.save(graph, tmp_path / "a.neuronpedia.json")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[10**6, 2]], "token id 1000000 is not in tiny; expected 0-11"),
        ([[-1, 2]], "token id -1 is not in tiny"),
        ([[True, False]], "expected whole numbers"),
        ([[]], "expected whole numbers"),
        ([[1] * 600], "600 tokens, but tiny reads at most 16"),
    ],
    ids=["large", "negative", "bool", "none", "long"],
)
def test_token_ids_that_the_model_does_not_have_are_refused(tiny_model, tiny_dictionaries, ids, message):
    ids = torch.tensor(ids) if ids[0] else torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(PromptError, match=message):
        cg.run_with_interventions(ids, tiny_model, tiny_dictionaries, [])


@pytest.mark.parametrize(
    "change", ["mlp_out.0/f3@1=1e39", "mlp_out.0/f3@1*=-1e39", "resid_post.0@1+=1e40*mlp_out.0/f3"]
)
def test_numbers_beyond_the_precision_are_refused(change):
    with pytest.raises(CircuitGraphError, match=r"is -?1e\+(39|40); expected a number of at most 3.4e\+38 in size"):
        cg.run_with_interventions("The capital of France is", "demo", "demo", change)


def test_activations_are_cached_at_sites_by_name(tiny_model, tiny_dictionaries):
    run = cg.run_with_interventions("a b c", tiny_model, tiny_dictionaries, [], cache=["mlp_out.0"])
    assert run.activations[Site("mlp_out", 0)].shape == (1, 4, 16)


# models and dictionaries -----------------------------------------------------------------------------------------------


def test_a_model_is_taken_by_folder_and_as_a_loaded_object(tiny_folder, tiny_model):
    assert as_model(tiny_model) is tiny_model
    assert as_model(tiny_folder).n_layers == as_model(str(tiny_folder)).n_layers == 2
    assert as_model(tiny_model.library).n_layers == 2
    assert as_model("demo").n_layers == 4


@pytest.mark.parametrize("model", [3, None, ["gpt2"], object()], ids=["int", "None", "list", "object"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ModelError, match=f"model is {type(model).__name__}; expected a name, a folder"):
        as_model(model)


def test_dictionaries_are_taken_one_or_many_and_mixed(tmp_path, tiny_model, tiny_dictionaries):
    folder = save(tmp_path / "z.0", hook="blocks.0.attn.hook_z")
    first, second = list(tiny_dictionaries.values())[1:3]
    assert list(as_dictionaries(first, tiny_model)) == [Site("mlp_out", 0)]
    assert list(as_dictionaries([second, first], tiny_model)) == [Site("mlp_out", 0), Site("z", 1)]
    assert list(as_dictionaries(folder, tiny_model)) == list(as_dictionaries(str(folder), tiny_model)) == [Site("z", 0)]
    assert list(as_dictionaries([first, folder], tiny_model)) == [Site("z", 0), Site("mlp_out", 0)]
    assert list(as_dictionaries(dict(tiny_dictionaries), tiny_model)) == list(tiny_dictionaries)
    assert as_dictionaries(tiny_dictionaries, tiny_model) is tiny_dictionaries
    assert len(as_dictionaries(None, tiny_model)) == len(as_dictionaries([], tiny_model)) == 0
    assert len(as_dictionaries("demo", as_model("demo"))) == len(circuit_dictionaries())


def test_what_is_no_dictionary_or_stands_at_the_wrong_site_is_refused(tiny_model, tiny_dictionaries):
    first = tiny_dictionaries[Site("z", 0)]
    with pytest.raises(DictionaryError, match="int"):
        as_dictionaries(3, tiny_model)
    with pytest.raises(DictionaryError, match="both write z.0"):
        as_dictionaries([first, first], tiny_model)
    with pytest.raises(DictionaryError, match=r"writes z\.0"):
        as_dictionaries({Site("z", 1): first}, tiny_model)
    with pytest.raises(DictionaryError, match="it was trained for another model"):
        as_dictionaries(tiny_dictionaries, as_model("demo"))


def test_dictionaries_are_one_value(tiny_dictionaries):
    site = Site("mlp_out", 1)
    assert (
        tiny_dictionaries.writers(site) == [tiny_dictionaries[site]] and tiny_dictionaries.writers(Site("z", 7)) == []
    )
    assert tiny_dictionaries.written == sorted(tiny_dictionaries.written) and len(tiny_dictionaries.written) == 4
    assert Site("mlp_in", 1) in tiny_dictionaries.reads
    assert repr(tiny_dictionaries).startswith("Dictionaries(4)") and repr(tiny_dictionaries).count("\n") == 4
    fewer = Dictionaries({k: d for k, d in tiny_dictionaries.items() if k != site})
    assert fewer | {site: tiny_dictionaries[site]} == tiny_dictionaries


def test_everything_may_be_a_name(tmp_path):
    """The call of the README: a prompt, a model's name, a dictionary's name and a preset."""
    path = Path(tmp_path) / "graph.json"
    graph = cg.discover("The keys to the cabinet", "demo", "demo", preset="attribution-graph", max_nodes=50)
    assert 5 < len(graph) <= 61 and graph.number_of_edges() > 10
    cg.save(graph, path)
    assert cg.load(path).number_of_edges() == graph.number_of_edges()
    assert graph.graph["metric"]["corrupted"] is None and graph.nodes["metric@5"]["attribution"] > 0

"""Pairs of different form in one graph: aligned by the words they name, it is the average of their own graphs."""

from __future__ import annotations

import functools

import pytest
import torch
from support.aligned_pairs import ALIGNED, EVERYTHING, FIRST, SECOND, aligned_names, counted
from support.close import assert_close
from support.dictionary_kinds import dictionary_set
from support.families import FAMILIES, hooked_transformer

from circuitgraph import embedded
from circuitgraph.attribution.alignment import align_pairs, position_names
from circuitgraph.discovery import discover
from circuitgraph.edges.trace import trace_edges
from circuitgraph.errors import PromptError
from circuitgraph.graphs.schema import check_graph
from circuitgraph.models.load import load_model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Node, Site
from circuitgraph.prompts import PromptPair, pairs_to_text, read_pairs, word_span
from circuitgraph.tasks import TASKS, make_pairs

CASES = [
    ("gpt2", "transcoders", {}),
    ("gpt2", "transcoders", {"baseline": "zero"}),
    ("gpt2", "transcoders", {"qk": "ablate"}),
    ("gpt2", "transcoders", {"method": "integrated", "steps": 3}),
    ("gpt2", "output_saes", {"baseline": "zero"}),
    ("gpt2", "residual", {"errors_as_targets": True}),
    ("gpt2", "skip_transcoders", {}),
    ("llama", "transcoders", {}),
    ("llama", "transcoders", {"qk": "ablate", "baseline": "zero"}),
    ("qwen3", "transcoders", {}),
    ("gemma2", "cross_layer", {"baseline": "zero"}),
    ("gemma3", "neurons", {}),
    ("gpt_neox", "output_saes", {}),
]
FROZEN = {"attention": "frozen", "mlp": "frozen"}


@pytest.fixture(scope="module")
def demo_model():
    return load_model(embedded.MODEL)


def renamed(graph, aligned):
    """The graph's nodes and edges with aligned positions in place of positions."""

    def name(key):
        node = Node.parse(key)
        return str(node).rpartition("@")[0], aligned[node.pos]

    nodes = {name(key): data for key, data in graph.nodes(data=True)}
    edges = {(name(u), name(v), kind): data for u, v, kind, data in graph.edges(keys=True, data=True)}
    return nodes, edges


def assert_is_the_average(graph, parts):
    """Every number of the graph is the mean over the parts, (nodes, edges) each, of which one may lack it."""
    nodes, edges = renamed(graph, aligned_names(graph))
    own = [set(part[1]) for part in parts]
    assert set(edges) == set.union(*own) and len(edges) > 60
    assert set(edges) - own[0] and set(edges) - own[1] and len(own[0] & own[1]) > 10
    compared = {"weight": [], "weight_abs": [], "local_weight": [], "heads": [], "attribution": []}  # (found, expected)
    for key, data in edges.items():
        found = [part[1][key] for part in parts if key in part[1]]
        compared["weight"].append((data["weight"], sum(d["weight"] for d in found) / 2))
        compared["weight_abs"].append((data["weight_abs"], sum(abs(d["weight"]) for d in found) / 2))
        if len(found) == 2:  # a feature that one example does not have still reads there, and has no edge of its own
            compared["local_weight"].append((data["local_weight"], sum(d["local_weight"] for d in found) / 2))
            heads = torch.tensor([d.get("heads", []) for d in found], dtype=torch.float64).mean(0).tolist()
            compared["heads"] += zip(data.get("heads", []), heads, strict=True)
    for key, data in nodes.items():
        found = [part[0][key]["attribution"] for part in parts if key in part[0]]
        if len(found) == 2:
            compared["attribution"].append((data["attribution"], sum(found) / 2))
    for name, rows in compared.items():
        if name == "heads" and not rows:  # in a graph of frozen attention
            continue
        assert_close(*map(list, zip(*rows, strict=True)), name=name)


@pytest.mark.parametrize(("family", "dictionaries", "settings"), CASES)
def test_the_graph_of_two_forms_is_the_average_of_their_own_graphs(loaded, family, dictionaries, settings):
    model = loaded(family)
    found = dictionary_set(model, dictionaries)
    graph_of = functools.partial(discover, model=model, dictionaries=found, **EVERYTHING, **settings)
    parts = [
        renamed(graph_of([pair]), counted(model, aligned))
        for pair, aligned in zip((FIRST, SECOND), ALIGNED, strict=True)
    ]
    both = graph_of([FIRST, SECOND], align="role")
    check_graph(both)
    assert_is_the_average(both, parts)
    separate = [graph_of([pair]).graph["metric"] for pair in (FIRST, SECOND)]
    for run in ("clean", "corrupted"):
        assert_close(both.graph["metric"][run], sum(m[run] for m in separate) / 2)


@pytest.mark.parametrize(("family", "settings"), [("gpt2", {}), ("llama", {"baseline": "zero"})])
def test_frozen_components_pass_between_the_places_of_each_example(loaded, family, settings):
    model = loaded(family)
    found = {site: d for site, d in dictionary_set(model, "transcoders").items() if site.kind == "mlp_out"}
    del found[Site("mlp_out", 1)]
    graph_of = functools.partial(
        discover, model=model, dictionaries=found, targets=[" c", " d"], **EVERYTHING, **settings, **FROZEN
    )
    parts = [
        renamed(graph_of([pair]), counted(model, aligned))
        for pair, aligned in zip((FIRST, SECOND), ALIGNED, strict=True)
    ]
    assert_is_the_average(graph_of([FIRST, SECOND], align="role"), parts)


@pytest.mark.parametrize(("family", "baseline"), [("gpt2", "corrupted"), ("gpt2", "zero"), ("llama", "zero")])
def test_what_targets_read_of_all_sources_is_what_they_read_of_the_stream(loaded, monkeypatch, family, baseline):
    model, traced = loaded(family), []

    def trace(*arguments, **settings):
        traced.append(trace_edges(*arguments, **settings))
        return traced[-1]

    monkeypatch.setattr("circuitgraph.discovery.trace_edges", trace)
    found = dictionary_set(model, "transcoders")
    discover([FIRST, SECOND], model, found, align="role", baseline=baseline, **EVERYTHING)
    stream, total_input = (
        torch.tensor([each[i] for i in traced[0].stream_input], dtype=torch.float64)
        for each in (traced[0].stream_input, traced[0].total_input)
    )
    assert len(stream) > 30 and int((stream.abs() > 1e-2).sum()) > 30
    assert_close(total_input, stream, dtype=FAMILIES[family].precision)


@pytest.mark.parametrize("baseline", ["corrupted", "mean"])
def test_roles_at_the_same_positions_are_alignment_by_position(tiny_model, tiny_dictionaries, tiny_pairs, baseline):
    named = [PromptPair(p.clean, p.corrupted, p.answers, p.wrong_answers, {"X": 2}) for p in tiny_pairs]
    by_role = discover(named, tiny_model, tiny_dictionaries, align="role", baseline=baseline)
    by_position = discover(tiny_pairs, tiny_model, tiny_dictionaries, baseline=baseline)
    assert by_position.number_of_edges() > 50
    assert dict(by_role.nodes(data=True)) == dict(by_position.nodes(data=True))
    assert list(by_role.edges(keys=True, data=True)) == list(by_position.edges(keys=True, data=True))
    assert by_role.graph["tokens"]["clean"] == ["<bos>", "start+1", "start+2", "X", "X+1", "END"]
    assert by_position.graph["tokens"]["clean"] == ["<bos>", "a", "b", "c", "d", "e"]


def test_the_order_of_pairs_and_the_memory_change_nothing(loaded):
    model = loaded("llama")
    found = dictionary_set(model, "transcoders")
    settings = {"align": "role", **EVERYTHING}
    graph = discover([FIRST, SECOND], model, found, **settings)
    other = discover([SECOND, FIRST], model, found, memory=1e-6, **settings)
    nodes, edges = renamed(graph, aligned_names(graph))
    other_nodes, other_edges = renamed(other, aligned_names(other))
    assert set(nodes) == set(other_nodes) and set(edges) == set(other_edges) and len(edges) > 100
    assert_close([other_edges[key]["weight"] for key in edges], [data["weight"] for data in edges.values()])


def test_examples_that_cancel_in_the_mean_show_in_the_mean_of_absolutes(loaded):
    """The same pair twice, and once with right and wrong answer exchanged, which negates every weight."""
    model = loaded("gpt2")
    against = PromptPair(FIRST.clean, FIRST.corrupted, FIRST.wrong_answers, FIRST.answers, FIRST.roles)
    pairs = [FIRST, FIRST, against]
    graph = discover(pairs, model, dictionary_set(model, "transcoders"), align="role", edge_threshold=0.01)
    assert graph.number_of_edges() > 20
    weights = [data["weight"] for _, _, data in graph.edges(data=True)]
    assert_close([data["weight_abs"] for _, _, data in graph.edges(data=True)], [3 * abs(weight) for weight in weights])
    nothing = discover([FIRST, against], model, dictionary_set(model, "transcoders"), align="role")
    said = "the graph is empty: no edges above the thresholds reach the metric, or pairs cancel in the mean"
    assert nothing.graph["reports"][-1] == said


# aligned positions --------------------------------------------------------------------------------------------------------------


def test_every_token_has_one_place_by_its_distance_from_the_named_word_before():
    for pair, roles, aligned in zip(
        (FIRST, SECOND),
        ({"IO": (2, 2), "S1": (4, 4), "S2": (7, 7)}, {"S1": (4, 4), "IO": (6, 6), "S2": (8, 8)}),
        ALIGNED,
        strict=True,
    ):
        assert position_names(roles, len(pair.clean.split()) + 1) == aligned
    assert position_names({"S": (2, 4)}, 7) == ["start", "start+1", "S-2", "S-1", "S", "S+1", "END"]
    assert position_names({"S": (0, 0)}, 3) == ["S", "S+1", "END"]
    assert position_names({}, 2) == ["start", "END"]


def test_places_stand_in_the_order_of_the_prompts_and_end_last(tiny_model):
    tokens = tokenize_pairs(tiny_model, [FIRST, SECOND], by_role=True)
    found = align_pairs(tokens, "role")
    assert sorted(found.names) == sorted({*ALIGNED[0], *ALIGNED[1]})
    assert [[row.index(p) if p in row else -1 for p in found.names] for row in ALIGNED] == found.index.tolist()
    order = [p for p in found.names if "IO" not in p and p not in ("S1", "S1+1", "S1+2")]
    assert order == ["start", "start+1", "start+2", "start+3", "S2", "END"]
    one_way = align_pairs(tokenize_pairs(tiny_model, [FIRST, FIRST], by_role=True), "role")
    assert list(one_way.names) == ALIGNED[0] and one_way.trivial


def test_a_place_behind_the_end_of_a_shorter_prompt_stands_before_end(tiny_model):
    longer = PromptPair("a f b g c d g e e e e", "a f b g c d f e e e e", (" c",), (" d",), dict(FIRST.roles))
    found = align_pairs(tokenize_pairs(tiny_model, [FIRST, longer], by_role=True), "role")
    assert found.names[-4:] == ("S2+1", "S2+2", "S2+3", "END")
    assert found.index[0, -4:].tolist() == [-1, -1, -1, 8] and found.index[1, -1] == 11


def test_the_mean_over_examples_is_taken_by_aligned_position(tiny_model):
    tokens = tokenize_pairs(tiny_model, [FIRST, SECOND], by_role=True)
    alignment = align_pairs(tokens, "role")
    x = torch.arange(40, dtype=torch.float64).view(2, 10, 2) ** 2
    site = Site("resid_pre", 0)
    mean = alignment.mean({site: x, Site("pattern", 0): x})
    assert list(mean) == [site]
    assert torch.equal(mean[site][0, 2], (x[0, 2] + x[1, 6]) / 2)  # IO
    assert torch.equal(mean[site][1, 6], mean[site][0, 2])
    assert torch.equal(mean[site][1, 9], (x[0, 8] + x[1, 9]) / 2)  # END
    assert torch.equal(mean[site][0, 6], x[0, 6])  # S1+2, which only the first has


def test_metrics_read_each_examples_own_last_position(tiny_model):
    tokens = tokenize_pairs(tiny_model, [FIRST, SECOND], by_role=True)
    assert tokens.lengths == (9, 10) and tokens.clean.shape == (2, 10)
    logits = torch.arange(2 * 10 * 3.0).view(2, 10, 3)
    moved = tokens.at_end(logits)
    assert torch.equal(moved[0, -1], logits[0, 8]) and torch.equal(moved[1], logits[1])
    assert torch.equal(moved[0, 1:], logits[0, :9])


# roles of prompts ----------------------------------------------------------------------------------------------------


BAD_ROLES = {
    "no such word": ({"S": 9}, r"role 'S' is word 9; the clean prompt has words 0 to 7"),
    "no such characters": ({"S": (3, 99)}, r"role 'S' is characters \[3, 99\]; the clean prompt has 15"),
    "no name": ({"S+1": 2}, r"role 'S\+1' is no name"),
    "taken": ({"END": 2}, r"role 'END' is taken: it is the last token"),
    "a text": ({"S": "f"}, r"role 'S' is 'f'; expected the number of a word"),
    "the last token": ({"S": 7}, r"pair 1: role 'S' is 'e', the last token, which is END in every prompt"),
    "one token twice": ({"S": 2, "T": 2}, r"pair 1: roles 'S' and 'T' both end at token 3, 'b'"),
    "between tokens": ({"S": (1, 2)}, r"pair 1: role 'S' is ' ', and no token stands there"),
}


@pytest.mark.parametrize(("roles", "message"), BAD_ROLES.values(), ids=BAD_ROLES)
def test_a_role_that_names_no_place_of_its_own_is_refused(tiny_model, roles, message):
    with pytest.raises(PromptError, match=message):
        pair = PromptPair(FIRST.clean, FIRST.corrupted, FIRST.answers, FIRST.wrong_answers, roles)
        tokenize_pairs(tiny_model, [pair], by_role=True)


def test_padding_is_refused_where_attention_looks_ahead(tiny_model, monkeypatch):
    monkeypatch.setattr(type(tiny_model), "causal", False)
    with pytest.raises(PromptError, match="the pairs have 9, 10 tokens, and padding would change what tiny computes"):
        tokenize_pairs(tiny_model, [FIRST, SECOND], by_role=True)


def test_a_hooked_transformer_keeps_its_angles_to_itself_and_gives_the_same_graph(loaded, folder):
    bridge = loaded("llama")
    library = hooked_transformer(folder("llama"))
    library.set_tokenizer(bridge.library.tokenizer)
    library.cfg.default_prepend_bos = bridge.library.cfg.default_prepend_bos
    hooked = load_model(library)
    found = dictionary_set(bridge, "output_saes")
    graphs = [discover([FIRST, SECOND], model, found, align="role", **EVERYTHING) for model in (bridge, hooked)]
    weights = [dict(zip(g.edges(keys=True), (w for *_, w in g.edges(data="weight")), strict=True)) for g in graphs]
    both = set(weights[0]) & set(weights[1])
    assert len(both) > 100
    assert_close([weights[1][edge] for edge in both], [weights[0][edge] for edge in both], dtype=torch.float32)


SWAPPED = {
    "a word": ("The key near", "The keys near", {"subject": 1}, {"subject": "keys"}),
    "characters of a word": ('She read "tall, x', "He wrote (tall, x", {"mark": (9, 10)}, {"mark": "("}),
    "to the end of a word": ("The uncle is", "The aunts is", {"S": (4, 9)}, {"S": "aunts"}),
    "two words": ("The old key is", "The new cars is", {"S": (4, 11)}, {"S": "new cars"}),
}


@pytest.mark.parametrize(("clean", "corrupted", "roles", "expected"), SWAPPED.values(), ids=SWAPPED)
def test_a_swapped_pair_names_the_words_of_the_other_prompt(clean, corrupted, roles, expected):
    swapped = PromptPair(clean, corrupted, (" a",), (" b",), roles).swapped()
    found = {name: swapped.clean[slice(*word_span(swapped.clean, name, word))] for name, word in swapped.roles}
    assert found == expected
    assert swapped.swapped() == PromptPair(clean, corrupted, (" a",), (" b",), roles)


def test_roles_are_read_and_written_with_the_pairs(tmp_path):
    pairs = [FIRST, PromptPair("The key, near", "The keys, near", (" is",), (" are",), {"S": (4, 7)})]
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs_to_text(pairs))
    assert '"roles": {"S": [4, 7]}' in path.read_text()
    assert read_pairs(path) == pairs and len({*read_pairs(path), *pairs}) == 2
    path.write_text('{"clean": "a b", "corrupted": "a c", "answers": ["d"], "roles": ["S"]}\n')
    with pytest.raises(PromptError, match=r"line 1: roles is \['S'\]; expected an object from names to words"):
        read_pairs(path)


def test_punctuation_is_no_part_of_a_word():
    assert [word_span('When "Mary," left', "S", i) for i in (0, 1, 2)] == [(0, 4), (6, 10), (13, 17)]
    assert word_span("a -- b", "S", 1) == (2, 4)


@pytest.mark.parametrize("task", TASKS)
def test_the_roles_of_a_task_name_words_of_every_template(task):
    for template in range(TASKS[task].n_templates):
        for pair in make_pairs(task, 5, template=template):
            words = {name: pair.clean[slice(*word_span(pair.clean, name, word))] for name, word in pair.roles}
            assert words
            if task == "ioi":
                assert (f" {words['IO']}",) == pair.answers and (f" {words['S1']}",) == pair.wrong_answers
                assert words["S1"] == words["S2"] and dict(pair.roles)["S1"] < dict(pair.roles)["S2"]
            elif task == "closing-quote":
                assert words["mark"] == {'"': '"', ")": "("}[pair.answers[0]]
            else:
                ((_, word),) = words.items()
                changed = [b for a, b in zip(pair.corrupted.split(), pair.clean.split(), strict=True) if a != b]
                assert word in {each.strip(".,") for each in changed}


@pytest.mark.parametrize("task", ["ioi", "greater-than", "gendered-pronoun", "closing-quote"])
def test_the_demo_finds_the_words_of_mixed_templates_in_one_graph(demo_model, task):
    pairs = make_pairs(task, 40, seed=2)
    tokens = tokenize_pairs(demo_model, pairs, by_role=True)
    alignment = align_pairs(tokens, "role")
    names = [name for name, _ in pairs[0].roles]
    assert tokens.lengths is not None and len(set(tokens.lengths)) > 1
    for name in names:
        at = alignment.index[:, alignment.names.index(name)]
        for pair, ids, pos in zip(pairs, tokens.clean, at.tolist(), strict=True):
            start, stop = word_span(pair.clean, name, dict(pair.roles)[name])
            text = demo_model.token_strings([int(ids[pos])])[0].strip()
            assert pair.clean[start:stop].endswith(text) and text

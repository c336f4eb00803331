"""What features do over a corpus is what all activations at once would say, in files that the graph's pages read."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.close import assert_close
from support.graphs import example_graph

from circuitgraph.cli.main import main
from circuitgraph.corpus.activity import batches, features_of, read_texts, run_corpus, windows_of
from circuitgraph.corpus.files import write_corpus_examples
from circuitgraph.discovery import discover
from circuitgraph.errors import CircuitGraphError, GraphError, PromptError
from circuitgraph.formats import feature_examples, save
from circuitgraph.formats.neuronpedia_names import cantor
from circuitgraph.nodes import Node, Site

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "."]


def texts(n=60, length=7, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(n)]


@pytest.fixture(scope="module")
def graph(tiny_model, tiny_dictionaries, tiny_pairs):
    return discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.01)


def activations(model, dictionary, corpus):
    """All activations [text, token, feature] of texts of one length, without BOS."""
    import torch

    tokens = torch.tensor([model.tokens(text) for text in corpus])
    values = model.run(tokens, record=[dictionary.reads])[1][dictionary.reads]
    return dictionary.encode(values)[:, 1:].float()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_a_stream_says_what_all_activations_at_once_say(tiny_model, tiny_dictionaries, batch_size):
    corpus = texts()
    found = run_corpus(
        tiny_model, tiny_dictionaries, {site: range(24) for site in tiny_dictionaries}, corpus, n_top=5, n_drawn=9,
        batch_size=batch_size,
    )  # fmt: skip
    silent = 0
    for site, activity in found.items():
        acts = activations(tiny_model, tiny_dictionaries[site], corpus).numpy()
        assert acts.max() > 0.5
        rounding = {"dtype": torch.float32, "scale": acts.max()}
        assert_close(activity.largest, acts.max((0, 1)), **rounding)
        assert_close(activity.smallest, acts.min((0, 1)), **rounding, zeros=True)
        assert activity.counts.sum(1).tolist() == (acts > 0).sum((0, 1)).tolist() and activity.n_values == 60 * 7
        for i in range(24):
            peaks = acts[..., i].max(1)
            n_active = int((peaks > 0).sum())
            silent += n_active == 0
            top, drawn = activity.top.of(i), activity.drawn.of(i)
            strongest = np.sort(peaks)[::-1][: min(5, n_active)].tolist()
            assert_close([max(a) for _, a in top], strongest, **rounding, zeros=not n_active)
            assert len(drawn) == min(9, n_active) and all(max(a) > 0 for _, a in drawn)
            for ids, values in top + drawn:
                text = " ".join(tiny_model.token_strings(ids))
                assert_close(values, acts[corpus.index(text), :, i], **rounding)
    assert 0 < silent < 24


def test_counts_stay_when_a_larger_activation_widens_their_range(tiny_model, tiny_dictionaries):
    site = Site("z", 0)
    dictionary = tiny_dictionaries[site]
    corpus = texts(200)
    peaks = activations(tiny_model, dictionary, corpus)[..., 3].amax(1)
    corpus = [corpus[i] for i in peaks.argsort()]
    found = run_corpus(tiny_model, tiny_dictionaries, {site: [3]}, corpus, batch_size=1)[site]
    acts = activations(tiny_model, dictionary, corpus)[..., 3].numpy()
    assert acts[acts > 0].min() < acts.max() / 8  # at least three times
    edges = np.linspace(0, float(found.limit[0]), found.counts.shape[1] + 1)
    expected = np.histogram(acts[acts > 0], bins=edges)[0]
    assert np.abs(np.cumsum(found.counts[0].numpy()) - np.cumsum(expected)).max() <= 1  # rounding at an edge


def test_the_draw_is_of_the_whole_corpus_and_depends_on_the_seed_only(tiny_model, tiny_dictionaries):
    site = Site("z", 0)
    drawn = {
        (seed, size): run_corpus(
            tiny_model, tiny_dictionaries, {site: [3]}, texts(300), n_drawn=12, seed=seed, batch_size=size
        )[site].drawn.of(0)
        for seed, size in [(0, 4), (0, 64), (1, 4)]
    }
    ids = {key: {tuple(window) for window, _ in found} for key, found in drawn.items()}
    assert ids[0, 4] == ids[0, 64] != ids[1, 4] and len(ids[0, 4]) == 12
    order = [tuple(tiny_model.tokens(text)[1:]) for text in texts(300)]
    places = [order.index(window) for window in ids[0, 4]]
    assert min(places) < 100 and max(places) > 200


def test_texts_are_cut_into_windows_and_read_as_they_are_needed(tiny_model, tiny_dictionaries):
    long = " ".join(random.Random(2).choices(WORDS, k=11))
    windows = list(windows_of(tiny_model, [long, "", "a b"], 5))
    assert [len(window) for window in windows] == [5, 5, 4, 3] and {window[0] for window in windows} == {1}
    assert [i for window in windows[:3] for i in window[1:]] == tiny_model.tokens(long)[1:]
    given = []

    def source():
        for i in range(40):
            given.append(i)
            yield [1, 2, 3][: 2 + i % 2]

    stream = batches(source(), 4, 0)
    assert next(stream)[0].shape == (4, 2) and len(given) == 7
    assert sum(len(tokens) for tokens, _ in stream) == 36


def test_a_file_for_each_feature_beside_the_graph(graph, tiny_model, tiny_dictionaries, tmp_path):
    corpus = texts(50)
    files, left_out = write_corpus_examples(graph, tiny_model, tiny_dictionaries, iter(corpus), tmp_path, n_top=8)
    nodes = {key: Node.parse(key) for key in graph if graph.nodes[key]["kind"] == "feature"}
    places = {(node.site.layer, node.feature) for node in nodes.values()}
    assert {file.name for file in files} == {f"{cantor(*place)}.json" for place in places} and len(files) > 10
    assert {file.parent for file in files} == {tmp_path / "features" / "tiny"}
    features = {(str(node.site), node.feature) for node in nodes.values()}
    assert len(left_out) == len(features) - len(places) > 0
    assert left_out[0].startswith("z.") and "has no file: another feature of layer" in left_out[0]
    for key, node in nodes.items():
        if node.site.kind != "mlp_out":
            continue
        value = json.loads(
            (tmp_path / "features" / "tiny" / f"{cantor(node.site.layer, node.feature)}.json").read_text()
        )
        acts = activations(tiny_model, tiny_dictionaries[node.site], corpus)[..., node.feature].numpy()
        exact = feature_examples(
            acts, [text.split() for text in corpus], index=node.feature, transcoder_id=str(node.site), n_top=8
        )
        assert value.keys() == exact.keys() and value["transcoder_id"] == tiny_dictionaries[node.site].name
        assert value["top_logits"][:5] == graph.nodes[key]["top_tokens"]
        assert not set(value["bottom_logits"][:4]) & set(value["top_logits"][:4])
        names = ("act_min", "act_max", "activation_frequency")
        assert_close([value[name] for name in names], [exact[name] for name in names], dtype=torch.float32)
        deciles = np.quantile(acts, np.linspace(0, 1, 11), method="lower")
        bin_width = exact["act_max"] / 640  # in which quantiles are counted
        assert_close(value["quantile_values"], deciles, dtype=torch.float32, allowance=bin_width)
        assert sum(value["histogram"]) == sum(exact["histogram"])
        theirs, ours = ([q["examples"] for q in v["examples_quantiles"]] for v in (exact, value))
        assert [e["tokens"] for e in ours[0]] == [e["tokens"] for e in theirs[0]]
        peaks = [max(e["tokens_acts_list"]) for part in ours[1:] for e in part]
        assert peaks == sorted(peaks, reverse=True)


def test_what_does_not_fit_together_is_said(graph, tiny_model, tiny_dictionaries, tmp_path):
    some = {site: d for site, d in tiny_dictionaries.items() if site.kind == "z"}
    with pytest.raises(GraphError, match=r"features at mlp_out.\d, where none of the dictionaries is"):
        features_of(graph, some)
    with pytest.raises(GraphError, match="the graph has no features"):
        features_of(example_graph(n_nodes=1), some)
    large = graph.copy()
    large.add_node("z.1/f24@0", **Node.parse("z.1/f24@0").fields, attribution=0.0)
    with pytest.raises(GraphError, match="has feature 24 at z.1, but z.1-topk has 24 features"):
        features_of(large, tiny_dictionaries)
    with pytest.raises(PromptError, match="the corpus has no text"):
        run_corpus(tiny_model, some, {Site("z", 0): [1]}, [])
    with pytest.raises(CircuitGraphError, match="n_tokens is 1; expected at least 2, BOS included"):
        run_corpus(tiny_model, some, {Site("z", 0): [1]}, ["a"], n_tokens=1)
    with pytest.raises(CircuitGraphError, match="n_top is 0; expected at least 1"):
        run_corpus(tiny_model, some, {Site("z", 0): [1]}, ["a"], n_top=0)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(PromptError, match="latin.txt is not UTF-8 text; expected one text on each line"):
        list(read_texts(tmp_path / "latin.txt"))
    (tmp_path / "texts.txt").write_text("a b\n\n  \nc\r\n")
    assert list(read_texts(tmp_path / "texts.txt")) == ["a b", "c"]


def test_the_command_does_it_for_the_demo(tmp_path):
    graph = example_graph(n_nodes=3)
    for key in list(graph):
        if graph.nodes[key]["kind"] == "feature":
            graph.remove_node(key)
    for name in ("mlp_out.1/f5@3", "z.0/f7@2"):
        graph.add_node(name, **Node.parse(name).fields, attribution=1.0)
    save(graph, tmp_path / "circuit.json")
    lines = [
        f"When {a} and {b} went to the station, {a} gave a coat to" for a in ("John", "Mary") for b in ("Kate", "Adam")
    ]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    arguments = ["examples", tmp_path / "circuit.json", tmp_path / "corpus.txt", "-o", tmp_path / "out"]
    done = CliRunner().invoke(main, [*map(str, arguments), "--neuronpedia-model", "mini", "--quiet"])
    assert (done.exit_code, done.stdout) == (0, f"2 files in {tmp_path / 'out' / 'features' / 'mini'}\n"), done.output
    value = json.loads((tmp_path / "out" / "features" / "mini" / f"{cantor(1, 5)}.json").read_text())
    assert value["index"] == 5 and len(value["top_logits"]) == 10
    done = CliRunner().invoke(main, ["examples", str(tmp_path / "circuit.json"), "none.txt", "-o", str(tmp_path)])
    assert (
        done.exit_code == 1
        and done.stderr == "PromptError: corpus none.txt cannot be read: no such file or directory\n"
    )

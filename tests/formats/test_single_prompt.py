"""A graph of one prompt without a corrupted one, and one whose metric does not change: every output says so and divides by nothing."""

from __future__ import annotations

import re

import networkx as nx
import pytest
from support.graphs import example_graph

from circuitgraph.formats import FORMATS, load, save
from circuitgraph.formats.neuronpedia import neuronpedia_value
from circuitgraph.graphs.schema import check_graph, metric_scale
from circuitgraph.render import labels, render_dot, render_svg
from circuitgraph.render.payload import payload


@pytest.fixture
def single() -> nx.MultiDiGraph:
    graph = example_graph()
    graph.graph["tokens"] = graph.graph["tokens"] | {"corrupted": None}
    graph.graph["metric"] = graph.graph["metric"] | {"corrupted": None}
    graph.graph["logits"] = graph.graph["logits"] | {"corrupted": None}
    graph.nodes["metric@14"]["attribution"] = graph.graph["metric"]["clean"]
    check_graph(graph)
    return graph


def test_the_header_shows_the_clean_number_alone(single):
    name, value, basis, explanation = labels.facts(single)[0]
    assert (name, value, basis) == ("logit difference", "3.42", "measured")
    assert explanation == "mean over 32 examples"
    assert "clean, no corrupted prompt +3.42" in labels.title(single, "metric@14")


def test_pictures_show_one_row_of_tokens_and_mark_nothing(single):
    both, one = render_svg(example_graph()), render_svg(single)
    assert labels.LIGHT["mark"] in both and ">corrupted<" in both
    assert labels.LIGHT["mark"] not in one and "corrupted" not in re.sub(r"<title>.*?</title>", "", one)
    assert "corrupted" in render_dot(example_graph()) and "corrupted0" not in render_dot(single)


def test_the_page_carries_what_100_percent_is(single):
    assert payload(single)["scale"] == metric_scale(single) == 3.4213
    both = example_graph()
    assert payload(both)["scale"] == metric_scale(both) == pytest.approx(3.4213 + 2.9508)
    assert payload(nx.MultiDiGraph())["scale"] == 0.0


@pytest.mark.parametrize("corrupted", [3.4213, 3.4213 + 1e-9])
def test_a_metric_that_does_not_change_has_no_shares(corrupted):
    graph = example_graph()
    graph.graph["metric"] = graph.graph["metric"] | {"corrupted": corrupted}
    assert payload(graph)["scale"] == metric_scale(graph) == 0.0
    assert labels.facts(graph)[0][3] == "mean over 32 examples; it does not change, so shares of it are undefined"


@pytest.mark.parametrize("name", [n for n, item in FORMATS.items() if item.keeps and n not in ("eap", "mib")])
def test_files_keep_that_there_is_no_corrupted_prompt(single, name, tmp_path):
    path = tmp_path / ("graph" + FORMATS[name].suffixes[0])
    save(single, path)
    again = load(path)
    assert again.graph["metric"]["corrupted"] is None and again.graph["tokens"]["corrupted"] is None


def test_neuronpedias_description_names_no_corrupted_number(single):
    description = neuronpedia_value(single, slug="s")["metadata"]["info"]["description"]
    assert "logit_difference: clean 3.421; the logit node" in description

"""Links to Neuronpedia: the URLs that the notebooks printed come out byte for byte."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from support.graphs import example_graph

from circuitgraph.cli.main import main
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.discovery import discover
from circuitgraph.errors import GraphError
from circuitgraph.formats import (
    feature_url,
    graph_quick_list_url,
    node_url,
    parse_sources,
    quick_list_url,
    save,
    with_sources,
)
from circuitgraph.render.payload import payload


def test_a_quick_list_in_full():
    url = quick_list_url("gpt2-small", [("5-att-kk", 7515)], "A list")
    assert url == (
        "https://neuronpedia.org/quick-list/?name=A%20list&features="
        "%5B%7B%22modelId%22%3A%20%22gpt2-small%22%2C%20%22layer%22%3A%20%225-att-kk%22%2C%20%22index%22%3A%20%227515%22%7D%5D"
    )
    two = quick_list_url("pythia-70m-deduped", [("0-att-sm", 31), ("5-res-sm", 2047)], "Two of one kind")
    assert two == (
        "https://neuronpedia.org/quick-list/?name=Two%20of%20one%20kind&features="
        "%5B%7B%22modelId%22%3A%20%22pythia-70m-deduped%22%2C%20%22layer%22%3A%20%220-att-sm%22%2C%20%22index%22%3A%20%2231%22%7D%2C%20"
        "%7B%22modelId%22%3A%20%22pythia-70m-deduped%22%2C%20%22layer%22%3A%20%225-res-sm%22%2C%20%22index%22%3A%20%222047%22%7D%5D"
    )
    assert feature_url("gpt2-small", "5-att-kk", 7515) == "https://www.neuronpedia.org/gpt2-small/5-att-kk/7515"
    assert feature_url("a/../b", "x?y#z", 1) == "https://www.neuronpedia.org/a%2F..%2Fb/x%3Fy%23z/1"


def test_a_graph_that_knows_its_sources_links_its_features(tmp_path):
    graph = with_sources(example_graph(), "gpt2-small", parse_sources(["z.0=0-att-kk", "mlp_out.1=1-tres-dc"]))
    key = next(key for key in graph if key.startswith("z.0/f"))
    index = graph.nodes[key]["feature"]
    assert node_url(graph, key) == f"https://www.neuronpedia.org/gpt2-small/0-att-kk/{index}"
    assert (
        node_url(graph, "embed@0") is None and node_url(graph, next(k for k in graph if k.startswith("z.1/f"))) is None
    )
    assert graph_quick_list_url(graph, [key, key]) == quick_list_url("gpt2-small", [("0-att-kk", index)])
    save(graph, tmp_path / "graph.links.txt")
    lines = (tmp_path / "graph.links.txt").read_text().splitlines()
    linked = [key for key in graph if key.startswith(("z.0/f", "mlp_out.1/f"))]
    assert len(lines) == len(linked) + 1 > 5 and lines[-1].startswith("quick list\thttps://neuronpedia.org/quick-list/")
    assert lines[0].split("\t")[0] == max(linked, key=lambda key: abs(graph.nodes[key]["attribution"]))


@pytest.fixture(scope="module")
def traced(tiny_model, tiny_dictionaries, tiny_pairs):
    """A graph whose dictionaries know their pages, but for the one at mlp_out.0 and one that names another model."""
    pages = {"z.0": "gpt2-small/0-att-kk", "z.1": "gpt2-small/1-att-kk", "mlp_out.1": "other/1-tres-dc"}
    named = {
        site: Dictionary(d.weights, d.reads, d.writes, d.name, neuronpedia=pages.get(str(site)))
        for site, d in tiny_dictionaries.items()
    }
    return discover(tiny_pairs, tiny_model, named, edge_threshold=0.01)


def test_a_graph_has_the_names_of_its_dictionaries_and_nobody_types_them(traced, tmp_path):
    assert traced.graph["provenance"]["neuronpedia"] == {
        "model": "gpt2-small",
        "sources": {"z.0": "0-att-kk", "z.1": "1-att-kk"},
    }
    save(traced, tmp_path / "graph.json")
    for name in ("graph.links.txt", "graph.neuronpedia.json"):
        done = CliRunner().invoke(main, ["convert", str(tmp_path / "graph.json"), "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    features = sorted(key for key in traced if key.startswith(("z.0/f", "z.1/f")))
    lines = [line.split("\t") for line in (tmp_path / "graph.links.txt").read_text().splitlines()]
    assert sorted(key for key, _ in lines[:-1]) == features and len(features) > 5
    for key, url in lines[:-1]:
        layer, index = traced.nodes[key]["layer"], traced.nodes[key]["feature"]
        assert url == f"https://www.neuronpedia.org/gpt2-small/{layer}-att-kk/{index}"
    metadata = json.loads((tmp_path / "graph.neuronpedia.json").read_text())["metadata"]
    assert metadata["scan"] == "gpt2-small"
    assert metadata["feature_details"] == {"neuronpedia_lorsa_source_set": "att-kk"}
    assert payload(traced)["links"] == {"z.0": "gpt2-small/0-att-kk", "z.1": "gpt2-small/1-att-kk"}


def test_a_graph_of_dictionaries_without_pages_names_none(tiny_model, tiny_dictionaries, tiny_pairs):
    graph = discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.1)
    assert "neuronpedia" not in graph.graph["provenance"] and payload(graph)["links"] == {}


def test_what_has_no_page_is_said(tmp_path):
    graph = example_graph()
    key = next(key for key in graph if key.startswith("z.0/f"))
    with pytest.raises(GraphError, match="dictionary at z.0 has no Neuronpedia source"):
        graph_quick_list_url(graph, [key])
    with pytest.raises(GraphError, match="node 'embed@0' is no feature"):
        graph_quick_list_url(graph, ["embed@0"])
    with pytest.raises(GraphError, match="no feature of the graph is of a dictionary with a Neuronpedia source"):
        save(graph, tmp_path / "graph.links.txt")
    with pytest.raises(GraphError, match="source 'z.5' does not parse: expected SITE=SOURCE"):
        parse_sources(["z.5"])
    graph.graph["provenance"]["neuronpedia"] = {"sources": ["z.5"]}
    with pytest.raises(GraphError, match="provenance.neuronpedia.sources is a list; expected an object"):
        node_url(graph, key)

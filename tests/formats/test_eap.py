"""EAP-IG and MIB files: what is read is written back equal, and a pruned graph becomes its circuit."""

from __future__ import annotations

import json

import networkx as nx
import pytest
from support.graph_files import eap_file
from support.graphs import example_graph

from circuitgraph.errors import GraphError
from circuitgraph.formats import load, save
from circuitgraph.formats.eap import component_edges, value_from_eap
from circuitgraph.graphs.pruning import prune
from circuitgraph.graphs.summary import summary_text


@pytest.fixture(params=[(2, 2), (12, 12)], ids=["small", "as large as GPT-2's"])
def file(request, tmp_path):
    eap_file(tmp_path / "scores.json", *request.param)
    return tmp_path / "scores.json"


def test_a_file_is_written_back_byte_for_byte_also_through_our_own(file, tmp_path):
    graph = load(file)
    save(graph, tmp_path / "a.eap.json")
    assert (tmp_path / "a.eap.json").read_bytes() == file.read_bytes()
    save(graph, tmp_path / "g.json.gz")
    save(load(tmp_path / "g.json.gz"), tmp_path / "b.eap.json")
    assert (tmp_path / "b.eap.json").read_bytes() == file.read_bytes()


def test_scores_and_membership_are_those_of_the_file(file):
    graph, value = load(file), json.loads(file.read_text())
    assert graph.number_of_edges() == len(value["edges"]) and len(graph) == len(value["nodes"])
    assert graph.edges["embed@0", "z.0/f1@0", "ov"]["weight"] == value["edges"]["input->a0.h1<v>"]["score"] != 0
    assert graph.edges["mlp_out.0/f0@0", "z.1/f0@0", "q"]["in_graph"] == value["edges"]["m0->a1.h0<q>"]["in_graph"]
    inside = [(u, v) for u, v, kept in graph.edges(data="in_graph") if kept]
    assert len(inside) == sum(edge["in_graph"] for edge in value["edges"].values()) > 5
    sent = sum(edge["score"] for name, edge in value["edges"].items() if name.startswith("m0->"))
    assert graph.nodes["mlp_out.0/f0@0"]["attribution"] == pytest.approx(sent)


def test_a_pruned_graph_becomes_the_circuit_and_is_drawn(file, tmp_path):
    graph = load(file)
    weights = sorted((abs(w) for *_, w in graph.edges(data="weight")), reverse=True)
    unit = abs(graph.graph["metric"]["clean"])
    small = prune(graph, edge_threshold=weights[30] / unit)
    assert 2 < small.number_of_edges() < graph.number_of_edges()
    save(small, tmp_path / "small.eap.json")
    again = load(tmp_path / "small.eap.json")
    assert {(u, v, k) for u, v, k, d in again.edges(keys=True, data=True) if d["in_graph"]} == set(
        small.edges(keys=True)
    )
    assert {key for key, kept in again.nodes(data="in_graph") if kept} == set(small)
    layers, heads = graph.graph["n_layers"], graph.graph["components"]["n_heads"]
    assert again.number_of_edges() == sum(1 for _ in component_edges(layers, heads, False))  # every edge of the model
    save(small, tmp_path / "small.svg")
    assert "a0.h" in (tmp_path / "small.svg").read_text() or "m0" in (tmp_path / "small.svg").read_text()
    assert f"{small.number_of_edges()} edges" in summary_text(small)


def test_a_submission_holds_scores_or_nine_circuits(file, tmp_path):
    graph = load(file)
    save(graph, tmp_path / "ioi_gpt2", "mib")
    assert [path.name for path in (tmp_path / "ioi_gpt2").iterdir()] == ["importances.json"]
    assert load(tmp_path / "ioi_gpt2").number_of_edges() == graph.number_of_edges()
    save(graph, tmp_path / "ioi_two", "mib", circuits=True)
    circuits = {
        p: json.loads((tmp_path / "ioi_two" / f"circuit_{p:g}.json").read_text())
        for p in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
    }
    assert len(list((tmp_path / "ioi_two").iterdir())) == 9
    n_edges, sizes = graph.number_of_edges(), []
    for percent, value in circuits.items():
        inside = nx.DiGraph(name.partition("<")[0].split("->") for name, e in value["edges"].items() if e["in_graph"])
        sizes.append(sum(e["in_graph"] for e in value["edges"].values()))
        assert sizes[-1] <= n_edges * percent / 100
        if inside:
            assert (
                set(inside)
                == nx.descendants(inside, "input") | {"input"}
                == nx.ancestors(inside, "logits") | {"logits"}
            )
    assert sizes == sorted(sizes) and sizes[-1] > 10
    with pytest.raises(GraphError, match="folder named TASK_MODEL, for instance ioi_gpt2, not 'ioi'"):
        save(graph, tmp_path / "ioi", "mib")


def test_a_folder_that_is_no_submission_is_said_to_be_none(tmp_path):
    with pytest.raises(GraphError, match="holds no importances.json; folders are read as MIB submissions"):
        load(tmp_path)


def test_the_edges_of_a_shape_are_counted():
    assert sum(1 for _ in component_edges(12, 12, False)) == 32_491
    serial, parallel = (set(component_edges(2, 2, flag)) for flag in (False, True))
    assert serial - parallel == {(f"a{i}.h{h}", f"m{i}", "") for i in range(2) for h in range(2)} and parallel < serial


def test_a_graph_of_features_is_refused(tmp_path):
    with pytest.raises(
        GraphError, match="EAP-IG files hold scores between heads and MLPs; this graph has dictionary features"
    ):
        save(example_graph(), tmp_path / "g.eap.json")
    graph = example_graph()
    graph.graph["components"] = {"n_heads": 2}
    with pytest.raises(GraphError, match="is no head, MLP, input or logits"):
        save(graph, tmp_path / "g.eap.json")


BROKEN = {
    "edge name": (lambda d: d["edges"].update({"m0=>m1": {"score": 1.0, "in_graph": True}}), "'m0=>m1' does not parse"),
    "kind": (lambda d: d["edges"].update({"m0->a1.h0<z>": {"score": 1.0, "in_graph": True}}), "does not parse"),
    "backward": (lambda d: d["edges"].update({"m1->m0": {"score": 1.0, "in_graph": True}}), "does not run forward"),
    "no such head": (
        lambda d: d["edges"].update({"a0.h9->m1": {"score": 1.0, "in_graph": True}}),
        "'a0.h9' is not in a model of 2",
    ),
    "dangling": (lambda d: d["nodes"].pop("m0"), "names 'mlp_out.0/f0@0', which is not among the nodes"),
    "score": (lambda d: d["edges"]["m0->m1"].update(score="1"), "score is '1'; expected a finite number"),
    "membership": (lambda d: d["edges"]["m0->m1"].update(in_graph=1), "in_graph is 1; expected true or false"),
    "layers": (
        lambda d: d["cfg"].update(n_layers=10**9),
        "cfg.n_layers is 1000000000; expected a whole number from 1 to 512",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(change, message, tmp_path):
    eap_file(tmp_path / "g.json")
    value = json.loads((tmp_path / "g.json").read_text())
    change(value)
    with pytest.raises(GraphError, match=message):
        value_from_eap(value)


@pytest.mark.parametrize("place", ["g.json", "g.eap.json"])
def test_a_name_that_stands_twice_is_refused(place, tmp_path):
    eap_file(tmp_path / place)
    text = (
        (tmp_path / place)
        .read_text()
        .replace('"edges": {', '"edges": {"input->m0": {"score": 9.0, "in_graph": true}, ')
    )
    (tmp_path / place).write_text(text)
    with pytest.raises(GraphError, match="the name 'input->m0' stands twice in one object"):
        load(tmp_path / place)

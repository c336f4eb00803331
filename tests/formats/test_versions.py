"""Graph files of older versions are read in today's words; the files here are written by hand, as those releases wrote them."""

from __future__ import annotations

import json

import jsonschema
import pytest

from circuitgraph.errors import GraphError
from circuitgraph.formats import graph_to_text, text_to_graph
from circuitgraph.formats.flat import from_flat
from circuitgraph.formats.native import SCHEMA

VERSION_2 = """{
"format": "circuitgraph",
"version": 2,
"counts": {"edges": 2, "nodes": 3},
"graph": {"evidence": {"completeness": 0.25, "curves": [{"area": 1.0, "order": "signed", "points": [{"completeness": 0.5, "faithfulness": 0.75, "n_nodes": 1}]}], "faithfulness": 0.875, "settings": [{"baseline": "corrupted", "completeness": null, "errors": "keep"}]}, "metric": {"clean": 2.0, "corrupted": -1.0, "name": "logit_difference"}, "n_examples": 1, "n_layers": 1, "provenance": {"alignment": {"index": [[0, 1]], "places": ["start", "END"]}, "prompts": [{"clean": "a b", "corrupted": "a c"}], "settings": {"attention": "component", "max_readers": 7, "metric": "cut", "mlp": "through", "qk": "recompute", "trace_errors": true}}, "reports": [], "scores": {"completeness": 0.5, "replacement": 0.25}, "tokens": {"clean": ["a", "b"], "corrupted": ["a", "c"]}},
"nodes": [
{"id": "embed@1", "attribution": 1.5, "feature": null, "kind": "embedding", "layer": null, "pos": 1, "site": "embed"},
{"id": "mlp_out.0/f3@1", "attribution": 2.5, "feature": 3, "inflow": 4.0, "kind": "feature", "layer": 0, "pos": 1, "site": "mlp_out.0", "unexplained": 0.5},
{"id": "metric@1", "attribution": 3.0, "feature": null, "kind": "metric", "layer": null, "pos": 1, "site": "metric"}
],
"edges": [
{"source": "embed@1", "target": "mlp_out.0/f3@1", "kind": "mlp", "local_weight": 3.5, "weight": 1.5, "weight_abs": 1.5},
{"source": "mlp_out.0/f3@1", "target": "metric@1", "kind": "metric", "local_weight": 2.5, "weight": 2.5, "weight_abs": 2.5}
]
}
"""


def version_1() -> str:
    """The same graph as version 1 had it, which said neither counts nor stood in lines."""
    value = json.loads(VERSION_2) | {"version": 1}
    del value["counts"]
    return json.dumps(value)


def single(metric: float = 2.0, version: int = 2, **prompt: str) -> dict:
    """The value of an old file of one prompt, whose corrupted one was a copy of the clean one."""
    value = json.loads(VERSION_2) | {"version": version}
    value["graph"]["tokens"] = {"clean": ["a", "b"], "corrupted": ["a", "b"]}
    value["graph"]["metric"] |= {"corrupted": metric}
    value["graph"]["provenance"] = {"prompts": [{"clean": "a b", **prompt}]}
    value["nodes"][2]["attribution"] = 2.0 - metric
    return value


@pytest.mark.parametrize("text", [VERSION_2, version_1()], ids=["version 2", "version 1"])
def test_words_and_names_of_older_files_become_todays(text):
    graph = text_to_graph(text)
    assert graph.graph["provenance"]["settings"] == {
        "attention": "node", "mlp": "frozen", "qk": "ablate", "max_traced": 7, "errors_as_targets": True, "metric": "cut",
    }  # fmt: skip
    assert graph.graph["provenance"]["alignment"] == {"index": [[0, 1]], "positions": ["start", "END"]}
    evidence = graph.graph["evidence"]
    assert evidence["complement_faithfulness"] == 0.25 and evidence["settings"][0]["complement_faithfulness"] is None
    assert evidence["curves"][0]["points"] == [{"complement_faithfulness": 0.5, "faithfulness": 0.75, "n_nodes": 1}]
    assert graph.graph["scores"] == {"completeness": 0.5, "replacement": 0.25}  # circuit-tracer's score keeps its name
    assert graph.nodes["mlp_out.0/f3@1"] == {
        "kind": "feature", "site": "mlp_out.0", "layer": 0, "pos": 1, "feature": 3,
        "attribution": 2.5, "stream_input": 4.0, "unexplained": 0.5,
    }  # fmt: skip
    assert graph.graph["metric"] == {"name": "logit_difference", "clean": 2.0, "corrupted": -1.0}
    assert graph.nodes["metric@1"]["attribution"] == 3.0


def test_a_file_that_is_read_and_written_is_one_of_version_3():
    text = graph_to_text(text_to_graph(VERSION_2))
    assert json.loads(text)["version"] == 3 and text == graph_to_text(text_to_graph(version_1()))
    assert graph_to_text(text_to_graph(text)) == text
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(text))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("corrupted", ["a b", None])
def test_a_copy_of_the_clean_prompt_becomes_no_corrupted_prompt(version, corrupted):
    prompt = {} if corrupted is None else {"corrupted": corrupted}
    graph = text_to_graph(json.dumps(single(version=version, **prompt)))
    assert graph.graph["tokens"] == {"clean": ["a", "b"], "corrupted": None}
    assert graph.graph["metric"] == {"name": "logit_difference", "clean": 2.0, "corrupted": None}
    assert graph.nodes["metric@1"]["attribution"] == 2.0


def test_a_metric_of_0_that_a_file_of_another_program_never_had_becomes_none():
    graph = text_to_graph(json.dumps(single(metric=0.0)))
    assert graph.graph["metric"]["corrupted"] is None and graph.nodes["metric@1"]["attribution"] == 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": {"clean": ["a", "b"], "corrupted": ["a", "c"]}},
        {"provenance": {"prompts": [{"clean": "a b", "corrupted": "a c"}]}},
        {"metric": {"name": "m", "clean": 2.0, "corrupted": 0.5}},
    ],
    ids=["other tokens", "another prompt", "another value"],
)
def test_a_corrupted_prompt_of_an_older_file_stays(change):
    value = single()
    value["graph"] |= change
    graph = text_to_graph(json.dumps(value))
    assert graph.graph["metric"]["corrupted"] is not None and graph.graph["tokens"]["corrupted"] is not None
    assert graph.nodes["metric@1"]["attribution"] == 0.0  # as the file says


def test_the_words_of_a_newer_file_are_not_translated():
    value = json.loads(graph_to_text(text_to_graph(VERSION_2)))
    value["graph"]["provenance"]["settings"]["mlp"] = "cut"
    value["nodes"][1]["inflow"] = 7.0
    graph = text_to_graph(json.dumps(value))
    assert graph.graph["provenance"]["settings"]["mlp"] == "cut" and graph.nodes["mlp_out.0/f3@1"]["inflow"] == 7.0


def test_tables_of_an_older_release_are_translated_too():
    value = json.loads(VERSION_2)
    nodes = [(row["id"], {k: v for k, v in row.items() if k != "id" and v is not None}) for row in value["nodes"]]
    edges = [(row.pop("source"), row.pop("target"), row) for row in value["edges"]]
    graph = from_flat(json.dumps(value["graph"]), nodes, edges)
    assert graph_to_text(graph) == graph_to_text(text_to_graph(VERSION_2))


def test_a_cut_file_of_version_2_is_told_by_its_counts():
    lines = VERSION_2.splitlines()
    cut = "\n".join([*lines[:11], lines[11].rstrip(","), "]", "}"]) + "\n"
    with pytest.raises(GraphError, match="it holds 1 edges where counts says 2"):
        text_to_graph(cut)

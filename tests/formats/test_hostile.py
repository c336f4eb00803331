"""Broken and hostile files: one clear line each, nothing executed, bounded memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from support.graph_files import eap_file
from support.graphs import example_graph

from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.formats import graph_to_text, load, save, untrusted

SEEDS_PER_FORMAT = 25  # of eight formats: 200 files
BAD = [None, True, -1, 10**30, 1e308, "", "x", "\ud800", [], {}, [[[]]], {"a": {"b": []}}, float("nan"), "embed@9" * 50]


def write(name, path):
    graph = example_graph(n_nodes=30, n_pos=5)
    if name == "eap":
        eap_file(path)
    elif name == "circuit-tracer-json":
        save(graph, path, "neuronpedia")
        value = json.loads(path.read_text())
        del value["circuitgraph"]
        path.write_text(json.dumps(value))
    else:
        save(graph, path, name)


PLACES = {
    "native": "g.json",
    "neuronpedia": "g.neuronpedia.json",
    "circuit-tracer-json": "g.neuronpedia.json",
    "eap": "g.eap.json",
    "cytoscape": "g.cyjs",
    "graphml": "g.graphml",
    "gexf": "g.gexf",
    "csv": "g.csv",
}


def mutate_json(rng, value):
    """Change one value somewhere: another type, a huge number, deep nesting, a repeated, dangling, missing or swapped part."""
    holders = []

    def walk(item):
        if isinstance(item, dict | list) and item:
            holders.append(item)
            for inner in item.values() if isinstance(item, dict) else item:
                walk(inner)

    walk(value)
    holder = rng.choice(holders[: rng.choice([5, len(holders)])])
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = rng.choice(keys)
    action = rng.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif action == 2:
        deep: list = []
        for _ in range(rng.choice([70, 900])):
            deep = [deep]
        holder[key] = deep
    elif action == 3:
        other = rng.choice(keys)
        holder[key], holder[other] = holder[other], holder[key]
    elif action == 4 and isinstance(holder, dict) and {"source", "target"} <= set(holder):
        holder["source"], holder["target"] = holder["target"], holder["source"]  # a cycle
    else:
        holder[key] = rng.choice(BAD)
    return value


def mutate_bytes(rng, data):
    at, n = rng.randrange(len(data)), rng.randrange(1, 40)
    return rng.choice(
        [
            data[:at],
            data[:at] + data[at + n :],
            data[:at] + rng.randbytes(n) + data[at + n :],
            data[:at] + data[at : at + 300] + data[at:],
            data.replace(b'"', b"'", 3),
            data[:at] + b"9" * 400 + data[at:],
            data[:at] + b"<x>" * 60 + data[at:],
        ]
    )


@pytest.mark.parametrize("name", PLACES)
def test_mutated_files_give_one_line_or_a_graph(name, tmp_path):
    refused = 0
    for seed in range(SEEDS_PER_FORMAT):
        rng = random.Random(f"{name} {seed}")
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = folder / PLACES[name]
        write(name, path)
        victim = rng.choice(sorted(folder.glob("g*"))) if name == "csv" else path
        if victim.suffix in (".json", ".cyjs") and rng.random() < 0.7:
            victim.write_text(json.dumps(mutate_json(rng, json.loads(victim.read_text()))))
        else:
            victim.write_bytes(mutate_bytes(rng, victim.read_bytes()))
        try:
            graph = load(path)
        except CircuitGraphError as error:
            refused += 1
            text = str(error)
            assert "\n" not in text and 20 < len(text) < 700 and "g." in text, text
        else:
            graph_to_text(graph)  # what is read can be written
    assert refused > SEEDS_PER_FORMAT // 3


def test_a_file_that_unpacks_without_end_is_stopped(tmp_path):
    path = tmp_path / "graph.json.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(GraphError, match=r"graph.json.gz: it unpacks to more than 200 times its size"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["g.json", "g.graphml", "g.cyjs"])
def test_a_file_larger_than_memory_should_hold_is_not_read(place, monkeypatch, tmp_path):
    monkeypatch.setattr(untrusted, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr("circuitgraph.formats.markup.MAX_BYTES", 1 << 20)
    (tmp_path / place).write_text(("<a>" if "graphml" in place else "[") + " " * (2 << 20))
    with pytest.raises(GraphError, match="holds more than 1 MiB"):
        load(tmp_path / place)


def test_a_claim_of_a_billion_edges_allocates_nothing(tmp_path):
    text = graph_to_text(example_graph()).replace('"edges": 408', '"edges": 1000000000')
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(GraphError, match="it holds 408 edges where counts says 1000000000"):
        load(tmp_path / "g.json")


ENTITIES = '<!DOCTYPE g [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE g [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("doctype", [ENTITIES, OUTSIDE])
@pytest.mark.parametrize("place", ["g.graphml", "g.gexf"])
def test_entities_are_not_read(doctype, place, tmp_path):
    (tmp_path / place).write_text(f'<?xml version="1.0"?>{doctype}<graphml>&a;</graphml>')
    with pytest.raises(GraphError, match="document type definition, which is not read"):
        load(tmp_path / place)


@pytest.mark.parametrize("place", ["g.graphml", "g.gexf", "g.cyjs", "g.json", "g.eap.json", "g.neuronpedia.json"])
def test_deep_nesting_is_refused(place, tmp_path):
    text = "<a>" * 100_000 if place.endswith(("graphml", "gexf")) else "[" * 100_000
    (tmp_path / place).write_text(text)
    with pytest.raises(GraphError, match="nested"):
        load(tmp_path / place)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "1" * 30, "1" * 6000])
def test_numbers_that_are_none_are_refused(number, tmp_path):
    text = graph_to_text(example_graph()).replace('"n_examples": 32', f'"n_examples": {number}')
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(GraphError, match="the file holds"):
        load(tmp_path / "g.json")


@pytest.mark.parametrize("number", ["1e999", "-1E+309", "1" + "0" * 250 + "e90", "9" * 400 + ".5", "1" * 30])
@pytest.mark.parametrize("place", ["edges", "nodes"])
def test_numbers_that_are_none_are_refused_in_every_line(number, place, tmp_path):
    text = graph_to_text(example_graph())
    row = json.loads(text)[place][-1]
    name, value = next((name, value) for name, value in row.items() if type(value) is float)
    old, new = f'"{name}": {value!r}', f'"{name}": {number}'
    assert old in text
    (tmp_path / "g.json").write_text(text.replace(old, new))
    with pytest.raises(GraphError, match="g.json: the file holds"):
        load(tmp_path / "g.json")


def test_a_spreadsheet_runs_no_label(tmp_path):
    graph = example_graph()
    node = next(key for key in graph if graph.nodes[key]["kind"] == "feature")
    graph.nodes[node]["label"] = '=HYPERLINK("http://example.com")'
    save(graph, tmp_path / "g.csv")
    cells = [cell for line in (tmp_path / "g.nodes.csv").read_text().splitlines() for cell in line.split(",")]
    assert not [cell for cell in cells if cell.strip('"').startswith(("=", "@", "+"))]
    assert load(tmp_path / "g.csv").nodes[node]["label"] == graph.nodes[node]["label"]


def test_every_part_of_a_table_is_named_when_it_is_missing(tmp_path):
    for part in ("g.nodes.csv", "g.edges.csv", "g.graph.json"):
        save(example_graph(), tmp_path / "g.csv")
        Path(tmp_path / part).unlink()
        with pytest.raises(GraphError, match=f"{part} does not exist"):
            load(tmp_path / "g.csv")

"""Commands that read or write graphs: formats by suffix, one line for what does not fit, nothing half-written."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from support.graph_files import circuit_tracer_file, eap_file
from support.graphs import example_graph

from circuitgraph.cli.main import main
from circuitgraph.formats import graph_to_text, load, save


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def graph(tmp_path):
    graph = example_graph()
    save(graph, tmp_path / "graph.json")
    return graph


@pytest.mark.parametrize("suffix", [".graphml", ".gexf", ".cyjs", ".neuronpedia.json", ".csv", ".json.gz"])
def test_a_graph_goes_out_and_comes_back(graph, suffix, tmp_path):
    out = tmp_path / f"out{suffix}"
    for source, target in ((tmp_path / "graph.json", out), (out, tmp_path / "back.json")):
        result = run("convert", source, "-o", target)
        assert (result.exit_code, result.stdout) == (0, f"{target}\n"), result.output
        assert "120 nodes, 408 edges" in result.stderr
    assert graph_to_text(load(tmp_path / "back.json")) == graph_to_text(graph)


@pytest.mark.parametrize(("command", "start"), [("prune", []), ("convert", []), ("render", [])])
@pytest.mark.parametrize(
    ("suffix", "begins"), [(".html", b"<!DOCTYPE html>"), (".svg", b"<svg"), (".dot", b"digraph"), (".json", b"{\n")]
)
def test_what_a_command_writes_is_what_its_suffix_says(graph, command, start, suffix, begins, tmp_path):
    result = run(command, tmp_path / "graph.json", "-o", tmp_path / f"out{suffix}", *start)
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"out{suffix}").read_bytes().startswith(begins)


def test_every_command_reads_any_format(graph, tmp_path):
    save(graph, tmp_path / "graph.gexf")
    assert "120 nodes, 408 edges" in run("show", tmp_path / "graph.gexf").stdout
    assert run("prune", tmp_path / "graph.gexf", "-o", tmp_path / "pruned.csv", "--max-nodes", 9).exit_code == 0
    assert len(load(tmp_path / "pruned.csv")) <= 10


def test_convert_goes_from_any_format_to_any(graph, tmp_path):
    assert run("convert", tmp_path / "graph.json", "-o", tmp_path / "a.gexf").exit_code == 0
    assert run("convert", tmp_path / "a.gexf", "-o", tmp_path / "b", "--to", "graphml").exit_code == 0
    assert run("convert", tmp_path / "b", "--from", "graphml", "-o", tmp_path / "c.json").exit_code == 0
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "graph.json").read_bytes()


def test_names_on_neuronpedia_are_options(graph, tmp_path):
    options = ("--slug", "my slug", "--neuronpedia-model", "gpt2-small", "--neuronpedia-source", "mlp_out.0=0-tres-dc")
    result = run("convert", tmp_path / "graph.json", "-o", tmp_path / "out.json", "--to", "neuronpedia", *options)
    assert result.exit_code == 0, result.output
    metadata = json.loads((tmp_path / "out.json").read_text())["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("my-slug", "gpt2-small")
    assert metadata["feature_details"] == {"neuronpedia_source_set": "tres-dc"}
    assert load(tmp_path / "out.json").graph["provenance"]["neuronpedia"]["sources"] == {"mlp_out.0": "0-tres-dc"}


def test_files_of_other_programs_are_imported_by_what_is_in_them(tmp_path):
    eap_file(tmp_path / "scores.json")
    (tmp_path / "traced.json").write_text(json.dumps(circuit_tracer_file()))
    for name, line in (("scores", "8 nodes, "), ("traced", "6 nodes, 5 edges")):
        result = run("convert", tmp_path / f"{name}.json", "-o", tmp_path / f"{name}.graph.json")
        assert result.exit_code == 0 and line in result.stderr, result.output
        assert run("show", tmp_path / f"{name}.graph.json").exit_code == 0
    result = run("convert", tmp_path / "scores.graph.json", "-o", tmp_path / "ioi_tiny", "--to", "mib", "--circuits")
    assert result.exit_code == 0 and len(list((tmp_path / "ioi_tiny").iterdir())) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "graph.json", "-o", "out.xyz"), "cannot tell the format of"),
        (("prune", "graph.json", "-o", "out"), "cannot tell the format of"),
        (("render", "none.json", "-o", "out.gif"), "cannot tell the format of"),  # before anything is read
        (("render", "graph.json", "-o", "out.svg", "--compare", "none.json"), "format svg takes no option 'compare'"),
        (("convert", "graph.json", "-o", "out.graphml", "--slug", "x"), "format graphml takes no option 'slug'"),
        (("convert", "graph.json", "-o", "out.json", "--to", "nothing"), "format 'nothing' is unknown"),
        (("convert", "cut.json", "-o", "out.json"), "GraphError: graph file {}/cut.json: not JSON: "),
        (("show", "text.json", "--top", "3"), "text.json: this is no circuitgraph file: expected a JSON object"),
        (("convert", "none.gexf", "-o", "out.json"), "none.gexf does not exist"),
        (("convert", "graph.dot", "-o", "out.json"), "format dot is written, not read"),
        (("convert", "graph.json", "-o", "out.pt"), "format circuit-tracer is read, not written"),
        (("convert", "none.json", "-o", "no/out.json"), "there is no folder"),  # before anything is read
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(graph, arguments, message, tmp_path):
    (tmp_path / "cut.json").write_text((tmp_path / "graph.json").read_text()[:3000])
    (tmp_path / "text.json").write_text("<graphml>")
    command, file, *rest = arguments
    result = run(
        command, tmp_path / file, *(tmp_path / text if text.startswith(("out", "no/")) else text for text in rest)
    )
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and not result.stdout
    assert message.format(tmp_path) in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "graph.json", "text.json"]


def test_parquet_without_pyarrow_says_what_to_install(graph, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = run("convert", tmp_path / "graph.json", "-o", tmp_path / "out.parquet")
    assert result.exit_code == 1 and "Parquet needs pyarrow: pip install 'circuitgraph-engine[tables]'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]

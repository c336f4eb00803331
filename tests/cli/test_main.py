"""The command line: each command reads a file and writes a file; errors are one line, exit code 1, nothing half-written."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import numpy
import pytest
from support.command import model_options, run

from circuitgraph.cli.main import main
from circuitgraph.formats import load
from circuitgraph.settings import Compute, Demo, DictionaryChecks, Discovery, Pruning


def test_discover_prints_the_path_on_stdout_and_the_rest_on_stderr(workplace, tiny_folder, tmp_path):
    out = tmp_path / "graph.json"
    result = run(
        "discover", workplace / "pairs.jsonl", *model_options(tiny_folder, workplace), "--length", 6, "-o", out
    )
    assert result.stdout == f"{out}\n" and "candidates" in result.stderr
    assert out.read_bytes() == (workplace / "graph.json").read_bytes()
    assert load(out).number_of_edges() > 10


def test_pairs_of_different_lengths_make_one_graph_by_role_and_one_of_sums(workplace, tiny_folder, tmp_path):
    arguments = "discover", workplace / "pairs.jsonl", *model_options(tiny_folder, workplace)
    refused = run(*arguments, "-o", tmp_path / "none.json")
    assert refused.exit_code == 1 and "or align by named words (--align role)" in refused.output
    graphs = []
    for options in ((), ("--positions", "sum")):
        result = run(*arguments, "--align", "role", *options, "-o", tmp_path / "graph.json")
        assert result.exit_code == 0, result.output
        graphs.append(load(tmp_path / "graph.json"))
    alignment = graphs[0].graph["provenance"]["alignment"]
    assert alignment["positions"] == ["start", "start+1", "start+2", "start+3", "start+4", "END"]
    assert alignment["index"][2] == [0, 1, -1, -1, -1, 2] and graphs[0].graph["tokens"]["clean"][-1] == "END"
    assert graphs[1].graph["tokens"]["clean"] == ["all positions"] and "metric@0" in graphs[1]
    assert all(graph.number_of_edges() > 10 for graph in graphs)


def test_discover_passes_its_options_on(workplace, tiny_folder, tmp_path):
    out = tmp_path / "graph.json"
    options = [
        "--metric",
        "logit",
        "--baseline",
        "zero",
        "--method",
        "integrated",
        "--steps",
        2,
        "--max-nodes",
        7,
        "--examples",
        1,
        "--seed",
        3,
    ]
    result = run(
        "discover",
        workplace / "pairs.jsonl",
        *model_options(tiny_folder, workplace),
        "--length",
        6,
        "-o",
        out,
        "--quiet",
        *options,
    )
    assert result.exit_code == 0 and result.stderr == ""
    graph = load(out)
    expected = {"metric": "logit", "baseline": "zero", "method": "integrated", "steps": 2, "max_nodes": 7, "seed": 3}
    assert expected.items() <= graph.graph["provenance"]["settings"].items()
    assert graph.graph["n_examples"] == 1 and len(graph) <= 8


def test_discover_explains_features_tokens_and_directions(workplace, tiny_folder, tmp_path):
    direction, out = tmp_path / "north.npy", tmp_path / "graph.json"
    numpy.save(direction, numpy.linspace(-1, 1, 16))
    loading = ["discover", workplace / "pairs.jsonl", *model_options(tiny_folder, workplace), "--length", 6, "-o", out]
    targets = [" g", "mlp_out.1/f3@4", f"resid_post.0@-2={direction}"]
    options = [item for text in targets for item in ("--targets", text)]
    weights = [item for weight in (1, -2, 0.5) for item in ("--target-weights", weight)]
    assert run(*loading, *options, *weights, "--edge-threshold", 0).exit_code == 0
    graph = load(out)
    rows = graph.graph["provenance"]["settings"]["targets"]
    assert [row["weight"] for row in rows] == [1, -2, 0.5] and rows[2]["vector"] == pytest.approx(
        numpy.linspace(-1, 1, 16)
    )
    found = {d["target"]: d["target_weight"] for _, d in graph.nodes(data=True) if d["kind"] in ("logit", "probe")}
    assert found == {"g": 1, "mlp_out.1/f3@4": -2, "north": 0.5}
    shown = run("show", out, "--top", 1000).stdout
    assert re.search(r"resid_post\.0/p2@4 +'north' ", shown) and re.search(r"logit/t\d+@5 +'g' ", shown)
    for wrong, message in (
        ([*options, "--target-weights", 1], "3 targets have 1 weights"),
        (["--target-weights", 1], "targets 'metric' has weights of its own"),
        (["--targets", f"resid_post.0@1={tmp_path}/none.npy"], "cannot be read (No such file or directory)"),
        (["--targets", f"resid_post.0@1={out}"], "cannot be read (no array of numbers)"),
    ):
        result = run(*loading, *wrong)
        assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_the_target_metric_goes_with_a_metric_and_a_named_target_does_not(workplace, tiny_folder, tmp_path):
    out = tmp_path / "graph.json"
    loading = ["discover", workplace / "pairs.jsonl", *model_options(tiny_folder, workplace), "--length", 6, "-o", out]
    given = ["--metric", "logit", "--edge-threshold", 0]
    refused = run(*loading, "--targets", "logits", *given)
    assert refused.exit_code == 1 and "are both given" in refused.stderr and not out.exists()
    assert run(*loading, "--targets", "metric", *given).exit_code == 0
    assert load(out).graph["provenance"]["settings"]["metric"] == "logit"


def test_prune_render_and_show_go_on_from_the_file(workplace, tmp_path):
    circuit = tmp_path / "circuit.json"
    assert run("prune", workplace / "graph.json", "-o", circuit, "--max-nodes", 20).stdout == f"{circuit}\n"
    assert 1 < len(load(circuit)) <= 21
    for suffix in ("svg", "html", "dot"):
        picture = tmp_path / f"circuit.{suffix}"
        assert run("render", circuit, "-o", picture).stdout == f"{picture}\n"
        assert picture.stat().st_size > 1000
    shown = run("show", circuit, "--top", 3).stdout
    assert "strongest nodes" in shown and "logit_difference" in shown and shown.count("/f") >= 3


def test_check_prints_every_site_and_writes_the_same_figures(workplace, tiny_folder, tmp_path):
    from circuitgraph.dictionaries.load import load_dictionaries
    from circuitgraph.evaluation.dictionary_check import check_dictionaries
    from circuitgraph.models.load import load_model
    from circuitgraph.prompts import read_pairs

    out = tmp_path / "check.json"
    options = ["--metric", "logit", "--baseline", "zero", "--n-listed", 1, "--length", 6, "--json", out]
    result = run("check", workplace / "pairs.jsonl", *model_options(tiny_folder, workplace), *options, "--quiet")
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.endswith(f"\n{out}\n")
    loaded = load_model(tiny_folder)
    found = load_dictionaries(workplace / "dictionaries", loaded)
    pairs = read_pairs(workplace / "pairs.jsonl")[:2]
    expected = check_dictionaries(pairs, loaded, found, metric="logit", baseline="zero", n_listed=1)
    assert json.loads(out.read_text()) == json.loads(json.dumps(expected.record()))
    assert [row.site for row in expected.sites] == ["z.0", "mlp_out.0", "z.1", "mlp_out.1"]
    assert all(f"\n{row.site} " in result.stdout for row in expected.sites)


def test_check_without_a_model_checks_the_embedded_one(tmp_path):
    from circuitgraph.prompts import pairs_to_text
    from circuitgraph.tasks import make_pairs

    prompts = tmp_path / "pairs.jsonl"
    prompts.write_text(pairs_to_text(make_pairs("ioi", 4, template=0)))
    result = run("check", prompts, "--examples", 2, "--quiet")
    assert result.exit_code == 0, result.output
    assert "2 examples of 15 tokens" in result.stdout and "\nmlp_out.3 " in result.stdout


def test_dictionaries_lists_the_registry_and_corrects_a_typo():
    result = run("dictionaries", "--model", "gpt2-small")
    assert result.exit_code == 0 and "gpt2-small-hook-z-kk/blocks.*.hook_z" in result.stdout
    assert "gpt2-small-res-jb" in result.stdout and "gemma" not in result.stdout
    result = run("dictionaries", "--model", "gpt2-smal")
    assert result.exit_code == 1 and result.stdout == "" and "Did you mean 'gpt2-small'?" in result.stderr


@pytest.mark.parametrize(
    ("command", "kinds"),
    [("discover", (Discovery, Compute)), ("prune", (Pruning,)), ("demo", (Demo,)), ("check", (DictionaryChecks,))],
)
def test_options_are_the_fields_of_the_settings(command, kinds):
    """Every field has an option with its default and its help text."""
    options = {option.name: option for option in main.commands[command].params}
    checked = [each for kind in kinds for each in fields(kind) if each.metadata["command_line"]]
    assert len(checked) >= 4
    for each in checked:
        assert options[each.name].default == each.default, each.name
        assert options[each.name].help.startswith(each.metadata["help"]), each.name


def errors(workplace, tiny_folder, out):
    """Command lines that must fail, with what they say."""
    good = model_options(tiny_folder, workplace)
    pairs, graph = workplace / "pairs.jsonl", workplace / "graph.json"
    empty, broken = workplace / "empty.jsonl", workplace / "broken.jsonl"
    empty.write_text("")
    broken.write_text('{"clean": "a", "corrupted": "b", "answers": [" c"]}\n{oops\n')
    return {
        "no prompts": (["discover", workplace / "none", *good], "PromptError: .*does not exist"),
        "empty prompts": (["discover", empty, *good], "PromptError: .*is empty"),
        "malformed line": (["discover", broken, *good], "PromptError: .*line 2 is not JSON"),
        "different lengths": (["discover", pairs, *good], "PromptError: pair 1 has 6 tokens, pair 3 has 3"),
        "no model": (["discover", pairs, "--model", workplace / "none", "--dictionaries", "demo"], "ModelError: .*does not exist"),
        "no dictionaries": (["discover", pairs, "--model", tiny_folder, "--dictionaries", workplace / "none"], "DictionaryError: .*does not exist"),
        "unknown metric": (["discover", pairs, *good, "--length", 6, "--metric", "logits"], "MetricError: metric 'logits' is unknown.*Did you mean"),
        "unknown baseline": (["discover", pairs, *good, "--length", 6, "--baseline", "zeros"], "baseline 'zeros' is unknown.*Did you mean 'zero'"),
        "unknown method": (["discover", pairs, *good, "--length", 6, "--method", "gradients"], "method 'gradients' is unknown.*Did you mean 'gradient'"),
        "unknown rule": (["discover", pairs, *good, "--length", 6, "--method", "integrated", "--rule", "mid"], "rule 'mid' is unknown"),
        "unknown backend": (["discover", pairs, *good, "--length", 6, "--backend", "tritn"], "backend"),
        "unwritable": (["discover", pairs, *good, "--length", 6, "-o", "/proc/nowhere/x.json"], "cannot write"),
        "negative threshold": (["prune", graph, "--edge-threshold", -1], "edge_threshold is -1.0; expected a number >= 0"),
        "not a graph": (["prune", pairs], "GraphError: .*pairs.jsonl"),
        "unknown suffix": (["render", graph, "-o", workplace / "x.jpeg"], r"GraphError: cannot tell the format of .*jpeg.* Did you mean .\.png"),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "no prompts", "empty prompts", "malformed line", "different lengths", "no model", "no dictionaries", "unknown metric", "unknown baseline",
    "unknown method", "unknown rule", "unknown backend", "unwritable", "negative threshold", "not a graph", "unknown suffix",
])  # fmt: skip
def test_an_error_is_one_line_and_leaves_nothing_behind(workplace, tiny_folder, tmp_path, name):
    import re

    arguments, message = errors(workplace, tiny_folder, tmp_path)[name]
    if "-o" not in arguments:
        arguments = [*arguments, "-o", tmp_path / "out.json"]
    before = sorted(workplace.iterdir())
    result = run(*arguments, "--quiet")
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] and sorted(workplace.iterdir()) == before


def test_debug_shows_the_traceback_and_usage_errors_exit_with_2(workplace, monkeypatch):
    import sys

    arguments = ["show", str(workplace / "none.json"), "--debug"]
    monkeypatch.setattr(sys, "argv", ["circuitgraph", *arguments])
    assert "does not exist" in str(run(*arguments).exception)
    assert run("render").exit_code == 2
    assert run("rendr").exit_code == 2

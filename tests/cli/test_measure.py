"""The commands that run the model to check a graph: evaluate, measure, intervene."""

from __future__ import annotations

import json
import re

import pytest
import torch
from support.command import model_options, run

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.evaluation.evidence import evaluate
from circuitgraph.formats import load
from circuitgraph.models.load import load_model


def test_evaluate_writes_a_report_and_plots_and_prints_the_table(workplace, tiny_folder, tmp_path):
    out, plots = tmp_path / "report.json", tmp_path / "plots"
    options = ["--n-edges", 20, "--n-dropped", 5, "--n-patched", 9, "--seed", 3, "--quiet"]
    result = run(
        "evaluate",
        workplace / "graph.json",
        *model_options(tiny_folder, workplace),
        "-o",
        out,
        "--plots",
        plots,
        *options,
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert (
        report["n_patched"] == 9
        and report["n_dropped"] == 5
        and report["settings"]["seed"] == 3
        and report["cpr"] is not None
    )
    assert [row["baseline"] for row in report["conditions"]][::4] == ["corrupted", "zero", "mean", "resample"]
    lines = result.stdout.splitlines()
    names = ["curves", "edges", "heat_map", "histograms", "nodes", "noise"]
    assert sorted(lines[-7:]) == sorted([str(out), *(str(plots / f"{name}.html") for name in names)])
    assert "CPR" in result.stdout and "complement_faithfulness" in result.stdout
    page = (plots / "curves.html").read_text()
    assert "faithfulness, absolute" in page and 'src="http' not in page


def test_evaluate_takes_other_prompts_and_options(workplace, tiny_folder, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(
        '{"clean": "h g f e d", "corrupted": "h g f a d", "answers": [" a"], "wrong_answers": [" c"]}\n'
        '{"clean": "h g", "corrupted": "h c", "answers": [" a"], "wrong_answers": [" c"]}\n'
    )
    options = ["--length", 6, "--no-curves", "--n-edges", 0, "--baselines", "zero", "--top-k", 4, "--quiet"]
    out = tmp_path / "report.json"
    result = run(
        "evaluate", workplace / "graph.json", other, *model_options(tiny_folder, workplace), "-o", out, *options
    )
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["n_examples"] == 1 and report["curves"] == [] and report["edges"] is None
    assert {row["baseline"] for row in report["conditions"]} == {"corrupted", "zero"} and report["nodes"]["top_k"] == 4


def test_measure_adds_effects_to_the_graph(workplace, tiny_folder, tmp_path):
    out = tmp_path / "measured.json"
    result = run(
        "measure",
        workplace / "graph.json",
        *model_options(tiny_folder, workplace),
        "-o",
        out,
        "--n-patched",
        7,
        "--n-edges",
        11,
        "--quiet",
    )
    assert result.exit_code == 0 and result.stdout == f"{out}\n", result.output
    graph, before = load(out), load(workplace / "graph.json")
    assert sum("effect" in data for _, data in graph.nodes(data=True)) == 7
    assert sum("effect" in data for *_, data in graph.edges(data=True)) >= 11
    assert set(graph.edges(keys=True)) == set(before.edges(keys=True)) and "evidence" not in before.graph
    assert graph.graph["evidence"]["edges"]["n"] == 11


def test_a_graph_of_a_narrow_model_is_measured_as_it_was_built(workplace, tiny_folder, tmp_path):
    """Lazily and in float64: the numbers are those of Python, and the record says which prompts were chosen."""
    how = [*model_options(tiny_folder, workplace), "--dtype", "float64", "--lazy", "--quiet"]
    chosen, out = ["--length", 6, "--examples", 1, "--seed", 4], tmp_path / "report.json"
    less = ["--no-curves", "--n-dropped", 0, "--n-edges", 5]
    result = run("evaluate", workplace / "graph.json", workplace / "pairs.jsonl", *how, *chosen, *less, "-o", out)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["n_examples"] == 1
    assert {name: report["settings"][name] for name in ("length", "examples", "seed")} == {
        "length": 6, "examples": 1, "seed": 4,
    }  # fmt: skip
    settings = {"prompts": workplace / "pairs.jsonl", "length": 6, "examples": 1, "seed": 4, "n_dropped": 0}
    clean = []
    for dtype in (torch.float64, torch.float32):
        model = load_model(tiny_folder, dtype=dtype)
        dictionaries = load_dictionaries([workplace / "dictionaries"], model)
        graph = load(workplace / "graph.json")
        clean.append(evaluate(graph, model, dictionaries, curves=False, n_edges=0, **settings).metric_clean)
    assert report["metric_clean"] == clean[0] != clean[1]
    measured = tmp_path / "measured.json"
    result = run("measure", workplace / "graph.json", workplace / "pairs.jsonl", *how, *chosen, "-o", measured)
    assert result.exit_code == 0, result.output
    evidence = load(measured).graph["evidence"]
    assert evidence["settings"]["length"] == 6 and evidence["settings"]["seed"] == 4
    assert evidence["metric_clean"] == report["metric_clean"]


def test_a_setting_that_makes_no_sense_is_one_line(workplace, tmp_path):
    for command in ("evaluate", "measure"):
        result = run(
            command, workplace / "graph.json", "--n-edges", -1, "--model", "no-such", "-o", tmp_path / "a.json"
        )
        assert (
            result.exit_code == 1
            and result.stderr == "CircuitGraphError: n_edges is -1; expected a whole number >= 0\n"
        )


def test_intervene_says_what_changes(workplace, tiny_folder):
    arguments = [
        "intervene",
        workplace / "pairs.jsonl",
        *model_options(tiny_folder, workplace),
        "--length",
        6,
        "--quiet",
    ]
    result = run(*arguments, "--set", "mlp_out.1=corrupted", "--set", "z.0/h1@2:=0", "--freeze", "norms", "--top-k", 3)
    assert result.exit_code == 0, result.output
    assert "set        mlp_out.1=corrupted" in result.stdout and "frozen     norms" in result.stdout
    before, after, change = map(
        float, re.search(r"logit_difference (\S+) -> (\S+), changed by (\S+)", result.stdout).groups()
    )
    assert abs(change) > 0.01 and change == pytest.approx(after - before, abs=2e-4)
    assert len(result.stdout.split("intervened\n")[1].splitlines()) == 3
    same = run(*arguments, "--set", "mlp_out.1*=1")
    assert "reduced by 0.0 %" in same.stdout


def test_intervene_loads_as_it_is_told_and_names_the_seed_of_its_draws(workplace, tiny_folder, tmp_path):
    arguments = [
        "intervene",
        workplace / "pairs.jsonl",
        *model_options(tiny_folder, workplace),
        "--length",
        6,
        "--quiet",
    ]
    single, double = (
        run(*arguments, "--set", "mlp_out.1/f3*=2", "--dtype", dtype, "--lazy") for dtype in ("bfloat16", "float64")
    )
    assert single.exit_code == double.exit_code == 0, single.output + double.output
    assert single.stdout != double.stdout and "6 tokens" in double.stdout and "seed" not in double.stdout
    drawn = run(*arguments, "--set", "mlp_out.1=resample", "--seed", 7)
    assert "seed       7" in drawn.stdout, drawn.output
    few = run(*arguments, "--set", "mlp_out.1*=2", "--examples", 1, "--seed", 3)
    assert "seed       3" in few.stdout and "more" not in few.stdout


def test_intervene_needs_no_corrupted_prompts_but_for_runs_of_them(workplace, tiny_folder, tmp_path):
    prompts = tmp_path / "single.jsonl"
    prompts.write_text('{"clean": "a b c d e", "answers": [" g"], "wrong_answers": [" h"]}\n')
    arguments = ["intervene", prompts, *model_options(tiny_folder, workplace), "--quiet"]
    result = run(*arguments, "--set", "mlp_out.1=0")
    assert result.exit_code == 0 and "changed by +3.2040" in result.stdout, result.output
    for name in ("corrupted", "mean", "resample"):
        refused = run(*arguments, "--set", f"mlp_out.1={name}")
        assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1
        assert f"no run '{name}' to patch from, since the prompts have no corrupted ones" in refused.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp_out.1/f999=0", "has no feature 999; it has 0-"),
        ("mlp_out.1/f3@40=0", "position 40 is beyond the prompt"),
        ("nonsense", "does not parse"),
    ],
)
def test_a_bad_intervention_is_one_line(workplace, tiny_folder, text, message):
    result = run(
        "intervene",
        workplace / "pairs.jsonl",
        *model_options(tiny_folder, workplace),
        "--length",
        6,
        "--quiet",
        "--set",
        text,
    )
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_report_that_cannot_be_written_is_refused_before_the_model_loads(workplace, tmp_path):
    for command in ("evaluate", "measure"):
        result = run(command, workplace / "graph.json", "--model", "no-such", "-o", tmp_path / "no" / "report.json")
        assert result.exit_code == 1 and "there is no folder" in result.stderr

"""The demo finds a faithful circuit in the embedded model, offline, and writes exactly three files."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner
from support.cases import build_case, integrated_sum
from support.close import assert_close

from circuitgraph.cli.main import main
from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.embedded import DICTIONARIES, MODEL, circuit_dictionaries
from circuitgraph.evaluation.circuits import circuit_mask, run_with_nodes
from circuitgraph.formats import load
from circuitgraph.graphs.schema import check_graph
from circuitgraph.models.load import load_model
from circuitgraph.nodes import Site
from circuitgraph.tasks import TASKS, make_pairs


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """What `circuitgraph demo` printed, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(main, ["demo", "--out", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    return result.stdout, folder


def test_the_demo_writes_exactly_three_files(demo_run):
    assert sorted(path.name for path in demo_run[1].iterdir()) == ["circuit.html", "circuit.json", "circuit.svg"]


def test_the_circuit_has_at_most_200_nodes_and_is_faithful(demo_run):
    printed, folder = demo_run
    circuit = load(folder / "circuit.json")
    check_graph(circuit)
    evidence = circuit.graph["evidence"]
    assert len(circuit) <= 200 and evidence["n_nodes"] == len(circuit) - 1
    assert evidence["faithfulness"] >= 0.8
    assert evidence["n_patched"] == 50 and evidence["pearson_r"] > 0.8
    assert {kind for *_, kind in circuit.edges(data="kind")} >= {"ov", "k", "mlp", "metric"}
    assert circuit.graph["metric"]["clean"] > 0 > circuit.graph["metric"]["corrupted"]
    assert re.search(rf"^faithfulness {evidence['faithfulness']:.2f} \(errors kept\)$", printed, re.MULTILINE)
    assert re.search(
        rf"^faithfulness {evidence['faithfulness_errors_removed']:.2f} \(errors removed\)$", printed, re.MULTILINE
    )
    assert re.search(rf"^pearson r {evidence['pearson_r']:.2f} ", printed, re.MULTILINE)
    assert re.search(r"^nodes \d+ \(.*feature.*\)$", printed, re.MULTILINE) and re.search(
        r"^edges \d+ \(\d+ ov, ", printed, re.MULTILINE
    )
    assert printed.splitlines()[-3:] == [str(folder / f"circuit.{suffix}") for suffix in ("json", "svg", "html")]


def test_max_nodes_counts_every_node_of_the_file(tmp_path):
    options = ["--task", "subject-verb-agreement", "--max-nodes", "60", "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(main, ["demo", *options])
    assert result.exit_code == 0, result.output
    assert len(load(tmp_path / "circuit.json")) == 60 and "nodes 60 (" in result.stdout
    alone = CliRunner().invoke(main, ["demo", "--max-nodes", "1", "--out", str(tmp_path / "none"), "--quiet"])
    assert alone.exit_code == 1 and "max_nodes is 1; expected a whole number >= 2" in alone.stderr
    assert not (tmp_path / "none").exists()


def test_running_it_again_gives_the_same_bytes(demo_run, tmp_path):
    CliRunner().invoke(main, ["demo", "--out", str(tmp_path), "--quiet"])
    for path in demo_run[1].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"ioi"}))
def test_every_task_has_a_demo(task, tmp_path):
    result = CliRunner().invoke(main, ["demo", "--task", task, "--out", str(tmp_path), "--quiet", "--n-pairs", "2"])
    assert result.exit_code == 0, result.output
    evidence = load(tmp_path / "circuit.json").graph["evidence"]
    assert evidence["n_nodes"] > 20 and evidence["faithfulness"] > 0.5


def test_all_forms_of_a_task_make_one_demo_by_role(tmp_path):
    options = ["--align", "role", "--n-pairs", "4", "--max-nodes", "150", "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(main, ["demo", "--task", "gendered-pronoun", *options])
    assert result.exit_code == 0, result.output
    graph = load(tmp_path / "circuit.json")
    places = graph.graph["provenance"]["alignment"]["positions"]
    assert "person" in places and len({tuple(row) for row in graph.graph["provenance"]["alignment"]["index"]}) > 1
    assert graph.graph["evidence"]["pearson_r"] > 0.8 and graph.graph["evidence"]["faithfulness"] > 0.5
    assert any(node.endswith(f"@{places.index('person')}") for node in graph)


def test_a_misspelt_task_gets_the_nearest_one_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--task", "greter-than", "--out", str(tmp_path / "out"), "--quiet"])
    assert result.exit_code == 1 and "Did you mean 'greater-than'?" in result.stderr
    assert list(tmp_path.iterdir()) == []


# the laws on the trained model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """The embedded model in float64 with its attention and MLP dictionaries, on four held-out IOI pairs."""
    model = load_model(MODEL, dtype=torch.float64)
    return build_case(model, load_dictionaries(circuit_dictionaries(), model), make_pairs("ioi", 4, template=0))


def test_features_and_error_sum_to_gradient_times_difference_on_the_trained_model(trained):
    assert len(trained.dictionaries) == 2 * trained.model.n_layers
    for site in trained.dictionaries:
        difference = trained.clean.values[site] - trained.base.values[site]
        assert_close(trained.total(site), (trained.gradients[site] * difference).sum(-1))


def test_keeping_every_node_of_the_trained_model_changes_nothing(trained):
    n_pos = trained.tokens.clean.shape[1]
    mask = circuit_mask(trained.model, trained.dictionaries, [], n_pos, "keep")
    for each in mask.features.values():
        each[:] = True
    mask.embeddings[:] = True
    assert torch.equal(
        run_with_nodes(trained.model, trained.dictionaries, trained.tokens.clean, trained.base, mask),
        trained.clean.logits,
    )


def test_integrated_gradients_sum_to_the_metric_difference_on_the_trained_model(trained):
    total = integrated_sum(trained, Site("resid_post", 1), steps=40)
    assert_close(total, trained.clean.metric - trained.corrupted.metric, allowance=1e-3)  # of the quadrature


def test_residual_dictionaries_give_node_attributions_too(trained):
    found = load_dictionaries(DICTIONARIES, trained.model)
    case = build_case(trained.model, found, make_pairs("ioi", 2, template=0))
    for layer in range(trained.model.n_layers):
        site = Site("resid_post", layer)
        difference = case.clean.values[site] - case.base.values[site]
        assert_close(case.total(site), (case.gradients[site] * difference).sum(-1))

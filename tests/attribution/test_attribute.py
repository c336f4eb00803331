"""`attribute` gives every node's effect as one value, which ranks, selects, tabulates, saves and loads itself."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support.close import assert_close

import circuitgraph as cg
from circuitgraph.attribution.attributions import Attributions, load_attributions
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.nodes import NODE_KINDS, Node, Site


@pytest.fixture(scope="module")
def run(tiny_model, tiny_dictionaries, tiny_pairs):
    return cg.attribute(tiny_pairs, tiny_model, tiny_dictionaries)


def test_the_columns_are_the_tables(run):
    nodes = run.nodes
    assert len(nodes) == sum(map(len, run.tables)) > 100 and nodes.attribution.shape == (2, len(nodes))
    by_node = dict(zip(nodes.nodes(), nodes.attribution.T, strict=True))
    for table in run.tables:
        for node, expected in zip(table.nodes(), table.attribution.T, strict=True):
            assert torch.equal(by_node[node], expected)
    assert torch.equal(nodes.mean * 2, nodes.total) and float(nodes.mean.abs().max()) > 0.1
    assert all(nodes.node(i) == node for i, node in list(enumerate(nodes.nodes()))[::17])


def test_features_know_their_activations_and_others_have_none(run, tiny_model, tiny_dictionaries):
    features = run.nodes.of_kind("feature")
    site = Site("z", 1)
    acts = tiny_dictionaries[site].encode(run.clean.values[site])
    found = features.by_site()[site]
    assert len(found) > 5
    expected = torch.stack([acts[:, node.pos, node.feature] for node in found.nodes()], 1)
    assert_close(found.activation, expected, n_terms=16)
    assert bool(run.nodes.of_kind("error").activation.isnan().all()) and not bool(features.activation.isnan().any())


def test_top_is_the_largest_first_and_above_is_strict(run):
    mean = run.nodes.mean
    top = run.top(7)
    assert [abs(value) for _, value in top] == sorted(mean.abs().tolist(), reverse=True)[:7]
    threshold = abs(top[4][1])
    assert {node for node, _ in top[:4]} == set(run.above(threshold).nodes())
    positive = run.above(0.0, signed=True)
    assert 0 < len(positive) == int((mean > 0).sum()) < len(run.above(0.0))
    with pytest.raises(CircuitGraphError, match="n is -1; expected 0 or more"):
        run.top(-1)
    with pytest.raises(CircuitGraphError, match="kind 'features' is unknown"):
        run.nodes.of_kind("features")


def test_the_sites_together_are_everything(run, tiny_dictionaries):
    parts = run.by_site()
    assert list(parts) == sorted(parts) and set(tiny_dictionaries) < set(parts)
    assert [node for part in parts.values() for node in part.nodes()] == run.nodes.nodes()


def test_a_saved_value_is_read_back_whole(run, tmp_path):
    path = tmp_path / "nodes.safetensors"
    run.save(path)
    again = load_attributions(path)
    assert isinstance(again, Attributions) and again.nodes() == run.nodes.nodes()
    for name in ("attribution", "activation", "baseline_activation"):
        assert torch.equal(getattr(again, name).nan_to_num(-7), getattr(run.nodes, name).nan_to_num(-7))
    assert again.facts == json.loads(json.dumps(dict(run.nodes.facts))) and again.facts["model"] == "tiny"
    assert again.facts["settings"]["baseline"] == "corrupted" and repr(again) == repr(run)


def broken(run, tmp_path, change):
    """A saved file with one of its tensors or its header changed."""
    path = tmp_path / "broken.safetensors"
    run.save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


KEY = "circuitgraph.attributions"
BROKEN = {
    "a tensor is missing": (lambda t, m: t.pop("pos"), "holds no attributions"),
    "no header": (lambda t, m: m.clear(), "holds no attributions"),
    "a newer version": (lambda t, m: m.update({KEY: m[KEY].replace('"version": 1', '"version": 2')}), "version 2"),
    "another length": (lambda t, m: t.update(pos=t["pos"][1:].clone()), "different lengths"),
    "another type": (lambda t, m: t.update(pos=t["pos"].float()), "different lengths or types"),
    "an unknown site": (lambda t, m: t.update(site=t["site"] + 99), "'site' counts beyond"),
    "an unknown kind": (lambda t, m: t.update(kind=t["kind"] - 9), "'kind' counts beyond"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(run, tmp_path, name):
    change, message = BROKEN[name]
    with pytest.raises(GraphError, match=message) as refusal:
        load_attributions(broken(run, tmp_path, change))
    assert "\n" not in str(refusal.value)


def test_files_that_are_not_there_or_something_else_are_refused(tmp_path):
    with pytest.raises(GraphError, match="does not exist"):
        load_attributions(tmp_path / "none")
    (tmp_path / "text").write_text("not a tensor")
    with pytest.raises(GraphError, match="cannot be read"):
        load_attributions(tmp_path / "text")


def test_a_frame_has_a_row_per_node(run):
    import pandas

    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame["node"]) == [str(node) for node in run.nodes.nodes()]
    assert_close(frame["attribution"].to_numpy(), run.nodes.mean)
    assert set(frame["kind"]) <= set(NODE_KINDS)


def test_attributions_are_those_of_the_graph(run, tiny_model, tiny_dictionaries, tiny_pairs):
    graph = cg.discover(tiny_pairs, tiny_model, tiny_dictionaries, edge_threshold=0.0, max_nodes=10**6)
    by_node = dict(zip(map(str, run.nodes.nodes()), run.nodes.mean.tolist(), strict=True))
    shared = [key for key in graph if key in by_node]
    assert len(shared) > 100
    assert_close([graph.nodes[key]["attribution"] for key in shared], [by_node[key] for key in shared])


def test_other_baselines_need_no_further_run(run, tiny_model, monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("the model ran again")

    monkeypatch.setattr(type(tiny_model), "run", refuse)
    site = Site("z", 0)
    corrupted = run.baseline_of("corrupted").values[site]
    assert torch.equal(corrupted, run.corrupted.values[site])
    assert torch.equal(run.baseline_of("mean").values[site], corrupted.mean(0, keepdim=True).expand_as(corrupted))
    assert torch.equal(run.baseline_of("resample").values[site], corrupted.flip(0))
    assert run.baseline_of("zero").values is None
    with pytest.raises(CircuitGraphError, match="baseline 'zeros' is unknown; .* Did you mean 'zero'"):
        run.baseline_of("zeros")


def test_the_model_runs_once_per_prompt_even_for_the_likeliest_logits(tiny_model, tiny_dictionaries, monkeypatch):
    runs = []
    original = type(tiny_model).run
    monkeypatch.setattr(type(tiny_model), "run", lambda self, *a, **k: runs.append(1) or original(self, *a, **k))
    found = cg.attribute("a b c d e", tiny_model, tiny_dictionaries, baseline="zero", targets="logits")
    assert len(runs) == 1 and len(found.targets) > 0 and found.corrupted is None
    assert Node("logit", Site("logit"), 5, found.targets[0].node.feature) == found.targets[0].node


@pytest.mark.parametrize("settings", [{}, {"errors_as_targets": True}, {"attention": "frozen"}], ids=str)
def test_one_backward_pass_serves_every_site(tiny_model, tiny_dictionaries, tiny_pairs, monkeypatch, settings):
    """Law 2. Slopes of neurons and of nothing else are differentiated on their own."""
    from circuitgraph.attribution import gradients

    passes = []
    original = torch.autograd.grad
    monkeypatch.setattr(gradients.torch.autograd, "grad", lambda *a, **k: passes.append(1) or original(*a, **k))
    found = cg.attribute(tiny_pairs, tiny_model, tiny_dictionaries, **settings)
    assert len(passes) == 1 and float(found.stream_gradient.abs().max()) > 0

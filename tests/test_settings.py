"""Settings check themselves: each wrong value is one line that names the field, the value and what was expected."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

import circuitgraph as cg
from circuitgraph import settings
from circuitgraph.cli import options as command_line
from circuitgraph.errors import CircuitGraphError, MetricError, PromptError
from circuitgraph.models.model import DTYPES
from circuitgraph.presets import PRESETS, find_preset
from circuitgraph.settings import Compute, Demo, Discovery, Edges, Evaluating, Nodes, Pruning, as_record, resolve

WRONG = [
    (Discovery, {"method": "integratd"}, "method 'integratd' is unknown; .* Did you mean 'integrated'"),
    (Discovery, {"attention": "through"}, "attention 'through' is unknown; expected one of node, frozen, dropped"),
    (Discovery, {"align": "rolle"}, "align 'rolle' is unknown; expected one of position, role. Did you mean 'role'"),
    (Discovery, {"positions": 3}, "positions 3 is unknown; expected one of each, sum"),
    (Discovery, {"max_nodes": 0}, "max_nodes is 0; expected a whole number >= 1"),
    (Discovery, {"max_nodes": True}, "max_nodes is True; expected a whole number >= 1"),
    (Discovery, {"max_nodes": None}, "max_nodes is None; expected a whole number >= 1"),
    (Discovery, {"top_k": 2.5}, "top_k is 2.5; expected a whole number >= 1"),
    (Discovery, {"node_influence": 1.5}, "node_influence is 1.5; expected a number above 0 and at most 1"),
    (Discovery, {"edge_threshold": float("nan")}, "edge_threshold is nan; .* as a fraction of the metric's difference"),
    (Discovery, {"errors_as_targets": "yes"}, "errors_as_targets is 'yes'; expected True or False"),
    (Discovery, {"steps": "3"}, "steps is '3'; expected a whole number >= 1"),
    (Discovery, {"qk": "ablate", "mlp": "frozen"}, "qk 'ablate' does not pass frozen attention or MLPs"),
    (Discovery, {"max_node": 3}, "'max_node' is no setting; .* Did you mean 'max_nodes'"),
    (Pruning, {"node_threshold": -1}, "node_threshold is -1; expected a number >= 0"),
    (Compute, {"memory": 0}, "memory is 0; expected a number above 0"),
    (Evaluating, {"n_patched": -1}, "n_patched is -1; expected a whole number >= 0"),
    (Demo, {"align": "sum"}, "align 'sum' is unknown"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG, ids=[str(values) for _, values, _ in WRONG])
def test_a_wrong_value_is_refused_in_one_line(kind, values, message):
    with pytest.raises(CircuitGraphError, match=message) as refusal:
        resolve(kind, None, values)
    assert "\n" not in str(refusal.value)


def test_an_unknown_metric_is_a_metric_error_and_a_function_is_none():
    with pytest.raises(MetricError, match="metric 'logits' is unknown; .* Did you mean 'logit'"):
        Nodes(metric="logits")
    assert Nodes(metric=len).metric is len


def test_keywords_go_over_a_given_value_and_the_defaults_under_it():
    start = find_preset("attribution-graph")
    chosen = resolve(Discovery, start, {"max_nodes": 5})
    assert (chosen.max_nodes, chosen.baseline, chosen.edge_threshold) == (5, "zero", 0.0)
    assert resolve(Discovery, None, {}) == Discovery() == PRESETS["leap"]


def test_the_settings_of_nodes_are_part_of_those_of_discovery():
    record = as_record(Discovery(max_nodes=7, steps=3), of=Nodes)
    assert record["steps"] == 3 and "max_nodes" not in record
    assert set(as_record(Discovery())) == set(record) | {each.name for each in dataclasses.fields(Edges)}


def test_every_field_says_what_it_is_for():
    for kind in (Discovery, Pruning, Compute, Evaluating, Demo):
        assert all(len(each.metadata["help"]) > 10 for each in dataclasses.fields(kind))


@pytest.mark.parametrize("given", [{"max_nodes": 5}, "leap", Discovery], ids=["dict", "text", "class"])
def test_settings_of_another_type_are_refused_and_never_ignored(given):
    with pytest.raises(CircuitGraphError, match=r"settings is of type .*; expected Discovery\(\.\.\.\), or its fields"):
        cg.discover("a b", "demo", "demo", settings=given)


def test_a_preset_and_settings_at_once_are_refused():
    with pytest.raises(CircuitGraphError, match="preset 'leap' and settings are both given"):
        cg.discover("a b", "demo", "demo", preset="leap", settings=Discovery())


def test_prompts_are_looked_at_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("circuitgraph.doors.load_model", lambda *_: pytest.fail("the model was loaded"))
    for function in (cg.discover, cg.attribute):
        with pytest.raises(PromptError, match="there are no prompts"):
            function([], "demo", "demo")


def test_the_words_of_the_settings_are_those_of_the_engine():
    from circuitgraph import metrics
    from circuitgraph.attribution.runs import BaselineKind
    from circuitgraph_kernels.sae_attribution import BACKENDS as KERNELS

    assert set(settings.METRICS) == set(metrics._NAMED)
    assert set(settings.BACKENDS) == {"auto", *KERNELS}
    assert {*settings.BASELINES, "resample"} == set(get_args(BaselineKind))
    assert list(command_line.DTYPES) == list(DTYPES)

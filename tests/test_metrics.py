"""Metrics on logits small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from circuitgraph.errors import MetricError
from circuitgraph.metrics import build_metric

LOGITS = torch.tensor([[[9.0, 9, 9, 9], [0, math.log(2), math.log(3), math.log(4)]]], dtype=torch.float64)
BY_HAND = {
    "logit_difference": math.log(3) - math.log(2),
    "probability_difference": 0.3 - 0.2,
    "logit": math.log(3),
    "log_probability": math.log(0.3),
}


@pytest.mark.parametrize(("name", "expected"), BY_HAND.items())
def test_named_metrics_read_the_last_position(name, expected):
    assert float(build_metric(name, [[2]], [[1]])(LOGITS)) == pytest.approx(expected)


def test_several_answers_are_averaged_as_logits_and_summed_as_probabilities():
    assert float(build_metric("logit_difference", [[2, 3]], [[1]])(LOGITS)) == pytest.approx(
        math.log(12) / 2 - math.log(2)
    )
    assert float(build_metric("probability_difference", [[2, 3]], [[0, 1]])(LOGITS)) == pytest.approx(0.4)
    assert float(build_metric("log_probability", [[2, 3]], [[]])(LOGITS)) == pytest.approx(math.log(0.7))


def test_examples_keep_their_own_answers():
    logits = LOGITS.repeat(2, 1, 1)
    assert build_metric("logit", [[1], [3]], [[], []])(logits).tolist() == pytest.approx([math.log(2), math.log(4)])


def test_a_callable_is_a_metric():
    def margin(logits):
        return logits[:, -1].max(-1).values

    metric = build_metric(margin, [[2]], [[1]])
    assert metric.name == "margin" and float(metric(LOGITS)) == pytest.approx(math.log(4))


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(MetricError, match="'logit_diference' is unknown.*Did you mean 'logit_difference'"):
        build_metric("logit_diference", [[1]], [[2]])


def test_a_missing_wrong_answer_is_refused_with_the_pair():
    with pytest.raises(MetricError, match="needs at least one wrong answer for every pair; pair 2 has none"):
        build_metric("logit_difference", [[1], [1]], [[2], []])


@pytest.mark.parametrize("function", [lambda x: x.sum(), lambda x: x[:, -1], lambda x: 3.0])
def test_a_callable_must_give_one_number_per_example(function):
    with pytest.raises(MetricError, match="expected one number per example"):
        build_metric(function, [[1]], [[2]])(LOGITS)


def test_nan_is_refused_with_the_example():
    with pytest.raises(MetricError, match="is nan for example 0"):
        build_metric(lambda x: x[:, -1, 0] * math.nan, [[1]], [[2]])(LOGITS)

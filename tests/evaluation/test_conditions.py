"""The statistics of circuits, whatever these are made of, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.conditions import (
    EVALUATION_BASELINES,
    FRACTIONS,
    Curve,
    Interval,
    Point,
    SizedCircuit,
    choose_baselines,
    circuit_sizes,
    cmd,
    cpr,
    interval_text,
    measure_conditions,
    metric_rounding,
    ratio,
    size_curves,
    total_effect,
)
from circuitgraph.metrics import Metric
from circuitgraph.nodes import Site


class Table:
    """A runner whose circuits are names of metrics that are known: {baseline: {circuit: [batch]}}."""

    def __init__(self, clean, metrics, rounding=0.0):
        self.clean_metric = torch.tensor(clean, dtype=torch.float64)
        self.metrics, self.rounding = metrics, rounding

    def metric_of(self, circuits, baseline, progress=lambda done, total: None):
        progress(len(circuits), len(circuits))
        return torch.tensor([self.metrics[baseline][circuit] for circuit in circuits], dtype=torch.float64)


def test_a_condition_is_the_share_of_what_the_model_does_beyond_the_empty_circuit():
    metrics = {"zero": {"0": [1.0, 1.0], "C": [2.0, 4.0], "rest": [1.0, 2.0]}}
    (row,) = measure_conditions(Table([4.0, 6.0], metrics), ["zero"], {None: ("C", "rest")}, "0", seed=0)
    assert (row.baseline, row.errors, row.metric_empty, row.metric_circuit) == ("zero", None, 1.0, 3.0)
    assert row.metric_complement == 1.5
    assert row.faithfulness.value == pytest.approx((1 + 3) / (3 + 5))
    assert row.complement_faithfulness.value == pytest.approx((0 + 1) / (3 + 5))
    assert row.faithfulness.low == pytest.approx(1 / 3) and row.faithfulness.high == pytest.approx(3 / 5)


def test_within_rounding_there_is_no_share_and_draws_within_rounding_are_left_out():
    metrics = {"zero": {"0": [4.0 - 1e-7, 6.0], "C": [4.0, 6.0], "rest": [4.0, 6.0]}}
    for rounding, defined in ((1e-6, False), (1e-9, True)):
        runner = Table([4.0, 6.0], metrics, rounding)
        (row,) = measure_conditions(runner, ["zero"], {None: ("C", "rest")}, "0", seed=0)
        assert (row.faithfulness is not None) == (row.complement_faithfulness is not None) == defined
    assert total_effect(1.0, 1.0 - 1e-7, 1e-6) is None and total_effect(1.0, 0.5, 1e-6) == 0.5
    interval = ratio(torch.tensor([1.0, 1e-9]), torch.tensor([2.0, 1e-9]), rounding=1e-6, seed=0)
    assert interval.value == pytest.approx(0.5) and (interval.low, interval.high) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(("dtype", "stored", "computed"), [("float32", 2**-23, 2**-23), ("bfloat16", 2**-7, 2**-23)])
def test_the_rounding_of_a_metric_is_that_of_its_terms(dtype, stored, computed):
    """A difference of the logits 100 and 99 of a model of 3 layers and width 16 adds terms of 199: products of 16 numbers
    and sums of 7 that were stored."""

    class Tiny:
        n_layers, d_model, eps = 3, 16, stored

    Tiny.dtype = getattr(torch, dtype)
    logits = torch.zeros(2, 5, 4)
    logits[:, -1, :2] = torch.tensor([100.0, 99.0])
    difference = Metric("difference", lambda x: x[:, -1, 0] - x[:, -1, 1])
    expected = 199 * (stored * 7**0.5 + computed * 4)
    assert metric_rounding(Tiny, difference, logits, {}) == pytest.approx(expected)
    inside = Metric("inside", lambda x, recorded: recorded[Site("z", 0)][:, -1, 0], (Site("z", 0),))
    recorded = {Site("z", 0): torch.full((2, 5, 3), -7.0)}
    assert metric_rounding(Tiny, inside, logits, recorded) == pytest.approx(7 / 199 * expected)


def test_the_bootstrap_brackets_the_ratio_and_depends_on_nothing_but_the_seed():
    generator = torch.Generator().manual_seed(0)
    below = 5 + torch.randn(200, generator=generator)
    above = 0.5 * below + 0.3 * torch.randn(200, generator=generator)
    interval = ratio(above, below, seed=1)
    assert interval == ratio(above, below, seed=1) != ratio(above, below, seed=2)
    assert interval.low < interval.value < interval.high
    # the standard error of the ratio: sd(above - r * below) / (mean(below) * sqrt(n)), 1.96 of it to each side
    error = float((above - interval.value * below).std() / below.mean() / 200**0.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert ratio(above, torch.zeros(200), seed=1) is None
    alone = ratio(above[:1], below[:1], seed=1)
    assert alone.value == pytest.approx(float(above[0] / below[0])) and alone.low is alone.high is None


def test_cpr_and_cmd_are_mibs_areas():
    """Their trapezoids over the listed percentages, on the linear axis."""
    curve = Curve("signed", tuple(Point(f, 0, 0, 2 * f, 0.0) for f in FRACTIONS))
    assert cpr(curve) == pytest.approx(1 - 0.001**2)  # the integral of 2 x
    # |1 - 2 x| is linear between the points, of which 0.5 is one
    assert cmd(curve) == pytest.approx((0.499 * 0.998 + 0.5 * 1) / 2)
    assert [point.fraction for point in curve.points] == [n / 100 for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)]


def test_a_curve_has_one_point_for_each_of_mibs_sizes():
    metrics = {"corrupted": {"a": [3.0], "b": [5.0], "rest": [1.5]}}
    sized = [SizedCircuit(n, n - 1, "a" if n < 9 else "b", "rest") for n in range(10)]
    pruned = [SizedCircuit(n, n - 1, "b") for n in range(10)]
    told = []
    orders = {"signed": sized, "random": pruned}
    found = size_curves(Table([5.0], metrics), "corrupted", orders, 1.0, 4.0, lambda done, of: told.append(of))
    assert [curve.order for curve in found] == ["signed", "random"] and told == [30]
    assert found[0].points[0] == Point(0.001, 0, -1, 0.5, 0.125) and found[0].points[9] == Point(1.0, 9, 8, 1.0, 0.125)
    assert {(p.faithfulness, p.complement_faithfulness) for p in found[1].points} == {(1.0, None)}
    assert circuit_sizes(32_491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]


def test_the_graphs_own_baseline_comes_first_and_each_baseline_once():
    def chosen(given, n_pairs, corrupted=True, **settings):
        return choose_baselines(given, n_pairs, corrupted=corrupted, **settings)

    assert chosen(None, 2) == ["corrupted", "zero", "mean", "resample"] == list(EVALUATION_BASELINES)
    assert chosen(None, 1) == ["corrupted", "zero"] and chosen(None, 2, own="mean")[0] == "mean"
    assert chosen(["zero", "corrupted", "zero"], 2, own="corrupted") == ["corrupted", "zero"]
    assert chosen([], 2, own="zero") == ["zero"] and chosen([], 2) == ["corrupted"]
    assert chosen(None, 3, corrupted=False) == chosen([], 1, corrupted=False) == ["zero"]
    assert chosen(None, 2, known=["corrupted", "zero"], own="zero") == ["zero", "corrupted"]


@pytest.mark.parametrize("name", ["corrupted", "mean", "resample"])
def test_without_corrupted_prompts_every_baseline_but_zero_is_refused(name):
    with pytest.raises(
        CircuitGraphError, match=f"baseline '{name}' needs corrupted prompts, and there are none; .*zero"
    ):
        choose_baselines([name], 3, corrupted=False)
    with pytest.raises(CircuitGraphError, match=f"baseline '{name}' needs corrupted prompts"):
        choose_baselines(None, 3, corrupted=False, own=name)


def test_baselines_that_do_not_exist_or_need_more_pairs_are_refused():
    with pytest.raises(CircuitGraphError, match="baseline 'maen' is unknown; expected .*Did you mean 'mean'"):
        choose_baselines(["maen"], 2, corrupted=True)
    with pytest.raises(CircuitGraphError, match="needs at least two pairs; got 1"):
        choose_baselines(["resample"], 1, corrupted=True)


def test_intervals_are_shown_with_their_bounds():
    assert repr(Interval(0.51234, 0.4, 0.6)) == "0.512 [0.400, 0.600]" == interval_text(Interval(0.51234, 0.4, 0.6))
    assert repr(Interval(-0.0001, None, None)) == "0.000" and interval_text(None) == "undefined"

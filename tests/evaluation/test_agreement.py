"""How estimates agree with measurements, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from circuitgraph.evaluation.agreement import auroc, compare, pearson, spearman


def test_agreement_of_numbers_worked_out_by_hand():
    agreement = compare(
        list("abcd"), torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([2.0, -4.0, -1.0, 1.0]), top_k=2
    )
    assert agreement.n == 4 and agreement.top_k == 2
    # x - mean = .5 -2.5 2.5 -.5, y - mean = 2.5 -3.5 -.5 1.5
    assert agreement.pearson_r == pytest.approx((1.25 + 8.75 - 1.25 - 0.75) / (13 * 21) ** 0.5)
    assert agreement.spearman_r == pytest.approx(0.4)  # ranks 2 0 3 1 and 3 0 1 2: 1 - 6 * (1 + 0 + 4 + 1) / 60
    assert agreement.sign_agreement == pytest.approx(2 / 3) and agreement.top_k_overlap == 0.5
    assert agreement.worst[0] == ("c", 3.0, -1.0) and agreement.worst[1] == ("b", -2.0, -4.0)


def test_agreement_that_is_undefined_is_none():
    agreement = compare(["a"], torch.tensor([1.0]), torch.tensor([0.0]))
    assert (agreement.pearson_r, agreement.spearman_r, agreement.sign_agreement) == (None, None, None)
    assert compare([], torch.zeros(0), torch.zeros(0)).top_k_overlap is None


def test_equal_values_share_their_ranks():
    """Ranks 1.5 0 1.5 3 and 0 1 2 3: their differences from the mean 1.5 are 0 -1.5 0 1.5 and -1.5 -.5 .5 1.5."""
    values = spearman(torch.tensor([5.0, 1.0, 5.0, 7.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values == pytest.approx((0.75 + 2.25) / (4.5 * 5) ** 0.5)


def test_the_correlation_with_numbers_that_are_all_equal_is_undefined():
    """0.1 has no exact mean in floating point, so that a variance of roundings could be taken for one."""
    equal, other = torch.full((7,), 0.1, dtype=torch.float64), torch.arange(7.0, dtype=torch.float64)
    assert pearson(equal, other) is None and spearman(other, equal) is None
    assert pearson(other[:1], other[:1]) is None and spearman(other[:0], other[:0]) is None


def test_auroc_is_the_share_of_pairs_in_order():
    truth = torch.tensor([True, False, True, False])
    assert auroc(torch.tensor([3.0, 1.0, 2.0, 2.0]), truth) == pytest.approx(3.5 / 4)
    assert auroc(torch.zeros(4), truth) == 0.5
    assert auroc(torch.ones(2), torch.tensor([True, True])) is None


def test_an_agreement_is_shown_in_one_line():
    agreement = compare(["a", "b"], torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), top_k=1)
    assert repr(agreement) == "2: pearson 1.000, spearman 1.000, same sign 1.000, top 1 shared 1.000"
    assert "pearson undefined" in repr(compare([], torch.zeros(0), torch.zeros(0)))

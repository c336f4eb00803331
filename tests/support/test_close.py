"""The rule for nearness notices what it should, and refuses a comparison that shows nothing."""

from __future__ import annotations

import pytest
import torch

from support.close import assert_close, tolerance


def test_the_bound_grows_with_terms_scale_and_the_coarseness_of_the_type() -> None:
    eps = torch.finfo(torch.float64).eps
    assert tolerance(torch.float64, 100, 2.0) == pytest.approx(160 * eps)
    assert tolerance(torch.float64, 0, 1.0) == tolerance(torch.float64, 1, 1.0) == pytest.approx(8 * eps)
    assert tolerance(torch.float64, 1, 0.0) > 0
    sizes = [tolerance(dtype, 4, torch.tensor(3.0)) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_numbers_within_the_bound_are_close_and_others_are_not() -> None:
    expected = torch.tensor([1.0, -100.0], dtype=torch.float64)
    bound = tolerance(torch.float64, 25, 100.0)
    assert_close(expected + 0.9 * bound, expected, n_terms=25)
    assert_close(expected + 0.9 * bound, expected.tolist(), n_terms=25)
    with pytest.raises(AssertionError, match=r"score: 1\.0.*, expected 1\.0: they differ by .*, more than "):
        assert_close(expected + torch.tensor([1.1 * bound, 0.0]), expected, n_terms=25, name="score")
    with pytest.raises(AssertionError, match="they differ"):
        assert_close(expected + 0.9 * bound, expected, n_terms=25, scale=50.0)


def test_the_coarser_type_of_both_sides_counts_unless_another_is_named() -> None:
    narrow, wide = torch.tensor([1.0]), torch.tensor([1.0 + 5e-7], dtype=torch.float64)
    assert_close(narrow, wide, n_terms=1)
    assert_close(float(wide), narrow[0], n_terms=1)
    with pytest.raises(AssertionError, match="torch.float64, 1 terms"):
        assert_close(narrow, wide, n_terms=1, dtype=torch.float64)
    with pytest.raises(AssertionError, match="torch.float64, 1 terms"):
        assert_close(1.0, float(wide), n_terms=1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_are_close_to_nothing(bad: float) -> None:
    numbers = torch.tensor([1.0, bad])
    for actual, expected in ((numbers, numbers), (numbers, torch.ones(2)), (torch.ones(2), numbers)):
        with pytest.raises(AssertionError, match="they differ"):
            assert_close(actual, expected)


def test_zeros_and_nothing_are_refused_unless_they_are_meant() -> None:
    for empty in (torch.zeros(3), torch.zeros(0), 0.0):
        with pytest.raises(AssertionError, match="only zeros are compared with zeros"):
            assert_close(empty, empty)
        assert_close(empty, empty, zeros=True)
    with pytest.raises(AssertionError, match="they differ"):
        assert_close(torch.tensor([1e-30]), torch.zeros(1), zeros=True)


def test_shapes_must_be_the_same() -> None:
    with pytest.raises(AssertionError, match=r"shape \(2, 1\), expected \(2,\)"):
        assert_close(torch.ones(2, 1), torch.ones(2))

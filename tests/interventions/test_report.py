"""What `intervene` says of a metric that falls, rises, or is negative."""

from __future__ import annotations

import pytest

from circuitgraph.interventions.report import _change


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (8.0, 6.0, "reduced by 25.0 %"),
        (8.0, 0.0, "reduced by 100.0 %"),
        (8.6295, 9.1921, "changed by +0.5626"),
        (8.0, -1.0, "changed by -9.0000"),
        (-0.0085, -9.1412, "changed by -9.1327"),
        (0.0, 1.0, "changed by +1.0000"),
    ],
)
def test_a_percentage_is_given_where_it_means_something(before, after, words):
    assert _change(before, after) == words

"""Gradients of several examples at once are those of each alone: the metric is summed over the batch, not averaged."""

from __future__ import annotations

import pytest
from support.close import assert_close

from circuitgraph.attribution.attribute import attribute
from circuitgraph.nodes import Site


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_each_example_keeps_its_own_gradient(tiny_model, tiny_dictionaries, tiny_pairs, method):
    together = attribute(tiny_pairs, tiny_model, tiny_dictionaries, method=method, steps=3)
    for row, pair in enumerate(tiny_pairs):
        alone = attribute(pair, tiny_model, tiny_dictionaries, method=method, steps=3)
        assert set(alone.gradients) == set(together.gradients) >= {Site("embed"), *tiny_dictionaries}
        for site, gradient in together.gradients.items():
            assert float(gradient[row].abs().max()) > 1e-3, site
            assert_close(gradient[row], alone.gradients[site][0])
        assert_close(together.stream_gradient[row], alone.stream_gradient[0])
        for site, slope in together.slopes.items():
            assert_close(slope[row], alone.slopes[site][0])

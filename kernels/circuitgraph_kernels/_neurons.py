"""Neurons: a dictionary that is the identity needs no product, because its features are the coordinates themselves.

The entries are those of every other backend, for 1 / d_in of the work.
"""

from __future__ import annotations

import torch

from circuitgraph_kernels._entries import Entries, Inputs, output_difference
from circuitgraph_kernels.weights import row_sums


def attribute(inputs: Inputs) -> Entries:
    """attribution = (clean - baseline) * gradient, coordinate by coordinate."""
    clean, gradient = inputs.clean, inputs.gradient
    baseline = torch.zeros_like(clean) if inputs.baseline is None else inputs.baseline
    delta = clean - baseline
    token, feature = torch.nonzero((clean != 0) | (baseline != 0), as_tuple=True)
    return Entries(
        token,
        feature,
        clean[token, feature],
        baseline[token, feature],
        (delta * gradient)[:, token, feature],
        row_sums(gradient * (output_difference(inputs) - delta)),
    )

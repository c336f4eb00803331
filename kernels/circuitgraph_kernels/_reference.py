"""The definition of feature attribution, dense and plain: what every other backend is tested against.

It is slow and holds several [tokens, d_sae] tensors.
"""

from __future__ import annotations

import torch

from circuitgraph_kernels._entries import Entries, Inputs
from circuitgraph_kernels.weights import decode, encode


def attribute(inputs: Inputs) -> Entries:
    """Every formula as it is written in the README, over all features.

    attribution = (acts_clean - acts_baseline) * (gradient . W_dec)
    error       = gradient . (error_clean - error_baseline)
    """
    weights, gradient = inputs.weights, inputs.gradient

    clean_acts = encode(inputs.clean, weights)
    error = inputs.clean_out - decode(clean_acts, weights, inputs.clean)
    baseline_acts = torch.zeros_like(clean_acts)
    if inputs.baseline is not None and inputs.baseline_out is not None:
        baseline_acts = encode(inputs.baseline, weights)
        error = error - (inputs.baseline_out - decode(baseline_acts, weights, inputs.baseline))

    write_gradient = torch.einsum("ktd,fd->ktf", gradient, weights.W_dec.to(gradient.dtype))
    attribution = (clean_acts - baseline_acts) * write_gradient

    token, feature = torch.nonzero((clean_acts != 0) | (baseline_acts != 0), as_tuple=True)
    return Entries(
        token,
        feature,
        clean_acts[token, feature],
        baseline_acts[token, feature],
        attribution[:, token, feature],
        torch.einsum("ktd,td->kt", gradient, error),
    )

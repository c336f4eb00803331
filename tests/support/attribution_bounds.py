"""What rounding may do to the results of `sae_attribution`, in the terms of `support.close.tolerance`."""

from __future__ import annotations

from torch import Tensor

from circuitgraph_kernels import SaeWeights
from circuitgraph_kernels.weights import normalized_input


def attribution_bounds(
    weights: SaeWeights, runs: Tensor, gradient: Tensor, outs: Tensor
) -> dict[str, tuple[int, float]]:
    """(n_terms, scale) by the name of the result, where scale is at least the sum of the absolute terms.

    Args:
        weights: the dictionary, in float64.
        runs: [2, T, d_in] clean and baseline.
        gradient: [T, d_out].
        outs: [2, T, d_out] what the dictionary reconstructs.
    """
    d_in, d_out, d_sae = weights.d_in, weights.d_out, weights.d_sae
    rows = normalized_input(runs.to(weights.W_enc.device), weights)
    x = rows.x.cpu().abs().amax(dim=(0, 1)) + 1
    norm = 1.0 if rows.scale is None else float(rows.scale.max())
    W_enc, W_dec = weights.W_enc.cpu().abs(), weights.W_dec.cpu().abs()
    magnitude = 1.0 if weights.r_mag is None else float(weights.r_mag.exp().max())
    biases = [float(bias.abs().max()) for bias in (weights.b_enc, weights.b_mag) if bias is not None]
    acts = norm * magnitude * (float((x @ W_enc).max()) + sum(biases))
    dot = float((gradient.abs().flatten(0, -2).amax(dim=0) @ W_dec.T).max())
    written = float(gradient.abs().amax() * (outs.abs().amax() + weights.b_dec.abs().max() * norm + norm)) * d_out
    return {
        "clean_acts": (d_in, acts),
        "baseline_acts": (d_in, acts),
        "attribution": (d_in + d_out, 2 * acts * dot),
        "error": (d_sae + d_out, 2 * written + d_sae * 2 * acts * dot),
    }

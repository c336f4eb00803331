"""Gradients of the metric at sites: by one backward pass for all of them.

Each is shaped like the activations at its site. Parameters take no part, since the model is frozen. Since decode is
affine, a gradient at a site serves every feature and error written there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from einops import einsum
from torch import Tensor

from circuitgraph.attribution.runs import CleanRun
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.models.variants import variants_at_once
from circuitgraph.nodes import Site
from circuitgraph.settings import RULES


def metric_gradients(clean: CleanRun, sites: Iterable[Site]) -> dict[Site, Tensor]:
    """dm/dx at every site of the clean run, [batch, pos, d] each, by one backward pass of the summed metric.

    Examples do not interact, so each keeps its own gradient. The autograd graph is kept for further calls.
    """
    sites = list(sites)
    gradients = torch.autograd.grad(
        clean.attached_metric.sum(), [clean.attached[site] for site in sites], retain_graph=True, allow_unused=True
    )
    return {
        site: torch.zeros_like(clean.attached[site]) if gradient is None else gradient.detach()
        for site, gradient in zip(sites, gradients, strict=True)
    }


def mlp_slopes(clean: CleanRun, reads: Iterable[Site], layers: Iterable[int | None] = ()) -> dict[Site, Tensor]:
    """d mlp_post / d mlp_pre and, of a gated MLP, / d mlp_gate: one number per neuron, [batch, pos, d_mlp] each.

    For every layer where something reads behind the neurons (mlp_post, mlp_out), and for the given layers.
    """
    slopes: dict[Site, Tensor] = {}
    for layer in {site.layer for site in reads if site.behind_neurons} | set(layers):
        inner = [s for kind in ("mlp_gate", "mlp_pre") if (s := Site(kind, layer)) in clean.attached]
        post = clean.attached[Site("mlp_post", layer)]
        gradients = torch.autograd.grad(post.sum(), [clean.attached[site] for site in inner], retain_graph=True)
        slopes |= dict(zip(inner, gradients, strict=True))
    return slopes


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes alpha in [0, 1] (0 = baseline, 1 = clean) and weights that sum to 1, float64 [steps] each.

    left starts at the clean end, alpha = 1 - k/steps, as feature-circuits counts its steps from clean to patch.
    """
    if rule not in RULES:
        raise CircuitGraphError(
            f"rule {rule!r} is unknown; expected one of {', '.join(RULES)}.{did_you_mean(rule, RULES)}"
        )
    if steps < 1:
        raise CircuitGraphError(f"steps is {steps}; integrated gradients need at least 1")
    if rule == "gauss-legendre":
        x, w = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)
    k = torch.arange(steps, dtype=torch.float64)
    alphas = {"midpoint": (k + 0.5) / steps, "left": 1 - k / steps, "right": 1 - (k + 1) / steps}[rule]
    return alphas, torch.full((steps,), 1 / steps, dtype=torch.float64)


def integrated_gradients(
    model: Model,
    pairs: TokenizedPairs,
    clean: Mapping[Site, Tensor],
    baseline: Mapping[Site, Tensor],
    metric: Metric,
    *,
    steps: int = 10,
    rule: str = "gauss-legendre",
) -> dict[Site, Tensor]:
    """G = sum_k w_k dm/dx at x(alpha_k) = baseline + alpha_k (clean - baseline), [batch, pos, d] per site.

    One site at a time, everything upstream as in the clean run. Decode is affine, so the path of x is the path of its
    features and error together, and G serves all of them (Marks et al. 2024, equation 3, along x instead of along the
    features).

    Args:
        model: The model.
        pairs: Token ids.
        clean: Activations of the clean run [batch, pos, d], the residual stream behind each block among them.
        baseline: Site -> where its path starts, [batch, pos, d].
        metric: What is differentiated.
        steps: Points of the path.
        rule: Which points, and how they are weighted; see `quadrature`.
    """
    alphas, weights = quadrature(rule, steps)
    at_once = variants_at_once(pairs.clean)
    result = {}
    for site, start in baseline.items():
        change, total = clean[site] - start, torch.zeros_like(start)
        for some, weight in zip(alphas.split(at_once), weights.split(at_once), strict=True):
            path = start + some.to(start).view(-1, 1, 1, 1) * change
            gradients = _gradients_on_path(model, pairs, clean, metric, site, path)
            total = total + einsum(weight.to(start), gradients, "step, step batch pos d -> batch pos d")
        result[site] = total
    return result


def _gradients_on_path(
    model: Model,
    pairs: TokenizedPairs,
    clean: Mapping[Site, Tensor],
    metric: Metric,
    site: Site,
    path: Tensor,
) -> Tensor:
    """dm/dx at every point of the path [steps, batch, pos, d] of one site: all points are variants of one pass."""
    path = path.requires_grad_()
    with torch.enable_grad():
        logits, read = model.run_variants(
            pairs.clean,
            {site: lambda x, values: path},
            len(path),
            clean=clean,
            observe=metric.sites,
            differentiable=True,
        )
        points = [
            metric(pairs.at_end(at_point), {read_at: x[i] for read_at, x in read.items()})
            for i, at_point in enumerate(logits)
        ]
        total = torch.stack(points).sum()
    if not total.requires_grad:  # the site stands behind all that the metric reads
        return torch.zeros_like(path)
    (gradient,) = torch.autograd.grad(total, path, allow_unused=True, materialize_grads=True)
    return gradient

"""Gradients of the metric at sites: the only backward passes of the package.

In come a clean run and a baseline; out come tensors shaped like the activations at each site. Parameters take no part
(the model is frozen). Since decode is affine, a gradient at a site serves every feature and error written there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from circuitgraph.attribution.runs import CleanRun
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site

Rule = Literal["gauss-legendre", "midpoint", "left", "right"]
RULES: tuple[Rule, ...] = ("gauss-legendre", "midpoint", "left", "right")


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
    for layer in {site.layer for site in reads if site.kind in ("mlp_post", "mlp_out")} | set(layers):
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
    """G = sum_k w_k dm/dx at x(alpha_k) = baseline + alpha_k (clean - baseline), per site of `baseline`, [batch, pos, d].

    One site at a time, everything upstream as in the clean run. Decode is affine, so the path of x is the path of its
    features and error together, and G serves all of them (Marks et al. 2024, equation 3, along x instead of along the
    features). All steps of a site are one batch, started at that site's layer.
    """
    alphas, weights = quadrature(rule, steps)
    batch = len(pairs.clean)
    tokens = pairs.clean.repeat(steps, 1)
    result = {}
    for site, base in baseline.items():
        value = clean[site]
        alpha = alphas.to(value).repeat_interleave(batch).view(-1, 1, 1)
        path = (base.repeat(steps, 1, 1) + alpha * (value - base).repeat(steps, 1, 1)).requires_grad_()
        first = min(site.block, *(read.block for read in metric.sites), model.n_layers)
        start = (first, clean[Site("resid_post", first - 1)].repeat(steps, 1, 1)) if first else None
        with torch.enable_grad():
            logits, recorded = model.run(
                tokens, record=metric.sites, replace={site: _constant(path)}, start=start, differentiable=True
            )
            parts = ({read: recorded[read].split(batch)[i] for read in metric.sites} for i in range(steps))
            steps_of = zip(logits.split(batch), parts, strict=True)
            total = torch.stack([metric(pairs.at_end(step), part) for step, part in steps_of]).sum()
        gradient = torch.zeros_like(path)  # of a site behind all that the metric reads
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, path, allow_unused=True, materialize_grads=True)
        result[site] = (weights.to(value).view(-1, 1, 1, 1) * gradient.unflatten(0, (steps, batch))).sum(0)
    return result


def _constant(value: Tensor) -> Replace:
    """The replacement that is this value whatever the model computed."""
    return lambda x, recorded: value

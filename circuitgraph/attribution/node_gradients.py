"""The gradient of the metric at every site that nodes write to: of the clean run, or integrated from the baseline."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from circuitgraph.attribution.gradients import integrated_gradients, metric_gradients
from circuitgraph.attribution.runs import Baseline, CleanRun
from circuitgraph.attribution.treatment import node_sites
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site


def node_gradients(
    model: Model,
    dictionaries: Dictionaries,
    tokens: TokenizedPairs,
    clean: CleanRun,
    base: Baseline,
    metric: Metric,
    *,
    method: str,
    steps: int,
    rule: str,
) -> tuple[dict[Site, Tensor], Tensor]:
    """What attributions and edges start from, by one backward pass through the clean run.

    Args:
        model: The model.
        dictionaries: Its dictionaries; gradients are taken where they and the components write.
        tokens: The pairs.
        clean: The clean run.
        base: Where integrated gradients begin.
        metric: The metric.
        method: "gradient", or "integrated" for the mean gradient between baseline and clean value of each site.
        steps: Points of the path of integrated gradients.
        rule: Their quadrature.

    Returns the gradient at every site that nodes write to, and the plain one at the end of the residual stream. Biases
    of attention, which enter at attn_out, keep the plain gradient.
    """
    written = {Site("embed"), *node_sites(model, dictionaries)}
    outputs = {site.output for site in written}
    end = Site("resid_post", model.n_layers - 1)
    gradients = metric_gradients(clean, sorted({*written, *outputs, end}))
    stream = gradients[end]
    if method == "integrated":
        start = {site: path_start(dictionaries, base, clean.values, site) for site in written}
        gradients |= integrated_gradients(model, tokens, clean.values, start, metric, steps=steps, rule=rule)
    return gradients, stream


def path_start(dictionaries: Dictionaries, base: Baseline, clean: Mapping[Site, Tensor], site: Site) -> Tensor:
    """x at the baseline end of the path: with baseline zero no feature and no error, which leaves biases and skips."""
    if base.values is not None:
        return base.values[site]
    start = torch.zeros_like(clean[site])
    for dictionary in dictionaries.writers(site):
        start = start + dictionary.affine(clean[dictionary.reads])[..., dictionary.columns(site)]
    return start

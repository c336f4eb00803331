"""The gradient of the metric at every site that nodes write to: at the clean run, or averaged along the way from the baseline."""

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
) -> dict[Site, Tensor]:
    """The gradient at every site that nodes write to: plain, or integrated from the baseline to the clean value of it.

    Biases of attention, which enter at attn_out, keep the plain gradient.
    """
    written = {Site("embed"), *node_sites(model, dictionaries)}
    outputs = {site.output for site in written}
    gradients = metric_gradients(clean, sorted(written | outputs))
    if method == "integrated":
        start = {site: path_start(dictionaries, base, clean.values, site) for site in written}
        gradients |= integrated_gradients(model, tokens, clean.values, start, metric, steps=steps, rule=rule)
    return gradients


def path_start(dictionaries: Dictionaries, base: Baseline, clean: Mapping[Site, Tensor], site: Site) -> Tensor:
    """x at the baseline end of the path: with baseline zero no feature and no error, which leaves biases and skips."""
    if base.values is not None:
        return base.values[site]
    start = torch.zeros_like(clean[site])
    for dictionary in dictionaries.values():
        if site in dictionary.sites:
            start = start + dictionary.affine(clean[dictionary.reads])[..., dictionary.columns(site)]
    return start

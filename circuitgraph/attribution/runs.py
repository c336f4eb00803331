"""The clean run and what it is compared with.

In come a model, tokenized pairs and the sites of interest; out come the clean activations (still attached to their
autograd graph, so that gradients need no second forward pass) and the baseline's. This module knows no gradients and
encodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site

BaselineKind = Literal["corrupted", "zero", "mean"]
BASELINES: tuple[BaselineKind, ...] = ("corrupted", "zero", "mean")


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The clean run: `attached` are the recorded tensors and `attached_metric` [batch] the metric in the autograd graph;
    `values` and `metric` are the same detached."""

    logits: Tensor
    attached_metric: Tensor
    attached: Mapping[Site, Tensor]

    @property
    def metric(self) -> Tensor:
        return self.attached_metric.detach()

    @property
    def values(self) -> dict[Site, Tensor]:
        return {site: value.detach() for site, value in self.attached.items()}


@dataclass(frozen=True, eq=False)
class Baseline:
    """What clean is compared with, per site [batch, pos, d].

    corrupted: the activations of the corrupted run. mean: their mean over the examples, per position or place (two or more).
    zero: no values; features, errors, embeddings and biases are all compared with nothing.
    `metric` is the metric of the corrupted run for all three kinds, [batch], `recorded` what it reads besides the logits.
    """

    kind: BaselineKind
    values: Mapping[Site, Tensor] | None
    logits: Tensor
    metric: Tensor
    recorded: Mapping[Site, Tensor] = field(default_factory=dict)


def sites_of(
    model: Model,
    dictionaries: Iterable[Dictionary],
    *,
    reads: Iterable[Site] = (),
    neurons: bool = False,
    scores: bool = False,
) -> list[Site]:
    """Every site whose activations the nodes and edges of these dictionaries need, in forward order.

    reads: further sites from which edges are traced; neurons: also the neurons of every MLP, to linearise it; scores: also the attention scores, for what the mask hides.
    """
    sites = {Site("embed")}
    if model.has(Site("pos_embed")):
        sites.add(Site("pos_embed"))
    reading = set(reads)
    for dictionary in dictionaries:
        sites |= set(dictionary.sites)
        reading.add(dictionary.reads)
    sites |= reading
    for site in reading:
        if site.kind in ("mlp_post", "mlp_out"):
            sites |= {Site(kind, site.layer) for kind in ("mlp_gate", "mlp_pre", "mlp_post")}
    kinds: tuple[str, ...] = (
        "ln1_scale",
        "z",
        "ln1_post_scale",
        "attn_out",
        "ln2_scale",
        "ln2_post_scale",
        "mlp_out",
        "resid_post",
    )
    sites.add(Site("final_scale"))
    if neurons:
        kinds += ("mlp_gate", "mlp_pre", "mlp_post")
    if scores:
        kinds += ("attn_scores",)
    for layer in range(model.n_layers):
        sites |= {*model.attention_sites(layer), *(Site(kind, layer) for kind in kinds)}
    return sorted(site for site in sites if model.has(site))


def run_clean(model: Model, pairs: TokenizedPairs, sites: Iterable[Site], metric: Metric) -> CleanRun:
    """The clean run with its autograd graph. Its logits end with each example's last position (`TokenizedPairs.at_end`).

    Where the metric reads a site itself, the attached tensor is what goes on from there: a gradient at it is that of what
    lies behind, without the reading.
    """
    behind: dict[Site, Tensor] = {}

    def pass_on(site: Site) -> Replace:
        def alias(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
            behind[site] = x.view_as(x)
            return behind[site]

        return alias

    logits, recorded = model.run(
        pairs.clean,
        record=sorted({*sites, *metric.sites}),
        replace={site: pass_on(site) for site in metric.sites},
        differentiable=True,
    )
    logits = pairs.at_end(logits)
    return CleanRun(logits.detach(), metric(logits, recorded), {**recorded, **behind})


def run_baseline(
    model: Model,
    pairs: TokenizedPairs,
    sites: Iterable[Site],
    metric: Metric,
    kind: str = "corrupted",
    *,
    mean: Callable[[Mapping[Site, Tensor]], dict[Site, Tensor]] | None = None,
) -> Baseline:
    """The corrupted run, turned into the baseline of that kind. mean: how activations become their mean over the examples;
    None for that of each position."""
    if kind not in BASELINES:
        raise CircuitGraphError(
            f"baseline {kind!r} is unknown; expected one of {', '.join(BASELINES)}.{did_you_mean(kind, BASELINES)}"
        )
    if kind == "mean" and len(pairs.corrupted) < 2:
        raise CircuitGraphError(
            "baseline 'mean' is the mean over the corrupted prompts and needs at least two pairs; got 1"
        )
    record = sorted({*sites, *metric.sites})
    logits, recorded = model.run(pairs.corrupted, record=record)
    logits = pairs.at_end(logits)
    values: dict[Site, Tensor] | None = recorded
    if kind == "zero":
        values = None
    elif kind == "mean" and mean is not None:
        values = mean(recorded)
    elif kind == "mean":
        values = {site: value.mean(0, keepdim=True).expand_as(value) for site, value in recorded.items()}
    read = {site: recorded[site] for site in metric.sites}
    return Baseline(kind, values, logits, metric(logits, recorded), read)

"""The clean run, the corrupted run, and the baselines that are made of it.

The clean run keeps its autograd graph, so that gradients need no second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site

BaselineKind = Literal["corrupted", "zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The clean run.

    `attached` are the recorded tensors and `attached_metric` [batch] the metric in the autograd graph; `values` and
    `metric` are the same detached.
    """

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
class CorruptedRun:
    """The corrupted run: logits [batch, pos, vocab], the metric [batch], and activations by site [batch, pos, d]."""

    logits: Tensor
    metric: Tensor
    values: Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class Baseline:
    """What clean is compared with, per site [batch, pos, d].

    corrupted   the activations of the corrupted run
    mean        their mean over the examples, per position or aligned position
    resample    those of another example's corrupted run
    zero        no values: features, errors, embeddings and biases are all compared with nothing
    """

    kind: BaselineKind
    values: Mapping[Site, Tensor] | None


def sites_of(
    model: Model,
    dictionaries: Iterable[Dictionary],
    *,
    reads: Iterable[Site] = (),
    neurons: bool = False,
    scores: bool = False,
) -> list[Site]:
    """Every site whose activations the nodes and edges of these dictionaries need, in forward order.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        reads: Further sites from which edges are traced.
        neurons: Also the neurons of every MLP, to linearise it.
        scores: Also the attention scores, for what the mask hides.
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
        if site.behind_neurons:
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


def run_clean(
    model: Model, pairs: TokenizedPairs, sites: Iterable[Site], metric: Metric | Callable[[Tensor], Metric]
) -> CleanRun:
    """The clean run with its autograd graph. Its logits end with each example's last position.

    For a site that the metric itself reads, `attached` holds the tensor after that read, so a gradient there leaves the
    read out.

    Args:
        model: The model.
        pairs: Token ids.
        sites: What is recorded.
        metric: The metric, or how it follows from the logits [batch, pos, vocab], if it reads no site.
    """
    behind: dict[Site, Tensor] = {}
    read = metric.sites if isinstance(metric, Metric) else ()

    def pass_on(site: Site) -> Replace:
        def alias(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
            behind[site] = x.view_as(x)
            return behind[site]

        return alias

    logits, recorded = model.run(
        pairs.clean,
        record=sorted({*sites, *read}),
        replace={site: pass_on(site) for site in read},
        differentiable=True,
    )
    logits = pairs.at_end(logits)
    score = metric if isinstance(metric, Metric) else metric(logits.detach())
    return CleanRun(logits.detach(), score(logits, recorded), {**recorded, **behind})


def run_corrupted(model: Model, pairs: TokenizedPairs, sites: Iterable[Site], metric: Metric) -> CorruptedRun | None:
    """The corrupted run at these sites; None where the pairs have no corrupted prompts."""
    if pairs.corrupted is None:
        return None
    logits, recorded = model.run(pairs.corrupted, record=sorted({*sites, *metric.sites}))
    logits = pairs.at_end(logits)
    return CorruptedRun(logits, metric(logits, recorded), recorded)


def check_baseline(kind: str, n_examples: int, *, has_corrupted: bool) -> None:
    """CircuitGraphError unless prompts like these have this baseline; asked before anything runs."""
    if kind == "zero":
        return
    if not has_corrupted:
        raise CircuitGraphError(
            f"baseline {kind!r} needs corrupted prompts, and there are none; give PromptPair(clean, corrupted), or take"
            " baseline 'zero'"
        )
    if kind == "mean" and n_examples < 2:
        raise CircuitGraphError(
            "baseline 'mean' is the mean over the corrupted prompts and needs at least two pairs; got 1"
        )
    if kind == "resample" and n_examples < 2:
        raise CircuitGraphError(
            "baseline 'resample' takes the corrupted run of another example and needs at least two pairs; got 1"
        )


def baseline_of(
    kind: str,
    corrupted: CorruptedRun | None,
    *,
    mean: Callable[[Mapping[Site, Tensor]], dict[Site, Tensor]] | None = None,
    seed: int = 0,
) -> Baseline:
    """The baseline of that kind, made from the corrupted run without running again.

    Args:
        kind: "corrupted", "zero", "mean" or "resample".
        corrupted: The corrupted run; None only for "zero".
        mean: How activations become their mean over the examples; None for that of each position.
        seed: Of the draw of "resample".
    """
    if kind == "zero" or corrupted is None:
        check_baseline(kind, 2, has_corrupted=corrupted is not None)
        return Baseline("zero", None)
    values = corrupted.values
    check_baseline(kind, len(corrupted.metric), has_corrupted=True)
    if kind == "corrupted":
        return Baseline("corrupted", values)
    if kind == "mean" and mean is not None:
        return Baseline("mean", mean(values))
    if kind == "mean":
        return Baseline("mean", {site: x.mean(0, keepdim=True).expand_as(x) for site, x in values.items()})
    if kind == "resample":
        rows = resample_rows(len(corrupted.metric), seed)
        # rotary angles have one row for all examples
        return Baseline("resample", {s: x[rows] if len(x) == len(rows) else x for s, x in values.items()})
    known = get_args(BaselineKind)
    raise CircuitGraphError(
        f"baseline {kind!r} is unknown; expected one of {', '.join(known)}.{did_you_mean(kind, known)}"
    )


def resample_rows(n: int, seed: int) -> Tensor:
    """For each of n >= 2 examples another one, drawn with the seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows = torch.empty(n, dtype=torch.long)
    rows[order] = order.roll(1)
    return rows

"""Edges, measured: what the source's write, taken away where the target reads, does to the target.

In come the model, the clean run, node tables and pairs of nodes; out come changes of pre-activations and of the metric.
Everything between source and target keeps its clean value; the target's own block computes anew, so that its norm and its
attention pattern answer to the change as they do in the model. This module knows no weights of edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from circuitgraph.dictionary import Dictionary
from circuitgraph.metrics import Metric
from circuitgraph.model import Model, Replace
from circuitgraph.nodes import Node, Site
from circuitgraph.tables import FeatureTable, NodeTable
from circuitgraph_kernels import pre_activations

# What a dictionary that reads there depends on: the stream before attention, before the MLP, or behind both.
_BEFORE_ATTENTION = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out")


def measure_edges(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    tokens: Tensor,
    metric: Metric,
    tables: Sequence[NodeTable],
    pairs: Sequence[tuple[Node, Node]],
    *,
    freeze_norms: bool = False,
    batch_rows: int = 512,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Tensor:
    """The measured effect of each (source, target), [pairs, batch]: the target's value in the clean run minus its value when
    what the source writes (clean minus baseline) is taken from the stream that the target reads.

    The value of a feature is its pre-activation, that of the metric the metric. Comparable with the sum of `local_weight`
    over the kinds of edges between the two, which freezes the scales of the block's norms: so does freeze_norms. The pairs'
    sources must be in the tables.
    """
    places = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    groups: dict[Site, list[int]] = {}
    for i, (_, target) in enumerate(pairs):
        groups.setdefault(_read_at(model, dictionaries, target), []).append(i)
    layers = range(model.n_layers)
    parts = [Site(kind, layer) for kind in ("resid_pre", "attn_out", "mlp_out") for layer in layers]
    scales = [s for kind in ("ln1_scale", "ln2_scale") for layer in layers if model.has(s := Site(kind, layer))]
    record = sorted({*parts, *scales, *groups, *metric.sites}, key=lambda site: site.depth)
    logits, clean = model.run(tokens, record=record)
    whole = metric(logits, clean)
    batch, done = len(tokens), 0
    step = max(1, batch_rows // batch)
    effects: Tensor = whole.new_zeros(len(pairs), batch)
    for at, indices in groups.items():
        sources = sorted({pairs[i][0] for i in indices}, key=lambda node: node.order)
        for first in range(0, len(sources), step):
            progress("measuring edges", done, len(pairs))
            chosen = {source: n for n, source in enumerate(sources[first : first + step])}
            written = torch.stack([_written(model, *places[source], at, clean[parts[0]]) for source in chosen])
            held = [scale for scale in scales if freeze_norms and scale.layer == at.layer]
            logits, read = _run_without(model, tokens, clean, at, written.flatten(0, 1), held)
            for i in (i for i in indices if pairs[i][0] in chosen):
                source, target = pairs[i]
                rows = slice(chosen[source] * batch, (chosen[source] + 1) * batch)
                if target.kind == "feature":
                    effects[i] = _pre(dictionaries, target, clean[at]) - _pre(dictionaries, target, read[rows])
                else:
                    effects[i] = whole - metric(logits[rows])
                done += 1
    return effects


def _read_at(model: Model, dictionaries: Mapping[Site, Dictionary], target: Node) -> Site:
    """Where the target reads: its dictionary's site, or for the metric the end of the residual stream."""
    return dictionaries[target.site].reads if target.kind == "feature" else Site("resid_post", model.n_layers - 1)


def _pre(dictionaries: Mapping[Site, Dictionary], target: Node, x: Tensor) -> Tensor:
    """The target's pre-activation [batch] for x [batch, pos, d_in] where its dictionary reads."""
    return pre_activations(x[:, target.pos], dictionaries[target.site].weights)[:, target.feature]


def _written(model: Model, table: NodeTable, column: int, at: Site, like: Tensor) -> Tensor:
    """What the node adds to the stream that is read at `at`, clean minus baseline, [batch, pos, d_model]."""
    if isinstance(table, FeatureTable):
        parts = zip(table.dictionary.sites, table.writes[column], strict=True)
        vectors = [table.amount[:, column, None] * write for site, write in parts if _reaches(model, site, at)]
    else:
        vectors = [table.vectors[:, column]] if _reaches(model, table.site, at) else []
    written = torch.zeros_like(like)
    for vector in vectors:
        written[:, int(table.pos[column])] += vector
    return written


def _reaches(model: Model, site: Site, at: Site) -> bool:
    """Whether what is written at a site stands in the stream that is read at another one."""
    if model.parallel and at.kind not in ("resid_pre", "resid_post") and site.layer == at.layer:
        return False  # attention and MLP both read the block's input
    return site.depth < at.depth or site == at


def _run_without(
    model: Model, tokens: Tensor, clean: Mapping[Site, Tensor], at: Site, written: Tensor, held: Sequence[Site]
) -> tuple[Tensor, Tensor]:
    """Logits and what is read at `at` when `written` [n * batch, pos, d_model] is taken from the stream it depends on."""
    layer, n = at.layer or 0, len(written) // len(tokens)
    before, attention, mlp = (Site(kind, layer) for kind in ("resid_pre", "attn_out", "mlp_out"))

    def constant(site: Site, change: Tensor | None = None) -> Replace:
        value = clean[site].repeat(n, 1, 1)
        return lambda x, recorded: value if change is None else value - change

    replace = {before: constant(before, written)}
    if at.kind == "resid_post":
        replace = {before: constant(before), attention: constant(attention), mlp: constant(mlp, written)}
    elif at.kind not in _BEFORE_ATTENTION and not model.parallel:
        replace = {before: constant(before), attention: constant(attention, written)}
    replace |= {site: constant(site) for site in held}
    start = (layer, clean[before].repeat(n, 1, 1)) if layer else None
    logits, recorded = model.run(tokens.repeat(n, 1), record=[at], replace=replace, start=start)
    return logits, recorded[at]

"""Running the model with nodes set to their baseline value.

In come the model, dictionaries, tokens and which nodes keep their value; out come logits or measured effects. A
dictionary is spliced in as x + (decode(edited) - decode(acts)) + (edited error - error), so that keeping every node
leaves the logits unchanged bit for bit. This module knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuitgraph.activations import Baseline
from circuitgraph.attribution import affine_part, node_sites
from circuitgraph.dictionary import Dictionary
from circuitgraph.errors import GraphError
from circuitgraph.metrics import Metric
from circuitgraph.model import Model, Replace
from circuitgraph.nodes import Node, Site
from circuitgraph.tables import NodeTable

Errors = Literal["keep", "circuit", "remove"]


@dataclass(frozen=True, eq=False)
class Kept:
    """The nodes that keep the value they have in the run: features[site] [pos, d_sae], errors[site] [pos], biases[site]
    [pos] and embeddings [pos], all boolean. Every other node takes its baseline value."""

    features: Mapping[Site, Tensor]
    errors: Mapping[Site, Tensor]
    biases: Mapping[Site, Tensor]
    embeddings: Tensor


def kept_nodes(
    model: Model, dictionaries: Mapping[Site, Dictionary], nodes: Iterable[Node], n_pos: int, errors: Errors = "circuit"
) -> Kept:
    """The masks of these nodes. errors: "keep" keeps every error node, "remove" none, "circuit" those among the nodes."""
    sites = node_sites(model, dictionaries)
    features = {s: torch.zeros(n_pos, d.d_sae, dtype=torch.bool, device=model.device) for s, d in dictionaries.items()}
    error = {s: torch.full((n_pos,), errors == "keep", device=model.device) for s in sites}
    biases = {s: torch.zeros(n_pos, dtype=torch.bool, device=model.device) for s in sites}
    embeddings = torch.zeros(n_pos, dtype=torch.bool, device=model.device)
    for node in nodes:
        if node.kind == "feature":
            features[node.site][node.pos, node.feature] = True
        elif node.kind == "error" and errors == "circuit":
            error[node.site][node.pos] = True
        elif node.kind == "bias":
            biases[node.site][node.pos] = True
        elif node.kind == "embedding":
            embeddings[node.pos] = True
    return Kept(features, error, biases, embeddings)


def run_with_nodes(
    model: Model, dictionaries: Mapping[Site, Dictionary], tokens: Tensor, baseline: Baseline, kept: Kept
) -> Tensor:
    """Logits [batch, pos, vocab] of tokens [batch, pos] where the nodes outside `kept` have their baseline value.

    Kept nodes have the value that the edited run gives them. Baseline zero leaves positions and biases alone: they are
    constants of the model. Components without a dictionary are all error. Skip connections are no nodes: they pass on
    what the edited run puts into them.
    """
    embed = Site("embed")
    replace: dict[Site, Replace] = {embed: _edit(embed, {}, baseline, kept.embeddings, kept)}
    for site in node_sites(model, dictionaries):
        writers = {key: d for key, d in dictionaries.items() if site in d.sites}
        replace[site] = _edit(site, writers, baseline, kept.errors[site], kept)
    reads = {dictionary.reads for dictionary in dictionaries.values()}
    return model.run(tokens, record=sorted(reads, key=lambda s: s.depth), replace=replace)[0]


def _edit(site: Site, writers: Mapping[Site, Dictionary], baseline: Baseline, errors: Tensor, kept: Kept) -> Replace:
    """x [batch, pos, d] with the features, errors and biases outside the masks at their baseline value."""

    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        base = baseline.values
        change = torch.zeros_like(x)
        error, base_error = x, torch.zeros_like(x) if base is None else base[site]
        for key, dictionary in writers.items():
            columns, read = dictionary.columns(site), recorded[dictionary.reads]
            W_dec = dictionary.weights.W_dec[:, columns].to(x.dtype)
            acts = dictionary.encode(read)
            base_acts = torch.zeros_like(acts)
            error = error - acts @ W_dec - affine_part(dictionary, read)[..., columns]
            if base is not None:
                base_read = base[dictionary.reads]
                base_acts = dictionary.encode(base_read)
                base_error = base_error - base_acts @ W_dec - affine_part(dictionary, base_read)[..., columns]
                if dictionary.weights.normalize != "none":
                    moved = (dictionary.bias(base_read) - dictionary.bias(read))[..., columns]
                    change = change + torch.where(kept.biases[site][:, None], 0, moved)
            change = change + torch.where(kept.features[key], 0, base_acts - acts) @ W_dec
        return x + change + torch.where(errors[:, None], 0, base_error - error)

    return edit


def patch_effects(
    model: Model,
    tokens: Tensor,
    clean: Mapping[Site, Tensor],
    metric: Metric,
    tables: Sequence[NodeTable],
    nodes: Sequence[Node],
    *,
    batch_rows: int = 512,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Tensor:
    """Measured effect of each node, [nodes, batch]: metric clean - metric with that node alone at its baseline value.

    Exact activation patching, batched over nodes; the sign is that of attribution. Each batch starts at the lowest
    layer that it touches.
    """
    batch = len(tokens)
    places = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    if unknown := [str(node) for node in nodes if node not in places]:
        raise GraphError(
            f"node {unknown[0]!r} is the same in the clean run and the baseline; there is nothing to patch"
        )
    step = max(1, batch_rows // batch)
    clean_metric = metric(model.run(tokens)[0])
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].order)
    effects = torch.zeros(len(nodes), batch, dtype=clean_metric.dtype, device=clean_metric.device)
    for first in range(0, len(order), step):
        progress("patching nodes", first, len(order))
        chunk = order[first : first + step]
        patched = _run_patched(model, tokens, clean, [places[nodes[i]] for i in chunk])
        effects[chunk] = clean_metric - torch.stack([metric(logits) for logits in patched.split(batch)])
    return effects


def _run_patched(
    model: Model, tokens: Tensor, clean: Mapping[Site, Tensor], places: Sequence[tuple[NodeTable, int]]
) -> Tensor:
    """Logits [len(places) * batch, pos, vocab]; each group of `batch` rows has one node at its baseline value."""
    batch = len(tokens)
    changes: dict[Site, list[tuple[int, int, Tensor]]] = {}
    for group, (table, column) in enumerate(places):
        for site, difference in table.differences(column).items():
            change = (group * batch, int(table.pos[column]), difference)
            changes.setdefault(_added_at(site), []).append(change)

    def subtract(here: list[tuple[int, int, Tensor]]) -> Replace:
        def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
            x = x.clone()
            for row, pos, vector in here:
                x[row : row + batch, pos] -= vector
            return x

        return edit

    lowest = min(site.layer or 0 for site in changes)
    start = None
    if lowest > 0 and Site("embed") not in changes:
        start = (lowest, clean[Site("resid_post", lowest - 1)].repeat(len(places), 1, 1))
    replace = {site: subtract(here) for site, here in changes.items()}
    return model.run(tokens.repeat(len(places), 1), replace=replace, start=start)[0]


def _added_at(site: Site) -> Site:
    """Where a change at the site is made: positions are changed where tokens are added."""
    return Site("embed") if site.kind == "pos_embed" else site

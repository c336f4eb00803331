"""Measured effects: nodes, or sets of nodes, at their baseline value while everything else runs.

In come the model, dictionaries, the clean run, what every node is in the baseline, node tables and nodes; out come
changes of the metric. This module knows no graph and no circuits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from circuitgraph.attribution.tables import NodeTable
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.circuits import (
    BATCH_ROWS,
    NodeValues,
    circuit_mask,
    circuits_at_once,
    run_circuits,
    stack_masks,
)
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.nodes import Node, Site
from circuitgraph.progress import Progress, no_progress


def patch_effects(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    clean: Mapping[Site, Tensor],
    baseline_nodes: NodeValues,
    metric: Metric,
    tables: Sequence[NodeTable],
    nodes: Sequence[Node | Collection[Node]],
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Progress = no_progress,
) -> Tensor:
    """Measured effect of each node or set of nodes, [nodes, batch]: metric clean - metric with these at their baseline value
    (`baseline_nodes`, and in the tables) and all others free to run.

    Exact activation patching, many at once; the sign is that of attribution. Each batch starts at the lowest layer that it
    touches. The effect of a set is not the sum of its nodes' effects. Nodes must be in the tables: the others are the same
    in both runs.
    """
    sets = [frozenset((item,)) if isinstance(item, Node) else frozenset(item) for item in nodes]
    places = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    _check(sets, places, baseline_nodes)
    clean_metric = metric(*model.run(tokens, record=metric.sites))
    effects = torch.zeros(len(nodes), len(tokens), dtype=clean_metric.dtype, device=clean_metric.device)
    order = sorted((i for i, chosen in enumerate(sets) if chosen), key=lambda i: min(node.order for node in sets[i]))
    single = [i for i in order if len(sets[i]) == 1]
    several = [i for i in order if len(sets[i]) > 1]
    done = 0
    for indices, step in (
        (single, max(1, batch_rows // len(tokens))),
        (several, circuits_at_once(dictionaries, tokens, batch_rows)),
    ):
        for first in range(0, len(indices), step):
            progress("patching nodes", done, len(nodes))
            chunk = indices[first : first + step]
            if indices is single:
                alone = [places[node] for i in chunk for node in sets[i]]
                flat, seen = _run_patched(model, tokens, clean, alone, metric.sites)
                shape = (len(chunk), len(tokens))
                logits, observed = flat.unflatten(0, shape), {s: x.unflatten(0, shape) for s, x in seen.items()}
            else:
                together = [sets[i] for i in chunk]
                logits, observed = _run_sets(model, dictionaries, tokens, clean, baseline_nodes, together, metric.sites)
            after = [metric(patched, {s: x[i] for s, x in observed.items()}) for i, patched in enumerate(logits)]
            effects[chunk] = clean_metric - torch.stack(after)
            done += len(chunk)
    return effects


def _check(sets: Sequence[Collection[Node]], places: Collection[Node], baseline_nodes: NodeValues) -> None:
    for node in (node for chosen in sets for node in chosen):
        if node not in places:
            raise GraphError(
                f"node {str(node)!r} is the same in the clean run and the baseline; there is nothing to patch"
            )
    for node in (node for chosen in sets if len(chosen) > 1 for node in chosen):
        if node.kind == "pos_embedding" or (node.kind == "bias" and node.site not in baseline_nodes.biases):
            raise GraphError(f"node {str(node)!r} is a constant of the model; patch it alone, not in a set")


def _run_sets(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    clean: Mapping[Site, Tensor],
    baseline_nodes: NodeValues,
    sets: Sequence[Collection[Node]],
    observe: Sequence[Site],
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits [sets, batch, pos, vocab] and the observed sites; what stands upstream in a set reaches the others, which are baseline_nodes all the same."""
    n_pos = tokens.shape[1]
    kept = [circuit_mask(model, dictionaries, chosen, n_pos, complement=True) for chosen in sets]
    touched = [*(node.site for chosen in sets for node in chosen), *observe]
    lowest = 0 if any(site.layer is None for site in touched) else min(site.block for site in touched)
    reaches = sorted(((max(s.block for s in d.sites), d.reads.block) for d in dictionaries.values()), reverse=True)
    for last, read in reaches:  # a dictionary that writes from there on must run whole
        lowest = min(lowest, read) if last >= lowest else lowest
    start = (lowest, clean[Site("resid_post", lowest - 1)]) if lowest else None
    return run_circuits(model, dictionaries, tokens, baseline_nodes, stack_masks(kept), observe=observe, start=start)


def _run_patched(
    model: Model,
    tokens: Tensor,
    clean: Mapping[Site, Tensor],
    places: Sequence[tuple[NodeTable, int]],
    observe: Sequence[Site],
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits [len(places) * batch, pos, vocab] and what stands at the observed sites; each group of `batch` rows has one
    node at its baseline value."""
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

    lowest = min(site.block for site in (*changes, *observe))
    start = None
    if lowest > 0 and Site("embed") not in changes:
        start = (lowest, clean[Site("resid_post", lowest - 1)].repeat(len(places), 1, 1))
    replace = {site: subtract(here) for site, here in changes.items()}
    return model.run(tokens.repeat(len(places), 1), record=observe, replace=replace, start=start)


def _added_at(site: Site) -> Site:
    """Where a change at the site is made: positions are changed where tokens are added."""
    return Site("embed") if site.kind == "pos_embed" else site

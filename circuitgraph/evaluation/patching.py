"""Measured effects: nodes, or sets of nodes, at their baseline value while everything else runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from circuitgraph.attribution.tables import NodeTable
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import GraphError
from circuitgraph.evaluation.circuits import NodeValues, circuit_mask, circuits_at_once, run_circuits, stack_masks
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.variants import BATCH_ROWS, variants_at_once
from circuitgraph.nodes import Node, Site
from circuitgraph.progress import Progress, no_progress

Columns = Mapping[Node, tuple[NodeTable, int]]  # where the tables have each node


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
    """Measured effect of each node or set of nodes: metric clean - metric with these at their baseline value.

    Exact activation patching, many at once; all other nodes are free to run, and the sign is that of attribution. The
    effect of a set is not the sum of its nodes' effects.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        tokens: Token ids [batch, pos].
        clean: Activations of the clean run.
        baseline_nodes: What every node is in the baseline.
        metric: What is measured.
        tables: Tables of all nodes, clean minus baseline.
        nodes: What is patched. Each must be in the tables: other nodes are the same in both runs.
        batch_rows: Rows of one forward pass.
        progress: Told (stage, nodes done, nodes in all).

    Returns the effects [nodes, batch]. Raises GraphError for a node that is in no table, and for a set with a constant.
    """
    sets = [frozenset((item,)) if isinstance(item, Node) else frozenset(item) for item in nodes]
    columns = {node: (table, i) for table in tables for i, node in enumerate(table.nodes())}
    _check(sets, columns, baseline_nodes)
    clean_metric = metric(*model.run(tokens, record=metric.sites))
    effects = torch.zeros(len(nodes), len(tokens), dtype=clean_metric.dtype, device=clean_metric.device)
    done = 0
    for chunk in _chunks(sets, dictionaries, tokens, batch_rows):
        progress("patching nodes", done, len(nodes))
        chosen = [sets[i] for i in chunk]
        if len(chosen[0]) == 1:
            alone = [columns[node] for (node,) in chosen]
            logits, observed = _run_nodes(model, tokens, clean, alone, metric.sites)
        else:
            logits, observed = _run_sets(model, dictionaries, tokens, clean, baseline_nodes, chosen, metric.sites)
        after = [metric(patched, {s: x[i] for s, x in observed.items()}) for i, patched in enumerate(logits)]
        effects[chunk] = clean_metric - torch.stack(after)
        done += len(chunk)
    return effects


def _chunks(
    sets: Sequence[Collection[Node]], dictionaries: Dictionaries, tokens: Tensor, batch_rows: int
) -> Iterator[list[int]]:
    """Sets that share a forward pass: single nodes, then sets of several; in forward order, so that most start late."""
    order = sorted((i for i, chosen in enumerate(sets) if chosen), key=lambda i: min(node.order for node in sets[i]))
    single = [i for i in order if len(sets[i]) == 1]
    several = [i for i in order if len(sets[i]) > 1]
    steps = variants_at_once(tokens, batch_rows=batch_rows), circuits_at_once(dictionaries, tokens, batch_rows)
    for indices, step in zip((single, several), steps, strict=True):
        yield from (indices[first : first + step] for first in range(0, len(indices), step))


def _check(sets: Sequence[Collection[Node]], columns: Columns, baseline_nodes: NodeValues) -> None:
    for node in (node for chosen in sets for node in chosen):
        if node not in columns:
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
    """Logits [sets, batch, pos, vocab] and the observed sites, each set at its baseline value.

    A node of a set that reads another one has its baseline value all the same.
    """
    n_pos = tokens.shape[1]
    others = [circuit_mask(model, dictionaries, chosen, n_pos, complement=True) for chosen in sets]
    masks = stack_masks(others)
    return run_circuits(model, dictionaries, tokens, baseline_nodes, masks, observe=observe, clean=clean)


def _run_nodes(
    model: Model,
    tokens: Tensor,
    clean: Mapping[Site, Tensor],
    nodes: Sequence[tuple[NodeTable, int]],
    observe: Sequence[Site],
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits [nodes, batch, pos, vocab] and the observed sites, each node alone at its baseline value.

    Nothing before a single node changes, so what is taken away there is known: clean minus baseline of the tables.
    """
    changes: dict[Site, list[tuple[int, int, Tensor]]] = {}
    for variant, (table, column) in enumerate(nodes):
        for site, difference in table.differences(column).items():
            change = (variant, int(table.pos[column]), difference)
            changes.setdefault(_added_at(site), []).append(change)

    def subtract(taken: list[tuple[int, int, Tensor]]) -> Replace:
        def edit(x: Tensor, values: Mapping[Site, Tensor]) -> Tensor:
            x = x.clone()
            for variant, pos, vector in taken:
                x[variant, :, pos] -= vector
            return x

        return edit

    edits = {site: subtract(taken) for site, taken in changes.items()}
    return model.run_variants(tokens, edits, len(nodes), clean=clean, observe=observe)


def _added_at(site: Site) -> Site:
    """Where a change at the site is made: positions are changed where tokens are added."""
    return Site("embed") if site.kind == "pos_embed" else site

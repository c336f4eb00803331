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
from circuitgraph.attribution import Roles, affine_part, node_sites
from circuitgraph.dictionary import Dictionary
from circuitgraph.errors import GraphError
from circuitgraph.metrics import Metric
from circuitgraph.model import Model, Replace
from circuitgraph.nodes import Node, Site
from circuitgraph.tables import NodeTable

Errors = Literal["keep", "circuit", "residual", "remove"]
ERRORS: tuple[Errors, ...] = ("keep", "circuit", "residual", "remove")

_ELEMENTS = 1 << 25  # numbers in one table of activations [rows, pos, d_sae]


@dataclass(frozen=True, eq=False)
class Kept:
    """The nodes that keep the value they have in the run: features[site] [pos, d_sae], errors[site] [pos], biases[site]
    [pos] and embeddings [pos], all boolean, of one circuit; of several, with one more dimension in front. Every other node
    takes its baseline value."""

    features: Mapping[Site, Tensor]
    errors: Mapping[Site, Tensor]
    biases: Mapping[Site, Tensor]
    embeddings: Tensor


@dataclass(frozen=True, eq=False)
class NodeValues:
    """What every node is in one run: acts [batch, pos, d_sae] by dictionary; errors and the biases of dictionaries that
    normalise [batch, pos, d] by site; embeddings [batch, pos, d_model]."""

    acts: Mapping[Site, Tensor]
    errors: Mapping[Site, Tensor]
    biases: Mapping[Site, Tensor]
    embeddings: Tensor

    def mixed(self, other: NodeValues, share: float) -> NodeValues:
        """`share` of the way from these values to the other ones."""

        def mix(a: Mapping[Site, Tensor], b: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
            return {site: a[site] + share * (b[site] - a[site]) for site in a}

        embeddings = self.embeddings + share * (other.embeddings - self.embeddings)
        return NodeValues(
            mix(self.acts, other.acts), mix(self.errors, other.errors), mix(self.biases, other.biases), embeddings
        )


def node_values(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    values: Mapping[Site, Tensor] | None,
    roles: Roles | None = None,
) -> NodeValues:
    """The nodes of the run with these activations. None stands for baseline zero: no features, errors and embeddings, and
    biases that are left alone. Components that are through or cut by their role are no nodes: they run on what they get."""
    sites = node_sites(model, dictionaries, roles)
    if values is None:
        zero = torch.zeros((), device=model.device)
        return NodeValues(dict.fromkeys(dictionaries, zero), dict.fromkeys(sites, zero), {}, zero)
    acts = {key: dictionary.encode(values[dictionary.reads]) for key, dictionary in dictionaries.items()}
    errors: dict[Site, Tensor] = {}
    biases: dict[Site, Tensor] = {}
    for site in sites:
        errors[site] = values[site]
        for key, dictionary in _writers(dictionaries, site):
            columns, read = dictionary.columns(site), values[dictionary.reads]
            W_dec = dictionary.weights.W_dec[:, columns].to(acts[key].dtype)
            errors[site] = errors[site] - acts[key] @ W_dec - affine_part(dictionary, read)[..., columns]
            if dictionary.weights.normalize != "none":
                biases[site] = biases.get(site, 0) + dictionary.bias(read)[..., columns]
    return NodeValues(acts, errors, biases, values[Site("embed")])


def kept_nodes(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    nodes: Iterable[Node],
    n_pos: int,
    errors: Errors = "circuit",
    *,
    complement: bool = False,
) -> Kept:
    """The masks of these nodes, or of all others. errors: "keep" keeps every error node, "remove" none, "circuit" those
    of the circuit (or complement), "residual" those of it at dictionaries of the residual stream."""
    sites = node_sites(model, dictionaries)
    features = {s: torch.zeros(n_pos, d.d_sae, dtype=torch.bool) for s, d in dictionaries.items()}
    error = {s: torch.zeros(n_pos, dtype=torch.bool) for s in sites}
    biases = {s: torch.zeros(n_pos, dtype=torch.bool) for s in sites}
    embeddings = torch.zeros(n_pos, dtype=torch.bool)
    at: dict[Site, tuple[list[int], list[int]]] = {s: ([], []) for s in dictionaries}
    for node in nodes:
        if node.kind == "feature":
            at[node.site][0].append(node.pos)
            at[node.site][1].append(node.feature)  # type: ignore[arg-type]
        elif node.kind == "error" and node.site in error:  # not what a component that is through leaves over
            error[node.site][node.pos] = True
        elif node.kind == "bias" and node.site in biases:
            biases[node.site][node.pos] = True
        elif node.kind == "embedding":
            embeddings[node.pos] = True
    for site, (pos, feature) in at.items():
        features[site][pos, feature] = True
    masks = [features, error, biases]
    if complement:
        masks = [{site: ~mask for site, mask in group.items()} for group in masks]
        embeddings = ~embeddings
    for site, mask in masks[1].items():
        if errors == "keep":
            mask[:] = True
        elif errors == "remove" or (errors == "residual" and not site.kind.startswith("resid_")):
            mask[:] = False
    moved = [{site: mask.to(model.device) for site, mask in group.items()} for group in masks]
    return Kept(moved[0], moved[1], moved[2], embeddings.to(model.device))


def stack_kept(circuits: Sequence[Kept]) -> Kept:
    """The masks of several circuits as one."""

    def stack(groups: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        return {site: torch.stack([group[site] for group in groups]) for site in groups[0]}

    return Kept(
        stack([kept.features for kept in circuits]),
        stack([kept.errors for kept in circuits]),
        stack([kept.biases for kept in circuits]),
        torch.stack([kept.embeddings for kept in circuits]),
    )


def run_with_nodes(
    model: Model, dictionaries: Mapping[Site, Dictionary], tokens: Tensor, baseline: Baseline, kept: Kept
) -> Tensor:
    """Logits [batch, pos, vocab] of tokens [batch, pos] where the nodes outside `kept` have their baseline value.

    Kept nodes have the value that the edited run gives them. Baseline zero leaves positions and biases alone: they are
    constants of the model. Components without a dictionary are all error. Skip connections are no nodes: they pass on
    what the edited run puts into them.
    """
    held = node_values(model, dictionaries, baseline.values)
    return run_circuits(model, dictionaries, tokens, held, stack_kept([kept]))[0][0]


def run_circuits(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    tokens: Tensor,
    held: NodeValues,
    kept: Kept,
    observe: Sequence[Site] = (),
) -> tuple[Tensor, dict[Site, Tensor]]:
    """`run_with_nodes` of n circuits in one forward pass: logits [n, batch, pos, vocab] and what stands at the observed
    sites, [n, batch, pos, d] each. Nodes outside the circuits have the values `held`."""
    shape = (len(kept.embeddings), len(tokens))
    replace: dict[Site, Replace] = {
        Site("embed"): _edit(Site("embed"), [], held.embeddings, held, kept.embeddings, kept, shape)
    }
    for site in held.errors:
        writers = _writers(dictionaries, site)
        replace[site] = _edit(site, writers, held.errors[site], held, kept.errors[site], kept, shape)
    reads = {dictionary.reads for dictionary in dictionaries.values()}
    record = sorted(reads | set(observe), key=lambda s: s.depth)
    logits, recorded = model.run(tokens.repeat(shape[0], 1), record=record, replace=replace)
    return logits.unflatten(0, shape), {site: recorded[site].unflatten(0, shape) for site in observe}


def circuit_metrics(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    tokens: Tensor,
    held: NodeValues,
    metric: Metric,
    circuits: Sequence[Callable[[], Kept]],
    *,
    batch_rows: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The metric of each circuit, [circuits, batch], as many in one forward pass as fit; masks are made when needed."""
    batch, n_pos = tokens.shape
    widest = max((dictionary.d_sae for dictionary in dictionaries.values()), default=1)
    step = max(1, min(batch_rows, _ELEMENTS // (n_pos * widest)) // batch)
    found = []
    for first in range(0, len(circuits), step):
        progress(first, len(circuits))
        kept = stack_kept([make() for make in circuits[first : first + step]])
        runs, observed = run_circuits(model, dictionaries, tokens, held, kept, metric.sites)
        found += [metric(logits, {s: x[i] for s, x in observed.items()}) for i, logits in enumerate(runs)]
    return torch.stack(found)


def _edit(
    site: Site,
    writers: Sequence[tuple[Site, Dictionary]],
    held_error: Tensor,
    held: NodeValues,
    errors: Tensor,
    kept: Kept,
    shape: tuple[int, int],
) -> Replace:
    """x [circuits * batch, pos, d] with the features, errors and biases outside the masks at their held value."""

    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        x = x.unflatten(0, shape)
        change = torch.zeros_like(x)
        error = x
        for key, dictionary in writers:
            columns, read = dictionary.columns(site), recorded[dictionary.reads].unflatten(0, shape)
            W_dec = dictionary.weights.W_dec[:, columns].to(x.dtype)
            acts = dictionary.encode(read)
            error = error - acts @ W_dec - affine_part(dictionary, read)[..., columns]
            if site in held.biases and dictionary.weights.normalize != "none":
                change = change - torch.where(
                    kept.biases[site][:, None, :, None], 0, dictionary.bias(read)[..., columns]
                )
            change = change + torch.where(kept.features[key][:, None], 0, held.acts[key] - acts) @ W_dec
        if site in held.biases:
            change = change + torch.where(kept.biases[site][:, None, :, None], 0, held.biases[site])
        return (x + change + torch.where(errors[:, None, :, None], 0, held_error - error)).flatten(0, 1)

    return edit


def _writers(dictionaries: Mapping[Site, Dictionary], site: Site) -> list[tuple[Site, Dictionary]]:
    return [(key, dictionary) for key, dictionary in dictionaries.items() if site in dictionary.sites]


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
    clean_metric = metric(*model.run(tokens, record=metric.sites))
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].order)
    effects = torch.zeros(len(nodes), batch, dtype=clean_metric.dtype, device=clean_metric.device)
    for first in range(0, len(order), step):
        progress("patching nodes", first, len(order))
        chunk = order[first : first + step]
        patched, observed = _run_patched(model, tokens, clean, [places[nodes[i]] for i in chunk], metric.sites)
        rows = [slice(n * batch, (n + 1) * batch) for n in range(len(chunk))]
        after = [metric(patched[part], {site: x[part] for site, x in observed.items()}) for part in rows]
        effects[chunk] = clean_metric - torch.stack(after)
    return effects


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

    lowest = min(site.layer or 0 for site in (*changes, *observe))
    start = None
    if lowest > 0 and Site("embed") not in changes:
        start = (lowest, clean[Site("resid_post", lowest - 1)].repeat(len(places), 1, 1))
    replace = {site: subtract(here) for site, here in changes.items()}
    return model.run(tokens.repeat(len(places), 1), record=observe, replace=replace, start=start)


def _added_at(site: Site) -> Site:
    """Where a change at the site is made: positions are changed where tokens are added."""
    return Site("embed") if site.kind == "pos_embed" else site

"""Running the model with nodes set to their baseline value.

In come the model, dictionaries, tokens and which nodes keep their value; out come logits or metrics. A
dictionary is spliced in as x + (decode(edited) - decode(acts)) + (edited error - error), so that keeping every node
leaves the logits unchanged bit for bit. This module knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from circuitgraph.attribution.runs import Baseline
from circuitgraph.attribution.treatment import ComponentTreatment, node_sites
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.metrics import Metric
from circuitgraph.models.model import Model, Replace
from circuitgraph.nodes import Node, Site

Errors = Literal["keep", "circuit", "residual", "remove"]
ERRORS: tuple[Errors, ...] = ("keep", "circuit", "residual", "remove")

_ELEMENTS = 1 << 25  # numbers in one table of activations [rows, pos, d_sae]
BATCH_ROWS = 512


@dataclass(frozen=True, eq=False)
class CircuitMask:
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
    dictionaries: Dictionaries,
    values: Mapping[Site, Tensor] | None,
    treatment: ComponentTreatment | None = None,
) -> NodeValues:
    """The nodes of the run with these activations. None stands for baseline zero: no features, errors and embeddings, and
    biases that are left alone. Components that are through or cut by their role are no nodes: they run on what they get."""
    sites = node_sites(model, dictionaries, treatment)
    if values is None:
        zero = torch.zeros((), device=model.device)
        return NodeValues(dict.fromkeys(dictionaries, zero), dict.fromkeys(sites, zero), {}, zero)
    acts = dictionaries.encode(values)
    errors = {site: dictionaries.error(site, values, acts) for site in sites}
    biases: dict[Site, Tensor] = {}
    for site in sites:
        for dictionary in dictionaries.writers(site):
            columns, read = dictionary.columns(site), values[dictionary.reads]
            if dictionary.normalize != "none":
                biases[site] = biases.get(site, 0) + dictionary.bias(read)[..., columns]
    return NodeValues(acts, errors, biases, values[Site("embed")])


def circuit_mask(
    model: Model,
    dictionaries: Dictionaries,
    nodes: Iterable[Node],
    n_pos: int,
    errors: Errors = "circuit",
    *,
    complement: bool = False,
) -> CircuitMask:
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
    return CircuitMask(moved[0], moved[1], moved[2], embeddings.to(model.device))


def stack_masks(circuits: Sequence[CircuitMask]) -> CircuitMask:
    """The masks of several circuits as one."""

    def stack(groups: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        return {site: torch.stack([group[site] for group in groups]) for site in groups[0]}

    return CircuitMask(
        stack([kept.features for kept in circuits]),
        stack([kept.errors for kept in circuits]),
        stack([kept.biases for kept in circuits]),
        torch.stack([kept.embeddings for kept in circuits]),
    )


def run_with_nodes(
    model: Model, dictionaries: Dictionaries, tokens: Tensor, baseline: Baseline, kept: CircuitMask
) -> Tensor:
    """Logits [batch, pos, vocab] of tokens [batch, pos] where the nodes outside `kept` have their baseline value.

    CircuitMask nodes have the value that the edited run gives them. Baseline zero leaves positions and biases alone: they are
    constants of the model. Components without a dictionary are all error. Skip connections are no nodes: they pass on
    what the edited run puts into them.
    """
    baseline_nodes = node_values(model, dictionaries, baseline.values)
    return run_circuits(model, dictionaries, tokens, baseline_nodes, stack_masks([kept]))[0][0]


def run_circuits(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    baseline_nodes: NodeValues,
    kept: CircuitMask,
    *,
    observe: Sequence[Site] = (),
    start: tuple[int, Tensor] | None = None,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """`run_with_nodes` of n circuits in one forward pass: logits [n, batch, pos, vocab] and what stands at the observed
    sites, [n, batch, pos, d] each. Nodes outside the circuits have the values `baseline_nodes`.

    start: (layer, clean stream entering it) where every circuit keeps all nodes below that layer, and no dictionary that writes
    from there on reads below it.
    """
    shape = (len(kept.embeddings), len(tokens))
    first = 0 if start is None else start[0]
    replace: dict[Site, Replace] = {}
    if start is None:
        replace[Site("embed")] = _edit(
            Site("embed"), [], baseline_nodes.embeddings, baseline_nodes, kept.embeddings, kept, shape
        )
    reads: set[Site] = set()
    for site in baseline_nodes.errors:
        if site.block >= first:
            writers = dictionaries.writers(site)
            replace[site] = _edit(
                site, writers, baseline_nodes.errors[site], baseline_nodes, kept.errors[site], kept, shape
            )
            reads |= {dictionary.reads for dictionary in writers}
    begin = None if start is None else (first, start[1].repeat(shape[0], 1, 1))
    record = sorted(reads | set(observe))
    logits, recorded = model.run(tokens.repeat(shape[0], 1), record=record, replace=replace, start=begin)
    return logits.unflatten(0, shape), {site: recorded[site].unflatten(0, shape) for site in observe}


def circuit_metrics(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    baseline_nodes: NodeValues,
    metric: Metric,
    circuits: Sequence[Callable[[], CircuitMask]],
    *,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The metric of each circuit, [circuits, batch], as many in one forward pass as fit; masks are made when needed."""
    step = circuits_at_once(dictionaries, tokens, batch_rows)
    found = []
    for first in range(0, len(circuits), step):
        progress(first, len(circuits))
        kept = stack_masks([make() for make in circuits[first : first + step]])
        runs, observed = run_circuits(model, dictionaries, tokens, baseline_nodes, kept, observe=metric.sites)
        found += [metric(logits, {s: x[i] for s, x in observed.items()}) for i, logits in enumerate(runs)]
    return torch.stack(found)


def circuits_at_once(dictionaries: Dictionaries, tokens: Tensor, batch_rows: int = BATCH_ROWS) -> int:
    """How many circuits on tokens [batch, pos] one forward pass takes."""
    batch, n_pos = tokens.shape
    widest = max((dictionary.d_sae for dictionary in dictionaries.values()), default=1)
    return max(1, min(batch_rows, _ELEMENTS // (n_pos * widest)) // batch)


def _edit(
    site: Site,
    writers: Sequence[Dictionary],
    held_error: Tensor,
    baseline_nodes: NodeValues,
    errors: Tensor,
    kept: CircuitMask,
    shape: tuple[int, int],
) -> Replace:
    """x [circuits * batch, pos, d] with the features, errors and biases outside the masks at their baseline_nodes value.

    As x = acts @ W_dec + affine + error, what a feature adds to x where the error is kept, or to the baseline_nodes error where it is
    not, is its baseline_nodes activation if it is not kept, and its own one times (feature kept) - (error kept).
    """

    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        x = x.unflatten(0, shape)
        affine: Tensor | float = 0.0
        change: Tensor | float = 0.0
        for dictionary in writers:
            columns, read = dictionary.columns(site), recorded[dictionary.reads].unflatten(0, shape)
            W_dec = dictionary.weights.W_dec[:, columns].to(x.dtype)
            affine = affine + dictionary.affine(read)[..., columns]
            own = kept.features[dictionary.writes][:, None]
            amounts = dictionary.encode(read) * (own.to(x.dtype) - errors[:, None, :, None].to(x.dtype))
            amounts = amounts.addcmul_(baseline_nodes.acts[dictionary.writes].to(x.dtype), (~own).to(x.dtype))
            change = change + amounts @ W_dec
            if site in baseline_nodes.biases and dictionary.normalize != "none":
                change = change - torch.where(
                    kept.biases[site][:, None, :, None], 0, dictionary.bias(read)[..., columns]
                )
        if site in baseline_nodes.biases:
            change = change + torch.where(kept.biases[site][:, None, :, None], 0, baseline_nodes.biases[site])
        edited: Tensor = torch.where(errors[:, None, :, None], x, held_error + affine) + change
        return edited.flatten(0, 1)

    return edit

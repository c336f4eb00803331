"""Circuits: the model with every node outside a set at its baseline value.

A dictionary is spliced in as x + (decode(edited) - decode(acts)) + (edited error - error), so that a circuit of all
nodes leaves the logits unchanged bit for bit.
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
from circuitgraph.models.variants import BATCH_ROWS, variants_at_once
from circuitgraph.nodes import Node, Site

Errors = Literal["keep", "circuit", "stream", "remove"]
ERRORS: tuple[Errors, ...] = ("keep", "circuit", "stream", "remove")


@dataclass(frozen=True, eq=False)
class CircuitMask:
    """The nodes that keep the value they have in the run; every other node takes its baseline value.

    All masks are boolean: features[site] [pos, d_sae], errors[site] [pos], biases[site] [pos] and embeddings [pos] of
    one circuit, and with an axis for circuits in front of several.
    """

    features: Mapping[Site, Tensor]
    errors: Mapping[Site, Tensor]
    biases: Mapping[Site, Tensor]
    embeddings: Tensor

    def keeps(self, site: Site, writers: Iterable[Dictionary]) -> bool:
        """Whether every node at a site that these dictionaries write is kept."""
        masks = [self.errors[site], self.biases[site], *(self.features[each.writes] for each in writers)]
        return all(bool(mask.all()) for mask in masks)


@dataclass(frozen=True, eq=False)
class NodeValues:
    """What every node is in one run.

    acts [batch, pos, d_sae] by dictionary; errors, and the biases of dictionaries that normalise, [batch, pos, d] by
    site; embeddings [batch, pos, d_model].
    """

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
    """The nodes of the run with these activations.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        values: Activations by site [batch, pos, d]; None for baseline zero: no features, errors and embeddings, and
            biases that are left alone.
        treatment: How components without a dictionary are treated; those that are frozen or dropped are no nodes and
            are computed from their input.
    """
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
    """The masks of these nodes, or of all others.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        nodes: The nodes of the circuit.
        n_pos: How many positions the prompts have.
        errors: Which error nodes are kept: "keep" all of them, "remove" none, "circuit" those of the circuit (or of the
            complement), "stream" those of it at dictionaries of the residual stream.
        complement: Keep all other nodes instead.
    """
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
        elif node.kind == "error" and node.site in error:  # not what the map of a frozen component leaves over
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
        elif errors == "remove" or (errors == "stream" and site.part != "stream"):
            mask[:] = False
    moved = [{site: mask.to(model.device) for site, mask in group.items()} for group in masks]
    return CircuitMask(moved[0], moved[1], moved[2], embeddings.to(model.device))


def stack_masks(masks: Sequence[CircuitMask]) -> CircuitMask:
    """The masks of several circuits as one."""

    def stack(groups: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        return {site: torch.stack([group[site] for group in groups]) for site in groups[0]}

    return CircuitMask(
        stack([mask.features for mask in masks]),
        stack([mask.errors for mask in masks]),
        stack([mask.biases for mask in masks]),
        torch.stack([mask.embeddings for mask in masks]),
    )


def run_with_nodes(
    model: Model, dictionaries: Dictionaries, tokens: Tensor, baseline: Baseline, mask: CircuitMask
) -> Tensor:
    """Logits [batch, pos, vocab] of tokens [batch, pos] where the nodes outside the mask have their baseline value.

    The other nodes have the value that the edited run gives them. Baseline zero leaves positions and biases alone:
    they are constants of the model. Components without a dictionary are all error. Skip connections are no nodes: they
    pass on what the edited run puts into them.
    """
    baseline_nodes = node_values(model, dictionaries, baseline.values)
    return run_circuits(model, dictionaries, tokens, baseline_nodes, stack_masks([mask]))[0][0]


def run_circuits(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    baseline_nodes: NodeValues,
    masks: CircuitMask,
    *,
    observe: Sequence[Site] = (),
    clean: Mapping[Site, Tensor] | None = None,
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run n circuits in one forward pass.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        tokens: Token ids [batch, pos].
        baseline_nodes: The values of the nodes outside the circuits.
        masks: The masks of n circuits.
        observe: Sites whose values are returned.
        clean: Activations of the run without edits, if they are at hand. Sites where every circuit keeps every node are
            then left alone, and the layers below the others are not run.

    Returns the logits [n, batch, pos, vocab] and the observed values [n, batch, pos, d].
    """
    edits, read = circuit_edits(dictionaries, baseline_nodes, masks, only_changes=clean is not None)
    return model.run_variants(tokens, edits, len(masks.embeddings), clean=clean or {}, read=read, observe=observe)


def circuit_edits(
    dictionaries: Dictionaries, baseline_nodes: NodeValues, masks: CircuitMask, *, only_changes: bool = False
) -> tuple[dict[Site, Replace], set[Site]]:
    """The edits that make n circuits, as `Model.run_variants` takes them, and the sites that they read.

    only_changes: leave out sites where every circuit keeps every node.
    """
    edits: dict[Site, Replace] = {}
    read: set[Site] = set()
    if not only_changes or not bool(masks.embeddings.all()):
        edits[Site("embed")] = _edit(
            Site("embed"), [], baseline_nodes.embeddings, baseline_nodes, masks.embeddings, masks
        )
    for site, error in baseline_nodes.errors.items():
        writers = dictionaries.writers(site)
        if not only_changes or not masks.keeps(site, writers):
            edits[site] = _edit(site, writers, error, baseline_nodes, masks.errors[site], masks)
            read |= {dictionary.reads for dictionary in writers}
    return edits, read


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
    metrics = []
    for first in range(0, len(circuits), step):
        progress(first, len(circuits))
        masks = stack_masks([make() for make in circuits[first : first + step]])
        runs, observed = run_circuits(model, dictionaries, tokens, baseline_nodes, masks, observe=metric.sites)
        metrics += [metric(logits, {s: x[i] for s, x in observed.items()}) for i, logits in enumerate(runs)]
    return torch.stack(metrics)


def circuits_at_once(dictionaries: Dictionaries, tokens: Tensor, batch_rows: int = BATCH_ROWS) -> int:
    """How many circuits on tokens [batch, pos] one forward pass takes."""
    widest = max((dictionary.d_sae for dictionary in dictionaries.values()), default=1)
    return variants_at_once(tokens, width=widest, batch_rows=batch_rows)


def _edit(
    site: Site,
    writers: Sequence[Dictionary],
    baseline_error: Tensor,
    baseline_nodes: NodeValues,
    keep_error: Tensor,
    masks: CircuitMask,
) -> Replace:
    """x [n, batch, pos, d] with the features, errors and biases outside the masks at their baseline value.

    With m = 1 where a node is kept and 0 elsewhere, and x = acts @ W_dec + affine + error,

        edited = m_error x + (1 - m_error) (error_base + affine)
                 + ((m_feature - m_error) acts + (1 - m_feature) acts_base) @ W_dec
                 + (1 - m_bias) (bias_base - bias)
    """
    keep_error = keep_error[:, None, :, None]
    keep_bias = masks.biases.get(site, masks.embeddings)[:, None, :, None]

    def edit(x: Tensor, values: Mapping[Site, Tensor]) -> Tensor:
        affine: Tensor | float = 0.0
        change: Tensor | float = 0.0
        for dictionary in writers:
            columns, read = dictionary.columns(site), values[dictionary.reads]
            W_dec = dictionary.weights.W_dec[:, columns].to(x.dtype)
            affine = affine + dictionary.affine(read)[..., columns]
            keep = masks.features[dictionary.writes][:, None]
            amounts = dictionary.encode(read) * (keep.to(x.dtype) - keep_error.to(x.dtype))
            amounts = amounts.addcmul_(baseline_nodes.acts[dictionary.writes].to(x.dtype), (~keep).to(x.dtype))
            change = change + amounts @ W_dec
            if site in baseline_nodes.biases and dictionary.normalize != "none":
                change = change - torch.where(keep_bias, 0, dictionary.bias(read)[..., columns])
        if site in baseline_nodes.biases:
            change = change + torch.where(keep_bias, 0, baseline_nodes.biases[site])
        edited: Tensor = torch.where(keep_error, x, baseline_error + affine) + change
        return edited

    return edit

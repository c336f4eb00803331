"""The attribution of one dictionary's features, and the part of the change that the dictionary reconstructs."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph.paths.stream import StreamChange
from circuitgraph_kernels import SaeAttribution, decode_entries, gather_dot, sae_attribution


def attribute_features(
    dictionary: Dictionary, change: StreamChange, gradients: Mapping[Site, Tensor], backend: str = "auto"
) -> tuple[FeatureTable, dict[Site, Tensor]]:
    """Every feature that is active in the clean run or the baseline.

    Args:
        dictionary: The dictionary.
        change: The clean run and the baseline.
        gradients: The metric's gradient [batch, pos, d] at every site that the dictionary writes.
        backend: What the kernel runs on.

    Returns the table, and what the dictionary reconstructs of the change at each site that it writes, [batch, pos, d].
    """
    weights, reads, sites = dictionary.weights, dictionary.reads, dictionary.sites
    read, base = change.clean[reads], change.baseline
    gradient, written = (_side_by_side(values, sites) for values in (gradients, change.clean))
    try:
        entries = sae_attribution(
            read.flatten(0, 1),
            None if base is None else base[reads].flatten(0, 1),
            gradient.flatten(0, 1),
            weights,
            clean_out=written.flatten(0, 1),
            baseline_out=None if base is None else _side_by_side(base, sites).flatten(0, 1),
            backend=backend,
        )
    except ValueError as error:
        raise CircuitGraphError(f"attribution at {dictionary.writes}: {error}") from None
    constant = dictionary.affine(read)
    if base is not None:
        constant = constant - dictionary.affine(base[reads])
    reconstructed = _decoded(dictionary, entries, len(read)) + constant
    parts = {site: reconstructed[..., dictionary.columns(site)].to(read.dtype) for site in sites}
    return _feature_table(dictionary, entries, gradient, change), parts


def output_scale(model: Model, site: Site, clean: Mapping[Site, Tensor]) -> Tensor | None:
    """The clean run's scale [batch, pos, 1] of the post-norm that what the site writes passes; None without one."""
    post = model.output_norm(site)
    return None if post is None else clean[post[1]]


def _side_by_side(values: Mapping[Site, Tensor], sites: tuple[Site, ...]) -> Tensor:
    return torch.cat([values[site] for site in sites], -1)


def _decoded(dictionary: Dictionary, entries: SaeAttribution, batch: int) -> Tensor:
    """What the features of these entries add, clean minus baseline, [batch, pos, d_out]."""
    weights, delta, n_rows = dictionary.weights, entries.clean_acts - entries.baseline_acts, len(entries.error)
    if weights.basis:  # neurons: no product with an identity
        decoded = delta.new_zeros(n_rows, weights.d_out)
        decoded[entries.token, entries.feature] = delta
    else:
        decoded = decode_entries(entries.token, entries.feature, delta, weights.W_dec, n_rows)
    return rearrange(decoded, "(batch pos) d -> batch pos d", batch=batch)


def _feature_table(
    dictionary: Dictionary, entries: SaeAttribution, gradient: Tensor, change: StreamChange
) -> FeatureTable:
    """The list of (token, feature) as columns (position, feature) with one row per example."""
    batch, n_pos = gradient.shape[:2]
    example, at = entries.token // n_pos, entries.token % n_pos
    key, column = torch.unique(at * dictionary.d_sae + entries.feature, return_inverse=True)
    pos, feature = key // dictionary.d_sae, key % dictionary.d_sae

    def rows(values: Tensor) -> Tensor:
        dense = values.new_zeros(batch, len(key))
        dense[example, column] = values
        return dense

    acts = rows(entries.clean_acts)
    tokens = torch.arange(batch, device=key.device).repeat_interleave(len(key)) * n_pos + pos.repeat(batch)
    features = feature.repeat(batch)
    if dictionary.weights.basis:
        slope = gradient.flatten(0, 1)[tokens, features]
    else:
        slope = gather_dot(gradient.flatten(0, 1), tokens, dictionary.weights.W_dec, features)
    site = dictionary.writes
    scale = output_scale(change.model, site, change.clean)
    return FeatureTable(
        site=site,
        pos=pos,
        feature=feature,
        attribution=rows(entries.attribution),
        dictionary=dictionary,
        acts=acts,
        baseline_acts=rows(entries.baseline_acts),
        node_gradient=slope.view(batch, -1) * (acts != 0),
        to_stream=functools.partial(change.model.write, site),
        post_scale=None if scale is None else scale[:, pos, 0],
    )

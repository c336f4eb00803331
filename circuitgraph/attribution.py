"""Node attributions: how much each feature, error, embedding and bias moves the metric, to first order.

In come the clean run, the baseline and gradients at the sites; out come tables of nodes, one per site and kind, with
every feature that is active in either run. This module knows no edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from circuitgraph.activations import Baseline
from circuitgraph.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError, DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import Node, NodeKind, Site
from circuitgraph.tables import FeatureTable, NodeTable, VectorTable
from circuitgraph_kernels import SaeAttribution, decode_entries, gather_dot, sae_attribution


def component_sites(model: Model, dictionaries: Mapping[Site, Dictionary]) -> list[Site]:
    """One site per component that writes to the residual stream, in forward order: attention then MLP of each layer.

    Attention is taken at `attn_out` where a dictionary writes there, else at `z`. DictionaryError for both in one layer.
    """
    for layer in range(model.n_layers):
        if Site("attn_out", layer) in dictionaries and Site("z", layer) in dictionaries:
            raise DictionaryError(
                f"dictionaries at z.{layer} and attn_out.{layer} explain the same attention; give one of them"
            )
    attention = (
        Site("attn_out", layer) if Site("attn_out", layer) in dictionaries else Site("z", layer)
        for layer in range(model.n_layers)
    )
    return [site for layer, attn in enumerate(attention) for site in (attn, Site("mlp_out", layer))]


def attribute_nodes(
    model: Model,
    dictionaries: Mapping[Site, Dictionary],
    clean: Mapping[Site, Tensor],
    baseline: Baseline,
    gradients: Mapping[Site, Tensor],
    *,
    backend: str = "auto",
) -> list[NodeTable]:
    """Every node's attribution, in tables in forward order.

        feature    (acts_clean - acts_base) * (g . W_dec[i])       for every feature active in either run
        error      (error_clean - error_base) . g                  one per position
        others     (x_clean - x_base) . g                          embeddings; positions and biases for baseline zero

    g [batch, pos, d] is the gradient of the metric at the site, plain or integrated. A positive attribution says that
    the node's clean value supports the metric. Components without a dictionary are one error node per position: nothing
    of them is explained. With baseline zero a feature, an error and a bias are compared with nothing.
    """
    tables = _embedding_tables(model, clean, baseline, gradients)
    sites = set(component_sites(model, dictionaries)) | set(dictionaries)
    base = baseline.values
    for site in sorted(sites, key=lambda s: s.depth):
        dictionary = dictionaries.get(site)
        if base is None:
            tables += _bias_table(model, site, dictionary, gradients)
        if dictionary is None:
            difference = clean[site] if base is None else clean[site] - base[site]
            tables.append(_vector_table(model, "error", site, difference, gradients[site]))
        else:
            tables += _dictionary_tables(model, dictionary, clean, base, gradients[site], backend)
    return tables


def _dictionary_tables(
    model: Model,
    dictionary: Dictionary,
    clean: Mapping[Site, Tensor],
    base: Mapping[Site, Tensor] | None,
    gradient: Tensor,
    backend: str,
) -> list[NodeTable]:
    """The features and the errors of one dictionary."""
    site, weights = dictionary.writes, dictionary.weights
    batch, n_pos = gradient.shape[:2]
    x, x_base = clean[site].flatten(0, 1), None if base is None else base[site].flatten(0, 1)
    try:
        found = sae_attribution(
            clean[dictionary.reads].flatten(0, 1),
            None if base is None else base[dictionary.reads].flatten(0, 1),
            gradient.flatten(0, 1),
            weights,
            clean_out=x,
            baseline_out=x_base,
            skip_equal_rows=False,
            backend=backend,
        )
    except ValueError as error:
        raise CircuitGraphError(f"attribution at {site}: {error}") from None
    delta = found.clean_acts - found.baseline_acts
    missed = x - (weights.b_dec if x_base is None else x_base)
    missed = missed - decode_entries(found.token, found.feature, delta, weights.W_dec, batch * n_pos)
    errors = _vector_table(model, "error", site, missed.unflatten(0, (batch, n_pos)), gradient)
    return [_feature_table(model, dictionary, found, gradient), errors]


def _feature_table(model: Model, dictionary: Dictionary, found: SaeAttribution, gradient: Tensor) -> FeatureTable:
    """The list of (token, feature) as columns (position, feature) with one row per example."""
    batch, n_pos = gradient.shape[:2]
    W_dec = dictionary.weights.W_dec
    example, at = found.token // n_pos, found.token % n_pos
    key, column = torch.unique(at * dictionary.d_sae + found.feature, return_inverse=True)
    pos, feature = key // dictionary.d_sae, key % dictionary.d_sae

    def rows(values: Tensor) -> Tensor:
        dense = values.new_zeros(batch, len(key))
        dense[example, column] = values
        return dense

    acts = rows(found.clean_acts)
    tokens = torch.arange(batch, device=key.device).repeat_interleave(len(key)) * n_pos + pos.repeat(batch)
    slope = gather_dot(gradient.flatten(0, 1), tokens, W_dec, feature.repeat(batch)).view(batch, -1)
    return FeatureTable(
        site=dictionary.writes,
        pos=pos,
        feature=feature,
        attribution=rows(found.attribution),
        dictionary=dictionary,
        acts=acts,
        baseline_acts=rows(found.baseline_acts),
        node_gradient=slope * (acts != 0),
        write=to_residual(model, dictionary.writes, W_dec[feature]),
    )


def _vector_table(model: Model, kind: NodeKind, site: Site, difference: Tensor, gradient: Tensor) -> VectorTable:
    """One node per position that is a whole vector; difference and gradient [batch, pos, d] at the site."""
    pos = torch.arange(difference.shape[1], device=difference.device)
    return VectorTable(kind, site, pos, (difference * gradient).sum(-1), to_residual(model, site, difference))


def _embedding_tables(
    model: Model, clean: Mapping[Site, Tensor], baseline: Baseline, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    """Token embeddings; with baseline zero also positional ones."""
    embed, pos_embed = Site("embed"), Site("pos_embed")
    gradient = gradients[embed]
    base = torch.zeros_like(clean[embed]) if baseline.values is None else baseline.values[embed]
    tables: list[NodeTable] = [_vector_table(model, "embedding", embed, clean[embed] - base, gradient)]
    if baseline.values is None and pos_embed in clean:
        tables.append(_vector_table(model, "pos_embedding", pos_embed, clean[pos_embed].expand_as(gradient), gradient))
    return tables


def _bias_table(
    model: Model, site: Site, dictionary: Dictionary | None, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    """The constant that a component adds, one node per position; empty if the component has none."""
    at_output = gradients[site if site.kind != "z" else Site("attn_out", site.layer)]
    vector = torch.zeros_like(at_output[0, 0])
    if dictionary is not None:
        vector = vector + to_residual(model, site, dictionary.weights.b_dec)
    if site.kind == "z":
        vector = vector + model.attention_output(site)[1]
    if not bool(vector.any()):
        return []
    out = Site("attn_out", site.layer) if site.kind == "z" else site
    table = _vector_table(model, "bias", out, vector.expand_as(at_output), at_output)
    return [replace(table, site=site)]


def to_residual(model: Model, site: Site, vectors: Tensor) -> Tensor:
    """vectors [..., d] at a site as what they add to the residual stream, [..., d_model]: z goes through W_O."""
    if site.kind != "z":
        return vectors
    return vectors @ model.attention_output(site)[0].flatten(0, 1)


def rank_nodes(tables: Iterable[NodeTable]) -> list[tuple[float, Node]]:
    """(mean attribution over the examples, node) of every node, largest absolute value first, ties in forward order."""
    ranked = [item for table in tables for item in zip(table.attribution.mean(0).tolist(), table.nodes(), strict=True)]
    return sorted(ranked, key=lambda item: (-abs(item[0]), item[1].order))

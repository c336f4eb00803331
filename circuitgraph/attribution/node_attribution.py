"""Node attributions: how much each feature, error, embedding and bias moves the metric, to first order.

`attribute_nodes` makes one table per site and kind of node, with every feature that is active in either run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from circuitgraph.attribution.runs import Baseline
from circuitgraph.attribution.tables import FeatureTable, NodeTable, VectorTable
from circuitgraph.attribution.treatment import ComponentTreatment, error_targets, node_sites
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError
from circuitgraph.models.model import Model
from circuitgraph.nodes import NodeKind, Site
from circuitgraph.paths.linear_maps import LinearMap
from circuitgraph_kernels import SaeAttribution, decode_entries, gather_dot, sae_attribution


def attribute_nodes(
    model: Model,
    dictionaries: Dictionaries,
    clean: Mapping[Site, Tensor],
    baseline: Baseline,
    gradients: Mapping[Site, Tensor],
    *,
    treatment: ComponentTreatment | None = None,
    frozen: Mapping[Site, LinearMap] | None = None,
    errors_as_targets: bool = False,
    backend: str = "auto",
) -> list[NodeTable]:
    """Every node's attribution, in tables in forward order.

        feature    (acts_clean - acts_base) * (g . W_dec[i])       for every feature active in either run
        error      (error_clean - error_base) . g                  one per position
        bias       (bias_clean - bias_base) . g                    for baseline zero, or of dictionaries that normalise
        others     (x_clean - x_base) . g                          embeddings; positions for baseline zero

    g [batch, pos, d] is the gradient of the metric at the site, plain or integrated; of a cross-layer transcoder's
    feature the products at all its sites are summed. A positive attribution says that the node's clean value supports the
    metric. Components without a dictionary are one error node per position: nothing of them is explained. With baseline
    zero a feature, an error and a bias are compared with nothing. A skip connection is no node: it is linear, so what
    passes it belongs to the nodes before it. A component that is through (frozen: output site -> map) likewise: what its
    frozen map does not carry is one node per position, a bias with baseline zero, an error with another. errors_as_targets:
    give the errors of `error_targets` the input directions that make them targets.
    """
    tables = _embedding_tables(model, clean, baseline, gradients)
    explained: dict[Site, Tensor] = {}
    for site, through in (frozen or {}).items():
        tables += _rest_table(model, site, through, clean, baseline.values, gradients)
    targets = error_targets(model, dictionaries, treatment) if errors_as_targets else []
    for site in node_sites(model, dictionaries, treatment):
        dictionary, features = dictionaries.get(site), None
        if dictionary is not None:
            features = _attribute_features(model, dictionary, clean, baseline.values, gradients, backend, explained)
            tables.append(features)
        tables += _bias_table(model, site, dictionaries, clean, baseline.values, gradients)
        difference = clean[site] if baseline.values is None else clean[site] - baseline.values[site]
        if site in explained:
            difference = difference - explained[site]
        errors = _vector_table(model, "error", site, difference, gradients[site], clean)
        if site in targets:
            errors = replace(errors, reads=error_reads(gradients[site], features))
        tables.append(errors)
    return tables


def error_reads(gradient: Tensor, features: FeatureTable | None) -> Tensor:
    """(I - W_dec diag(act') W_enc)^T g [batch, pos, d]: how what an error brings to the metric, g . error, changes with the
    activation that is read (Marks et al. 2024); gradient g [batch, pos, d]. Without features the error is all of it. The mean
    that a layer-normed input gets back is no part of it; scales of inputs are frozen."""
    reads = gradient.clone()
    if features is not None:
        if features.dictionary.normalize == "layer_norm":
            reads -= gradient.mean(-1, keepdim=True)
        for pos in torch.unique(features.pos).tolist():
            here = features.pos == pos
            reads[:, pos] -= features.node_gradient[:, here] @ features.take(here).reads
    return reads


def _rest_table(
    model: Model,
    site: Site,
    through: LinearMap,
    clean: Mapping[Site, Tensor],
    base: Mapping[Site, Tensor] | None,
    gradients: Mapping[Site, Tensor],
) -> list[NodeTable]:
    """What a frozen component adds beyond its map: its constants, and against another baseline its changed pattern."""
    change = {where: clean[where] if base is None else clean[where] - base[where] for where in (site, _stream_of(site))}
    stream = change[_stream_of(site)]
    if site.layer == 0 and Site("pos_embed") in clean:
        pos_embed = Site("pos_embed")
        stream = stream + (clean[pos_embed] if base is None else clean[pos_embed] - base[pos_embed])
    if site.kind == "mlp_out" and not model.parallel:
        attention = Site("attn_out", site.layer)
        stream = stream + (clean[attention] if base is None else clean[attention] - base[attention])
    rest = change[site] - through.apply(stream)
    table = _vector_table(model, "bias" if base is None else "error", site, rest, gradients[site], clean)
    return [table] if bool(table.vectors.any()) else []


def _stream_of(site: Site) -> Site:
    """Where the stream that enters the site's layer was recorded."""
    return Site("resid_post", site.layer - 1) if site.layer else Site("embed")


def _attribute_features(
    model: Model,
    dictionary: Dictionary,
    clean: Mapping[Site, Tensor],
    base: Mapping[Site, Tensor] | None,
    gradients: Mapping[Site, Tensor],
    backend: str,
    explained: dict[Site, Tensor],
) -> FeatureTable:
    """The features of one dictionary; adds what it reconstructs of clean minus baseline to `explained`, per site."""
    weights, read = dictionary.weights, clean[dictionary.reads]
    gradient, written = (torch.cat([x[site] for site in dictionary.sites], -1) for x in (gradients, clean))
    batch, n_pos = gradient.shape[:2]
    base_written = None if base is None else torch.cat([base[site] for site in dictionary.sites], -1).flatten(0, 1)
    try:
        found = sae_attribution(
            read.flatten(0, 1),
            None if base is None else base[dictionary.reads].flatten(0, 1),
            gradient.flatten(0, 1),
            weights,
            clean_out=written.flatten(0, 1),
            baseline_out=base_written,
            backend=backend,
        )
    except ValueError as error:
        raise CircuitGraphError(f"attribution at {dictionary.writes}: {error}") from None
    delta = found.clean_acts - found.baseline_acts
    if weights.basis:  # neurons: no product with an identity
        decoded = delta.new_zeros(batch * n_pos, weights.d_out)
        decoded[found.token, found.feature] = delta
    else:
        decoded = decode_entries(found.token, found.feature, delta, weights.W_dec, batch * n_pos)
    decoded = decoded.unflatten(0, (batch, -1))
    rest = dictionary.affine(read)
    if base is not None:
        rest = rest - dictionary.affine(base[dictionary.reads])
    for site in dictionary.sites:
        part = (decoded + rest)[..., dictionary.columns(site)].to(read.dtype)
        explained[site] = part + explained[site] if site in explained else part
    return _feature_table(model, dictionary, found, gradient, clean)


def _feature_table(
    model: Model, dictionary: Dictionary, found: SaeAttribution, gradient: Tensor, clean: Mapping[Site, Tensor]
) -> FeatureTable:
    """The list of (token, feature) as columns (position, feature) with one row per example."""
    batch, n_pos = gradient.shape[:2]
    example, at = found.token // n_pos, found.token % n_pos
    key, column = torch.unique(at * dictionary.d_sae + found.feature, return_inverse=True)
    pos, feature = key // dictionary.d_sae, key % dictionary.d_sae

    def rows(values: Tensor) -> Tensor:
        dense = values.new_zeros(batch, len(key))
        dense[example, column] = values
        return dense

    acts = rows(found.clean_acts)
    tokens = torch.arange(batch, device=key.device).repeat_interleave(len(key)) * n_pos + pos.repeat(batch)
    if dictionary.weights.basis:
        slope = gradient.flatten(0, 1)[tokens, feature.repeat(batch)].view(batch, -1)
    else:
        W_dec = dictionary.weights.W_dec
        slope = gather_dot(gradient.flatten(0, 1), tokens, W_dec, feature.repeat(batch)).view(batch, -1)
    site = dictionary.writes
    scale = output_scale(model, site, clean)
    return FeatureTable(
        site=site,
        pos=pos,
        feature=feature,
        attribution=rows(found.attribution),
        dictionary=dictionary,
        acts=acts,
        baseline_acts=rows(found.baseline_acts),
        node_gradient=slope * (acts != 0),
        to_stream=functools.partial(model.write, site),
        post_scale=None if scale is None else scale[:, pos, 0],
    )


def output_scale(model: Model, site: Site, clean: Mapping[Site, Tensor]) -> Tensor | None:
    """The clean run's scale [batch, pos, 1] of the post-norm that what the site writes passes; None without one."""
    post = model.output_norm(site)
    return None if post is None else clean[post[1]]


def _vector_table(
    model: Model, kind: NodeKind, site: Site, difference: Tensor, gradient: Tensor, clean: Mapping[Site, Tensor]
) -> VectorTable:
    """One node per position that is a whole vector; difference and gradient [batch, pos, d] at the site."""
    pos = torch.arange(difference.shape[1], device=difference.device)
    vectors, scale = model.write(site, difference), output_scale(model, site, clean)
    attribution = (difference * gradient).sum(-1)
    if scale is None:
        return VectorTable(kind, site, pos, attribution, vectors, {site.output: vectors})
    return VectorTable(kind, site, pos, attribution, vectors / scale, {site: difference})


def _embedding_tables(
    model: Model, clean: Mapping[Site, Tensor], baseline: Baseline, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    """Token embeddings; with baseline zero also positional ones."""
    embed, pos_embed = Site("embed"), Site("pos_embed")
    gradient = gradients[embed]
    base = torch.zeros_like(clean[embed]) if baseline.values is None else baseline.values[embed]
    tables: list[NodeTable] = [_vector_table(model, "embedding", embed, clean[embed] - base, gradient, clean)]
    if baseline.values is None and pos_embed in clean:
        tables.append(
            _vector_table(model, "pos_embedding", pos_embed, clean[pos_embed].expand_as(gradient), gradient, clean)
        )
    return tables


def _bias_table(
    model: Model,
    site: Site,
    dictionaries: Dictionaries,
    clean: Mapping[Site, Tensor],
    base: Mapping[Site, Tensor] | None,
    gradients: Mapping[Site, Tensor],
) -> list[NodeTable]:
    """What is added at the site whatever the features, one node per position; empty if that is nothing.

    The biases of the dictionaries that write there, what a norm's bias adds through their skip connections, and, with baseline zero, those of the component behind it: b_O, b_out,
    a post-norm's. Constants cancel against another baseline; the bias of a dictionary that normalises does not.
    """
    own = torch.zeros_like(clean[site])
    for dictionary in dictionaries.values():
        if site in dictionary.sites and (base is None or dictionary.normalize != "none"):
            change = dictionary.bias(clean[dictionary.reads])
            if base is not None:
                change = change - dictionary.bias(base[dictionary.reads])
            own = own + change[..., dictionary.columns(site)]
        if base is None and dictionary.writes == site and (W_skip := dictionary.W_skip) is not None:
            shift = skip_shift(model, dictionary.reads)
            own = own if shift is None else own + shift @ W_skip.to(own.dtype)
    table = _vector_table(model, "bias", site, own, gradients[site], clean)
    behind = _bias_behind(model, site, clean) if base is None else None
    if behind is not None:
        gradient = gradients[site.output]
        behind = behind.expand_as(table.vectors)
        total = table.attribution + (behind * gradient).sum(-1)
        changes = dict(table.changes)
        changes[site.output] = changes.get(site.output, 0) + behind
        table = replace(table, attribution=total, vectors=table.vectors + behind, changes=changes)
    return [table] if bool(table.vectors.any()) else []


def skip_shift(model: Model, reads: Site) -> Tensor | None:
    """The bias of the norm in front of an MLP, [d_model], which passes a skip connection from the MLP's input whatever
    the stream is; None where there is none."""
    norm = model.norm(reads, "ln2") if reads.kind == "mlp_in" else None
    return None if norm is None else norm.bias


def _bias_behind(model: Model, site: Site, clean: Mapping[Site, Tensor]) -> Tensor | None:
    """The constants between the site and the residual stream, [batch or 1, pos or 1, d_model]; None without any."""
    inner, outer = model.output_bias(site)
    post = model.output_norm(site)
    if inner is not None and post is not None:
        inner = post[0].apply(inner) / clean[post[1]]
    parts = [part for part in (inner, outer) if part is not None]
    return sum(parts[1:], parts[0]) if parts else None

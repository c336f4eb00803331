"""Node attributions: how much each feature, error, embedding and bias moves the metric, to first order.

`attribute_nodes` makes one table per site and kind of node, with every feature that is active in either run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitgraph.attribution.feature_attribution import attribute_features, output_scale
from circuitgraph.attribution.runs import Baseline
from circuitgraph.attribution.tables import FeatureTable, NodeTable, VectorTable
from circuitgraph.attribution.treatment import ComponentTreatment, error_targets, node_sites
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.models.model import Model
from circuitgraph.nodes import NodeKind, Site
from circuitgraph.paths.linear_maps import LinearMap
from circuitgraph.paths.stream import StreamChange


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

    g is the gradient of the metric at the site; of a cross-layer transcoder's feature the products at all its sites are
    summed. Positive: the node's clean value supports the metric. Components without a dictionary are one error node per
    position, as nothing of them is explained. A linear skip connection is no node, nor is a frozen component: what
    passes through belongs to the nodes before it. What a frozen component adds beyond its linear map is one node per
    position, a bias with baseline zero, an error with another.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        clean: Activations of the clean run at `runs.sites_of`.
        baseline: What they are compared with; with baseline zero nothing.
        gradients: The metric's gradient [batch, pos, d] by site, plain or integrated.
        treatment: How components without a dictionary are treated; as nodes by default.
        frozen: The maps of frozen components, by output site.
        errors_as_targets: Give the errors of `error_targets` the input directions that make them targets.
        backend: What the kernel runs on.
    """
    change = StreamChange(model, clean, baseline.values)
    tables = _embedding_tables(change, gradients)
    for site, linear in (frozen or {}).items():
        tables += _beyond_linear(site, linear, change, gradients)
    targets = error_targets(model, dictionaries, treatment) if errors_as_targets else []
    explained: dict[Site, Tensor] = {}
    for site in node_sites(model, dictionaries, treatment):
        features = None
        if site in dictionaries:
            features, parts = attribute_features(dictionaries[site], change, gradients, backend)
            for where, part in parts.items():
                explained[where] = part + explained[where] if where in explained else part
            tables.append(features)
        tables += _bias_table(site, dictionaries, change, gradients)
        difference = change.at(site) - explained[site] if site in explained else change.at(site)
        errors = _vector_table("error", site, difference, gradients[site], change)
        if site in targets:
            errors = replace(errors, reads=error_reads(gradients[site], features))
        tables.append(errors)
    return tables


def error_reads(gradient: Float[Tensor, "batch pos d"], features: FeatureTable | None) -> Float[Tensor, "batch pos d"]:
    """How what an error brings to the metric changes with the activation x that the dictionary reads and writes.

        d (g . error) / dx = (I - W_dec diag(act') W_enc)^T g              (Marks et al. 2024)

    Args:
        gradient: g, the metric's gradient at the site.
        features: The dictionary's features; None where there is no dictionary and the error is all of x.

    The mean that a layer-normed input gets back is no part of the error. Scales of inputs are frozen.
    """
    reads = gradient.clone()
    if features is not None:
        if features.dictionary.normalize == "layer_norm":
            reads -= gradient.mean(-1, keepdim=True)
        for pos in torch.unique(features.pos).tolist():
            columns = features.pos == pos
            reads[:, pos] -= features.node_gradient[:, columns] @ features.take(columns).reads
    return reads


def _embedding_tables(change: StreamChange, gradients: Mapping[Site, Tensor]) -> list[NodeTable]:
    """Token embeddings; with baseline zero also positional ones, which are the same in every run."""
    embed, pos_embed = Site("embed"), Site("pos_embed")
    gradient = gradients[embed]
    tables: list[NodeTable] = [_vector_table("embedding", embed, change.at(embed), gradient, change)]
    if change.baseline is None and pos_embed in change.clean:
        vectors = change.at(pos_embed).expand_as(gradient)
        tables.append(_vector_table("pos_embedding", pos_embed, vectors, gradient, change))
    return tables


def _beyond_linear(
    site: Site, linear: LinearMap, change: StreamChange, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    """What a frozen component adds beyond its linear map: its constants, and the change of its pattern and slopes."""
    rest = change.at(site) - linear.apply(change.before(site))
    table = _vector_table("bias" if change.baseline is None else "error", site, rest, gradients[site], change)
    return [table] if bool(table.vectors.any()) else []


def _bias_table(
    site: Site, dictionaries: Dictionaries, change: StreamChange, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    """What is added at the site whatever the features, one node per position; empty if that is nothing.

    These are the biases of the dictionaries that write there, and what the bias of a norm adds through their skip
    connections. With baseline zero there are also the biases of the component behind the site: b_O, b_out, that of a
    post-norm. Constants cancel against another baseline, but the bias of a dictionary that normalises is no constant.
    """
    model, clean, base = change.model, change.clean, change.baseline
    own = torch.zeros_like(clean[site])
    for dictionary in dictionaries.writers(site):
        if base is None or dictionary.normalize != "none":
            bias = dictionary.bias(clean[dictionary.reads])
            if base is not None:
                bias = bias - dictionary.bias(base[dictionary.reads])
            own = own + bias[..., dictionary.columns(site)]
        if base is None and dictionary.writes == site and (W_skip := dictionary.W_skip) is not None:
            shift = _skip_shift(model, dictionary.reads)
            own = own if shift is None else own + shift @ W_skip.to(own.dtype)
    table = _vector_table("bias", site, own, gradients[site], change)
    behind = _bias_behind(model, site, clean) if base is None else None
    if behind is not None:
        behind = behind.expand_as(table.vectors)
        total = table.attribution + (behind * gradients[site.output]).sum(-1)
        changes = dict(table.changes)
        changes[site.output] = changes.get(site.output, 0) + behind
        table = replace(table, attribution=total, vectors=table.vectors + behind, changes=changes)
    return [table] if bool(table.vectors.any()) else []


def _skip_shift(model: Model, reads: Site) -> Tensor | None:
    """The bias [d_model] of the norm in front of an MLP, which passes a skip connection from the MLP's input whatever
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


def _vector_table(
    kind: NodeKind, site: Site, difference: Tensor, gradient: Tensor, change: StreamChange
) -> VectorTable:
    """One node per position that is a whole vector; difference and gradient [batch, pos, d] at the site."""
    pos = torch.arange(difference.shape[1], device=difference.device)
    vectors, scale = change.model.write(site, difference), output_scale(change.model, site, change.clean)
    attribution = (difference * gradient).sum(-1)
    if scale is None:
        return VectorTable(kind, site, pos, attribution, vectors, {site.output: vectors})
    return VectorTable(kind, site, pos, attribution, vectors / scale, {site: difference})

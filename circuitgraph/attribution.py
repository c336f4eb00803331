"""Node attributions: how much each feature, error, embedding and bias moves the metric, to first order.

In come the clean run, the baseline and gradients at the sites; out come tables of nodes, one per site and kind, with
every feature that is active in either run. This module knows no edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from circuitgraph_kernels import gather_dot, sae_attribution
from torch import Tensor
from torch.nn.functional import embedding_bag

from circuitgraph.activations import Baseline
from circuitgraph.dictionary import Dictionary
from circuitgraph.errors import CircuitGraphError
from circuitgraph.model import Model
from circuitgraph.nodes import Node, NodeKind, Site


@dataclass(frozen=True, eq=False)
class NodeTable:
    """Nodes of one kind at one site, as columns; n columns sorted by position, then feature.

    pos [n], feature [n] (-1: none), attribution [batch, n].
    Features also have acts and baseline_acts [batch, n], node_gradient [batch, n] = dm/d(pre-activation), and
    write [n, d_model], what one unit of activation adds to the residual stream. Every other kind has
    vectors [batch, n, d_model], the clean-minus-baseline difference of what it adds.
    """

    kind: NodeKind
    site: Site
    pos: Tensor
    feature: Tensor
    attribution: Tensor
    dictionary: Dictionary | None = None
    acts: Tensor | None = None
    baseline_acts: Tensor | None = None
    node_gradient: Tensor | None = None
    write: Tensor | None = None
    vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def delta(self) -> Tensor:
        """acts - baseline_acts [batch, n] of features."""
        return self.acts - self.baseline_acts  # type: ignore[operator]

    def node(self, column: int) -> Node:
        """The node of one column."""
        feature = int(self.feature[column])
        return Node(self.kind, self.site, int(self.pos[column]), None if feature < 0 else feature)

    def take(self, columns: Tensor) -> NodeTable:
        """The table of these columns only (indices [m] or mask [n])."""
        one = {name: getattr(self, name)[columns] for name in ("pos", "feature", "write") if getattr(self, name) is not None}
        per_example = ("attribution", "acts", "baseline_acts", "node_gradient", "vectors")
        many = {name: getattr(self, name)[:, columns] for name in per_example if getattr(self, name) is not None}
        return replace(self, **one, **many)


def component_sites(model: Model, dictionaries: Mapping[Site, Dictionary]) -> list[Site]:
    """One site per component that writes to the residual stream, in forward order: attention then MLP of each layer.

    Attention is taken at `attn_out` where a dictionary writes there, else at `z`.
    """
    attention = (Site("attn_out", layer) if Site("attn_out", layer) in dictionaries else Site("z", layer) for layer in range(model.n_layers))
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
    for site in sorted(sites, key=lambda s: s.depth):
        base = None if baseline.values is None else baseline.values
        dictionary = dictionaries.get(site)
        if baseline.values is None:
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
    site, weights = dictionary.writes, dictionary.weights
    batch, n_pos = gradient.shape[:2]

    def rows(at: Site, values: Mapping[Site, Tensor] | None) -> Tensor | None:
        return None if values is None else values[at].flatten(0, 1)

    try:
        found = sae_attribution(
            rows(dictionary.reads, clean),
            rows(dictionary.reads, base),
            gradient.flatten(0, 1),
            weights,
            clean_out=rows(site, clean),
            baseline_out=rows(site, base),
            skip_equal_rows=False,
            backend=backend,
        )
    except ValueError as error:
        raise CircuitGraphError(f"attribution at {site}: {error}") from None
    delta = found.clean_acts - found.baseline_acts
    x_base = weights.b_dec if base is None else rows(site, base)
    error = rows(site, clean) - x_base - _decode_rows(found.token, found.feature, delta, weights.W_dec, batch * n_pos)

    example, pos = found.token // n_pos, found.token % n_pos
    key, column = torch.unique(pos * dictionary.d_sae + found.feature, return_inverse=True)

    def per_example(values: Tensor) -> Tensor:
        dense = values.new_zeros(batch, len(key))
        dense[example, column] = values
        return dense

    pos, feature = key // dictionary.d_sae, key % dictionary.d_sae
    acts = per_example(found.clean_acts)
    examples = torch.arange(batch, device=key.device).repeat_interleave(len(key))
    at = gather_dot(gradient.flatten(0, 1), examples * n_pos + pos.repeat(batch), weights.W_dec, feature.repeat(batch))
    features = NodeTable(
        "feature",
        site,
        pos,
        feature,
        per_example(found.attribution),
        dictionary,
        acts=acts,
        baseline_acts=per_example(found.baseline_acts),
        node_gradient=at.view(batch, -1) * (acts != 0),
        write=to_residual(model, site, weights.W_dec[feature]),
    )
    return [features, _vector_table(model, "error", site, error.unflatten(0, (batch, n_pos)), gradient)]


def _decode_rows(token: Tensor, feature: Tensor, value: Tensor, W_dec: Tensor, n_tokens: int) -> Tensor:
    """sum_i value_i W_dec[feature_i] of each token, [n_tokens, d]; the entries are sorted by token."""
    offsets = torch.searchsorted(token, torch.arange(n_tokens, device=token.device))
    if not len(token):
        return W_dec.new_zeros(n_tokens, W_dec.shape[1])
    return embedding_bag(feature, W_dec, offsets, mode="sum", per_sample_weights=value)


def _vector_table(model: Model, kind: NodeKind, site: Site, difference: Tensor, gradient: Tensor) -> NodeTable:
    """One node per position that is a whole vector; difference and gradient [batch, pos, d] at the site."""
    n_pos = difference.shape[1]
    pos = torch.arange(n_pos, device=difference.device)
    attribution = (difference * gradient).sum(-1)
    return NodeTable(
        kind, site, pos, torch.full_like(pos, -1), attribution, vectors=to_residual(model, site, difference)
    )


def _embedding_tables(
    model: Model, clean: Mapping[Site, Tensor], baseline: Baseline, gradients: Mapping[Site, Tensor]
) -> list[NodeTable]:
    embed, pos_embed = Site("embed"), Site("pos_embed")
    gradient = gradients[embed]
    base = torch.zeros_like(clean[embed]) if baseline.values is None else baseline.values[embed]
    tables = [_vector_table(model, "embedding", embed, clean[embed] - base, gradient)]
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
        vector = vector + model.attention_output(site.layer)[1]  # type: ignore[arg-type]
    if not bool(vector.any()):
        return []
    out = Site("attn_out", site.layer) if site.kind == "z" else site
    table = _vector_table(model, "bias", out, vector.expand_as(at_output), at_output)
    return [replace(table, site=site)]


def to_residual(model: Model, site: Site, vectors: Tensor) -> Tensor:
    """vectors [..., d] at a site as what they add to the residual stream, [..., d_model]: z goes through W_O."""
    if site.kind != "z":
        return vectors
    return vectors @ model.attention_output(site.layer)[0].flatten(0, 1)  # type: ignore[arg-type]


def rank_nodes(tables: Iterable[NodeTable]) -> list[tuple[float, Node]]:
    """(mean attribution over the examples, node) of every node, largest absolute value first, ties in forward order."""
    ranked = [(float(value), table.node(i)) for table in tables for i, value in enumerate(table.attribution.mean(0).tolist())]
    return sorted(ranked, key=lambda item: (-abs(item[0]), item[1].order))

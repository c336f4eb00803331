"""Typed edges between nodes, with exact derivatives, greedily from the metric down.

In come node tables, clean activations and the metric's gradient; out comes a table of edges. Norm scales and everything
outside the path are frozen at the clean run. This module selects edges but knows no graph.

Edge u -> v: u writes write_u * delta_u (or a difference vector) into the residual stream at its position, v reads it
through a path of one kind with reader vector r:

    local_weight = (write_u . r) * delta_u                contribution to v's pre-activation
    weight       = node_gradient(v) * local_weight        contribution to the metric through v

    mlp    r[p]  = J_ln2^T e / scale2[p]                                     e = encoder column of v
    ov     r[k]  = J_ln1^T sum_h P[h,p,k] W_V[h] e_h / scale1[k]             e_h = head h's slice of e
    q      r[p]  = J_ln1^T sum_h W_Q[h] sum_k ds[h,k] k[k,h] * s / scale1[p]
    k      r[k]  = J_ln1^T sum_h W_K[h] q[p,h] ds[h,k] * s / scale1[k]
    metric r[p]  = dm/d(resid_post of the last layer at p)

with s[h,k] = v[k,h] . e_h and the softmax derivative ds[h,k] = P[h,p,k] (s[h,k] - sum_j P[h,p,j] s[h,j]). All sources
of one reader position are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.dictionary import Dictionary
from circuitgraph.errors import DictionaryError
from circuitgraph.model import Model
from circuitgraph.nodes import EdgeKind, Node, Site
from circuitgraph.tables import FeatureTable, NodeTable


@dataclass(frozen=True)
class Edge:
    """One edge: means over the examples of weight, local_weight and |weight|, and the per-head terms of local_weight."""

    source: Node
    target: Node
    kind: EdgeKind
    weight: float
    local_weight: float
    weight_abs: float
    heads: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class _Block:
    """Weights between readers of one position and the columns of one source table, by one kind of path.

    local [batch, readers, heads, columns]; heads is 1 for paths that do not split by head.
    """

    kind: EdgeKind
    table: NodeTable
    columns: slice
    local: Tensor


def attribute_edges(
    model: Model,
    tables: Sequence[NodeTable],
    clean: Mapping[Site, Tensor],
    metric_gradient: Tensor,
    *,
    threshold: float = 0.0,
    top_k: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Edge]:
    """Edges with |weight| > threshold, at most top_k per target, reachable backwards from the metric.

    Greedy: first the metric's own inputs, then layer by layer downwards the inputs of every feature that was kept as
    the source of a kept edge. metric_gradient [batch, pos, d_model] is dm/d(resid_post of the last layer). threshold
    has the metric's unit. Raises DictionaryError for dictionaries whose inputs cannot be traced yet.
    """
    check_readers(model, [table.dictionary for table in tables if isinstance(table, FeatureTable)])
    n_pos = metric_gradient.shape[1]
    metric = Node("metric", Site("metric"), n_pos - 1)
    ones = torch.ones_like(metric_gradient[:, :1, 0])
    blocks = [_Block("metric", table, slice(0, len(table)), _metric_inputs(table, metric_gradient)) for table in tables]
    kept: dict[tuple[str, Site], Tensor] = {}
    edges = _select([metric], ones, blocks, threshold, top_k, kept)
    readable = sorted((t for t in tables if isinstance(t, FeatureTable)), key=lambda t: -t.site.depth)
    for done, table in enumerate(readable):
        progress("tracing edges", done, len(readable))
        mask = kept.get((table.kind, table.site), torch.zeros_like(table.pos, dtype=torch.bool))
        sources = [t for t in tables if t.site.depth < _entry(model, table.dictionary).depth]
        for pos in torch.unique(table.pos[mask]).tolist():
            columns = (mask & (table.pos == pos)).nonzero().flatten()
            readers = table.take(columns)
            blocks = _inputs(model, readers, pos, sources, clean)
            nodes = [readers.node(i) for i in range(len(readers))]
            edges += _select(nodes, readers.node_gradient, blocks, threshold, top_k, kept)
    return edges


def check_readers(model: Model, dictionaries: Iterable[Dictionary]) -> None:
    """DictionaryError or ModelError unless the inputs of all these dictionaries' features can be traced."""
    for dictionary in dictionaries:
        if dictionary.reads.kind in ("z", "attn_out"):
            model.attention(dictionary.reads)
        elif dictionary.reads.kind not in ("ln2_normalized", "mlp_in"):
            raise DictionaryError(
                f"dictionary {dictionary.name} reads {dictionary.reads}: edges need dictionaries of attention (z, attn_out) and"
                " transcoders of the MLP input; leave it out (its nodes alone: circuitgraph.attribution.attribute_nodes)"
            )


def _entry(model: Model, dictionary: Dictionary) -> Site:
    """Where the component that the dictionary reads enters the residual stream: sources stand strictly below."""
    attention = dictionary.reads.kind in ("z", "attn_out") or model.parallel
    return Site("resid_pre" if attention else "mlp_in", dictionary.reads.layer)


def _metric_inputs(table: NodeTable, gradient: Tensor) -> Tensor:
    """[batch, 1, 1, n]: what each node adds to the metric directly, through the final norm and the unembedding."""
    at = gradient[:, table.pos]
    if isinstance(table, FeatureTable):
        return ((at * table.write).sum(-1) * table.delta)[:, None, None]
    return (at * table.vectors).sum(-1)[:, None, None]


def _inputs(
    model: Model, readers: FeatureTable, pos: int, sources: Sequence[NodeTable], clean: Mapping[Site, Tensor]
) -> list[_Block]:
    """All blocks into readers that stand at one position of one site."""
    reads = readers.dictionary.reads
    encoder = encoder_columns(readers.dictionary, readers.feature)
    if reads.kind in ("z", "attn_out"):
        return _attention_inputs(model, reads, encoder, pos, sources, clean)
    scale = clean[Site("ln2_scale", reads.layer)][:, pos, None]
    reader = model.through_norm(reads, "ln2", encoder, gain=reads.kind == "mlp_in") / scale
    return [_block("mlp", table, pos, pos, reader[:, :, None]) for table in sources]


def _attention_inputs(
    model: Model, reads: Site, encoder: Tensor, pos: int, sources: Sequence[NodeTable], clean: Mapping[Site, Tensor]
) -> list[_Block]:
    """Ov, q and k blocks into features of one attention layer at query position pos."""
    heads = (model.n_heads, model.d_head)
    weights = model.attention(reads)
    if reads.kind == "attn_out":
        encoder = encoder @ model.attention_output(reads)[0].flatten(0, 1).T
    e = encoder.view(-1, *heads)
    q, k, v = (clean[Site(kind, reads.layer)].unflatten(-1, heads) for kind in "qkv")
    pattern = clean[Site("pattern", reads.layer)][:, :, pos, : pos + 1]
    scale = clean[Site("ln1_scale", reads.layer)][:, : pos + 1, 0]
    s = torch.einsum("bkhx,rhx->brhk", v[:, : pos + 1], e)
    d_scores = pattern[:, None] * (s - (pattern[:, None] * s).sum(-1, keepdim=True)) * weights.scale

    def pulled_back(W: Tensor, vectors: Tensor) -> Tensor:
        """W[h] @ vectors[..., h, :] at the residual stream, [..., h, d_model], without the frozen 1/scale."""
        return model.through_norm(reads, "ln1", torch.einsum("hdx,...hx->...hd", W, vectors))

    via_value = pulled_back(weights.W_V, e)[None]
    via_query = (
        pulled_back(weights.W_Q, torch.einsum("brhk,bkhx->brhx", d_scores, k[:, : pos + 1]))
        / scale[:, pos, None, None, None]
    )
    via_key = pulled_back(weights.W_K, q[:, pos])[:, None]
    blocks = []
    for table in sources:
        blocks.append(_block("ov", table, 0, pos, via_value, (pattern / scale[:, None])[:, None]))
        blocks.append(_block("q", table, pos, pos, via_query))
        blocks.append(_block("k", table, 0, pos, via_key, d_scores / scale[:, None, None]))
    return blocks


def encoder_columns(dictionary: Dictionary, features: Tensor) -> Tensor:
    """d(pre-activation)/d(input) of the features, [n, d_in]: columns of W_enc, times the gated SAE's magnitude scale."""
    weights = dictionary.weights
    columns = weights.W_enc[:, features].T
    return columns if weights.r_mag is None else columns * weights.r_mag[features].exp()[:, None]


def _block(
    kind: EdgeKind, table: NodeTable, first: int, last: int, reader: Tensor, by_position: Tensor | None = None
) -> _Block:
    """The block from a table's columns at positions first..last.

    reader [batch or 1, readers or 1, heads, d_model]; by_position [batch, readers or 1, heads, last + 1] multiplies
    the value of each source position.
    """
    start, stop = torch.searchsorted(table.pos, torch.tensor([first, last + 1], device=table.pos.device)).tolist()
    columns = slice(start, stop)
    local = table.read_by(reader, columns)
    if by_position is not None:
        local = local * by_position[..., table.pos[columns]]
    return _Block(kind, table, columns, local)


def _select(
    targets: Sequence[Node],
    node_gradient: Tensor,
    blocks: Sequence[_Block],
    threshold: float,
    top_k: int | None,
    kept: dict[tuple[str, Site], Tensor],
) -> list[Edge]:
    """The edges of these blocks that pass; marks their sources in `kept` ((kind, site) -> mask of columns)."""
    weights = [node_gradient[:, :, None] * block.local.sum(2) for block in blocks]
    means = [weight.mean(0) for weight in weights]
    passed = [(mean.abs() > threshold) & (mean != 0) for mean in means]
    if top_k is not None and means:
        floor = _kth_largest(
            torch.cat([mean.abs() * keep for mean, keep in zip(means, passed, strict=True)], -1), top_k
        )
        passed = [keep & (mean.abs() >= floor) for mean, keep in zip(means, passed, strict=True)]
    edges = []
    for block, weight, mean, keep in zip(blocks, weights, means, passed, strict=True):
        r, c = keep.nonzero(as_tuple=True)
        if not len(r):
            continue
        table, columns = block.table, c + block.columns.start
        kept.setdefault((table.kind, table.site), torch.zeros_like(table.pos, dtype=torch.bool))[columns] = True
        heads = block.local.expand(-1, len(targets), -1, -1).mean(0)[r, :, c]
        local = heads.sum(-1).tolist()
        magnitude = weight.abs().mean(0)[r, c].tolist()
        loadings = heads.tolist() if block.kind in ("ov", "q", "k") else [[]] * len(r)
        rows = zip(r.tolist(), columns.tolist(), mean[r, c].tolist(), local, magnitude, loadings, strict=True)
        edges += [Edge(table.node(c), targets[r], block.kind, w, lw, m, tuple(h)) for r, c, w, lw, m, h in rows]
    return edges


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """[readers, 1]: the k-th largest value of each row; ties with it all pass."""
    return values.topk(min(k, values.shape[-1]), dim=-1).values[:, -1:]

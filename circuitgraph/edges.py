"""Typed edges between nodes, with exact derivatives, greedily from the metric down.

In come node tables, clean activations and the metric's gradient; out comes a table of edges. Norm scales and everything
outside the path are frozen at the clean run. This module selects edges; reading vectors are `reading`'s, and it knows no
graph.

Edge u -> v: u writes write_u * delta_u (or a difference vector) into the residual stream at its position, v reads it
through a path of one kind with reading vector r:

    local_weight = (write_u . r) * delta_u                contribution to v's pre-activation
    weight       = node_gradient(v) * local_weight        contribution to the metric through v

For the metric r = dm/d(resid_post of the last layer). A linear skip connection between u and v is passed; a dictionary of
the residual stream between them is not: its own nodes carry on. A cross-layer transcoder's feature writes at several
sites, and what stands below the reader is summed.
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
from circuitgraph.reading import Path, Projection, Reader, Skip, check_reader, floors, skip_of
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


@dataclass(frozen=True, eq=False)
class _Part:
    """What the nodes of a table write at one depth: vectors [batch or 1, n, d_model] times amount [batch, n] or 1."""

    table: NodeTable
    depth: int
    vectors: Tensor
    amount: Tensor | None


def attribute_edges(
    model: Model,
    tables: Sequence[NodeTable],
    clean: Mapping[Site, Tensor],
    metric_gradient: Tensor,
    *,
    slopes: Mapping[Site, Tensor] | None = None,
    threshold: float = 0.0,
    top_k: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Edge]:
    """Edges with |weight| > threshold, at most top_k per target, reachable backwards from the metric.

    Greedy: first the metric's own inputs, then layer by layer downwards the inputs of every feature that was kept as
    the source of a kept edge. metric_gradient [batch, pos, d_model] is dm/d(resid_post of the last layer). threshold
    has the metric's unit. slopes: `gradients.mlp_slopes`, needed for dictionaries that read behind an MLP's neurons.
    Raises DictionaryError or ModelError for dictionaries whose inputs cannot be traced.
    """
    dictionaries = [table.dictionary for table in tables if isinstance(table, FeatureTable)]
    check_readers(model, dictionaries)
    inflow = _Inflow(model, tables, clean, dictionaries)
    n_pos = metric_gradient.shape[1]
    metric = Node("metric", Site("metric"), n_pos - 1)
    ones = torch.ones_like(metric_gradient[:, :1, 0])
    kept: dict[tuple[str, Site], Tensor] = {}
    edges = _select([metric], ones, inflow.of_metric(metric_gradient), threshold, top_k, kept)
    readable = sorted((t for t in tables if isinstance(t, FeatureTable)), key=lambda t: -t.site.depth)
    for done, table in enumerate(readable):
        progress("tracing edges", done, len(readable))
        mask = kept.get((table.kind, table.site), torch.zeros_like(table.pos, dtype=torch.bool))
        if not bool(mask.any()):
            continue
        reader = Reader(model, table.dictionary.reads, clean, slopes)
        inflow.forget()
        for pos in torch.unique(table.pos[mask]).tolist():
            readers = table.take((mask & (table.pos == pos)).nonzero().flatten())
            blocks = inflow.of_paths(reader.paths(readers.reads, pos))
            nodes = [readers.node(i) for i in range(len(readers))]
            edges += _select(nodes, readers.node_gradient, blocks, threshold, top_k, kept)
    return edges


def check_readers(model: Model, dictionaries: Iterable[Dictionary]) -> None:
    """DictionaryError or ModelError unless the inputs of all these dictionaries' features can be traced."""
    for dictionary in dictionaries:
        check_reader(model, dictionary.reads)
        if dictionary.W_skip is not None and dictionary.reads.kind not in ("ln2_normalized", "mlp_in"):
            raise DictionaryError(
                f"dictionary {dictionary.name} skips from {dictionary.reads}; edges pass skip connections of transcoders"
                " that read the MLP's input only"
            )


class _Inflow:
    """What readers read of every table: products of reading vectors and write vectors, one per table."""

    def __init__(
        self,
        model: Model,
        tables: Sequence[NodeTable],
        clean: Mapping[Site, Tensor],
        dictionaries: Sequence[Dictionary],
    ) -> None:
        self.parts = sorted((part for table in tables for part in _parts(table)), key=lambda part: -part.depth)
        self.floors = floors([dictionary.writes for dictionary in dictionaries])
        skips = [d for d in dictionaries if d.W_skip is not None]
        self.skips: list[Skip] = sorted(
            (skip_of(model, d.reads, d.writes, d.W_skip, clean) for d in skips if d.W_skip is not None),
            key=lambda skip: -skip.out,
        )
        self.projected: dict[tuple[int, int], Tensor] = {}

    def forget(self) -> None:
        """Drop the projections of the tables for the last reader's layer."""
        self.projected.clear()

    def of_metric(self, gradient: Tensor) -> list[_Block]:
        """Blocks into the metric, with gradient [batch, pos, d_model] at the end of the stream."""
        return self._walk("metric", gradient[:, None, None], 0, 1 << 29)

    def of_paths(self, paths: Sequence[Path]) -> list[_Block]:
        """Blocks into readers at one position along these paths."""
        blocks = []
        for path in paths:
            if any(self._floor(path.entry) <= skip.out < path.entry for skip in self.skips):
                blocks += self._walk(path.kind, path.dense(), path.first, path.entry)
            else:
                blocks += self._direct(path)
        return blocks

    def _direct(self, path: Path) -> list[_Block]:
        blocks = _Sums(path.kind)
        for part in self._below(path.entry):
            columns = _columns(part.table, path.first, path.last)
            if columns.start < columns.stop:
                pos = part.table.pos[columns]
                local = path.read(self._project(path.projection, part)[:, columns], pos)
                blocks.add(part, columns, local)
        return blocks.blocks()

    def _walk(self, kind: EdgeKind, dense: Tensor, first: int, entry: int) -> list[_Block]:
        """The same with dense vectors [batch, readers, heads, n, d_model] that pass skip connections on the way down."""
        blocks = _Sums(kind)
        skips = [skip for skip in self.skips if self._floor(entry) <= skip.out < entry]
        for part in self._below(entry):
            while skips and part.depth < skips[0].entry:
                dense = skips.pop(0).pull_back(dense, first)
            columns = _columns(part.table, first, first + dense.shape[3] - 1)
            if columns.start < columns.stop:
                blocks.add(part, columns, _read_dense(dense, part.vectors[:, columns], part.table.pos[columns] - first))
        return blocks.blocks()

    def _below(self, entry: int) -> list[_Part]:
        floor = self._floor(entry)
        return [part for part in self.parts if floor <= part.depth < entry]

    def _floor(self, entry: int) -> int:
        """The depth of the nearest residual-stream dictionary below: nothing under it is read directly."""
        return max((floor for floor in self.floors if floor < entry), default=-(1 << 29))

    def _project(self, projection: Projection, part: _Part) -> Tensor:
        key = (id(projection), id(part))
        if key not in self.projected:
            self.projected[key] = projection.of(part.vectors, part.table.pos)
        return self.projected[key]


class _Sums:
    """Blocks of one kind, one per table: what a table writes at several depths is added up."""

    def __init__(self, kind: EdgeKind) -> None:
        self.kind = kind
        self.found: dict[int, _Block] = {}

    def add(self, part: _Part, columns: slice, local: Tensor) -> None:
        if part.amount is not None:
            local = local * part.amount[:, None, None, columns]
        before = self.found.get(id(part.table))
        if before is not None:
            local = local + before.local
        self.found[id(part.table)] = _Block(self.kind, part.table, columns, local)

    def blocks(self) -> list[_Block]:
        return list(self.found.values())


def _parts(table: NodeTable) -> list[_Part]:
    if not isinstance(table, FeatureTable):
        return [_Part(table, table.site.depth, table.vectors, None)]
    return [
        _Part(table, site.depth, table.writes[None, :, i], table.amount)
        for i, site in enumerate(table.dictionary.sites)
    ]


def _columns(table: NodeTable, first: int, last: int) -> slice:
    """The columns at positions first..last."""
    bounds = torch.tensor([first, last + 1], device=table.pos.device)
    start, stop = torch.searchsorted(table.pos, bounds).tolist()
    return slice(start, stop)


def _read_dense(dense: Tensor, vectors: Tensor, at: Tensor) -> Tensor:
    """dense [batch, readers, heads, pos, d] . vectors [batch or 1, n, d] at positions at [n] -> [batch, readers, heads, n]."""
    if dense.shape[1] == 1:
        return (dense[:, :, :, at] * vectors[:, None, None]).sum(-1)
    batch, readers, heads = dense.shape[:3]
    result = dense.new_empty(batch, readers, heads, len(at))
    for pos in torch.unique(at).tolist():
        here = at == pos
        result[..., here] = dense[:, :, :, pos] @ vectors[:, None, here].transpose(-1, -2)
    return result


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

"""What readers read of every node: products of input directions and write vectors, one per table and position.

In come node tables, paths, and the linear maps that stand between; out come blocks of local weights. Without anything
between, sources are projected once per reading layer into the space that its heads read, which costs a head-count less
than spelling input directions out; with something between, input directions are carried down the stream. This module selects
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.nodes import EdgeKind, Site
from circuitgraph.paths.linear_maps import LinearMap
from circuitgraph.paths.path import Path, Projection

_FAR = 1 << 29


@dataclass(frozen=True, eq=False)
class Block:
    """Local weights of readers at one position from the columns of one table, by one kind of path.

    local [batch, readers, heads, columns]; heads is 1 for paths that do not split by head.
    """

    kind: EdgeKind
    table: int
    columns: slice
    local: Tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """What the nodes of a table write at one depth: vectors [batch or 1, n, d_model] times amount [batch, n] or 1."""

    table: int
    depth: int
    pos: Tensor
    vectors: Tensor
    amount: Tensor | None


class EdgeProducts:
    """The writers of a graph, ready to be read.

    maps: linear maps that input directions pass. barriers: depths of residual-stream dictionaries; what is written below
    one reaches readers above it through its nodes only.
    """

    def __init__(self, tables: Sequence[NodeTable], maps: Sequence[LinearMap], barriers: Sequence[int]) -> None:
        parts = [part for i, table in enumerate(tables) for part in _parts(i, table)]
        self.parts = sorted(parts, key=lambda part: -part.depth)
        self.maps, self.barriers = maps, barriers
        self.projected: dict[tuple[int, int], Tensor] = {}

    def forget(self) -> None:
        """Drop the projections of the tables for the last reading layer."""
        self.projected.clear()

    def of_stream(self, gradient: Tensor) -> list[Block]:
        """Blocks into readers of the end of the stream, gradient [batch, readers, pos, d_model]."""
        return self._walk("metric", gradient[:, :, None], 0, _FAR)

    def of_paths(self, paths: Sequence[Path]) -> list[Block]:
        """Blocks into readers at one position along these paths."""
        blocks = []
        for path in paths:
            if self.crossed(path.entry):
                blocks += self._walk(path.kind, path.dense(), path.first, path.entry)
            else:
                blocks += self._direct(path)
        return blocks

    def crossed(self, entry: int) -> list[LinearMap]:
        """The maps between readers that read below `entry` and their sources."""
        barrier = self.barrier(entry)
        return [through for through in self.maps if barrier <= through.out < entry]

    def barrier(self, entry: int) -> int:
        """The depth of the nearest residual-stream dictionary below: nothing under it is read directly."""
        return max((barrier for barrier in self.barriers if barrier < entry), default=-_FAR)

    def _direct(self, path: Path) -> list[Block]:
        sums = _Sums(path.kind)
        for part, columns in self._below(path.entry, path.first, path.last):
            amount = None if part.amount is None else part.amount[:, columns]
            local = path.read(self._project(path.projection, part)[:, columns], part.pos[columns], amount)
            sums.add(part, columns, local)
        return sums.blocks()

    def _walk(self, kind: EdgeKind, dense: Tensor, first: int, entry: int) -> list[Block]:
        """The same with dense vectors [batch, readers, heads, n, d_model] at positions first.., carried down the stream.

        A map reads the vectors as they are at its output and adds to them at its entry: two maps of a parallel block read
        the same ones.
        """
        sums = _Sums(kind)
        last = first + dense.shape[3] - 1
        waiting = sorted(self.crossed(entry), key=lambda through: -through.out)
        entered: list[tuple[int, LinearMap, Tensor, int]] = []
        for part, _ in self._below(entry, 0, _FAR):
            while (waiting and waiting[0].out > part.depth) or (entered and entered[0][0] > part.depth):
                if entered and (not waiting or entered[0][0] >= waiting[0].out):
                    _, through, at_output, start = entered.pop(0)
                    arriving, start = through.pull_back(at_output, start)
                    dense, first, last = _added(dense, first, arriving, start)
                else:
                    entered.append((waiting[0].entry, waiting[0], dense, first))
                    entered.sort(key=lambda item: -item[0])
                    waiting.pop(0)
            columns = _columns(part, first, last)
            if columns.start < columns.stop:
                local = _read_dense(dense, part.vectors[:, columns], part.pos[columns] - first)
                if part.amount is not None:
                    local = local * part.amount[:, None, None, columns]
                sums.add(part, columns, local)
        return sums.blocks()

    def _below(self, entry: int, first: int, last: int) -> Iterator[tuple[_Part, slice]]:
        """Parts that are read, the highest first, with their columns at positions first..last."""
        barrier = self.barrier(entry)
        for part in self.parts:
            if barrier <= part.depth < entry:
                columns = _columns(part, first, last)
                if columns.start < columns.stop:
                    yield part, columns

    def _project(self, projection: Projection, part: _Part) -> Tensor:
        key = (id(projection), id(part))
        if key not in self.projected:
            self.projected[key] = projection.of(part.vectors, part.pos)
        return self.projected[key]


class _Sums:
    """Blocks of one kind, one per table: what a table writes at several depths is added up."""

    def __init__(self, kind: EdgeKind) -> None:
        self.kind = kind
        self.found: dict[int, tuple[slice, Tensor]] = {}

    def add(self, part: _Part, columns: slice, local: Tensor) -> None:
        if part.table in self.found:
            before, sofar = self.found[part.table]
            start, stop = min(before.start, columns.start), max(before.stop, columns.stop)
            wide = local.new_zeros(*local.shape[:-1], stop - start)
            for where, values in ((before, sofar), (columns, local)):
                wide[..., where.start - start : where.stop - start] += values
            columns, local = slice(start, stop), wide
        self.found[part.table] = columns, local

    def blocks(self) -> list[Block]:
        return [Block(self.kind, table, columns, local) for table, (columns, local) in self.found.items()]


def _parts(index: int, table: NodeTable) -> list[_Part]:
    if not len(table):
        return []
    if not isinstance(table, FeatureTable):
        return [_Part(index, table.site.depth, table.pos, table.vectors, None)]
    return [
        _Part(index, site.depth, table.pos, table.writes[None, :, i], table.amount)
        for i, site in enumerate(table.dictionary.sites)
    ]


def _columns(part: _Part, first: int, last: int) -> slice:
    """The columns at positions first..last."""
    bounds = torch.tensor([first, last + 1], device=part.pos.device)
    start, stop = torch.searchsorted(part.pos, bounds).tolist()
    return slice(start, stop)


def _added(dense: Tensor, first: int, arriving: Tensor, start: int) -> tuple[Tensor, int, int]:
    """The sum of vectors at positions first.. and start.., its first and its last position."""
    low = min(first, start)
    high = max(first + dense.shape[3], start + arriving.shape[3])
    if (low, high) == (start, start + arriving.shape[3]):
        total = arriving  # a fresh tensor
        total[:, :, :, first - low : first - low + dense.shape[3]] += dense
        return total, low, high - 1
    total = dense.new_zeros(*dense.shape[:3], high - low, dense.shape[4])
    for values, at in ((dense, first), (arriving, start)):
        total[:, :, :, at - low : at - low + values.shape[3]] += values
    return total, low, high - 1


def _read_dense(dense: Tensor, vectors: Tensor, at: Tensor) -> Tensor:
    """dense [batch, readers, heads, pos, d] . vectors [batch or 1, n, d] at positions at [n] -> [batch, readers, heads, n]."""
    batch, readers, heads = dense.shape[:3]
    if readers * heads == 1:
        return (dense[:, :, :, at] * vectors[:, None, None]).sum(-1)
    result = dense.new_empty(batch, readers, heads, len(at))
    for pos, start, stop in _runs(at):
        product = dense[:, :, :, pos].flatten(1, 2) @ vectors[:, start:stop].transpose(-1, -2)
        result[..., start:stop] = product.unflatten(1, (readers, heads))
    return result


def _runs(at: Tensor) -> list[tuple[int, int, int]]:
    """(position, first column, column after the last) of ascending positions."""
    values, counts = torch.unique_consecutive(at, return_counts=True)
    stops = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *stops[:-1]], stops, strict=True))


def barriers(sites: Sequence[Site]) -> list[int]:
    """The depths of the residual-stream sites among these."""
    return [site.depth for site in sites if site.kind in ("resid_pre", "resid_post")]

"""What targets read of every node: products of input directions and write vectors, by kind of path and table.

Where nothing linear stands between source and target, the sources are projected once, for all targets at a site, into
the space that its heads read. That is n_heads times cheaper than making the input directions. Where skip connections or
frozen components stand between, the directions are made and carried down the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.nodes import EdgeKind, Site
from circuitgraph.paths.linear_maps import LinearMap
from circuitgraph.paths.path import Path, Projection

_FAR = 1 << 29  # above every depth and position


@dataclass(frozen=True, eq=False)
class Block:
    """Local weights of the edges from some columns of one table into targets at one position, by one kind of path.

    heads is 1 for paths that do not split by head.
    """

    kind: EdgeKind
    table: int
    columns: slice
    local: Float[Tensor, "batch targets heads n"]


@dataclass(frozen=True, eq=False)
class Writers:
    """What the nodes of a table write at one depth: `vectors` times `amount` (None for 1), each at its position."""

    table: int
    depth: int
    pos: Int[Tensor, " n"]
    vectors: Float[Tensor, "#batch n d_model"]
    amount: Float[Tensor, "batch n"] | None


class EdgeProducts:
    """The nodes of a graph as writers, ready to be read.

    Args:
        tables: The nodes.
        maps: Linear maps that paths pass.
        barriers: Depths of dictionaries of the residual stream. What is written below one reaches targets above it
            through that dictionary's nodes only.
    """

    def __init__(self, tables: Sequence[NodeTable], maps: Sequence[LinearMap], barriers: Sequence[int]) -> None:
        writers = [part for i, table in enumerate(tables) for part in _writers(i, table)]
        self.writers = sorted(writers, key=lambda part: -part.depth)
        self.maps, self.barriers = maps, barriers
        self.projected: dict[tuple[Projection, Writers], Tensor] = {}

    def forget(self) -> None:
        """Drop the projections of the writers for the last site that was read."""
        self.projected.clear()

    def of_stream(self, gradient: Float[Tensor, "batch targets pos d_model"]) -> list[Block]:
        """Blocks into targets that read the end of the stream with these input directions."""
        dense = rearrange(gradient, "batch targets pos d_model -> batch targets 1 pos d_model")
        return self._carried("metric", dense, 0, _FAR)

    def of_paths(self, paths: Sequence[Path]) -> list[Block]:
        """Blocks into the targets of these paths, which stand at one position."""
        blocks = []
        for path in paths:
            if self.crossed(path.entry):
                blocks += self._carried(path.kind, path.dense(), path.first, path.entry)
            else:
                blocks += self._projected(path)
        return blocks

    def crossed(self, entry: int) -> list[LinearMap]:
        """The maps between targets that read below depth `entry` and their sources."""
        barrier = self.barrier(entry)
        return [between for between in self.maps if barrier <= between.out < entry]

    def barrier(self, entry: int) -> int:
        """The depth of the nearest dictionary of the residual stream below `entry`: direct reading ends there."""
        return max((barrier for barrier in self.barriers if barrier < entry), default=-_FAR)

    def _projected(self, path: Path) -> list[Block]:
        """The blocks of one path that passes no map: writers are projected, and read in the space of the heads."""
        sums = _TableSums(path.kind)
        for part, columns in self._below(path.entry, path.first, path.last):
            key = (path.projection, part)
            if key not in self.projected:
                self.projected[key] = path.projection.of(part.vectors, part.pos)
            amount = None if part.amount is None else part.amount[:, columns]
            sums.add(part, columns, path.read(self.projected[key][:, columns], part.pos[columns], amount))
        return sums.blocks()

    def _carried(
        self, kind: EdgeKind, dense: Float[Tensor, "batch targets heads n d_model"], first: int, entry: int
    ) -> list[Block]:
        """The blocks of input directions at positions first.., which are carried down the stream through the maps.

        A map reads the directions as they are at its output and adds to them at its entry: two maps of a parallel block
        read the same ones.
        """
        sums = _TableSums(kind)
        last = first + dense.shape[3] - 1
        waiting = sorted(self.crossed(entry), key=lambda between: -between.out)
        entered: list[tuple[int, LinearMap, Tensor, int]] = []
        for part, _ in self._below(entry, 0, _FAR):
            while (waiting and waiting[0].out > part.depth) or (entered and entered[0][0] > part.depth):
                if entered and (not waiting or entered[0][0] >= waiting[0].out):
                    _, between, at_output, start = entered.pop(0)
                    arriving, start = between.pull_back(at_output, start)
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

    def _below(self, entry: int, first: int, last: int) -> Iterator[tuple[Writers, slice]]:
        """Writers between the barrier and `entry`, the highest first, with their columns at positions first..last."""
        barrier = self.barrier(entry)
        for part in self.writers:
            if barrier <= part.depth < entry:
                columns = _columns(part, first, last)
                if columns.start < columns.stop:
                    yield part, columns


class _TableSums:
    """Blocks of one kind of path, one per table: what a table writes at several depths is added up."""

    def __init__(self, kind: EdgeKind) -> None:
        self.kind = kind
        self.sums: dict[int, tuple[slice, Tensor]] = {}

    def add(self, part: Writers, columns: slice, local: Tensor) -> None:
        if part.table in self.sums:
            before, sofar = self.sums[part.table]
            start, stop = min(before.start, columns.start), max(before.stop, columns.stop)
            wide = local.new_zeros(*local.shape[:-1], stop - start)
            for where, values in ((before, sofar), (columns, local)):
                wide[..., where.start - start : where.stop - start] += values
            columns, local = slice(start, stop), wide
        self.sums[part.table] = columns, local

    def blocks(self) -> list[Block]:
        return [Block(self.kind, table, columns, local) for table, (columns, local) in self.sums.items()]


def _writers(index: int, table: NodeTable) -> list[Writers]:
    if not len(table):
        return []
    if not isinstance(table, FeatureTable):
        return [Writers(index, table.site.depth, table.pos, table.vectors, None)]
    return [
        Writers(index, site.depth, table.pos, table.writes[None, :, i], table.amount)
        for i, site in enumerate(table.dictionary.sites)
    ]


def _columns(part: Writers, first: int, last: int) -> slice:
    """The columns at positions first..last."""
    bounds = torch.tensor([first, last + 1], device=part.pos.device)
    start, stop = torch.searchsorted(part.pos, bounds).tolist()
    return slice(start, stop)


def _added(
    dense: Float[Tensor, "batch targets heads n d_model"],
    first: int,
    arriving: Float[Tensor, "batch targets heads m d_model"],
    start: int,
) -> tuple[Float[Tensor, "batch targets heads wide d_model"], int, int]:
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


def _read_dense(
    dense: Float[Tensor, "batch targets heads pos d_model"],
    vectors: Float[Tensor, "#batch n d_model"],
    at: Int[Tensor, " n"],
) -> Float[Tensor, "batch targets heads n"]:
    """Products of input directions with vectors that stand at the positions `at`, ascending."""
    batch, targets, heads = dense.shape[:3]
    if targets * heads == 1:
        return (dense[:, :, :, at] * vectors[:, None, None]).sum(-1)
    result = dense.new_empty(batch, targets, heads, len(at))
    for pos, start, stop in _runs(at):
        product = dense[:, :, :, pos].flatten(1, 2) @ vectors[:, start:stop].mT
        result[..., start:stop] = product.unflatten(1, (targets, heads))
    return result


def _runs(at: Tensor) -> list[tuple[int, int, int]]:
    """(position, first column, column after the last) of ascending positions."""
    values, counts = torch.unique_consecutive(at, return_counts=True)
    stops = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *stops[:-1]], stops, strict=True))


def barriers(sites: Sequence[Site]) -> list[int]:
    """The depths of the sites of the residual stream among these."""
    return [site.depth for site in sites if site.part == "stream"]

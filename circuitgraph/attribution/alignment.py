"""Which positions of different prompts are the same place of the graph, and activations in the order of these places.

In come tokenized pairs with the positions of named words; out come an `Alignment` and, through it, recorded activations,
gradients and tables with places where positions were. What an example lacks is zero there: no activation, no gradient, no
attention. This module knows which sites have two axes of positions and nothing else of the model.

Every token of every example stands at exactly one place:

    S1          the last token of the word that the pair calls so; S1-1, S1-2 the tokens of the word before it
    S1+1, S1+2  the tokens behind it up to the next named word, by their distance
    start       the first token (BOS where the model has one), where no word is named so; start+1, ... those behind it
    END         the last token, whose logits the metric reads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitgraph.attribution.runs import Baseline, CleanRun
from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site
from circuitgraph.prompts import END, START

ALIGN = ("position", "role")
_QUERY_AND_KEY = ("pattern", "attn_scores")


@dataclass(frozen=True, eq=False)
class Alignment:
    """Places in reading order, and the position of each in every example, [batch, places], -1 where it has none."""

    names: tuple[str, ...]
    index: Tensor

    @property
    def trivial(self) -> bool:
        """Whether every place is the same position of every example, in order: nothing is moved."""
        return bool((self.index == torch.arange(self.index.shape[1])).all())

    def gather(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Activations or gradients [batch, pos, d] as [batch, place, d], patterns and scores [batch, heads, query, key]
        likewise on both axes. Where an example has no such place they are 0, scales of norms 1, and a score lets a query
        see nothing but itself."""
        return dict(values) if self.trivial else {site: self._moved(site, value) for site, value in values.items()}

    def of_run(self, model: Model, run: CleanRun) -> CleanRun:
        """The run with `gather` of its activations, no longer in an autograd graph, and the angles of rotary positions that
        the model keeps to itself."""
        if self.trivial:
            return run
        values, angles = run.values, {}
        for site in values:
            if site.kind == "pattern" and (found := model.layout.rotary_cos_sin(site.block)) is not None:
                n_pos = values[site].shape[-1]
                for kind, table in zip(("rotary_cos", "rotary_sin"), found, strict=True):
                    angles[Site(kind, site.layer)] = table[None, :n_pos]
        return replace(run, attached=self.gather({**values, **angles}))

    def of_baseline(self, base: Baseline) -> Baseline:
        """The baseline with `gather` of its activations."""
        return base if base.values is None else replace(base, values=self.gather(base.values))

    def mean(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Activations [batch, pos, d] replaced by their mean over the examples that have the same place, at the positions
        where they were. Patterns, which have no such mean, are left out."""
        present, result = self._present, {}
        for site, value in values.items():
            if site.kind in _QUERY_AND_KEY:
                continue
            if len(value) == 1:  # the same in all examples
                result[site] = value
                continue
            there = present[..., None].to(value)
            means = (self._moved(site, value) * there).sum(0) / there.sum(0)
            result[site] = self.spread(means.expand(len(value), *means.shape), value)
        return result

    def mask(self, tables: Sequence[NodeTable]) -> list[NodeTable]:
        """The tables with nothing where an example has no such place: what constants and encoders make of zeros goes."""
        if bool(self._present.all()):
            return list(tables)
        return [_masked(table, self._present[:, table.pos.cpu()].to(table.attribution)) for table in tables]

    def shown(self, ids: Sequence[Tensor], text: Callable[[int], str]) -> list[list[str]]:
        """For each of these runs' token ids [batch, pos] one string per place: the token's text, or the name of the place
        where the examples that have it differ in any of the runs."""
        rows: list[list[str]] = [[] for _ in ids]
        for place, at in zip(self.names, self.index.T, strict=True):
            there = (at >= 0).nonzero().flatten()
            found = [set(run[there, at[there]].tolist()) for run in ids]
            same = all(len(tokens) == 1 for tokens in found)
            for row, tokens in zip(rows, found, strict=True):
                row.append(text(tokens.pop()) if same else place)
        return rows

    def spread(self, values: Tensor, onto: Tensor, site: Site | None = None) -> Tensor:
        """`onto` [batch, pos, ...] with the values [batch, place, ...] at the positions of their places; for the site of a
        pattern or of scores [batch, heads, query, key] on both axes."""
        there, index, result = self._present.to(values.device), self.index.to(values.device), onto.clone()
        if site is not None and site.kind in _QUERY_AND_KEY:
            example, query, key = (there[:, :, None] & there[:, None, :]).nonzero(as_tuple=True)
            result[example, :, index[example, query], index[example, key]] = values[example, :, query, key]
            return result
        example, place = there.nonzero(as_tuple=True)
        result[example, index[example, place]] = values[example, place]
        return result

    def repeated(self, n: int) -> Alignment:
        """The alignment of n copies of the examples, one after the other."""
        return Alignment(self.names, self.index.repeat(n, 1))

    @property
    def _present(self) -> Tensor:
        return self.index >= 0

    def _moved(self, site: Site, value: Tensor) -> Tensor:
        same = bool((self.index == self.index[:1]).all())
        index = (self.index[:1] if same and len(value) == 1 else self.index).to(value.device)
        rows, at, there = torch.arange(len(index), device=value.device), index.clamp(min=0), index >= 0
        value = value.expand(len(index), *value.shape[1:])
        if site.kind not in _QUERY_AND_KEY:
            moved = value[rows[:, None], at]
            absent = 1.0 if site.kind.endswith("_scale") else 0.0
            return torch.where(there.view(*there.shape, *[1] * (value.ndim - 2)), moved, absent)
        heads = torch.arange(value.shape[1], device=value.device)
        moved = value[rows[:, None, None, None], heads[:, None, None], at[:, None, :, None], at[:, None, None, :]]
        both = (there[:, :, None] & there[:, None, :])[:, None]
        if site.kind == "pattern":
            return torch.where(both, moved, 0.0)
        itself = torch.eye(at.shape[1], dtype=torch.bool, device=value.device)
        return torch.where(both, moved, torch.where(itself, 0.0, -torch.inf))


def align_pairs(tokens: TokenizedPairs, align: str, known: Sequence[str] = ()) -> Alignment:
    """The alignment of the examples by "position" (all of one length) or by "role". known: places that are numbered first,
    in this order, as in a graph that other pairs are compared with."""
    batch, n_pos = tokens.clean.shape
    if align == "position":
        return Alignment(tuple(map(str, range(n_pos))), torch.arange(n_pos).expand(batch, -1))
    lengths = tokens.lengths or (n_pos,) * batch
    labels = [position_names(roles, length) for roles, length in zip(tokens.roles, lengths, strict=True)]
    places = [*known, *(place for place in _in_reading_order(labels) if place not in known)]
    rows = [{label: i for i, label in enumerate(row)} for row in labels]
    return Alignment(tuple(places), torch.tensor([[row.get(place, -1) for place in places] for row in rows]))


def position_names(roles: Mapping[str, tuple[int, int]], length: int) -> list[str]:
    """The place of each token of one example, from the (first, last) positions of its named words."""
    named = {last: name for name, (_, last) in roles.items()} | {length - 1: END}
    parts = {
        pos: f"{name}-{last - pos}"
        for name, (first, last) in roles.items()
        for pos in range(first, last)
        if pos not in named
    }
    labels, name, distance = [], START, 0
    for pos in range(length):
        if pos in named:
            name, distance = named[pos], 0
        labels.append(parts.get(pos) or (f"{name}+{distance}" if distance else name))
        distance += 1
    return labels


def _in_reading_order(rows: Sequence[Sequence[str]]) -> list[str]:
    """All places, END last, each behind those that precede it in every example; by mean position where that leaves a
    choice, or none because the examples contradict each other."""
    positions: dict[str, list[int]] = {}
    before: dict[str, set[str]] = {}
    for row in rows:
        for pos, place in enumerate(row):
            positions.setdefault(place, []).append(pos)
            before.setdefault(place, set()).update(row[max(pos - 1, 0) : pos])
    waiting = sorted(set(positions) - {END}, key=lambda p: (sum(positions[p]) / len(positions[p]), p))
    order: list[str] = []
    while waiting:
        free = (place for place in waiting if before[place] <= set(order))
        order.append(next(free, waiting[0]))
        waiting.remove(order[-1])
    return [*order, END]


def _masked(table: NodeTable, present: Tensor) -> NodeTable:
    if isinstance(table, FeatureTable):
        columns = {name: getattr(table, name) * present for name in ("acts", "baseline_acts", "node_gradient")}
        return replace(table, **columns)
    changes = {site: change * present[..., None] for site, change in table.changes.items()}
    return replace(table, vectors=table.vectors * present[..., None], changes=changes)

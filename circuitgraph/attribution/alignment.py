"""Aligned positions: which positions of different prompts are one position of the graph.

An `Alignment` moves recorded activations, gradients and tables from the positions of each prompt to aligned positions.
Where a prompt does not have an aligned position, all is zero there: no activation, no gradient, no attention.

Every token of every prompt stands at exactly one aligned position:

    S1          the last token of the word that the pair calls so; S1-1, S1-2 the tokens of the word before it
    S1+1, S1+2  the tokens behind it up to the next named word, by their distance
    start       the first token (BOS where the model has one), where no word is named so; start+1, ... those behind it
    END         the last token, whose logits the metric reads
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitgraph.attribution.runs import Baseline, CleanRun
from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import TokenizedPairs
from circuitgraph.nodes import Site
from circuitgraph.prompts import END, START

_QUERY_AND_KEY = ("pattern", "attn_scores")  # sites [batch, heads, query, key]; all others are [batch, pos, ...]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The aligned positions of some prompts.

    Args:
        names: Their names, in reading order.
        index: The position of each in every example, -1 where the example does not have it.
    """

    names: tuple[str, ...]
    index: Int[Tensor, "batch aligned"]

    @property
    def trivial(self) -> bool:
        """Whether every aligned position is the same position of every example, in order: nothing is moved."""
        return bool((self.index == torch.arange(self.index.shape[1])).all())

    def gather(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Activations or gradients at aligned positions.

        Args:
            values: [batch, pos, d] by site; patterns and scores [batch, heads, query, key] are moved on both axes.

        Where an example does not have an aligned position, values are 0, scales of norms 1, and a score lets a query
        see nothing but itself.
        """
        return dict(values) if self.trivial else {site: self._moved(site, value) for site, value in values.items()}

    def scatter(self, values: Tensor, onto: Tensor, site: Site | None = None) -> Tensor:
        """`onto` with the values where their positions are: the way back from `gather`.

        Args:
            values: [batch, aligned, ...], or for a pattern or scores [batch, heads, query, key].
            onto: The same with positions in place of aligned positions. It is not changed.
            site: Where they belong, which tells patterns and scores from the rest.

        Values at aligned positions that an example does not have are ignored.
        """
        present, index, result = self._present.to(values.device), self.index.to(values.device), onto.clone()
        if site is not None and site.kind in _QUERY_AND_KEY:
            example, query, key = (present[:, :, None] & present[:, None, :]).nonzero(as_tuple=True)
            result[example, :, index[example, query], index[example, key]] = values[example, :, query, key]
            return result
        example, aligned = present.nonzero(as_tuple=True)
        result[example, index[example, aligned]] = values[example, aligned]
        return result

    def of_run(self, model: Model, run: CleanRun) -> CleanRun:
        """The run at aligned positions, no longer in an autograd graph, with the angles of rotary positions that the
        model keeps to itself."""
        if self.trivial:
            return run
        values, angles = run.values, {}
        for site in values:
            if site.kind == "pattern" and (cos_sin := model.layout.rotary_cos_sin(site.block)) is not None:
                n_pos = values[site].shape[-1]
                for kind, table in zip(("rotary_cos", "rotary_sin"), cos_sin, strict=True):
                    angles[Site(kind, site.layer)] = table[None, :n_pos]
        return replace(run, attached=self.gather({**values, **angles}))

    def of_baseline(self, base: Baseline) -> Baseline:
        """The baseline at aligned positions."""
        return base if base.values is None else replace(base, values=self.gather(base.values))

    def mean(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        """Activations [batch, pos, d] replaced, where they are, by their mean over the examples that have the same
        aligned position. Patterns, which have no such mean, are left out."""
        present, result = self._present, {}
        for site, value in values.items():
            if site.kind in _QUERY_AND_KEY:
                continue
            if len(value) == 1:  # the same in all examples
                result[site] = value
                continue
            weight = present[..., None].to(value)
            means = (self._moved(site, value) * weight).sum(0) / weight.sum(0)
            result[site] = self.scatter(means.expand(len(value), *means.shape), value)
        return result

    def mask(self, tables: Sequence[NodeTable]) -> list[NodeTable]:
        """The tables with nothing at aligned positions that an example does not have: constants and encoders make
        something of zeros."""
        if bool(self._present.all()):
            return list(tables)
        return [_masked(table, self._present[:, table.pos.cpu()].to(table.attribution)) for table in tables]

    def token_texts(self, ids: Sequence[Int[Tensor, "batch pos"]], text: Callable[[int], str]) -> list[list[str]]:
        """For each of these runs' token ids one string per aligned position: the token's text, or the name of the
        aligned position where the examples that have it differ in any of the runs."""
        rows: list[list[str]] = [[] for _ in ids]
        for name, at in zip(self.names, self.index.T, strict=True):
            present = (at >= 0).nonzero().flatten()
            tokens_of = [set(run[present, at[present]].tolist()) for run in ids]
            same = all(len(tokens) == 1 for tokens in tokens_of)
            for row, tokens in zip(rows, tokens_of, strict=True):
                row.append(text(tokens.pop()) if same else name)
        return rows

    def repeated(self, n: int) -> Alignment:
        """The alignment of n copies of the examples, one after the other."""
        return Alignment(self.names, self.index.repeat(n, 1))

    @property
    def _present(self) -> Bool[Tensor, "batch aligned"]:
        return self.index >= 0

    def _moved(self, site: Site, value: Tensor) -> Tensor:
        same = bool((self.index == self.index[:1]).all())
        index = (self.index[:1] if same and len(value) == 1 else self.index).to(value.device)
        rows, at, present = torch.arange(len(index), device=value.device), index.clamp(min=0), index >= 0
        value = value.expand(len(index), *value.shape[1:])
        if site.kind not in _QUERY_AND_KEY:
            moved = value[rows[:, None], at]
            absent = 1.0 if site.kind.endswith("_scale") else 0.0
            return torch.where(present.view(*present.shape, *[1] * (value.ndim - 2)), moved, absent)
        heads = torch.arange(value.shape[1], device=value.device)
        moved = value[rows[:, None, None, None], heads[:, None, None], at[:, None, :, None], at[:, None, None, :]]
        both = (present[:, :, None] & present[:, None, :])[:, None]
        if site.kind == "pattern":
            return torch.where(both, moved, 0.0)
        itself = torch.eye(at.shape[1], dtype=torch.bool, device=value.device)
        return torch.where(both, moved, torch.where(itself, 0.0, -torch.inf))


def align_pairs(tokens: TokenizedPairs, align: str, known: Sequence[str] = ()) -> Alignment:
    """The alignment of tokenized pairs.

    Args:
        tokens: The pairs; their roles are needed for "role".
        align: "position", of pairs of one length, or "role": relative to the words that the pairs name.
        known: Names that come first, in this order, as in a graph that other pairs are compared with.
    """
    batch, n_pos = tokens.clean.shape
    if align == "position":
        return Alignment(tuple(map(str, range(n_pos))), torch.arange(n_pos).expand(batch, -1))
    lengths = tokens.lengths or (n_pos,) * batch
    labels = [position_names(roles, length) for roles, length in zip(tokens.roles, lengths, strict=True)]
    names = [*known, *(name for name in _in_reading_order(labels) if name not in known)]
    positions = [{label: pos for pos, label in enumerate(row)} for row in labels]
    return Alignment(tuple(names), torch.tensor([[row.get(name, -1) for name in names] for row in positions]))


def position_names(roles: Mapping[str, tuple[int, int]], length: int) -> list[str]:
    """The name of the aligned position of each token of one example.

    Args:
        roles: First and last position of each named word.
        length: The number of tokens.
    """
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
    """All names, END last, each behind those that precede it in every example; by mean position where that leaves a
    choice, or none because the examples contradict each other."""
    positions: dict[str, list[int]] = {}
    before: dict[str, set[str]] = {}
    for row in rows:
        for pos, name in enumerate(row):
            positions.setdefault(name, []).append(pos)
            before.setdefault(name, set()).update(row[max(pos - 1, 0) : pos])
    waiting = sorted(set(positions) - {END}, key=lambda p: (sum(positions[p]) / len(positions[p]), p))
    order: list[str] = []
    while waiting:
        free = (name for name in waiting if before[name] <= set(order))
        order.append(next(free, waiting[0]))
        waiting.remove(order[-1])
    return [*order, END]


def _masked(table: NodeTable, present: Tensor) -> NodeTable:
    if isinstance(table, FeatureTable):
        columns = {name: getattr(table, name) * present for name in ("acts", "baseline_acts", "node_gradient")}
        return replace(table, **columns)
    changes = {site: change * present[..., None] for site, change in table.changes.items()}
    return replace(table, vectors=table.vectors * present[..., None], changes=changes)

"""What features do over a corpus: where each is most active, how often, and how strongly.

In come a model, dictionaries, features and texts one after the other; out come columns per dictionary, whose size does not depend
on the corpus. Texts are cut into windows of at most n_tokens tokens, each read alone behind a BOS, as dictionaries are trained;
the BOS itself, where a feature does the same in every window, is left out. Of each feature stay its strongest windows, a uniform draw of the windows where it is active (the windows with the
smallest of random numbers) and counts. This module writes no file.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import networkx as nx
import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, GraphError, PromptError
from circuitgraph.models.model import Model
from circuitgraph.nodes import Node, Site
from circuitgraph.progress import Progress, no_progress

N_BINS = 1280  # of the range up to the power of two above the largest activation
MAX_CHARACTERS = 1_000_000
NO_TOKEN = -1  # after the end of a window


@dataclass(eq=False)
class Windows:
    """The n_kept windows of each feature with the largest score: acts [n, n_kept, n_tokens] and their token ids, `NO_TOKEN`
    after their end; score [n, n_kept] is -inf where there are fewer."""

    score: Tensor
    acts: Tensor
    tokens: Tensor

    @classmethod
    def none(cls, n: int, n_kept: int, n_tokens: int) -> Windows:
        shape = (n, n_kept, n_tokens)
        return cls(
            torch.full(shape[:2], -torch.inf), torch.zeros(shape), torch.full(shape, NO_TOKEN, dtype=torch.int32)
        )

    def add(self, score: Tensor, acts: Tensor, tokens: Tensor) -> None:
        """score [n, batch], acts [n, batch, pos], tokens [batch, pos]; of equal scores the earlier window stays."""
        n_kept, n_tokens = self.acts.shape[1:]
        missing = n_tokens - acts.shape[2]
        acts = torch.nn.functional.pad(acts, (0, missing))
        tokens = torch.nn.functional.pad(tokens.int(), (0, missing), value=NO_TOKEN).expand(len(acts), -1, -1)
        ranked, order = torch.cat([self.score, score], 1).sort(dim=1, descending=True, stable=True)
        where = order[:, :n_kept, None].expand(-1, -1, n_tokens)
        self.score = ranked[:, :n_kept]
        self.acts = torch.cat([self.acts, acts], 1).gather(1, where)
        self.tokens = torch.cat([self.tokens, tokens], 1).gather(1, where)

    def of(self, i: int) -> list[tuple[list[int], list[float]]]:
        """(token ids, activations) of feature i's windows, by score."""
        found = []
        for j in (self.score[i] > -torch.inf).nonzero()[:, 0].tolist():
            held = self.tokens[i, j] != NO_TOKEN
            found.append((self.tokens[i, j][held].tolist(), self.acts[i, j][held].tolist()))
        return found


@dataclass(eq=False)
class Activity:
    """What the features [n] of one dictionary did: their strongest windows, a draw of those where they are active, and of
    their activations the number of all, the smallest, the largest, and how many > 0 fall into each of `N_BINS` bins of
    0 to limit."""

    features: Tensor
    top: Windows
    drawn: Windows
    n_values: int = 0
    smallest: Tensor = field(init=False)
    largest: Tensor = field(init=False)
    limit: Tensor = field(init=False)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.features)
        self.smallest, self.largest = torch.full((n,), torch.inf), torch.full((n,), -torch.inf)
        self.limit, self.counts = torch.zeros(n), torch.zeros(n, N_BINS, dtype=torch.int64)

    def add(self, acts: Tensor, tokens: Tensor, draws: Tensor) -> None:
        """acts [batch, pos, n] of the windows tokens [batch, pos], which have the random numbers draws [batch]."""
        acts = acts.permute(2, 0, 1)
        peaks = acts.amax(2)
        active = peaks > 0
        self.top.add(peaks.where(active, -torch.inf), acts, tokens)
        self.drawn.add(draws.expand_as(peaks).where(active, -torch.inf), acts, tokens)
        self.n_values += tokens.numel()
        self.smallest = self.smallest.minimum(acts.amin((1, 2)))
        self.largest = self.largest.maximum(peaks.amax(1))
        self._widen()
        row, batch, pos = (acts > 0).nonzero(as_tuple=True)
        place = (acts[row, batch, pos] / self.limit[row] * N_BINS).long().clamp(max=N_BINS - 1)
        self.counts += torch.bincount(row * N_BINS + place, minlength=self.counts.numel()).view_as(self.counts)

    def _widen(self) -> None:
        """Double limits, two bins becoming one, until the largest activations are below them."""
        new = (self.limit == 0) & (self.largest > 0)
        self.limit[new] = torch.exp2(torch.log2(self.largest[new]).floor() + 1)
        while bool((narrow := self.largest > self.limit).logical_and(self.limit > 0).any()):
            narrow &= self.limit > 0
            pairs = self.counts[narrow].view(-1, N_BINS // 2, 2).sum(2)
            self.counts[narrow] = torch.cat([pairs, torch.zeros_like(pairs)], 1)
            self.limit[narrow] *= 2


def features_of(graph: nx.MultiDiGraph, dictionaries: Dictionaries) -> dict[Site, list[int]]:
    """The features of the graph by site; GraphError where there are none, or they are of no dictionary that is given."""
    found: dict[Site, set[int]] = {}
    for node in map(Node.parse, graph):
        if node.kind == "feature" and node.feature is not None:
            found.setdefault(node.site, set()).add(node.feature)
    if not found:
        raise GraphError("the graph has no features; expected one that was built with dictionaries")
    found = {site: found[site] for site in sorted(found)}
    for site, features in found.items():
        if site not in dictionaries:
            raise GraphError(
                f"the graph has features at {site}, where none of the dictionaries is; expected those of the graph:"
                f" they are at {', '.join(map(str, found))}"
            )
        if max(features) >= dictionaries[site].d_sae:
            raise GraphError(
                f"the graph has feature {max(features)} at {site}, but {dictionaries[site].name} has"
                f" {dictionaries[site].d_sae} features; expected the dictionaries of the graph"
            )
    return {site: sorted(features) for site, features in found.items()}


def run_corpus(
    model: Model,
    dictionaries: Dictionaries,
    features: Mapping[Site, Iterable[int]],
    texts: Iterable[str],
    *,
    n_top: int = 20,
    n_drawn: int = 20,
    n_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[Site, Activity]:
    """What the features of each site do over the texts. PromptError for a corpus of no tokens."""
    for name, value in (("n_top", n_top), ("n_drawn", n_drawn), ("n_tokens", n_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise CircuitGraphError(f"{name} is {value}; expected at least 1")
    n_tokens = min(n_tokens, model.n_ctx)
    found = {}
    for site, chosen in features.items():
        numbers = torch.tensor(list(chosen))
        n = len(numbers)
        found[site] = Activity(numbers, Windows.none(n, n_top, n_tokens), Windows.none(n, n_drawn, n_tokens))
    n_start, n_windows = len(model.tokens("")[:1]), 0
    reads = sorted({dictionaries[site].reads for site in features})
    for tokens, draws in batches(windows_of(model, texts, n_tokens), batch_size, seed):
        values = model.run(tokens, record=reads)[1]
        for site, activity in found.items():
            acts = dictionaries[site].encode(values[dictionaries[site].reads])[:, n_start:]
            activity.add(acts[..., activity.features.to(acts.device)].float().cpu(), tokens[:, n_start:], draws)
        n_windows += len(tokens)
        progress(f"reading the corpus, {n_windows:,} windows", 0, 1)
    if not n_windows:
        raise PromptError("the corpus has no text; expected one text on each line")
    return found


def windows_of(model: Model, texts: Iterable[str], n_tokens: int) -> Iterator[list[int]]:
    """The token ids of each text in windows of at most n_tokens, each with the BOS that the model was trained with."""
    start = model.tokens("")[:1]
    if n_tokens <= len(start):
        raise CircuitGraphError(f"n_tokens is {n_tokens}; expected at least {len(start) + 1}, BOS included")
    size = n_tokens - len(start)
    for text in texts:
        ids = model.tokens(text)[len(start) :]
        for first in range(0, len(ids), size):
            yield [*start, *ids[first : first + size]]


def batches(windows: Iterable[list[int]], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one length together, [at most size, pos], as soon as a length has enough of them, and a random number of
    each, [at most size], that depends on its place in the corpus only."""
    draw = random.Random(seed)
    waiting: dict[int, list[tuple[list[int], float]]] = {}
    for window in windows:
        alike = waiting.setdefault(len(window), [])
        alike.append((window, draw.random()))
        if len(alike) == size:
            yield _batch(waiting.pop(len(window)))
    for alike in waiting.values():
        yield _batch(alike)


def read_texts(path: str | Path) -> Iterator[str]:
    """The texts of a UTF-8 file, one on each line that is not blank; a line of more than a million characters is several."""
    try:
        return _lines(Path(path).open(encoding="utf-8"), path)  # noqa: SIM115 - closed when the lines end
    except OSError as error:
        raise PromptError(f"corpus {path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _lines(file: TextIO, path: str | Path) -> Iterator[str]:
    try:
        with file:
            while line := file.readline(MAX_CHARACTERS):
                if line.strip():
                    yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise PromptError(f"corpus {path} is not UTF-8 text; expected one text on each line") from None


def _batch(alike: list[tuple[list[int], float]]) -> tuple[Tensor, Tensor]:
    windows, draws = zip(*alike, strict=True)
    return torch.tensor(windows), torch.tensor(draws)

"""What features do over a corpus: where each is most active, how often, and how strongly.

Texts are cut into windows of at most n_tokens tokens. Each window is run alone behind a BOS, as dictionaries are
trained. What happens at the BOS is left out, because a feature does the same there in every window. Memory does not
grow with the corpus: for each feature stay its strongest windows, a uniform draw of the windows where it is active
(each window has a random number, and those with the highest ones stay), and counts.
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
from circuitgraph.settings import Examples

N_BINS = 1280  # bins of a feature's histogram, from 0 to the power of two above its largest activation
MAX_CHARACTERS = 1_000_000  # of a line that is read as one text
NO_TOKEN = -1  # the id that fills a window after its end


@dataclass(eq=False)
class Windows:
    """For each of n features, the n_kept windows with the highest score.

    Args:
        score: [n, n_kept], descending; -inf where there are fewer windows.
        acts: Activations [n, n_kept, n_tokens].
        tokens: Token ids [n, n_kept, n_tokens], `NO_TOKEN` after the end of a window.
    """

    score: Tensor
    acts: Tensor
    tokens: Tensor

    @classmethod
    def none(cls, n: int, n_kept: int, n_tokens: int) -> Windows:
        """No windows yet."""
        shape = (n, n_kept, n_tokens)
        return cls(
            torch.full(shape[:2], -torch.inf), torch.zeros(shape), torch.full(shape, NO_TOKEN, dtype=torch.int32)
        )

    def add(self, score: Tensor, acts: Tensor, tokens: Tensor) -> None:
        """Keep those of these windows that score higher than what is kept; of equal scores the earlier window stays.

        Args:
            score: [n, batch].
            acts: [n, batch, pos].
            tokens: [batch, pos].
        """
        n_kept, n_tokens = self.acts.shape[1:]
        missing = n_tokens - acts.shape[2]
        acts = torch.nn.functional.pad(acts, (0, missing))
        tokens = torch.nn.functional.pad(tokens.int(), (0, missing), value=NO_TOKEN).expand(len(acts), -1, -1)
        ranked, order = torch.cat([self.score, score], 1).sort(dim=1, descending=True, stable=True)
        best = order[:, :n_kept, None].expand(-1, -1, n_tokens)
        self.score = ranked[:, :n_kept]
        self.acts = torch.cat([self.acts, acts], 1).gather(1, best)
        self.tokens = torch.cat([self.tokens, tokens], 1).gather(1, best)

    def of(self, i: int) -> list[tuple[list[int], list[float]]]:
        """(token ids, activations) of feature i's windows, by score."""
        windows = []
        for j in (self.score[i] > -torch.inf).nonzero()[:, 0].tolist():
            inside = self.tokens[i, j] != NO_TOKEN
            windows.append((self.tokens[i, j][inside].tolist(), self.acts[i, j][inside].tolist()))
        return windows


@dataclass(eq=False)
class Activity:
    """What n features of one dictionary did in the windows that were added.

    Args:
        features: Their indices [n].
        top: Their strongest windows, by the largest activation.
        drawn: A uniform draw of the windows where each is active.
        n_values: How many activations each feature has had.
        smallest, largest: The range of its activations [n].
        counts: A histogram [n, N_BINS] of its activations above 0, in equal bins from 0 to `limit` [n].
    """

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
        """Add windows.

        Args:
            acts: Activations [batch, pos, n].
            tokens: Token ids [batch, pos].
            draws: A random number for each window [batch]; the highest ones are drawn.
        """
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
        bins = (acts[row, batch, pos] / self.limit[row] * N_BINS).long().clamp(max=N_BINS - 1)
        self.counts += torch.bincount(row * N_BINS + bins, minlength=self.counts.numel()).view_as(self.counts)

    def _widen(self) -> None:
        """Double the limits, and join their bins two by two, until they are above the largest activations."""
        new = (self.limit == 0) & (self.largest > 0)
        self.limit[new] = torch.exp2(torch.log2(self.largest[new]).floor() + 1)
        while bool((narrow := self.largest > self.limit).logical_and(self.limit > 0).any()):
            narrow &= self.limit > 0
            pairs = self.counts[narrow].view(-1, N_BINS // 2, 2).sum(2)
            self.counts[narrow] = torch.cat([pairs, torch.zeros_like(pairs)], 1)
            self.limit[narrow] *= 2


def features_of(graph: nx.MultiDiGraph, dictionaries: Dictionaries) -> dict[Site, list[int]]:
    """Which features of which dictionaries are in the graph: site -> indices, ascending; sites in forward order.

    Raises GraphError if it has none, or if some are of no dictionary that is given.
    """
    by_site: dict[Site, set[int]] = {}
    for node in map(Node.parse, graph):
        if node.kind == "feature" and node.feature is not None:
            by_site.setdefault(node.site, set()).add(node.feature)
    if not by_site:
        raise GraphError("the graph has no features; expected one that was built with dictionaries")
    by_site = {site: by_site[site] for site in sorted(by_site)}
    for site, features in by_site.items():
        if site not in dictionaries:
            raise GraphError(
                f"the graph has features at {site}, where none of the dictionaries is; expected those of the graph:"
                f" they are at {', '.join(map(str, by_site))}"
            )
        if max(features) >= dictionaries[site].d_sae:
            raise GraphError(
                f"the graph has feature {max(features)} at {site}, but {dictionaries[site].name} has"
                f" {dictionaries[site].d_sae} features; expected the dictionaries of the graph"
            )
    return {site: sorted(features) for site, features in by_site.items()}


def run_corpus(
    model: Model,
    dictionaries: Dictionaries,
    features: Mapping[Site, Iterable[int]],
    texts: Iterable[str],
    *,
    n_top: int = Examples.n_top,
    n_drawn: int = 20,
    n_tokens: int = Examples.n_tokens,
    batch_size: int = Examples.batch_size,
    seed: int = Examples.seed,
    progress: Progress = no_progress,
) -> dict[Site, Activity]:
    """What features do over a corpus.

    Args:
        model: The model.
        dictionaries: Its dictionaries.
        features: Site of a dictionary -> indices of its features.
        texts: The corpus; it is read once and never held as a whole.
        n_top: How many of each feature's strongest windows to keep.
        n_drawn: How many windows to draw from those where it is active.
        n_tokens: The longest window in tokens, BOS included.
        batch_size: Windows per forward pass.
        seed: Seed of the draw.
        progress: Called with (stage, done, total).

    Raises CircuitGraphError for a number below 1, and PromptError for a corpus without text.
    """
    for name, value in (("n_top", n_top), ("n_drawn", n_drawn), ("n_tokens", n_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise CircuitGraphError(f"{name} is {value}; expected at least 1")
    n_tokens = min(n_tokens, model.n_ctx)
    activities = {}
    for site, chosen in features.items():
        indices = torch.tensor(list(chosen))
        n = len(indices)
        activities[site] = Activity(indices, Windows.none(n, n_top, n_tokens), Windows.none(n, n_drawn, n_tokens))
    n_start, n_windows = len(model.tokens("")[:1]), 0
    reads = sorted({dictionaries[site].reads for site in features})
    for tokens, draws in batches(windows_of(model, texts, n_tokens), batch_size, seed):
        values = model.run(tokens, record=reads)[1]
        for site, activity in activities.items():
            acts = dictionaries[site].encode(values[dictionaries[site].reads])[:, n_start:]
            activity.add(acts[..., activity.features.to(acts.device)].float().cpu(), tokens[:, n_start:], draws)
        n_windows += len(tokens)
        progress(f"reading the corpus, {n_windows:,} windows", 0, 1)
    if not n_windows:
        raise PromptError("the corpus has no text; expected one text on each line")
    return activities


def windows_of(model: Model, texts: Iterable[str], n_tokens: int) -> Iterator[list[int]]:
    """The token ids of each text in windows of at most n_tokens, each behind a BOS if the model was trained with one.

    Raises CircuitGraphError if n_tokens leaves no room behind the BOS.
    """
    start = model.tokens("")[:1]
    if n_tokens <= len(start):
        raise CircuitGraphError(f"n_tokens is {n_tokens}; expected at least {len(start) + 1}, BOS included")
    size = n_tokens - len(start)
    for text in texts:
        ids = model.tokens(text)[len(start) :]
        for first in range(0, len(ids), size):
            yield [*start, *ids[first : first + size]]


def batches(windows: Iterable[list[int]], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows of one length, each as soon as there are enough.

    Args:
        windows: Token ids.
        size: The largest batch.
        seed: Seed of the random numbers.

    Yields token ids [at most size, pos] and a random number of each window, which depends on nothing but the seed and
    how many windows came before it.
    """
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
    """The texts of a UTF-8 file: each line that is not blank, a line of more than a million characters in pieces.

    Raises PromptError for a file that cannot be read, and while reading for one that is not UTF-8.
    """
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

"""The runs that values are patched from: the corrupted prompts of pairs, and prompts that the caller names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from circuitgraph.attribution.runs import resample_rows
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.doors import PairsLike, as_pairs
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.interventions.edits import ZERO, RunValues
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site

Prompts: TypeAlias = "Tensor | PairsLike"

OF_CORRUPTED = ("corrupted", "mean", "resample")


def prompt_tokens(model: Model, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """Token ids [batch, pos] of the prompts, and of their corrupted prompts where all have one.

    Args:
        model: Its tokenizer is used.
        prompts: Token ids [batch, pos], or whatever `doors.as_pairs` takes: a text, a pair, a list of these, a file.

    Raises PromptError for prompts of several lengths, since interventions name positions, and as `tokenize_pairs` does.
    """
    if isinstance(prompts, Tensor):
        if prompts.ndim != 2 or not len(prompts) or prompts.is_floating_point():
            raise PromptError(f"the token ids have shape {tuple(prompts.shape)}; expected whole numbers [batch, pos]")
        if prompts.dtype == torch.bool or not prompts.shape[1]:
            raise PromptError(
                f"the token ids are {prompts.dtype} {list(prompts.shape)}; expected whole numbers, at least one"
            )
        if prompts.shape[1] > model.n_ctx:
            raise PromptError(
                f"{prompts.shape[1]} tokens, but {model.name} reads at most {model.n_ctx}; shorten the prompt"
            )
        low, high = int(prompts.min()), int(prompts.max())
        if low < 0 or high >= model.n_vocab:
            raise PromptError(
                f"token id {low if low < 0 else high} is not in {model.name}; expected 0-{model.n_vocab - 1}"
            )
        return prompts.to(model.device), None
    pairs = as_pairs(prompts)
    lengths = sorted({len(model.tokens(pair.clean)) for pair in pairs})
    if len(lengths) > 1:
        raise PromptError(
            f"the prompts have {', '.join(map(str, lengths))} tokens; expected one length, since interventions name"
            " positions"
        )
    tokens = tokenize_pairs(model, pairs)
    return tokens.clean.to(model.device), None if tokens.corrupted is None else tokens.corrupted.to(model.device)


@dataclass(frozen=True, eq=False)
class References:
    """Which runs can be patched from: token ids [batch or 1, pos] of named runs, and of corrupted prompts if any."""

    named: Mapping[str, Tensor]
    corrupted: Tensor | None
    n_examples: int
    seed: int

    @classmethod
    def of(
        cls, model: Model, tokens: Tensor, corrupted: Tensor | None, named: Mapping[str, Prompts], seed: int
    ) -> References:
        """The references of prompts with these token ids [batch, pos]; CircuitGraphError if a run does not fit."""
        found = {}
        for name, prompts in named.items():
            if name in (ZERO, *OF_CORRUPTED) or not name.isidentifier():
                raise CircuitGraphError(f"a run cannot be named {name!r}; expected a word that is not taken")
            other, _ = prompt_tokens(model, prompts)
            if other.shape[1] != tokens.shape[1] or len(other) not in (1, len(tokens)):
                raise CircuitGraphError(
                    f"run {name!r} has {len(other)} prompts of {other.shape[1]} tokens; expected {len(tokens)} (or 1)"
                    f" of {tokens.shape[1]}, as ours"
                )
            found[name] = other
        return cls(found, corrupted, len(tokens), seed)

    @property
    def names(self) -> set[str]:
        """Every name that a patch may give."""
        return {ZERO, *self.named, *OF_CORRUPTED} - self.missing.keys()

    @property
    def missing(self) -> dict[str, str]:
        """Why these prompts have no run of that name."""
        if self.corrupted is None:
            return dict.fromkeys(OF_CORRUPTED, "the prompts have no corrupted ones")
        if self.n_examples > 1:
            return {}
        return {
            "mean": "it is the mean over two or more corrupted prompts, and there is one",
            "resample": "it takes the corrupted run of another example, and there is one pair",
        }

    def run(
        self, model: Model, dictionaries: Dictionaries, used: Collection[str], sites: Collection[Site]
    ) -> dict[str, RunValues]:
        """The activations of the used runs at these sites, one row per example: a forward pass for each."""
        record = sorted(sites)
        values: dict[str, Mapping[Site, Tensor]] = {}
        for name in sorted(set(used) & set(self.named)):
            other = model.run(self.named[name], record=record)[1]
            values[name] = {site: value.expand(self.n_examples, *value.shape[1:]) for site, value in other.items()}
        if (of_corrupted := set(used) & set(OF_CORRUPTED)) and self.corrupted is not None:
            corrupted = model.run(self.corrupted, record=record)[1]
            values |= {name: self._made(name, corrupted) for name in of_corrupted}
        return {name: RunValues(dictionaries, found) for name, found in values.items()}

    def _made(self, name: str, corrupted: Mapping[Site, Tensor]) -> Mapping[Site, Tensor]:
        if name == "mean":
            return {site: value.mean(0, keepdim=True).expand_as(value) for site, value in corrupted.items()}
        if name == "resample":
            rows: Tensor = resample_rows(self.n_examples, self.seed)
            return {site: value[rows] for site, value in corrupted.items()}
        return corrupted

"""Prompt pairs as token ids, checked so that clean and corrupted can be compared position by position.

In come pairs and a model whose tokenizer reads them; out come tensors of ids. This module runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.errors import PromptError
from circuitgraph.model import Model
from circuitgraph.prompts import PromptPair


@dataclass(frozen=True)
class TokenizedPairs:
    """Prompt pairs as token ids: clean and corrupted [batch, pos], and per example the ids of right and wrong answers."""

    clean: Tensor
    corrupted: Tensor
    answers: tuple[tuple[int, ...], ...]
    wrong_answers: tuple[tuple[int, ...], ...]


def tokenize_pairs(model: Model, pairs: Sequence[PromptPair]) -> TokenizedPairs:
    """Token ids of the pairs, checked: clean and corrupted align position by position, answers are single tokens.

    All pairs must have one length, since nodes are aligned by position. Raises PromptError with the pair's number.
    """
    if not pairs:
        raise PromptError("there are no prompt pairs; expected at least one")
    rows = []
    for number, pair in enumerate(pairs, 1):
        try:
            rows.append(_tokenize_pair(model, pair))
        except PromptError as error:
            raise PromptError(f"pair {number}: {error}") from None
    lengths = [len(row[0]) for row in rows]
    if len(set(lengths)) > 1:
        other = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise PromptError(
            f"pair 1 has {lengths[0]} tokens, pair {other + 1} has {lengths[other]}. Nodes are aligned by position, so all pairs"
            " of one graph must have the same length: build one graph per length (--length)"
        )
    clean, corrupted, answers, wrong = zip(*rows, strict=True)
    return TokenizedPairs(torch.tensor(clean), torch.tensor(corrupted), tuple(answers), tuple(wrong))


def pairs_of_length(model: Model, pairs: Sequence[PromptPair], length: int) -> list[PromptPair]:
    """The pairs whose clean prompt has `length` tokens, BOS included. PromptError, with the lengths there are, if none."""
    lengths = [len(model.tokens(pair.clean)) for pair in pairs]
    if length not in lengths:
        raise PromptError(f"no pair has {length} tokens; the lengths are {', '.join(map(str, sorted(set(lengths))))}")
    return [pair for pair, n in zip(pairs, lengths, strict=True) if n == length]


def _tokenize_pair(model: Model, pair: PromptPair) -> tuple[list[int], list[int], tuple[int, ...], tuple[int, ...]]:
    clean, corrupted = model.tokens(pair.clean), model.tokens(pair.corrupted)
    if len(clean) != len(corrupted):
        first = next(
            (i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b),
            min(len(clean), len(corrupted)),
        )
        here = ["|".join(model.token_strings(ids[first : first + 2])) or "nothing" for ids in (clean, corrupted)]
        raise PromptError(
            f"clean has {len(clean)} tokens, corrupted has {len(corrupted)}. Attribution compares position by position."
            f" First difference: position {first}, {here[0]!r} against {here[1]!r}"
        )
    for text, ids in ((pair.clean, clean), (pair.corrupted, corrupted)):
        if model.unknown_token is not None and model.unknown_token in ids:
            raise PromptError(
                f"{text!r} has a word that {model.name} does not know, token {ids.index(model.unknown_token)}"
            )
    if len(clean) > model.n_ctx:
        raise PromptError(f"{len(clean)} tokens, but {model.name} reads at most {model.n_ctx}; shorten the prompt")
    answers = tuple(_answer(model, pair.clean, clean, text) for text in pair.answers)
    wrong = tuple(_answer(model, pair.clean, clean, text) for text in pair.wrong_answers)
    if both := set(answers) & set(wrong):
        raise PromptError(f"{model.token_strings(list(both))[0]!r} is a right and a wrong answer at once")
    return clean, corrupted, answers, wrong


def _answer(model: Model, prompt: str, prompt_ids: list[int], text: str) -> int:
    ids = model.continuation(text)
    if len(ids) != 1:
        raise PromptError(
            f"answer {text!r} is {len(ids)} tokens ({'|'.join(model.token_strings(ids))}); expected one. Use an answer that the"
            " tokenizer keeps whole (often with a leading space)"
        )
    if ids[0] == model.unknown_token:
        raise PromptError(f"answer {text!r} is not in the model's vocabulary")
    if model.tokens(prompt + text) != [*prompt_ids, *ids]:
        raise PromptError(
            f"answer {text!r} fuses with the end of the prompt when tokenized; move the space between them"
        )
    return ids[0]

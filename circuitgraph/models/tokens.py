"""Prompt pairs as token ids, checked so that clean and corrupted can be compared position by position.

Turns prompt pairs into token ids and finds the tokens of named words. This module runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.errors import PromptError
from circuitgraph.models.model import Model
from circuitgraph.prompts import PromptPair, word_span


@dataclass(frozen=True)
class TokenizedPairs:
    """Prompt pairs as token ids: clean and corrupted [batch, pos], and per example the ids of right and wrong answers.

    corrupted is None where the pairs have no corrupted prompts.

    lengths: how many tokens each example has, where they differ; what stands behind them is padding, which no earlier
    position of a causal model sees. roles: per example name -> (first, last) position of the named word.
    """

    clean: Tensor
    corrupted: Tensor | None
    answers: tuple[tuple[int, ...], ...]
    wrong_answers: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...] | None = None
    roles: tuple[Mapping[str, tuple[int, int]], ...] = ()

    def at_end(self, logits: Tensor) -> Tensor:
        """logits [batch, pos, vocab], or of n copies of the batch, with every example's last position at -1.

        So metrics read them. The positions that a shorter example lacks in front repeat its first.
        """
        if self.lengths is None:
            return logits
        lengths = torch.tensor(self.lengths, device=logits.device).repeat(len(logits) // len(self.lengths))
        n_pos = logits.shape[1]
        at = (torch.arange(n_pos, device=logits.device) - (n_pos - lengths[:, None])).clamp(min=0)
        return logits[torch.arange(len(logits), device=logits.device)[:, None], at]


def tokenize_pairs(model: Model, pairs: Sequence[PromptPair], *, by_role: bool = False) -> TokenizedPairs:
    """Token ids of the pairs, checked: clean and corrupted align position by position, answers are single tokens.

    All pairs must have one length, since nodes are aligned by position. by_role: with the positions of named words;
    pairs of different lengths are padded at their end. Raises PromptError with the pair's number.
    """
    if not pairs:
        raise PromptError("there are no prompt pairs; expected at least one")
    missing = [number for number, pair in enumerate(pairs, 1) if pair.corrupted is None]
    if missing and len(missing) < len(pairs):
        raise PromptError(f"pair {missing[0]} has no corrupted prompt and others have one; give all pairs one, or none")
    rows, roles = [], []
    for number, pair in enumerate(pairs, 1):
        try:
            rows.append(_tokenize_pair(model, pair))
            roles.append(_role_positions(model, pair) if by_role else {})
        except PromptError as error:
            raise PromptError(f"pair {number}: {error}") from None
    lengths = [len(row[0]) for row in rows]
    if len(set(lengths)) > 1 and by_role:
        if not model.causal:
            raise PromptError(
                f"the pairs have {', '.join(map(str, sorted(set(lengths))))} tokens, and padding would change what"
                f" {model.name} computes, since its attention looks ahead; build one graph per length (--length)"
            )
        longest = max(lengths)
        rows = [(_padded(a, longest), _padded(b, longest), right, wrong) for a, b, right, wrong in rows]
    elif len(set(lengths)) > 1:
        other = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise PromptError(
            f"pair 1 has {lengths[0]} tokens, pair {other + 1} has {lengths[other]}. Nodes are aligned by position, so"
            " all pairs of one graph must have the same length: build one graph per length (--length), or align by"
            " named words (--align role)"
        )
    clean, corrupted, answers, wrong = zip(*rows, strict=True)
    differ = tuple(lengths) if len(set(lengths)) > 1 else None
    corrupted_ids = None if missing else torch.tensor(corrupted)
    return TokenizedPairs(torch.tensor(clean), corrupted_ids, tuple(answers), tuple(wrong), differ, tuple(roles))


def _padded(ids: list[int], length: int) -> list[int]:
    """The ids with the last one repeated: no library takes it for padding that it should hide."""
    return ids + ids[-1:] * (length - len(ids))


def token_spans(model: Model, text: str) -> list[tuple[int, int]]:
    """The first character of each of `model.tokens(text)` in the text and the one after its last; (0, 0) for BOS."""
    tokenizer = model.library.tokenizer
    if not tokenizer.is_fast:
        raise PromptError(
            f"the tokenizer of {model.name} does not say where tokens stand in the text, so roles find none"
        )
    spans = tokenizer(text, return_offsets_mapping=True).offset_mapping
    missing = len(model.tokens(text)) - len(spans)  # the BOS that `Model.tokens` adds or drops
    return [(0, 0)] * missing + [(int(a), int(b)) for a, b in spans[max(-missing, 0) :]]


def _role_positions(model: Model, pair: PromptPair) -> dict[str, tuple[int, int]]:
    """name -> (first, last) position of the tokens that the named word is made of."""
    found: dict[str, tuple[int, int]] = {}
    spans = token_spans(model, pair.clean) if pair.roles else []
    for name, word in dict(pair.roles).items():
        start, stop = word_span(pair.clean, name, word)
        at = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
        text = pair.clean[start:stop]
        if not at:
            raise PromptError(f"role {name!r} is {text!r}, and no token stands there; name a word")
        if at[-1] == len(spans) - 1:
            raise PromptError(f"role {name!r} is {text!r}, the last token, which is END in every prompt; leave it out")
        for other, (_, last) in found.items():
            if last == at[-1]:
                raise PromptError(f"roles {other!r} and {name!r} both end at token {last}, {text!r}; give it one name")
        found[name] = at[0], at[-1]
    return found


def pairs_of_length(model: Model, pairs: Sequence[PromptPair], length: int) -> list[PromptPair]:
    """The pairs whose clean prompt has `length` tokens, BOS included; PromptError, with all lengths, if none has."""
    lengths = [len(model.tokens(pair.clean)) for pair in pairs]
    if length not in lengths:
        raise PromptError(f"no pair has {length} tokens; the lengths are {', '.join(map(str, sorted(set(lengths))))}")
    return [pair for pair, n in zip(pairs, lengths, strict=True) if n == length]


def _tokenize_pair(model: Model, pair: PromptPair) -> tuple[list[int], list[int], tuple[int, ...], tuple[int, ...]]:
    clean = model.tokens(pair.clean)
    corrupted = clean if pair.corrupted is None else model.tokens(pair.corrupted)
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
    for text, ids in ((pair.clean, clean), (pair.corrupted or "", corrupted)):
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
            f"answer {text!r} is {len(ids)} tokens ({'|'.join(model.token_strings(ids))}); expected one. Use an answer"
            " that the tokenizer keeps whole (often with a leading space)"
        )
    if ids[0] == model.unknown_token:
        raise PromptError(f"answer {text!r} is not in the model's vocabulary")
    if model.tokens(prompt + text) != [*prompt_ids, *ids]:
        raise PromptError(
            f"answer {text!r} fuses with the end of the prompt when tokenized; move the space between them"
        )
    return ids[0]

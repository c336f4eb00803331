"""How well a model solves the tasks, and how well a dictionary describes activations.

Works for the plain model and for one with dictionaries spliced in: it only needs a function from token ids to logits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sae_lens import SAE
from transformers import PreTrainedTokenizerFast

from circuitgraph.demo.hook_points import encode
from circuitgraph.prompts import PromptPair
from circuitgraph.tasks import TASKS, make_pairs

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Score:
    """How well a model solves a task.

    Args:
        right_above_wrong: Share of pairs where the right answers together are likelier than the wrong ones.
        top1: Share of pairs where the likeliest token is a right answer.
    """

    right_above_wrong: float
    top1: float


@dataclass(frozen=True)
class Quality:
    """How well a dictionary describes activations.

    Args:
        l0: Active features per token.
        explained_variance: 1 - error / variance.
        n_alive: Features that are active at some token.
    """

    l0: float
    explained_variance: float
    n_alive: int


@torch.no_grad()
def score_task(forward: Forward, tokenizer: PreTrainedTokenizerFast, task: str, n: int = 1024, seed: int = 1) -> Score:
    """The score on the clean prompts of held-out pairs.

    Args:
        forward: Token ids [batch, pos] -> logits [batch, pos, vocab].
        tokenizer: The demo model's.
        task: Name of the task.
        n: How many pairs.
        seed: Seed of the pairs.
    """
    above = first = 0
    for ids, pairs in _by_length(tokenizer, make_pairs(task, n, seed=seed)):
        probabilities = forward(ids)[:, -1].softmax(-1)
        for row, pair in zip(probabilities, pairs, strict=True):
            right, wrong = (_single_tokens(tokenizer, words) for words in (pair.answers, pair.wrong_answers))
            above += bool(row[right].sum() > row[wrong].sum())
            first += int(row.argmax()) in right
    return Score(above / n, first / n)


@torch.no_grad()
def measure_dictionary(dictionary: SAE, x: torch.Tensor, y: torch.Tensor) -> Quality:
    """How well a dictionary predicts y from x.

    Args:
        dictionary: An autoencoder or transcoder of sae-lens.
        x: Activations that it reads [token, d_in].
        y: Activations that it writes [token, d_out]; x itself for an autoencoder.
    """
    acts = encode(dictionary, x)
    error = y - dictionary.decode(acts).reshape(y.shape)
    explained = 1 - error.pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    active = acts > 0
    return Quality(active.sum(1).float().mean().item(), explained.item(), int(active.any(0).sum()))


def prompt_batches(tokenizer: PreTrainedTokenizerFast, n: int, seed: int = 1) -> list[torch.Tensor]:
    """Token ids [batch, pos] of clean and corrupted prompts, n held-out pairs of each task, in one batch per length."""
    return [
        torch.cat([ids, tokenizer([pair.corrupted for pair in pairs], return_tensors="pt")["input_ids"]])
        for task in TASKS
        for ids, pairs in _by_length(tokenizer, make_pairs(task, n, seed=seed))
    ]


def _by_length(
    tokenizer: PreTrainedTokenizerFast, pairs: list[PromptPair]
) -> list[tuple[torch.Tensor, list[PromptPair]]]:
    groups: dict[int, list[tuple[list[int], PromptPair]]] = defaultdict(list)
    for pair in pairs:
        ids = tokenizer(pair.clean)["input_ids"]
        groups[len(ids)].append((ids, pair))
    return [(torch.tensor([ids for ids, _ in group]), [pair for _, pair in group]) for group in groups.values()]


def _single_tokens(tokenizer: PreTrainedTokenizerFast, words: tuple[str, ...]) -> list[int]:
    return [ids[0] for ids in tokenizer(list(words), add_special_tokens=False)["input_ids"]]

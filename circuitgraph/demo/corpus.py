"""The demo model's word-level tokenizer, and the text of `circuitgraph.tasks` as batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from circuitgraph.tasks import TASKS, make_pairs, make_text

SPECIAL = ("<pad>", "<bos>", "<unk>")
MAX_LENGTH = 64
# "1732" becomes 17 32; every punctuation mark stands alone; the rest is words.
_PIECES = Regex(r"\d{2}|\d|[^\W\d_]+|[^\w\s]|_")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of all words of the text and the pairs: a token is a word, a punctuation mark or a two-digit year.

    <bos> goes first.
    """
    pieces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(_PIECES, "isolated")])
    texts = [*make_text(20_000, seed=0)]
    texts += [pair.clean + pair.answers[0] for task in TASKS for pair in make_pairs(task, 2_000)]
    words = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    words |= {f"{year:02}" for year in range(100)}
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pieces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<unk>", pad_token="<pad>",
        model_max_length=MAX_LENGTH, padding_side="right",
    )  # fmt: skip


def text_batches(tokenizer: PreTrainedTokenizerFast, n_batches: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of training text.

    Args:
        tokenizer: From `build_tokenizer`.
        n_batches: How many batches.
        size: Documents in each.
        seed: Seed of the text.

    Yields token ids [size, length], right-padded to the longest document of the batch.
    """
    documents = make_text(n_batches * size, seed=seed)
    for _ in range(n_batches):
        batch = [next(documents) for _ in range(size)]
        yield tokenizer(batch, padding=True, return_tensors="pt")["input_ids"]

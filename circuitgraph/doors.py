"""The doors: what callers hand in becomes what the engine takes, here and once, or one line says what was wrong.

Every public function calls these first, so that a name, a folder or an object of TransformerLens is as good as a loaded
`Model`, one SAE as good as a `Dictionaries`, and a text as good as a list of pairs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, TypeAlias

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.dictionaries.dictionary import check_fit
from circuitgraph.dictionaries.load import DictionarySources, load_dictionaries
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.models.load import load_model
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import pairs_of_length
from circuitgraph.prompts import PromptPair, read_pairs
from circuitgraph.settings import Prompts

ModelLike: TypeAlias = Model | str | Path | Any
DictionariesLike: TypeAlias = "Dictionaries | DictionarySources"
PairsLike: TypeAlias = "PromptPair | str | Path | Sequence[PromptPair | str]"


def as_model(model: ModelLike) -> Model:
    """The model as the engine runs it.

    Args:
        model: A `Model`; a name, a local folder or "demo"; a TransformerBridge, HookedTransformer or
            HookedSAETransformer; or a causal language model of transformers, whose tokenizer is found by
            `name_or_path`.

    Raises ModelError for anything else, and for a model that cannot be loaded.
    """
    return model if isinstance(model, Model) else load_model(model)


def as_dictionaries(dictionaries: DictionariesLike | None, model: Model) -> Dictionaries:
    """The dictionaries as one value, checked against the model.

    Args:
        dictionaries: A `Dictionaries`; whatever `load_dictionaries` takes: a name, a folder, a sae_lens.SAE, a
            dictionary, a list of these or a mapping from the sites that they write; None or an empty list for none.
        model: The model that they belong to.

    Raises DictionaryError for anything else, two dictionaries at one site, or one that does not fit the model.
    """
    if isinstance(dictionaries, Dictionaries):
        for dictionary in dictionaries.values():
            check_fit(dictionary, model)
        return dictionaries
    empty = isinstance(dictionaries, Sized) and not isinstance(dictionaries, str) and len(dictionaries) == 0
    return Dictionaries() if dictionaries is None or empty else load_dictionaries(dictionaries, model)


def as_pairs(prompts: PairsLike) -> list[PromptPair]:
    """The prompts as pairs, at least one.

    Args:
        prompts: One `PromptPair` or a list of them; a text or a list of texts, which have no corrupted prompt; or the
            path of a prompt file, as a Path or as a text that ends in .json or .jsonl and is one word or names a file.

    Raises PromptError for anything else, an empty list, or a file that cannot be read.
    """
    if isinstance(prompts, PromptPair):
        return [prompts]
    if isinstance(prompts, Path):
        return read_pairs(prompts)
    if isinstance(prompts, str):
        path = Path(prompts)
        named = path.suffix in (".json", ".jsonl") and len(prompts) < 4096
        is_file = named and (not re.search(r"\s", prompts) or path.is_file())
        return read_pairs(path) if is_file else [PromptPair(prompts)]
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise PromptError(
            f"the prompts are of type {type(prompts).__name__}; expected a text, a PromptPair, or a list of these"
        )
    pairs = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str | PromptPair):
            raise PromptError(f"prompt {number} is of type {type(prompt).__name__}; expected a text or a PromptPair")
        pairs.append(PromptPair(prompt) if isinstance(prompt, str) else prompt)
    if not pairs:
        raise PromptError("there are no prompts; expected at least one")
    return pairs


def as_words(words: str | Iterable[str] | None, what: str) -> tuple[str, ...]:
    """The words as a tuple: one text is one word, None is none.

    Args:
        words: A text, or texts.
        what: What they are, for the message.

    Raises CircuitGraphError for anything that is not text.
    """
    given = () if words is None else (words,) if isinstance(words, str) else words
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise CircuitGraphError(f"{what} is {words!r}; expected a word or a list of words")
    found = tuple(given)
    for word in found:
        if not isinstance(word, str):
            raise CircuitGraphError(f"{what} holds {word!r}; expected words")
    return found


def choose_pairs(pairs: Sequence[PromptPair], model: Model, which: Prompts) -> list[PromptPair]:
    """The pairs that the settings leave: those of one length, and of these a number drawn at random.

    Args:
        pairs: All pairs.
        model: Its tokenizer counts the tokens.
        which: length, examples and seed.

    Raises PromptError, with the lengths that there are, if no pair has the length.
    """
    chosen = list(pairs) if which.length is None else pairs_of_length(model, pairs, which.length)
    if which.examples is not None and which.examples < len(chosen):
        chosen = random.Random(which.seed).sample(chosen, which.examples)
    return chosen

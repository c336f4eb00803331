"""Pairs of prompts: reading, writing, and the checks that need no tokenizer.

Reads JSON lines (ours, feature-circuits') and auto-circuit's JSON. Tokens are checked in models/tokens.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitgraph.errors import PromptError

START, END = "start", "END"  # the roles of the first and the last token of every prompt

# A word of a prompt, counted from 0 as split at white space, or its first character and the one after its last.
Word = int | tuple[int, int]


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in what decides the answer, or one prompt that is compared with nothing.

    Args:
        clean: The prompt that the model answers.
        corrupted: The prompt it is compared with; None (or "") where there is none, which suits baseline "zero".
        answers: Right continuations *of the clean prompt*; each must be one token. A text is one answer.
        wrong_answers: Wrong ones, likewise.
        roles: Names of words of the clean prompt, {"IO": 1, "S1": 3}, by which prompts of different form are aligned.
            They are kept as a tuple of (name, word).

    Raises PromptError for anything that is not text, and for a role that names nothing.
    """

    clean: str
    corrupted: str | None = None
    answers: tuple[str, ...] = ()
    wrong_answers: tuple[str, ...] = ()
    roles: Mapping[str, Word] | tuple[tuple[str, Word], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.clean, str) or not self.clean:
            raise PromptError(f"clean is {self.clean!r}; expected a text that is not empty")
        if self.corrupted is not None and not isinstance(self.corrupted, str):
            raise PromptError(f"corrupted is {self.corrupted!r}; expected a text, or None for no corrupted prompt")
        object.__setattr__(self, "corrupted", self.corrupted or None)
        for name in ("answers", "wrong_answers"):
            object.__setattr__(self, name, _answers(name, getattr(self, name)))
        roles = tuple(dict(self.roles).items())
        for name, word in roles:
            _check_role(name, word)
            word_span(self.clean, name, word)
        object.__setattr__(self, "roles", roles)

    def swapped(self) -> PromptPair:
        """The same pair seen from the other side: prompts and answers exchanged. Roles keep the number of their word.

        Raises PromptError where there is no corrupted prompt.
        """
        if self.corrupted is None:
            raise PromptError(f"{self.clean!r} has no corrupted prompt to be swapped with")
        roles = {name: _word_in(self.corrupted, self.clean, name, word) for name, word in dict(self.roles).items()}
        return PromptPair(self.corrupted, self.clean, self.wrong_answers, self.answers, roles)


def _answers(name: str, given: object) -> tuple[str, ...]:
    answers = (given,) if isinstance(given, str) else given
    if not isinstance(answers, Iterable) or isinstance(answers, bytes | Mapping):
        raise PromptError(f"{name} is {given!r}; expected a text or a list of texts")
    answers = tuple(answers)
    for answer in answers:
        if not isinstance(answer, str):
            raise PromptError(f"{name} holds {answer!r}; expected texts")
    return answers


def word_span(text: str, name: str, word: Word) -> tuple[int, int]:
    """The first character of a role's word in the text and the one after its last, without punctuation at its ends.

    PromptError, with the role's name, where the text has no such word.
    """
    if isinstance(word, tuple):
        if not 0 <= word[0] < word[1] <= len(text):
            raise PromptError(f"role {name!r} is characters {list(word)}; the clean prompt has {len(text)}")
        return word
    words = list(re.finditer(r"\S+", text))
    if not 0 <= word < len(words):
        raise PromptError(f"role {name!r} is word {word}; the clean prompt has words 0 to {len(words) - 1}")
    inner = re.search(r"\w(.*\w)?", words[word][0])
    start = words[word].start()
    return words[word].span() if inner is None else (start + inner.start(), start + inner.end())


def _word_in(other: str, text: str, name: str, word: Word) -> Word:
    """The role's word of one prompt in the other: the same number; characters count from the start of their word."""
    if isinstance(word, int):
        return word
    number = len(re.findall(r"\S+", text[: word[0] + 1])) - 1
    here, there = (list(re.finditer(r"\S+", each)) for each in (text, other))
    last = len(re.findall(r"\S+", text[: word[1]])) - 1
    if len(here) != len(there) or text[word[0]].isspace() or text[word[1] - 1].isspace():
        raise PromptError(f"role {name!r} has no counterpart in the corrupted prompt; name a word by its number")
    start = word[0] - here[number].start() + there[number].start()
    whole = word[1] == here[last].end()
    return start, there[last].end() if whole else word[1] - here[last].start() + there[last].start()


def _check_role(name: object, word: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise PromptError(f"role {name!r} is no name; expected letters, digits and underscores, such as 'IO' or 'S1'")
    if name in (START, END):
        raise PromptError(
            f"role {name!r} is taken: it is the {'first' if name == START else 'last'} token of every prompt"
        )
    numbers = word if isinstance(word, tuple) else (word,)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers) or (
        isinstance(word, tuple) and len(word) != 2
    ):
        raise PromptError(
            f"role {name!r} is {word!r}; expected the number of a word, or its first character and the one after"
            " its last"
        )


def read_pairs(path: str | Path) -> list[PromptPair]:
    """The pairs of a prompt file, in order.

    One JSON object per line, ours:
        {"clean": ..., "corrupted": ..., "answers": [...], "wrong_answers": [...]}
        and "roles": {"IO": 1, "S1": [14, 18], ...} where words have names;
        {"clean": ...} alone for baseline zero and targets that need no answer
    or feature-circuits':
        {"clean_prefix": ..., "patch_prefix": ..., "clean_answer": ..., "patch_answer": ...}
    or one JSON object, auto-circuit's:
        {"prompts": [{"clean": ..., "corrupt": ..., "answers": [...], "wrong_answers": [...]}]}

    Args:
        path: The file, of UTF-8 text.

    Raises PromptError for a missing or empty file, with the line's number for a malformed line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PromptError(f"prompt file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt file {path} cannot be read: {error}") from None
    if not text.strip():
        raise PromptError(f"prompt file {path} is empty; expected one JSON object per line")
    records = _whole_file(path, text)
    if records is None:
        records = [(f"line {i}", _parse(path, i, line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    pairs = []
    for where, record in records:
        try:
            pairs.append(pair_of(record))
        except PromptError as error:
            raise PromptError(f"prompt file {path}, {where}: {error}") from None
    return pairs


def pairs_to_text(pairs: Sequence[PromptPair]) -> str:
    """The pairs as our JSON lines; `read_pairs` of it gives the same pairs."""
    return "".join(json.dumps(record_of(pair), ensure_ascii=False) + "\n" for pair in pairs)


def record_of(pair: PromptPair) -> dict[str, Any]:
    """The pair as a JSON object; `pair_of` it is the same pair."""
    record: dict[str, Any] = {"clean": pair.clean}
    if pair.corrupted is not None:
        record["corrupted"] = pair.corrupted
    record |= {"answers": list(pair.answers), "wrong_answers": list(pair.wrong_answers)}
    if pair.roles:
        record["roles"] = {n: list(word) if isinstance(word, tuple) else word for n, word in dict(pair.roles).items()}
    return record


def _whole_file(path: Path, text: str) -> list[tuple[str, Any]] | None:
    """The records of auto-circuit's format, or None when the file is JSON lines."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(whole, dict) or "prompts" not in whole:
        return None
    prompts = whole["prompts"]
    if not isinstance(prompts, list) or not prompts:
        raise PromptError(f"prompt file {path}: 'prompts' holds no pairs; expected a list of at least one")
    return [(f"prompt {i}", record) for i, record in enumerate(prompts, 1)]


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"prompt file {path}, line {number} is not JSON: {error.msg} at column {error.colno}"
        ) from None


# spelling of the clean prompt -> spellings of corrupted prompt, answers, wrong answers
_SPELLINGS = (
    ("clean", "corrupted", "answers", "wrong_answers"),
    ("clean", "corrupted", "answer", "wrong_answer"),
    ("clean", "corrupt", "answers", "wrong_answers"),
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
)


_CORRUPTED = frozenset(spelling[1] for spelling in _SPELLINGS)  # null stands for no corrupted prompt


def pair_of(record: Any) -> PromptPair:
    """The pair that a JSON object of any of the spellings holds; PromptError for what is missing or no string."""
    if not isinstance(record, dict):
        raise PromptError(f"expected a JSON object, found {type(record).__name__}")
    record = {key: value for key, value in record.items() if value is not None or key not in _CORRUPTED}
    for clean, corrupted, answers, wrong in _SPELLINGS:
        if clean in record and corrupted in record and answers in record:
            return PromptPair(
                _string(clean, record[clean]),
                _string(corrupted, record[corrupted]),
                _strings(answers, record[answers]),
                _strings(wrong, record.get(wrong, [])),
                _roles(record.get("roles", {})),
            )
    if "clean" in record and set(record) <= {"clean", "answers", "wrong_answers", "roles"}:
        right, others = (_strings(name, record.get(name, [])) for name in ("answers", "wrong_answers"))
        return PromptPair(_string("clean", record["clean"]), None, right, others, _roles(record.get("roles", {})))
    raise PromptError(f"found the keys {sorted(record)}; expected clean, corrupted, answers and wrong_answers")


def _string(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise PromptError(f"{key} is {value!r}; expected a non-empty string")
    return value


def _strings(key: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise PromptError(f"{key} is {value!r}; expected a string or a list of strings")
    return tuple(_string(key, item) for item in values)


def _roles(value: Any) -> dict[str, Word]:
    if not isinstance(value, dict):
        raise PromptError(f"roles is {value!r}; expected an object from names to words")
    return {name: tuple(word) if isinstance(word, list) else word for name, word in value.items()}

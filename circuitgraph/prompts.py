"""Pairs of prompts: reading, writing, and the checks that need no tokenizer.

In comes a file (JSON lines of our own or of feature-circuits, or auto-circuit's JSON); out come `PromptPair`
values. This module does not know tokens: lengths and answers are checked where a tokenizer is at hand
(`tokens.tokenize_pairs`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitgraph.errors import PromptError


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in what decides the answer.

    `answers` are right and `wrong_answers` wrong continuations *of the clean prompt*; each must be one token.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...] = ()

    def swapped(self) -> PromptPair:
        """The same pair seen from the other side: prompts and answers exchanged."""
        return PromptPair(self.corrupted, self.clean, self.wrong_answers, self.answers)


def read_pairs(path: str | Path) -> list[PromptPair]:
    """The pairs of a prompt file, in order.

    One JSON object per line, ours:        {"clean": ..., "corrupted": ..., "answers": [...], "wrong_answers": [...]}
                        feature-circuits': {"clean_prefix": ..., "patch_prefix": ..., "clean_answer": ..., "patch_answer": ...}
    or one JSON object, auto-circuit's:    {"prompts": [{"clean": ..., "corrupt": ..., "answers": [...], "wrong_answers": [...]}]}

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
            pairs.append(_pair(record))
        except PromptError as error:
            raise PromptError(f"prompt file {path}, {where}: {error}") from None
    return pairs


def pairs_to_text(pairs: Sequence[PromptPair]) -> str:
    """The pairs as our JSON lines; `read_pairs` of it gives the same pairs."""
    lines = (
        {"clean": p.clean, "corrupted": p.corrupted, "answers": list(p.answers), "wrong_answers": list(p.wrong_answers)}
        for p in pairs
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


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


def _pair(record: Any) -> PromptPair:
    if not isinstance(record, dict):
        raise PromptError(f"expected a JSON object, found {type(record).__name__}")
    for clean, corrupted, answers, wrong in _SPELLINGS:
        if clean in record and corrupted in record and answers in record:
            return PromptPair(
                _string(clean, record[clean]),
                _string(corrupted, record[corrupted]),
                _strings(answers, record[answers]),
                _strings(wrong, record.get(wrong, [])),
            )
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

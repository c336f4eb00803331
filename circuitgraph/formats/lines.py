"""Rows of attributes -> lines of JSON, a column at a time.

In come dicts of plain values, out comes the JSON text of each in one line with sorted keys. Rows that hold the same attributes
are written together: what a column holds is looked at once, and a number costs one call of the interpreter's own `repr`, which
is JSON's way to write it. What fits no quick way is written by the encoder, which gives the same text. This module knows no format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from circuitgraph.errors import GraphError
from circuitgraph.formats.values import dumps

FEW = 4  # rows of one kind, from which on the columns are quicker
_FLOAT, _STRING, _LIST = frozenset({float}), frozenset({str}), frozenset({list})


def dump_lines(rows: Sequence[dict[str, Any]], where: Callable[[int], str]) -> list[str]:
    """`dumps` of each row, whose place where(its number) names in what is raised for a value that is none of JSON."""
    lines = [""] * len(rows)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(i)
    for names, numbers in alike.items():
        written = _columns(names, [rows[i] for i in numbers]) if names and len(numbers) >= FEW else None
        if written is None:
            written = [dumps(rows[i], where(i)) for i in numbers]
        for i, line in zip(numbers, written, strict=True):
            lines[i] = line
    return lines


def _columns(names: Iterable[str], rows: Sequence[dict[str, Any]]) -> list[str] | None:
    """The lines of rows that all have these attributes; None where a value needs a closer look."""
    names = sorted(names)
    texts = []
    for name in names:
        written = _column(list(map(itemgetter(name), rows)))
        if written is None:
            return None
        texts.append(written)
    form = ", ".join(dumps(name, "").replace("%", "%%") + ": %s" for name in names)
    return list(map(f"{{{form}}}".__mod__, zip(*texts, strict=True)))


def _column(values: list[Any]) -> Iterable[str] | None:
    kinds = set(map(type, values))
    if kinds == _FLOAT:
        return map(repr, values) if all(map(math.isfinite, values)) else None
    if kinds == _STRING:
        written = {value: dumps(value, "") for value in set(values)}
        return map(written.__getitem__, values)
    if kinds == _LIST and _FLOAT.issuperset(map(type, chain.from_iterable(values))):
        return map(repr, values) if all(map(math.isfinite, chain.from_iterable(values))) else None
    try:
        return [dumps(value, "") for value in values]
    except GraphError:
        return None

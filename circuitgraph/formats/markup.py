"""Text that every format can hold, and XML files read without trusting them.

In come strings and files; out come strings without characters that XML, CSV or UTF-8 refuse, and the elements of an XML file.
`escape` writes such characters as `\\u0007` and `unescape` brings them back, so nothing is lost and everything stays visible;
the backslash of a text that looks like that itself is escaped too. Why each: C0 controls make XML unreadable and CSV rows
break, lone surrogates have no UTF-8, U+FFFE and U+FFFF are forbidden in XML. This module knows no graph.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape as _entities

from circuitgraph.errors import GraphError
from circuitgraph.formats.flat import BOOLEAN, INTEGER, NUMBER
from circuitgraph.formats.untrusted import MAX_BYTES, open_bytes

MAX_DEPTH = 50
_HIDDEN = re.compile(r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]|\\(?=u[0-9a-f]{4})")
_SHOWN = re.compile(r"\\u([0-9a-f]{4})")

Value = str | int | float | bool


def escape(text: str) -> str:
    """The text with forbidden characters as \\uXXXX."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape(text: str) -> str:
    """What `escape` was given."""
    return _SHOWN.sub(lambda match: chr(int(match[1], 16)), text)


def xml(value: Value) -> str:
    """A value as the text of an XML attribute or element."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _often(value) if len(value) < 64 else _text(value)
    return repr(value)


def _text(value: str) -> str:
    return _entities(escape(value), {'"': "&quot;"})


_often = functools.lru_cache(maxsize=1 << 14)(_text)  # names of nodes and kinds stand in many edges


def value_of(text: str, kind: str) -> Value:
    """The value that a text stands for in a column of that type; GraphError if it does not."""
    if kind not in (INTEGER, NUMBER, BOOLEAN):
        return unescape(text)
    value: int | float | None = None
    with contextlib.suppress(ValueError):
        if kind == INTEGER and len(text) <= 20:
            value = int(text)
        elif kind == NUMBER:
            value = float(text)
        elif kind == BOOLEAN:
            value = {"true": True, "false": False}.get(text.strip().lower())
    if value is None or not math.isfinite(value) or (kind == INTEGER and not -(1 << 63) <= value < 1 << 63):
        raise GraphError(f"{text[:40]!r} stands in a column of type {kind}")
    return value


def read_xml(path: str | Path, start: Callable[[str, dict[str, str]], None], end: Callable[[str, str], None]) -> None:
    """Call start(tag, attributes) and end(tag, its direct text) for each element, without namespaces.

    GraphError for what is not XML, for documents with a DTD (entities could be without end), and for deep nesting.
    """
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    texts: list[list[str]] = []

    def on_start(tag: str, attributes: dict[str, str]) -> None:
        if len(texts) >= MAX_DEPTH:
            raise GraphError(f"its elements are nested more than {MAX_DEPTH} deep")
        texts.append([])
        start(tag.rpartition("}")[2], attributes)

    def on_end(tag: str) -> None:
        end(tag.rpartition("}")[2], "".join(texts.pop()))

    def on_text(text: str) -> None:
        texts[-1].append(text)

    def on_doctype(*_: object) -> None:
        raise GraphError("it has a document type definition, which is not read; remove <!DOCTYPE ...>")

    parser.StartElementHandler, parser.EndElementHandler = on_start, on_end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = on_text, on_doctype
    left = MAX_BYTES
    try:
        with open_bytes(path) as file:
            while data := file.read(1 << 16):
                left -= len(data)
                if left < 0:
                    raise GraphError(f"it holds more than {MAX_BYTES >> 20} MiB; write a smaller graph")
                parser.Parse(data, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise GraphError(f"not XML: {error}") from None

"""Text that every format can hold, and XML files read without trusting them.

`escape` writes characters that XML, CSV or UTF-8 refuse as `\\u0007` and `unescape` brings them back, so nothing is
lost and everything stays visible; the backslash of a text that looks like that itself is escaped too. Why each: C0
controls make XML unreadable and CSV rows break, lone surrogates have no UTF-8, U+FFFE and U+FFFF are forbidden in XML.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.saxutils import escape as _entities
from xml.sax.xmlreader import AttributesImpl

from defusedxml import DefusedXmlException
from defusedxml.sax import make_parser

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
    """Call start(tag, attributes) and end(tag, its direct text) for each element, without prefixes.

    GraphError for what is not XML, for documents with a DTD (entities could be without end), and for deep nesting.
    """
    parser = make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(_Elements(start, end))
    left = MAX_BYTES
    try:
        with open_bytes(path) as file:
            while data := file.read(1 << 16):
                left -= len(data)
                if left < 0:
                    raise GraphError(f"it holds more than {MAX_BYTES >> 20} MiB; write a smaller graph")
                parser.feed(data)
        parser.close()
    except DefusedXmlException:
        raise GraphError("it has a document type definition, which is not read; remove <!DOCTYPE ...>") from None
    except SAXParseException as error:
        where = f"line {error.getLineNumber()}, column {error.getColumnNumber()}"
        raise GraphError(f"not XML: {error.getMessage()}: {where}") from None


class _Elements(ContentHandler):
    """Tells two functions of each element."""

    def __init__(self, start: Callable[[str, dict[str, str]], None], end: Callable[[str, str], None]) -> None:
        super().__init__()
        self._start, self._end = start, end
        self._texts: list[list[str]] = []

    def startElement(self, name: str, attrs: AttributesImpl) -> None:
        if len(self._texts) >= MAX_DEPTH:
            raise GraphError(f"its elements are nested more than {MAX_DEPTH} deep")
        self._texts.append([])
        self._start(name.rpartition(":")[2], dict(attrs))

    def endElement(self, name: str) -> None:
        self._end(name.rpartition(":")[2], "".join(self._texts.pop()))

    def characters(self, content: str) -> None:
        self._texts[-1].append(content)

"""Files from outside, read with bounded memory; whatever is wrong with one becomes a single line.

A file may be gzipped, which its first bytes tell.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from circuitgraph.errors import GraphError

MAX_BYTES = 256 << 20  # of text that is parsed in one piece; JSON values take up to ten times their text
MAX_RATIO = 200  # of text to its gzip: graphs reach 15, repeated zeros 1,000
MAX_MESSAGE = 400
_PIECE = 1 << 20


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Inside, every way in which a file can be broken is raised as a GraphError of one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise GraphError(f"graph file {path} does not exist") from None
    except GraphError as error:
        named = str(error).startswith(f"graph file {path}")  # by a reader inside this one
        raise GraphError(one_line(error) if named else f"graph file {path}: {one_line(error)}") from None
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise GraphError(f"graph file {path} cannot be read: {one_line(error)}") from None
    except RecursionError:
        raise GraphError(f"graph file {path} is nested too deeply to be a graph") from None
    except (ValueError, OverflowError) as error:
        raise GraphError(f"graph file {path} is broken: {one_line(error)}") from None


def one_line(error: object) -> str:
    """The message of an error in one line of at most `MAX_MESSAGE` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def read_text(path: str | Path, max_bytes: int | None = None) -> str:
    """The UTF-8 text of a file, unpacked if it is gzipped; GraphError when it is larger than max_bytes."""
    limit = MAX_BYTES if max_bytes is None else max_bytes
    pieces, left = [], limit
    with open_bytes(path) as file:
        while piece := file.read(_PIECE):  # a read of the whole limit would allocate it
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise GraphError(f"it holds more than {limit >> 20} MiB, the most that is read at once")
    return b"".join(pieces).decode("utf-8")


def open_bytes(path: str | Path) -> IO[bytes]:
    """The file opened for reading; a gzipped one is unpacked, with a GraphError for what unpacks without end."""
    file = Path(path).open("rb")  # noqa: SIM115 - the caller closes it
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return io.BufferedReader(_Unpacked(file, Path(path).stat().st_size * MAX_RATIO + (16 << 20)))


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, up to a limit."""

    def __init__(self, file: io.BufferedReader, limit: int) -> None:
        self._file, self._unpacked, self._left = file, gzip.GzipFile(fileobj=file), limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read(min(len(buffer), _PIECE))
        self._left -= len(data)
        if self._left < 0:
            raise GraphError(f"it unpacks to more than {MAX_RATIO} times its size; no graph does")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    GraphError for anything else: NaN, Inf, numbers that no 64 bits hold, two values of one name in an object (of which
    JSON readers keep the last), and nesting that exhausts the interpreter.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise GraphError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise GraphError("the JSON is nested too deeply to be a graph") from None


def _refuse(constant: str) -> None:
    raise GraphError(f"the file holds {constant}; numbers must be finite")


def _finite(digits: str) -> float:
    value = float(digits)
    if value - value != 0:
        raise GraphError(f"the file holds {one_line(digits)[:40]}, which is no finite number")
    return value


def _whole(digits: str) -> int:
    if len(digits) < 19:
        return int(digits)
    if len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 63:
        raise GraphError(f"the file holds the number {digits[:20]}…, which 64 bits cannot hold")
    return int(digits)


def _one_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise GraphError(f"the name {one_line(repr(twice))[:60]} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=_whole, parse_float=_finite, object_pairs_hook=_one_each)

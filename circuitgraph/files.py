"""Writing a file so that a reader sees the old one or the new one, never half of it.

Raises one clear error if the file cannot be written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from circuitgraph.errors import CircuitGraphError


def write_atomically(path: str | os.PathLike[str], data: bytes | str | Iterable[bytes]) -> None:
    """The file at `path` holds `data`, written beside it and renamed.

    Text is written as UTF-8, newlines untouched, and pieces one after the other. A link is followed; a device
    such as /dev/stdout is written to directly. CircuitGraphError when the path cannot be written: the file that was
    there before is then unchanged, as it is when a piece cannot be made.
    """
    whole = data.encode("utf-8") if isinstance(data, str) else data
    content = (whole,) if isinstance(whole, bytes) else whole
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as file:
                file.writelines(content)
        else:
            _write_beside_and_rename(target, content)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CircuitGraphError(f"cannot write {os.fspath(path)}: {reason}; choose another -o") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """CircuitGraphError if a file at `path` could not be written: asked before a long computation, not after it."""
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        raise CircuitGraphError(f"cannot write {os.fspath(path)}: it is a folder; choose another -o")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise CircuitGraphError(f"cannot write {os.fspath(path)}: there is no folder {folder}; choose another -o")
    if not os.access(folder, os.W_OK):
        raise CircuitGraphError(f"cannot write {os.fspath(path)}: folder {folder} is not writable; choose another -o")


def check_folder(path: str | os.PathLike[str], option: str = "-o") -> None:
    """CircuitGraphError if no folder can be made at `path`: asked before a long computation, not after it.

    Args:
        path: The folder; it may be there already.
        option: The option to choose another by, for the message.
    """
    there = next(parent for parent in [Path(path), *Path(os.path.realpath(path)).parents] if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise CircuitGraphError(f"cannot make folder {os.fspath(path)} in {there}; choose another {option}")


def _write_beside_and_rename(target: Path, content: Iterable[bytes]) -> None:
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

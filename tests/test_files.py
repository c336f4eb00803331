"""Writing files: the old content or the new, never half of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitgraph.errors import CircuitGraphError
from circuitgraph.files import write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "graph.svg"
    write_atomically(path, "old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CircuitGraphError, match="no space left on device; choose another -o"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_follows_links_and_keeps_devices(tmp_path: Path) -> None:
    (tmp_path / "real.svg").write_text("old")
    (tmp_path / "link.svg").symlink_to(tmp_path / "real.svg")
    write_atomically(tmp_path / "link.svg", b"new")
    assert (tmp_path / "link.svg").is_symlink()
    assert (tmp_path / "real.svg").read_text() == "new"
    write_atomically("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()

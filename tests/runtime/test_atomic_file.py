"""Atomic writes: whole content, no leftovers, the old file kept on failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffd_runtime.core.atomic_file import atomic_path, write_atomic, write_output
from ffd_runtime.core.errors import OutputError


def test_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_old_content_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_overwrites_a_named_temporary_file(tmp_path: Path) -> None:
    path, temporary = tmp_path / "a", tmp_path / "a.partial"
    temporary.write_bytes(b"left by a killed process")
    write_atomic(path, b"new", temporary=temporary)
    assert path.read_bytes() == b"new"
    assert not temporary.exists()


def test_reports_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "a"
    with pytest.raises(OutputError, match=f"cannot write {path}: No such file or directory"):
        write_output(path, b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write .*folder"):
        write_output(tmp_path / "folder", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]

"""Write files atomically: a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError, os_errors_as


@contextmanager
def atomic_path(path: Path, *, temporary: Path | None = None, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` when the block succeeds.

    When the block fails, the temporary file is deleted and `path` keeps its content.

    Args:
        path: the file to create or replace.
        temporary: the file to write; None for a random name. A fixed name lets the next run
            overwrite what a killed process left, and needs a single writer.
        sync: flush the content to the disk before the rename.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    temporary = temporary or path.with_name(f".ffd-{secrets.token_hex(6)}.partial")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(
    path: Path, content: bytes, *, temporary: Path | None = None, sync: bool = True
) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path, temporary=temporary, sync=sync) as draft:
        draft.write_bytes(content)


def write_output(path: Path, content: bytes, *, temporary: Path | None = None) -> None:
    """Write a file that the user asked for, atomically; see `atomic_path`.

    Raises:
        OutputError: the file cannot be written.
    """
    with os_errors_as(OutputError, f"cannot write {path}"):
        write_atomic(path, content, temporary=temporary)

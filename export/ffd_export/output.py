"""Writing several files so that either all are there, whole, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ffd_runtime.errors import OutputError


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place first; then give all of them their names.

    Args:
        files: content by path; folders are made.

    Raises:
        OutputError: one cannot be written; none has then changed.
    """
    partials = {path: path.with_name(path.name + ".partial") for path in files}
    current = Path()
    made: list[Path] = []
    try:
        for current, content in files.items():
            made += _make_folder(current.parent)
            with partials[current].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for current, partial in partials.items():
            os.replace(partial, current)
    except OSError as error:
        raise OutputError(f"cannot write {current}: {error.strerror}") from None
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        for folder in reversed(made):
            # Only what stayed empty goes: nothing of others is in the way.
            with suppress(OSError):
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; those that were not there before, outermost first."""
    absent = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return absent[::-1]

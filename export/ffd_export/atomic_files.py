"""Writing several files so that either all are there, whole, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ffd_runtime.core.errors import OutputError


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place first; then give all of them their names.

    Args:
        files: content by path; folders are made.

    Raises:
        OutputError: one cannot be written; none has then taken its place.
    """
    # Another export into the same folder at the same time has names of its own.
    partials = {path: path.with_name(f"{path.name}.{os.getpid()}.partial") for path in files}
    current = Path()
    made: list[Path] = []
    try:
        for current, content in files.items():
            _make_folder(current.parent, made)
            with partials[current].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for current in files:
            # The one reason for which a rename in a folder that was just written to fails.
            if current.is_dir():
                raise IsADirectoryError(0, "a folder of that name is there")
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


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those around it; notes those that were not there, outermost first."""
    if folder.exists():
        return
    _make_folder(folder.parent, made)
    folder.mkdir(exist_ok=True)
    made.append(folder)

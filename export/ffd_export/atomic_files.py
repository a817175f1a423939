"""Write several files: all of them completely, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ffd_runtime.core.errors import OutputError


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file under a temporary name, then rename all of them.

    Args:
        files: content by path. Missing folders are created.

    Raises:
        OutputError: a file cannot be written; existing files are unchanged.
    """
    # The process id separates concurrent exports into one folder.
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
            # A folder of that name is the only reason for a rename to fail after the write.
            if current.is_dir():
                raise IsADirectoryError(0, "a folder has this name")
        for current, partial in partials.items():
            os.replace(partial, current)
    except OSError as error:
        raise OutputError(f"cannot write {current}: {error.strerror}") from None
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()
        for folder in reversed(made):
            # Folders with files of others are not empty and stay.
            with suppress(OSError):
                folder.rmdir()


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Create a folder and its parents; append the created ones to `made`, outermost first."""
    if folder.exists():
        return
    _make_folder(folder.parent, made)
    folder.mkdir(exist_ok=True)
    made.append(folder)

"""Write several files: all of them completely, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from ffd_runtime.core.atomic_file import atomic_path
from ffd_runtime.core.errors import OutputError


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write every file under a temporary name, then rename all of them.

    Args:
        files: content by path. Missing folders are created.

    Raises:
        OutputError: a file cannot be written; existing files are unchanged.
    """
    made: list[Path] = []
    current = Path()
    try:
        with ExitStack() as stack:
            for current, content in files.items():
                folders = [current.parent, *current.parent.parents]
                made += [folder for folder in folders if not folder.exists()]
                current.parent.mkdir(parents=True, exist_ok=True)
                if current.is_dir():
                    # This is the only reason for a rename to fail after the write.
                    raise IsADirectoryError(0, "a folder has this name")
                # The process id separates concurrent exports into one folder.
                partial = current.with_name(f"{current.name}.{os.getpid()}.partial")
                stack.enter_context(atomic_path(current, temporary=partial, sync=False))
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {current}: {error.strerror}") from None
    finally:
        # Inner folders first. Folders with files of others are not empty and stay.
        for folder in sorted(made, reverse=True):
            with suppress(OSError):
                folder.rmdir()

"""Walk a folder tree in a fixed order, with links followed and link loops detected."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Synology's file servers keep several thumbnails of each image in it.
THUMBNAILS = "@eaDir"


class Entry(NamedTuple):
    """A file, or a folder that cannot be read.

    Attributes:
        path: below `top`, which is its first part.
        error: of reading a folder, `ELOOP` for a link to a folder above it; None for a file.
    """

    path: str
    error: OSError | None = None


def walk_tree(top: str, keep: Callable[[str], bool] = lambda name: True) -> Iterator[Entry]:
    """Yield every file below a folder, sorted by name within each folder.

    Only files and folders whose name `keep` accepts are visited, and no folder of thumbnails. The
    kind of an entry comes from the folder itself, so only links cost a system call.
    """
    # For each open folder: its identity, and the entries to visit, the last first.
    stack: list[tuple[tuple[int, int], list[tuple[str, bool]]]] = []
    path, is_folder = top, True
    while True:
        if not is_folder:
            yield Entry(path)
        else:
            try:
                status = os.stat(path)
                identity = status.st_dev, status.st_ino
                if any(identity == above for above, _ in stack):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                with os.scandir(path) as entries:
                    # DirEntry.is_dir raises for a link to itself, os.path.isdir returns False.
                    inside = [
                        (e.path, os.path.isdir(e.path) if e.is_symlink() else e.is_dir())
                        for e in entries
                        if e.name != THUMBNAILS and keep(e.name)
                    ]
                stack.append((identity, sorted(inside, reverse=True)))
            except OSError as error:
                yield Entry(path, error)
        while stack and not stack[-1][1]:
            stack.pop()
        if not stack:
            return
        path, is_folder = stack[-1][1].pop()

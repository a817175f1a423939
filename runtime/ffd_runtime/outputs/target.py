"""Where output is written: to a regular file, or to a pipe or device that takes it as it comes."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ..core.errors import OutputError
from ..core.text import printable

_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d+)")
_STANDARD = {"stdout": 1, "stderr": 2}
# Linux follows 40 links.
_MOST_LINKS = 40


def is_pipe(path: Path) -> bool:
    """Whether a path names a FIFO, a socket, a character device or a file descriptor."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def descriptor_of(path: Path) -> int | None:
    """The file descriptor that a path names or links to, such as `/dev/stdout`; None for others."""
    for _ in range(_MOST_LINKS):
        found = _DESCRIPTOR.fullmatch(str(path))
        if found:
            return _STANDARD[found[1]] if found[1] else int(found[2])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def follow_links(path: Path) -> Path:
    """The file that a symbolic link leads to, which may be absent; any other path as it is.

    A file that is written beside its final name and renamed would replace the link.

    Raises:
        OutputError: the link leads back to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"cannot write {path}: the link leads back to itself")
    return target


def require_folder(option: str, path: Path) -> None:
    """Check that a file can lie where it is to be written.

    Args:
        option: that names it, for the message.
        path: of the file.

    Raises:
        OutputError: its folder is missing or is not a folder.
    """
    folder = follow_links(path).parent
    if folder.is_dir():
        return
    said, shown = f"{option} {printable(str(path))}", printable(str(folder))
    if folder.exists():
        raise OutputError(f"{said}: {shown} is not a folder")
    raise OutputError(f"{said}: there is no folder {shown}: create it, or name another")

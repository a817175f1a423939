"""Output targets: regular files, or pipes and devices."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from ..core.errors import OutputError, os_errors_as
from ..core.results import Result
from ..core.text import printable

_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d+)")
_STANDARD = {"stdout": 1, "stderr": 2}
# Linux follows at most 40 links.
_MAX_LINKS = 40


def is_pipe(path: Path) -> bool:
    """Return whether a path is a FIFO, a socket, a character device or a file descriptor."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def descriptor_of(path: Path) -> int | None:
    """Return the file descriptor of a path such as `/dev/stdout`, or of a link to it; or None."""
    for _ in range(_MAX_LINKS):
        found = _DESCRIPTOR.fullmatch(str(path))
        if found:
            return _STANDARD[found[1]] if found[1] else int(found[2])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def follow_links(path: Path) -> Path:
    """Return the target of a symbolic link, which may be absent; any other path unchanged.

    Renaming a temporary file to the link's path would replace the link.

    Raises:
        OutputError: the links form a loop.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"cannot write {path}: the links form a loop")
    return target


def require_file_name(option: str, path: Path, endings: Iterable[str]) -> None:
    """Raise an OutputError if a path is a folder, or its name does not have one of the endings."""
    given = f"{option} {printable(str(path))}"
    if path.is_dir():
        raise OutputError(f"{given} is a folder: name a file")
    if path.suffix.lower() not in endings:
        raise OutputError(f"{given}: the name must end with {' or '.join(endings)}")


def require_folder(option: str, path: Path) -> None:
    """Check that the folder of an output file exists; `option` is for the message.

    Raises:
        OutputError: the folder is absent, or is not a folder.
    """
    folder = follow_links(path).parent
    if folder.is_dir():
        return
    said, shown = f"{option} {printable(str(path))}", printable(str(folder))
    if folder.exists():
        raise OutputError(f"{said}: {shown} is not a folder")
    raise OutputError(f"{said}: the folder {shown} does not exist: create it, or name another")


class Pipe:
    """Writes rows to a FIFO, `/dev/stdout` or a character device.

    Opening a FIFO waits until a program opens its other end. `header` and `to_line` are those of
    `PartialFile`.

    Raises:
        OutputError: the pipe cannot be opened.
    """

    def __init__(self, path: Path, to_line: Callable[[Result], str], header: str = "") -> None:
        self._path = path
        self._to_line = to_line
        descriptor = descriptor_of(path)
        with os_errors_as(OutputError, f"cannot write to {path}"):
            # A descriptor may be a socket, which cannot be opened by name.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY
            self._file = os.open(path, flags) if descriptor is None else os.dup(descriptor)
        self._named = descriptor is None
        self._send(header)

    def write(self, result: Result) -> None:
        self._send(self._to_line(result))

    def _send(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        try:
            with os_errors_as(OutputError, f"cannot write to {self._path}"):
                while data:
                    data = data[os.write(self._file, data) :]
        except BrokenPipeError:
            # A reader of standard output may end early, which is not an error.
            if not self._named:
                raise
            raise OutputError(f"cannot write to {self._path}: its reader has closed it") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

"""Still images: files, folders, globs, and lists of paths on standard input."""

from __future__ import annotations

import errno
import glob
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from ..decode import os_error
from ..errors import InputError


@dataclass(frozen=True)
class Item:
    """One input: a path to read, or the reason why there is none.

    Attributes:
        source: what the row will call it; undecodable bytes as surrogates (PEP 383).
        error: set if it is already known that it cannot be read.
    """

    source: str
    error: InputError | None = None


def find_files(
    sources: Iterable[str], *, null: bool = False, leave_out: Collection[str] = ()
) -> Iterator[Item]:
    """Every input that the sources stand for, lazily and in a fixed order.

    A folder gives every file below it, sorted by name, links followed; whatever cannot be a picture
    gets its row when it is read. A source that does not exist and looks like a pattern is a glob.
    `-` gives the paths on standard input.

    Args:
        sources: files, folders, patterns, `-`.
        null: paths on standard input end with NUL instead of a newline.
        leave_out: absolute paths never given, such as the file that results are written to.
    """
    for source in sources:
        if source == "-":
            yield from _expand(_stdin(null), leave_out)
        elif not os.path.lexists(source) and glob.has_magic(source):
            matches = sorted(glob.iglob(source, recursive=True))
            if not matches:
                yield Item(source, InputError("not_found", "no file matches this pattern"))
            yield from _expand(_outermost(source, matches), leave_out)
        else:
            yield from _expand([source], leave_out)


def _outermost(pattern: str, matches: list[str]) -> Iterator[str]:
    """With `**` a folder's files are matches of their own: the folders are left out."""
    for match in matches:
        if "**" not in pattern or not os.path.isdir(match):
            yield match


def _stdin(null: bool) -> Iterator[str]:
    end = b"\0" if null else b"\n"
    rest = b""
    read = cast(BufferedReader, sys.stdin.buffer).read1
    while chunk := read(1 << 16):
        *lines, rest = (rest + chunk).split(end)
        yield from (os.fsdecode(line) for line in lines if line)
    if rest:
        yield os.fsdecode(rest)


def _expand(paths: Iterable[str], leave_out: Collection[str]) -> Iterator[Item]:
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(path, leave_out)
        elif not _left_out(path, leave_out):
            yield Item(path)


def _walk(top: str, leave_out: Collection[str]) -> Iterator[Item]:
    # Of each folder being walked: its identity, and the names not yet visited, last first.
    stack: list[tuple[tuple[int, int], list[str]]] = []

    def enter(folder: str) -> Item | None:
        try:
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if any(identity == above for above, _ in stack):
                raise OSError(errno.ELOOP, "link loop")
            names = sorted(os.listdir(folder), reverse=True)
        except OSError as error:
            return Item(folder, os_error(error, folder))
        stack.append((identity, [os.path.join(folder, name) for name in names]))
        return None

    failed = enter(top)
    if failed:
        yield failed
    while stack:
        _, paths = stack[-1]
        if not paths:
            stack.pop()
            continue
        path = paths.pop()
        if os.path.isdir(path):
            failed = enter(path)
            if failed:
                yield failed
        elif not _left_out(path, leave_out):
            yield Item(path)


def _left_out(path: str, leave_out: Collection[str]) -> bool:
    return bool(leave_out) and os.path.abspath(path) in leave_out

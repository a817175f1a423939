"""Still images: files, folders, globs, and lists of paths on standard input."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import select
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from io import FileIO, RawIOBase, UnsupportedOperation
from typing import BinaryIO

from ..decode import os_error, read_file
from ..errors import FfdError, InputError
from .policy import FetchPolicy


@dataclass(frozen=True)
class Item:
    """One input: something to read, or the reason why there is nothing.

    Attributes:
        source: what the row will call it; undecodable bytes as surrogates (PEP 383).
        error: set if it is already known that it cannot be read.
        fetch: gives the file's bytes, in a worker's thread, or raises `InputError`; None for a
            file of this machine, whose path is `source`.
    """

    source: str
    error: InputError | None = None
    fetch: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            InputError: it cannot be read.
        """
        if self.error:
            raise self.error
        return self.fetch() if self.fetch else read_file(self.source)


def find_files(
    sources: Iterable[str],
    *,
    null: bool = False,
    leave_out: Collection[str] = (),
    policy: FetchPolicy | None = None,
) -> Iterator[Item]:
    """Every input that the sources stand for, lazily and in a fixed order.

    A folder gives every file below it, sorted by name, links followed; whatever cannot be a picture
    gets its row when it is read. A source that does not exist and looks like a pattern is a glob.
    An archive that is named gives its members. `-` gives the paths and addresses on standard input.

    Args:
        sources: files, folders, patterns, archives, http and https addresses, `-`.
        null: paths on standard input end with NUL instead of a newline.
        leave_out: paths never given, absolute and without links in their folders, such as the
            file that results are written to.
        policy: how addresses are fetched; None for `FetchPolicy`'s defaults.
    """
    for source in sources:
        if source == "-":
            yield from expand(read_names(null), leave_out, policy)
        elif "://" not in source and not os.path.lexists(source) and glob.has_magic(source):
            empty = True
            for item in _match(source, leave_out):
                empty = False
                yield item
            if empty:
                yield Item(source, InputError("not_found", "no file matches this pattern"))
        else:
            yield from expand([source], leave_out, policy)


def _match(pattern: str, leave_out: Collection[str]) -> Iterator[Item]:
    """Inputs that match a pattern; what `**` stands for is walked, so that link loops end."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from expand(sorted(glob.iglob(pattern)), leave_out)
        return
    deep = parts.index("**")
    wanted = [part for part in parts[deep:] if part not in ("", ".")]
    top = "/".join(parts[:deep]) or ("/" if pattern.startswith("/") else ".")
    for folder in sorted(glob.iglob(top)) if glob.has_magic(top) else [top]:
        if not os.path.isdir(folder):
            continue
        for item in _walk(folder, leave_out):
            below = os.path.relpath(item.source, folder).split(os.sep)
            loop = item.error is not None and item.error.code == "link_loop"
            if not loop and (item.error or _fits(below, wanted)):
                path = "/".join(below) if deep == 0 else item.source
                yield from [Item(path, item.error)] if item.error else _open(path)


def _fits(names: list[str], patterns: list[str]) -> bool:
    """Whether a path, or a folder that it lies in, fits a pattern, part by part.

    As in a shell, a leading dot must be written out.
    """
    if not patterns:
        return True
    if patterns[0] == "**":
        hidden = [name.startswith(".") for name in names]
        if patterns == ["**"]:
            return not any(hidden)
        return any(_fits(names[i:], patterns[1:]) for i in range(len(names)) if not any(hidden[:i]))
    if not names or (names[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def read_names(null: bool) -> Iterator[str]:
    """Paths and addresses on standard input.

    Args:
        null: they end with NUL instead of a newline.

    Raises:
        FfdError: it is closed.
    """
    end = b"\0" if null else b"\n"
    rest = b""
    if sys.stdin is None:
        raise FfdError("standard input is closed: give - only with paths on it")
    try:
        # Unbuffered: a thread that waits in a buffer would hold its lock when the program ends.
        stream: RawIOBase | BinaryIO = FileIO(sys.stdin.fileno(), closefd=False)
    except UnsupportedOperation:
        stream = sys.stdin.buffer
    while (chunk := stream.read(1 << 16)) != b"":
        if chunk is None:
            # Somebody made it non-blocking: wait as if nobody had.
            select.select([sys.stdin], [], [])
            continue
        *lines, rest = (rest + chunk).split(end)
        yield from (os.fsdecode(line) for line in lines if line)
    if rest:
        yield os.fsdecode(rest)


def expand(
    paths: Iterable[str], leave_out: Collection[str] = (), policy: FetchPolicy | None = None
) -> Iterator[Item]:
    """What paths and addresses stand for, taken as they are: no patterns; see `find_files`."""
    for path in paths:
        address = _address(path, policy) if "://" in path else None
        if address:
            yield address
        elif os.path.isdir(path):
            yield from _walk(path, leave_out)
        elif not _left_out(path, leave_out):
            yield from _open(path)


def _address(text: str, policy: FetchPolicy | None) -> Item | None:
    from .urls import is_url, url_item

    if is_url(text):
        return url_item(text, policy or FetchPolicy())
    if os.path.lexists(text.partition("\0")[0]):
        return None
    from ..streams.address import redact

    return Item(redact(text), InputError("not_found", "no such file, and no picture's address"))


def _open(path: str) -> Iterator[Item]:
    """A file that was named: an archive stands for its members."""
    from .archives import find_in_archive, is_archive

    if is_archive(path):
        yield from find_in_archive(path)
    else:
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
    if not leave_out:
        return False
    folder, name = os.path.split(path)
    try:
        return os.path.join(os.path.realpath(folder or "."), name) in leave_out
    except ValueError:
        # A NUL: no file is called that, which reading it will say.
        return False

"""Lists of sources: paths and addresses in a file or on standard input."""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections.abc import Iterable, Iterator
from io import FileIO, RawIOBase, UnsupportedOperation
from typing import BinaryIO

from ..core.errors import FfdError

PIECE = 1 << 16

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_UTF8_MARK = os.fsdecode(codecs.BOM_UTF8)


def read_names(null: bool) -> Iterator[str]:
    """Paths and addresses on standard input, as they come.

    Args:
        null: they end with NUL instead of a newline.

    Raises:
        FfdError: it is closed.
    """
    if sys.stdin is None:
        raise FfdError("standard input is closed: give - only with paths on it")
    return read_list(_pieces_of_stdin(), null)


def read_sources(path: str, null: bool) -> tuple[str, ...]:
    """The sources in a file, one a line.

    Spaces around a source, empty lines and lines that begin with `#` are left out, unless sources
    end with NUL.

    Args:
        path: the file; a pipe is read to its end.
        null: sources end with NUL instead of a newline.

    Raises:
        FfdError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            names = list(read_list(iter(lambda: file.read(PIECE), b""), null))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FfdError(f"--sources {path}: {reason}") from None
    if null:
        return tuple(names)
    lines = (name.strip() for name in names)
    return tuple(line for line in lines if line and not line.startswith("#"))


def read_list(pieces: Iterable[bytes], null: bool = False) -> Iterator[str]:
    """The names in a list, in order, without empty ones; each as soon as its end has come.

    Without `null`, a byte order mark and the CR of a CRLF are no part of a name, unless a file is
    called so, and UTF-16 and UTF-32 are read, as PowerShell writes them.

    Args:
        pieces: of the list's bytes.
        null: names end with NUL instead of a newline, and are taken byte for byte.

    Returns:
        Names as `os.fsdecode` gives them: bytes that are not UTF-8 are lone surrogates (PEP 383).
    """
    first = True
    for name in _split(pieces if null else _to_utf8(pieces), b"\0" if null else b"\n"):
        if first and name.startswith(_UTF8_MARK) and not _exists(name):
            name = name.removeprefix(_UTF8_MARK)
        first = False
        if not null and name.endswith("\r") and not _exists(name):
            name = name[:-1]
        if name:
            yield name


def _split(pieces: Iterable[bytes], end: bytes) -> Iterator[str]:
    rest: list[bytes] = []
    for piece in pieces:
        head, *lines = piece.split(end)
        rest.append(head)
        if lines:
            # Joined once: a line may be as long as the list.
            yield os.fsdecode(b"".join(rest))
            yield from map(os.fsdecode, lines[:-1])
            rest = [lines[-1]]
    if last := b"".join(rest):
        yield os.fsdecode(last)


def _to_utf8(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A text in UTF-8, of one in UTF-16 or UTF-32; anything else as it is."""
    pieces = iter(pieces)
    head = next(pieces, b"")
    while any(mark.startswith(head) and len(head) < len(mark) for mark in _MARKS):
        piece = next(pieces, b"")
        if not piece:
            break
        head += piece
    encoding = _tell_encoding(head)
    if encoding == "utf-8":
        yield head
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).removeprefix("\ufeff").encode()
    for piece in pieces:
        yield decoder.decode(piece).encode()
    yield decoder.decode(b"", final=True).encode()


def _tell_encoding(head: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark: ASCII in UTF-16 has a NUL beside every character, and no name holds one.
    even, odd = head[:4:2], head[1:4:2]
    if odd and not even.strip(b"\0") and b"\0" not in odd:
        return "utf-16-be"
    if odd and not odd.strip(b"\0") and b"\0" not in even:
        return "utf-16-le"
    return "utf-8"


def _exists(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except ValueError:
        # A NUL: no file is called that.
        return False


def _pieces_of_stdin() -> Iterator[bytes]:
    try:
        # Unbuffered: a thread that waits in a buffer would hold its lock when the program ends.
        stream: RawIOBase | BinaryIO = FileIO(sys.stdin.fileno(), closefd=False)
    except UnsupportedOperation:
        stream = sys.stdin.buffer
    while (piece := stream.read(PIECE)) != b"":
        if piece is None:
            # Somebody made it non-blocking: wait as if nobody had.
            select.select([sys.stdin], [], [])
            continue
        yield piece

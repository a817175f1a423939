"""Read lists of sources, in a file or on standard input."""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections.abc import Iterable, Iterator
from io import FileIO, RawIOBase, UnsupportedOperation
from typing import BinaryIO

from ..core.errors import FfdError
from .members import CHUNK_BYTES

# UTF-32 first, because its mark starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_UTF8_MARK = os.fsdecode(codecs.BOM_UTF8)


def read_names(null: bool) -> Iterator[str]:
    """Yield paths and addresses from standard input, without waiting for its end.

    Args:
        null: whether names end with NUL instead of a newline.

    Raises:
        FfdError: standard input is closed.
    """
    if sys.stdin is None:
        raise FfdError("standard input is closed: pipe a list of paths into the command, or omit -")
    return read_list(_pieces_of_stdin(), null)


def read_sources(path: str, null: bool) -> tuple[str, ...]:
    """Read the sources in a file, one on each line.

    Spaces around a source, empty lines and lines that start with `#` are ignored, unless sources
    end with NUL.

    Args:
        path: the file; a pipe is read to its end.
        null: whether sources end with NUL instead of a newline.

    Raises:
        FfdError: the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            names = tuple(read_list(iter(lambda: file.read(CHUNK_BYTES), b""), null))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FfdError(f"--sources {path}: {reason}") from None
    lines = map(str.strip, names)
    return names if null else tuple(line for line in lines if line and line[0] != "#")


def read_list(pieces: Iterable[bytes], null: bool = False) -> Iterator[str]:
    """Yield the names in a list, in order, without empty ones, as soon as each is complete.

    Without `null`, a byte order mark and the CR of a CRLF are removed, unless a file has that name.
    UTF-16 and UTF-32, which PowerShell writes, are decoded.

    Args:
        pieces: chunks of the list, in bytes.
        null: whether names end with NUL instead of a newline, and are taken byte for byte.

    Returns:
        Names in the form of `os.fsdecode`: bytes that are not UTF-8 are lone surrogates (PEP 383).
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
            # Join only once: a line may be as long as the list.
            yield os.fsdecode(b"".join(rest))
            yield from map(os.fsdecode, lines[:-1])
            rest = [lines[-1]]
    if last := b"".join(rest):
        yield os.fsdecode(last)


def _to_utf8(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Convert UTF-16 and UTF-32 to UTF-8; yield anything else unchanged."""
    pieces = iter(pieces)
    head = next(pieces, b"")
    while any(mark.startswith(head) and len(head) < len(mark) for mark in _MARKS):
        piece = next(pieces, b"")
        if not piece:
            break
        head += piece
    encoding = _detect_encoding(head)
    if encoding == "utf-8":
        yield head
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(head).removeprefix("\ufeff").encode()
    for piece in pieces:
        yield decoder.decode(piece).encode()
    yield decoder.decode(b"", final=True).encode()


def _detect_encoding(head: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark, ASCII in UTF-16 has a NUL beside every character, which no name contains.
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
        # A NUL is not valid in a name.
        return False


def _pieces_of_stdin() -> Iterator[bytes]:
    try:
        # Unbuffered, because a thread that waits in a buffer holds its lock at the exit.
        stream: RawIOBase | BinaryIO = FileIO(sys.stdin.fileno(), closefd=False)
    except UnsupportedOperation:
        stream = sys.stdin.buffer
    while (piece := stream.read(CHUNK_BYTES)) != b"":
        if piece is None:
            # Standard input may be non-blocking, so wait for data.
            select.select([sys.stdin], [], [])
            continue
        yield piece

"""Compressed streams, unpacked piece by piece: gzip, bzip2, xz, and zip's deflate."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from ..core.errors import InputError
from .members import PIECE

# xz -9 needs 65 MiB.
LZMA_MEMORY = 1 << 27


class Decompressor(Protocol):
    """What `bz2` and `lzma` offer."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Zlib:
    """`zlib` with the manners of `bz2` and `lzma`.

    Args:
        window_bits: see `zlib.decompressobj`.
    """

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(piece) < max_length
        return piece


Start = Callable[[], Decompressor]


def find_compression(head: bytes) -> Start | None:
    """What reads a compressed stream, by its first bytes."""
    if head.startswith(b"\x1f\x8b\x08"):
        return partial(Zlib, 31)
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\0"):
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, LZMA_MEMORY)
    return None


def inflate(read: Callable[[int], bytes], start: Start, most: int = PIECE) -> Iterator[bytes]:
    """What a compressed stream holds, in pieces of at most `most` bytes.

    Streams may follow one another, as parallel compressors write them, with zeros between.

    Raises:
        InputError: `corrupt`, `truncated` or `too_large`.
    """
    data = read(PIECE)
    while data:
        stream = start()
        while not stream.eof:
            try:
                piece = stream.decompress(data, most)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                code = "too_large" if "Memory usage limit" in str(error) else "corrupt"
                raise InputError(code, f"the compressed data is damaged: {error}") from None
            if piece:
                yield piece
            data = b""
            if not stream.eof and stream.needs_input:
                data = read(PIECE)
                if not data:
                    raise InputError("truncated", "the compressed data ends early")
        data = stream.unused_data.lstrip(b"\0")
        while not data and (more := read(PIECE)):
            data = more.lstrip(b"\0")

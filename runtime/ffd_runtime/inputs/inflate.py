"""Decompress streams chunk by chunk: gzip, bzip2, xz, and the deflate of zip."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from ..core.errors import InputError
from .members import CHUNK_BYTES

# xz -9 needs 65 MiB.
MAX_LZMA_BYTES = 1 << 27


class Decompressor(Protocol):
    """The interface of the decompressors of `bz2` and `lzma`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Zlib:
    """Gives `zlib` the interface of `bz2` and `lzma`; see `zlib.decompressobj`."""

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
    """Return the decompressor for a stream, by its first bytes."""
    if head.startswith(b"\x1f\x8b\x08"):
        return partial(Zlib, 31)
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    if head.startswith(b"\xfd7zXZ\0"):
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, MAX_LZMA_BYTES)
    return None


def inflate(read: Callable[[int], bytes], start: Start, most: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the content of a compressed stream, in chunks of at most `most` bytes.

    Several streams may follow each other, with zeros between, as parallel compressors write them.

    Raises:
        InputError: `corrupt`, `truncated` or `too_large`.
    """
    data = read(CHUNK_BYTES)
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
                data = read(CHUNK_BYTES)
                if not data:
                    raise InputError("truncated", "the compressed data ends early")
        data = stream.unused_data.lstrip(b"\0")
        while not data and (more := read(CHUNK_BYTES)):
            data = more.lstrip(b"\0")

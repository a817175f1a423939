"""Check the compressed strips and tiles of a TIFF: libtiff decodes damaged ones without an error.

The rules are those of TIFF 6.0 and its technical note 2 (JPEG).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .exif import Directory
from .tiff import (
    BITS,
    COMPRESSION,
    HEIGHT,
    PHOTOMETRIC,
    SAMPLES,
    STRIP_SIZES,
    STRIPS,
    TILE_SIZES,
    TILES,
    WIDTH,
    find_page,
)

_FILL_ORDER, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TABLES = 266, 278, 284, 322, 323, 347
_LZW, _JPEG, _DEFLATE, _PACKBITS = 5, 7, frozenset({8, 32946}), 32773
_YCBCR = 6
_CLEAR, _END, _FIRST = 256, 257, 258
# Codes after a clear code: encoders clear a table of 4,094 entries; libtiff allows 1,024 more.
_MAX_CODES = 4095 - _END + 1024
# Each takes about 0.1 ms. Encoders only clear a full table, so this suffices for 100 MB.
_MAX_CLEARS = 20_000
# The loop over runs takes up to 4 s for this size.
_MAX_PACKED_BYTES = 1 << 26
_PIECE_BYTES = 1 << 16

_INDEX = np.arange(_MAX_CODES)
_WIDTHS = 9 + np.searchsorted([511, 1023, 2047], _INDEX + _END, "right")
_MASKS = (1 << _WIDTHS) - 1
_ENDS = np.cumsum(_WIDTHS)
_BEGINS = _ENDS - _WIDTHS
# The largest valid code: a byte at first, then also an entry.
_VALID = np.where(_INDEX, _INDEX + _END, 255)


class _Block(NamedTuple):
    """A strip or tile, with its decoded size in bytes."""

    content: bytes
    size: int


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with Deflate, LZW or PackBits data, or the size of uncompressed data."""
    directory = find_page(data).directory
    compression = directory.number(COMPRESSION, 1)
    if directory.number(PHOTOMETRIC, 1) == _YCBCR or directory.number(_FILL_ORDER, 1) != 1:
        return None
    clears = 0
    for number, block in enumerate(_blocks(data, directory)):
        whole = True
        if compression in _DEFLATE:
            whole = _inflates(block)
        elif compression == _LZW and clears < _MAX_CLEARS:
            whole, used = _expands(block)
            clears += used
        elif compression == _PACKBITS and len(data) <= _MAX_PACKED_BYTES:
            whole = _unpacks(block)
        elif compression == 1:
            whole = len(block.content) >= block.size
        if not whole:
            return f"the data of strip or tile {number + 1} are damaged"
    return None


def read_jpegs(data: bytes) -> Iterator[bytes]:
    """Yield each strip or tile of a TIFF with JPEG compression as a complete JPEG."""
    directory = find_page(data).directory
    if directory.number(COMPRESSION, 1) != _JPEG:
        return
    tables = directory.values.get(_TABLES, (0, memoryview(b"")))[1].tobytes()
    for block in _blocks(data, directory):
        yield tables.removesuffix(b"\xff\xd9") + block.content[2 if tables else 0 :]


def _blocks(data: bytes, directory: Directory) -> Iterator[_Block]:
    """Yield the strips or tiles of an image, without those that a sparse file leaves out."""
    width, height = directory.number(WIDTH, 0), directory.number(HEIGHT, 0)
    planes = directory.number(_PLANAR, 1) == 2
    bits = directory.number(BITS, 1) * (1 if planes else directory.number(SAMPLES, 1))
    places, sizes = directory.numbers(STRIPS), directory.numbers(STRIP_SIZES)
    rows = min(directory.number(_ROWS, height), height) or height
    if tiled := TILES in directory.values:
        places, sizes = directory.numbers(TILES), directory.numbers(TILE_SIZES)
        width, rows = directory.number(_TILE_WIDTH, 0), directory.number(_TILE_HEIGHT, 0)
    of_plane = -(-height // rows) if rows else 1
    for number, (place, size) in enumerate(zip(places, sizes, strict=False)):
        shown = rows if tiled else min(rows, height - number % of_plane * rows)
        if size:
            content = data[int(place) : int(place + size)]
            yield _Block(content, (width * bits + 7) // 8 * shown)


def _inflates(block: _Block) -> bool:
    """Return whether Deflate data, with their checksum, are valid and long enough."""
    stream = zlib.decompressobj()
    size = 0
    try:
        for begin in range(0, len(block.content), _PIECE_BYTES):
            size += len(stream.decompress(block.content[begin : begin + _PIECE_BYTES]))
            if stream.eof or size > block.size:
                break
    except zlib.error:
        return False
    return size >= block.size


def _unpacks(block: _Block) -> bool:
    """Return whether the lengths of PackBits runs add up to the size."""
    at = size = 0
    while at < len(block.content) and size < block.size:
        code = block.content[at]
        at += code + 2 if code < 128 else 2
        size += code + 1 if code < 128 else 257 - code
        if code == 128:
            at, size = at - 1, size - 129
    return at <= len(block.content) and size == block.size


def _expands(block: _Block) -> tuple[bool, int]:
    """Return whether LZW data are valid and long enough, and the number of clear codes.

    Each code adds an entry: the string of the code before it, and one more byte. The positions of
    the codes are therefore known without decoding.
    """
    content = block.content
    if content[:1] == b"\0" and content[1:2] and content[1] & 1:
        # The form of libtiff before 1990, in reverse bit order.
        return True, 0
    # The four bytes that start at each byte.
    words = np.ndarray(len(content), ">u4", content + bytes(3), strides=(1,))
    begin = decoded = 0
    for clears in range(_MAX_CLEARS):
        count = int(np.searchsorted(_ENDS, len(content) * 8 - begin, "right"))
        places = begin + _BEGINS[:count]
        bits = words[places >> 3].astype(np.int64)
        codes = bits >> (32 - _WIDTHS[:count] - (places & 7)) & _MASKS[:count]
        stops = np.flatnonzero((codes > _VALID[:count]) | (codes == _CLEAR) | (codes == _END))
        stop = int(stops[0]) if stops.size else count
        decoded += int(_lengths(codes[:stop]).sum())
        if decoded >= block.size:
            return True, clears
        if stop == count or codes[stop] != _CLEAR:
            return False, clears
        begin += int(_ENDS[stop])
    return True, _MAX_CLEARS


def _lengths(codes: Any) -> Any:
    """Return the length of the string of each code: one more than that of the entry's first code.

    The chains of entries are followed by pointer jumping, in log2 of their length steps.
    """
    before = np.where(codes < _CLEAR, _INDEX[: len(codes)], codes - _FIRST)
    lengths = (codes >= _CLEAR).astype(np.int64)
    while (added := lengths[before]).any():
        lengths = lengths + added
        before = before[before]
    return lengths + 1

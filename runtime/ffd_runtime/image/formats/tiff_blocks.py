"""Check the compressed strips and tiles of a TIFF: libtiff decodes damaged ones without an error.

The rules are those of TIFF 6.0 and its technical note 2 (JPEG).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
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
# Data after the end of a Deflate block, which may show damage: total of all blocks.
_MAX_EXCESS_BYTES = 1 << 28
# Of an image of the largest size, in tiles of 64x64 pixels.
_MAX_JPEGS = 1 << 15
# JPEG permits 4 tables for quantisation and 8 for Huffman codes, which take 3 kB.
_MAX_TABLES_BYTES = 1 << 14

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


class _Layout(NamedTuple):
    """The strips or tiles of an image.

    Attributes:
        places: tag of their offsets.
        sizes: tag of their sizes.
        width: in pixels, of each.
        rows: of each.
        of_plane: how many a plane consists of.
        planes: number of planes with a part of the samples; 1 if pixels are stored whole.
        bits: of a pixel in a plane.
    """

    places: int
    sizes: int
    width: int
    rows: int
    of_plane: int
    planes: int
    bits: int


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with Deflate, LZW or PackBits data, or the size of uncompressed data."""
    directory = find_page(data).directory
    compression = directory.number(COMPRESSION, 1)
    layout = _layout(directory)
    if _overlap(data, directory, layout):
        return "its strips or tiles overlap"
    if directory.number(PHOTOMETRIC, 1) == _YCBCR or directory.number(_FILL_ORDER, 1) != 1:
        return None
    clears = packed = 0
    excess = min(_PIECE_BYTES, _MAX_EXCESS_BYTES // (layout.of_plane * layout.planes) + 1)
    for number, block in enumerate(_blocks(data, directory, layout)):
        whole = True
        packed += len(block.content)
        if compression in _DEFLATE:
            whole = _inflates(block, excess)
        elif compression == _LZW and clears < _MAX_CLEARS:
            whole, used = _expands(block)
            clears += max(used, 1)
        elif compression == _PACKBITS and packed <= _MAX_PACKED_BYTES:
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
    tables = directory.values.get(_TABLES, (0, memoryview(b"")))[1][:_MAX_TABLES_BYTES].tobytes()
    for block in islice(_blocks(data, directory, _layout(directory)), _MAX_JPEGS):
        yield tables.removesuffix(b"\xff\xd9") + block.content[2 if tables else 0 :]


def _layout(directory: Directory) -> _Layout:
    width, height = directory.number(WIDTH, 0), directory.number(HEIGHT, 0)
    samples = max(directory.number(SAMPLES, 1), 1)
    bits, planes = directory.number(BITS, 1) * samples, 1
    if directory.number(_PLANAR, 1) == 2:
        bits, planes = directory.number(BITS, 1), samples
    if TILES in directory.values:
        across, rows = directory.number(_TILE_WIDTH, 0), directory.number(_TILE_HEIGHT, 0)
        of_plane = _parts(width, across) * _parts(height, rows)
        return _Layout(TILES, TILE_SIZES, across, rows, of_plane, planes, bits)
    rows = directory.number(_ROWS, height)
    rows = rows if 0 < rows < height else height
    return _Layout(STRIPS, STRIP_SIZES, width, rows, _parts(height, rows), planes, bits)


def _parts(length: int, step: int) -> int:
    return max(-(-length // step), 1) if step > 0 else 1


def _spans(data: bytes, directory: Directory, layout: _Layout) -> Iterator[tuple[int, slice]]:
    """Yield number and place of the strips or tiles that the size of the image requires.

    Those that a sparse file leaves out are skipped.
    """
    pairs = zip(directory.numbers(layout.places), directory.numbers(layout.sizes), strict=False)
    for number, (place, size) in enumerate(islice(pairs, layout.of_plane * layout.planes)):
        # Numbers in the file may be of any type, and not finite.
        if place >= 0 and size > 0:
            begin = int(min(place, len(data)))
            yield number, slice(begin, begin + int(min(size, len(data) - begin)))
        elif size:
            yield number, slice(0)


def _overlap(data: bytes, directory: Directory, layout: _Layout) -> bool:
    """Return whether strips or tiles contain the same data, in total far more than the file.

    Plain tiles may share their data, so the total may exceed the file by the size of the image.
    """
    area = directory.number(WIDTH, 0) * directory.number(HEIGHT, 0)
    # OpenCV decodes at most 4 samples of 16 bits.
    left = len(data) + 8 * area
    for _, span in _spans(data, directory, layout):
        left -= span.stop - (span.start or 0)
        if left < 0:
            return True
    return False


def _blocks(data: bytes, directory: Directory, layout: _Layout) -> Iterator[_Block]:
    """Yield the strips or tiles of an image."""
    height = directory.number(HEIGHT, 0)
    for number, span in _spans(data, directory, layout):
        shown = layout.rows
        if layout.places == STRIPS:
            shown = min(shown, height - number % layout.of_plane * shown)
        yield _Block(data[span], (layout.width * layout.bits + 7) // 8 * shown)


def _inflates(block: _Block, excess: int) -> bool:
    """Return whether Deflate data, with their checksum, are valid and long enough.

    Args:
        block: the data.
        excess: number of bytes after the end of the block that are checked, too.
    """
    stream = zlib.decompressobj()
    size = 0
    try:
        for begin in range(0, len(block.content), _PIECE_BYTES):
            piece = block.content[begin : begin + _PIECE_BYTES]
            size += len(stream.decompress(piece, max(block.size, 0) + excess + 1 - size))
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

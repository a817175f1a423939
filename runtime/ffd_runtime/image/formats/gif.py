"""GIF: blocks, by the GIF89a specification."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .exif import xmp_orientation
from .header import MAX_PARTS, ImageHeader

_TRAILER, _EXTENSION, _IMAGE = 0x3B, 0x21, 0x2C
_XMP = b"XMP DataXMP"


class _Frame(NamedTuple):
    """One frame.

    Attributes:
        end: 0 if it is incomplete.
        xmp: metadata before it.
        blocks: where the data of an incomplete frame start; otherwise 0.
    """

    end: int
    xmp: bytes
    blocks: int = 0


def read_gif(data: bytes) -> ImageHeader:
    """Read the header of a GIF, which is complete if its first frame is."""
    width, height = struct.unpack_from("<HH", data, 6)
    first = _read_first(data)
    # A graphic control extension may make one colour transparent.
    alpha = b"\x21\xf9\x04" in data[: first.end]
    turn = xmp_orientation(first.xmp)
    complete = first.end > 0
    animated = complete and _has_second(data, first.end)
    return ImageHeader("gif", width, height, complete, alpha, turn, animated=animated)


def first_frame(data: bytes) -> bytes:
    """Return the file up to its first frame, so that decoders do not read the others.

    A frame that is cut is closed: the decoder reports whether pixels are missing.
    """
    first = _read_first(data)
    if first.end:
        return data[: first.end] + b";"
    position = first.blocks
    while position and position < len(data):
        end = position + 1 + data[position]
        if end > len(data):
            rest = data[position + 1 :]
            return data[:position] + bytes([len(rest)]) + rest + b"\0;"
        position = end
    return data + b"\0;"


def _read_first(data: bytes) -> _Frame:
    """Return the first frame."""
    return _read_frame(data, 13 + _table(data[10]))


def _has_second(data: bytes, position: int) -> bool:
    """Return whether another frame starts after the first one, which ends at an offset."""
    try:
        second = _read_frame(data, position)
    except ValueError:
        return False
    return second.end > 0 or second.blocks > 0


def _read_frame(data: bytes, position: int) -> _Frame:
    """Return the next frame.

    Raises:
        ValueError: the file contains no further frame, or too many blocks before the next frame.
    """
    xmp = b""
    blocks = 0
    try:
        for _ in range(MAX_PARTS):
            kind = data[position]
            if kind == _EXTENSION:
                begin = position + 2
                position = _skip(data, begin)
                if data[begin + 1 : begin + 12] == _XMP:
                    xmp = data[begin + 12 : position]
            elif kind == _IMAGE:
                blocks = position + 11 + _table(data[position + 9])
                return _Frame(_skip(data, blocks), xmp)
            elif kind == _TRAILER:
                raise ValueError("it contains no image")
            else:
                position += 1
    except IndexError:
        return _Frame(0, xmp, blocks)
    raise ValueError("it has too many blocks")


def _table(flags: int) -> int:
    """Return the size of a colour table in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip(data: bytes, position: int) -> int:
    """Return the offset after a chain of sub-blocks."""
    while data[position]:
        position += data[position] + 1
    return position + 1

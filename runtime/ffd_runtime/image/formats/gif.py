"""GIF: blocks, by the GIF89a specification."""

from __future__ import annotations

import struct

from .exif import xmp_orientation
from .header import MAX_PARTS, ImageHeader

_TRAILER, _EXTENSION, _IMAGE = 0x3B, 0x21, 0x2C
_XMP = b"XMP DataXMP"


def read_gif(data: bytes) -> ImageHeader:
    """Read the header of a GIF, which is complete if its first frame is."""
    width, height = struct.unpack_from("<HH", data, 6)
    end, xmp = _read_first(data)
    # A graphic control extension may make one colour transparent.
    alpha = b"\x21\xf9\x04" in data[:end]
    return ImageHeader("gif", width, height, end > 0, alpha, orientation=xmp_orientation(xmp))


def first_frame(data: bytes) -> bytes:
    """Return the file up to its first frame, so that decoders do not read the others."""
    return data[: _read_first(data)[0]] + b";"


def _read_first(data: bytes) -> tuple[int, bytes]:
    """Return the end of the first frame, 0 if it is incomplete, and XMP before it."""
    xmp = b""
    position = 13 + _table(data[10])
    try:
        for _ in range(MAX_PARTS):
            kind = data[position]
            if kind == _EXTENSION:
                begin = position + 2
                position = _skip(data, begin)
                if data[begin + 1 : begin + 12] == _XMP:
                    xmp = data[begin + 12 : position]
            elif kind == _IMAGE:
                data_begin = position + 11 + _table(data[position + 9])
                return _skip(data, data_begin), xmp
            elif kind == _TRAILER:
                raise ValueError("it contains no image")
            else:
                position += 1
    except IndexError:
        return 0, xmp
    raise ValueError("it has too many blocks")


def _table(flags: int) -> int:
    """Return the size of a colour table in bytes."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip(data: bytes, position: int) -> int:
    """Return the offset after a chain of sub-blocks."""
    while data[position]:
        position += data[position] + 1
    return position + 1

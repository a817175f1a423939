"""BMP: headers of all versions, and pixels with any bit masks."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .header import ImageHeader

# Header sizes of the versions. Any other number is text that starts with BM.
DIB_SIZES = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
_CORE_SIZE = 12
_RGB, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 3, 6
# Masks of red, green and blue that OpenCV decodes, by bits of a pixel.
_USUAL_MASKS = {
    16: ((0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F)),
    32: ((0xFF0000, 0xFF00, 0xFF),),
}
_ALPHA_MASK = 0xFF000000
_FILE_HEADER, _WRITTEN_HEADER = 14, 56
# A header of version 5 can state where an ICC profile is.
_VERSION_5_SIZE = 124
_EMBEDDED = b"DEBM"
_STRIP_ROWS = 64


class _Layout(NamedTuple):
    offset: int
    width: int
    height: int
    bits: int
    masks: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Size of a row in bytes; rows are padded to four bytes."""
        return (self.width * self.bits + 31) // 32 * 4


def read_bmp(data: bytes) -> ImageHeader:
    """Read the header of a BMP whose header size is one of `DIB_SIZES`."""
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == _CORE_SIZE:
        return ImageHeader("bmp", *struct.unpack_from("<HH", data, 18))
    layout = _read_layout(data)
    height = abs(layout.height)
    # The padding of the last row may be absent.
    needed = layout.offset + layout.stride * (height - 1) + (layout.width * layout.bits + 7) // 8
    (compression,) = struct.unpack_from("<I", data, 30)
    plain = compression in (_RGB, _BIT_FIELDS, _ALPHA_BIT_FIELDS)
    complete = not plain or len(data) >= needed
    profile = _read_profile(data) if header_size == _VERSION_5_SIZE else b""
    return ImageHeader(
        "bmp", layout.width, height, complete, any(layout.masks[3:]), profile=profile
    )


def _read_profile(data: bytes) -> bytes:
    """Return the ICC profile of a BMP with a header of version 5; b"" if it has none."""
    if data[70:74] != _EMBEDDED:
        return b""
    offset, size = struct.unpack_from("<II", data, 126)
    return data[_FILE_HEADER + offset : _FILE_HEADER + offset + size]


def _read_layout(data: bytes) -> _Layout:
    (offset,) = struct.unpack_from("<I", data, 10)
    header_size, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", data, 14)
    masks: tuple[int, ...] = ()
    if compression in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
        # The masks follow the fields of version 3, within or after the header.
        has_alpha = header_size >= _WRITTEN_HEADER or compression == _ALPHA_BIT_FIELDS
        masks = struct.unpack_from("<4I" if has_alpha else "<3I", data, 54)
        if any((mask | mask - 1) & ((mask | mask - 1) + 1) for mask in masks if mask):
            raise ValueError("the bits of a colour are not consecutive")
    return _Layout(offset, abs(width), height, bits, masks)


def with_usual_masks(data: bytes) -> bytes:
    """Return the file with the bit masks that OpenCV decodes; it ignores others."""
    (header_size, compression) = struct.unpack_from("<I12xI", data, 14)
    if header_size == _CORE_SIZE or compression not in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
        return data
    layout = _read_layout(data)
    usual = layout.masks[:3] in _USUAL_MASKS.get(layout.bits, ())
    usual = usual and (not any(layout.masks[3:]) or layout.masks[3] == _ALPHA_MASK)
    if layout.bits not in _USUAL_MASKS or (usual and compression == _BIT_FIELDS):
        return data
    offset = _FILE_HEADER + _WRITTEN_HEADER
    height = abs(layout.height)
    end = layout.offset + layout.stride * height
    rows = np.frombuffer(data[:end].ljust(end, b"\0"), np.uint8, offset=layout.offset)
    rows = rows.reshape(height, layout.stride)
    pixel = np.dtype(np.uint16 if layout.bits == 16 else np.uint32).newbyteorder("<")
    channels = [*layout.masks, 0][:4]
    parts = [
        struct.pack("<2sIHHI", b"BM", offset + 4 * layout.width * height, 0, 0, offset),
        struct.pack("<IiiHHI20x", _WRITTEN_HEADER, layout.width, layout.height, 1, 32, _BIT_FIELDS),
        struct.pack("<4I", *_USUAL_MASKS[32][0], _ALPHA_MASK if channels[3] else 0),
    ]
    for top in range(0, height, _STRIP_ROWS):
        strip = rows[top : top + _STRIP_ROWS].view(pixel)[:, : layout.width]
        red, green, blue, alpha = (_to_8_bits(strip, mask) for mask in channels)
        parts.append(np.dstack([blue, green, red, alpha]).tobytes())
    return b"".join(parts)


def _to_8_bits(pixels: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.uint8]:
    """Return one channel of pixels."""
    shift = max((mask & -mask).bit_length() - 1, 0)
    # The highest 16 bits of a channel are enough for eight.
    shift += max((mask >> shift).bit_length() - 16, 0)
    highest = max(mask >> shift, 1)
    values = (pixels.astype(np.uint32) & np.uint32(mask)) >> np.uint32(shift)
    return np.asarray((values * np.uint32(255) + np.uint32(highest // 2)) // highest, np.uint8)

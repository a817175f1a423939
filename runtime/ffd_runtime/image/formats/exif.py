"""Read the orientation from EXIF and XMP, with the rules of Pillow.

Pillow is the reference for the displayed image (`Image.getexif`, `Image.Exif.load` and
`TiffImagePlugin.ImageFileDirectory_v2.load`, version 13): invalid entries are skipped, or end the
directory, as in Pillow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

ORIENTATION = 274
# ReferenceBlackWhite; higher tags are metadata.
_LAST_IMAGE_TAG = 532
PREFIX = b"Exif\0\0"

# Magic numbers that Pillow accepts for a TIFF header; an EXIF block cannot be BigTIFF.
_HEADERS = (b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+")
# Size of a value in bytes, by TIFF type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
# Format characters of `struct` for numeric types.
_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}
_RATIONALS = {5: "II", 10: "ii"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


@dataclass(frozen=True)
class Directory:
    """One image file directory (IFD) of a TIFF or of an EXIF block.

    Attributes:
        order: byte order, `<` or `>`.
        values: type and raw value of each tag.
        following: offset of the next directory, 0 for none.
        whole: False if a value that describes the image is beyond the end of the file.
    """

    order: str
    values: dict[int, tuple[int, memoryview]]
    following: int = 0
    whole: bool = True

    def numbers(self, tag: int) -> Iterator[float]:
        """Yield the values of a tag as numbers; none if it is absent or not numeric."""
        kind, value = self.values.get(tag, (0, memoryview(b"")))
        if kind == 1:
            yield from value
        elif kind in _RATIONALS:
            for top, bottom in struct.iter_unpack(self.order + _RATIONALS[kind], value):
                yield top / bottom if bottom else float("nan")
        elif kind in _NUMBERS:
            for (one,) in struct.iter_unpack(self.order + _NUMBERS[kind], value):
                yield one

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag as an integer."""
        first = next(self.numbers(tag), None)
        if first is None or not isfinite(first):
            return default
        return int(first)

    def orientation(self, xmp: bytes = b"") -> int:
        """Return the EXIF orientation, 1 to 8; that of XMP if the directory has none."""
        if ORIENTATION not in self.values:
            return xmp_orientation(xmp)
        # Pillow compares the value with 2 to 8, which bytes and strings never equal.
        first = next(self.numbers(ORIENTATION), 1) if self.values[ORIENTATION][0] != 1 else 1
        return int(first) if first in range(2, 9) else 1


def read_directory(data: memoryview, offset: int, order: str, big: bool = False) -> Directory:
    """Read one directory, up to the first invalid entry.

    Args:
        data: the base of all offsets.
        offset: of the directory.
        order: byte order, `<` or `>`.
        big: whether the file is a BigTIFF, with 8-byte counts and offsets.
    """
    values: dict[int, tuple[int, memoryview]] = {}
    count_format, step, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    entry_format = f"{order}HH{'Q' if big else 'I'}{inline}s"
    position = offset + struct.calcsize(order + count_format)
    outside = 0
    whole = False
    try:
        (count,) = struct.unpack_from(order + count_format, data, offset)
        for _ in range(count):
            tag, kind, number, value = struct.unpack_from(entry_format, data, position)
            position += step
            size = number * _SIZES.get(kind, 0)
            if tag in values or not size:
                continue
            content = memoryview(value)[:size]
            if size > inline:
                (start,) = struct.unpack(order + ("Q" if big else "I"), value)
                outside += size
                if start >= 2**63 or outside > len(data):
                    continue
                if start + size > len(data):
                    return Directory(order, values, whole=tag > _LAST_IMAGE_TAG)
                content = data[start : start + size]
            values[tag] = kind, content
        whole = True
        (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, position)
    except (struct.error, OverflowError):
        return Directory(order, values, whole=whole)
    return Directory(order, values, following)


def exif_orientation(parts: Sequence[bytes], xmp: bytes = b"") -> int:
    """Return the orientation of an image from EXIF, or from XMP if EXIF has none.

    Args:
        parts: of the EXIF block (a JPEG segment holds 64 KiB), each with or without `PREFIX`. The
            block starts at the first part with a TIFF header.
        xmp: an XMP packet.
    """
    for number, part in enumerate(parts):
        begin = part.removeprefix(PREFIX).removeprefix(PREFIX)
        if begin.startswith(_HEADERS):
            rest = (later.removeprefix(PREFIX) for later in parts[number + 1 :])
            block = b"".join([begin, *rest])
            if len(block) < 8:
                break
            order = "<" if block.startswith(b"II") else ">"
            (offset,) = struct.unpack_from(order + "I", block, 4)
            return read_directory(memoryview(block), offset, order).orientation(xmp)
    return xmp_orientation(xmp)


def xmp_orientation(xmp: bytes) -> int:
    """Return the orientation in an XMP packet; 1 if absent."""
    found = _XMP.search(xmp)
    value = int(found[1]) if found else 1
    return value if 1 <= value <= 8 else 1

"""TIFF and DNG: choose the image to classify, and check whether OpenCV can decode it.

The rules are those of TIFF 6.0, its supplements and DNG 1.7.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import NamedTuple

from .exif import ORIENTATION, Directory, read_directory
from .header import ImageHeader

_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_OLD_SUBFILE, STRIPS, STRIP_SIZES, TILES, TILE_SIZES = 255, 273, 279, 324, 325
SAMPLES, _CHILDREN, _EXTRA, _FORMAT, _XMP = 277, 330, 338, 339, 700
_PROFILE = 34675
_REDUCED, _MASK = 1, 4
# ExtraSamples of alpha: premultiplied, not premultiplied, and CorelDRAW's for the latter.
_ALPHAS = (1, 2, 999)
# Real files have fewer directories before the full image.
_MAX_DIRECTORIES = 256
# Total of all directories. Reading that many takes 0.5 s; the largest classic one has 65,535.
_MAX_ENTRIES = 1 << 17
_SHORT = 3

_COMPRESSIONS = {
    6: "old-style JPEG", 9: "JBIG", 10: "JBIG", 32809: "ThunderScan", 32909: "Pixar",
    34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv", 34712: "JPEG 2000",
    33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA",
    34927: "WebP", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_RAW = {32803: "a colour filter array", 34892: "linear raw data"}
_LAB = frozenset((8, 9, 10))
_PALETTE, _INKS = 3, 5
_INK_SET, _CMYK = 332, 1
_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


class _Page(NamedTuple):
    """One image; the offset is that of its directory."""

    offset: int
    directory: Directory
    parent: Directory | None

    @property
    def kind(self) -> int:
        """Bits of NewSubfileType; of the older SubfileType, 2 is a reduced image."""
        old = self.directory.number(_OLD_SUBFILE, 1)
        return self.directory.number(_SUBFILE, _REDUCED if old == 2 else 0)

    @property
    def area(self) -> int:
        return self.directory.number(WIDTH, 0) * self.directory.number(HEIGHT, 0)


class _Layout(NamedTuple):
    order: str
    big: bool
    first: int


def _layout(data: bytes) -> _Layout:
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    # Classic TIFF is 42; BigTIFF is 43, with 8-byte counts and offsets.
    big = version == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return _Layout(order, big, first)


def _count_entries(data: bytes, offset: int, layout: _Layout) -> int:
    """Return the number of entries to read for a directory."""
    count_format, step = ("Q", 20) if layout.big else ("H", 12)
    first = offset + struct.calcsize(count_format)
    if first > len(data):
        return 0
    (count,) = struct.unpack_from(layout.order + count_format, data, offset)
    return int(min(count, (len(data) - first) // step))


def _rank(page: _Page) -> tuple[bool, int]:
    """Return the key by which the best of several thumbnails and masks is chosen."""
    return not page.kind & _MASK, page.area


def find_page(data: bytes) -> _Page:
    """Return the image to classify: the first that is neither a thumbnail nor a mask.

    Cameras write a thumbnail first, and the full image as its child (SubIFDs) or after it. If all
    are thumbnails, return the largest.

    Raises:
        struct.error: the directory of the image is beyond the end of the file.
        ValueError: there is no directory, or the directories have too many entries.
    """
    layout = _layout(data)
    view = memoryview(data)
    struct.unpack_from("H", data, layout.first)
    best: _Page | None = None
    whole = True
    entries = 0
    seen: set[int] = set()
    waiting: list[tuple[int, Directory | None]] = [(layout.first, None)]
    while waiting and len(seen) < _MAX_DIRECTORIES:
        offset, parent = waiting.pop(0)
        whole &= offset < len(data)
        if offset in seen or not 0 < offset < len(data):
            continue
        seen.add(offset)
        entries += _count_entries(data, offset, layout)
        if entries > _MAX_ENTRIES:
            raise ValueError("its directories have too many entries")
        page = _Page(offset, read_directory(view, offset, layout.order, layout.big), parent)
        if not page.kind & (_REDUCED | _MASK) and page.area:
            return page
        best = max(best or page, page, key=_rank)
        whole &= page.directory.whole
        children = islice(page.directory.numbers(_CHILDREN), _MAX_DIRECTORIES)
        own = [(int(child), page.directory) for child in children if child == child]
        after = [] if parent else [(page.directory.following, None)]
        waiting = [*own, *waiting, *after]
    if not whole:
        raise struct.error
    if not best:
        raise ValueError("it contains no image")
    return best


def read_tiff(data: bytes) -> ImageHeader:
    """Read the header of the image to classify."""
    page = find_page(data)
    directory = page.directory
    for tag in (WIDTH, HEIGHT):
        if tag not in directory.values:
            raise ValueError("its size is missing")
        if next(directory.numbers(tag), None) is None:
            raise ValueError("its size has an unknown type")
    xmp, profile = (
        directory.values.get(tag, (0, memoryview(b"")))[1].tobytes() for tag in (_XMP, _PROFILE)
    )
    turned = directory
    if page.parent and ORIENTATION not in directory.values:
        turned = page.parent
    # Without ExtraSamples, Pillow takes the fourth sample of RGB for alpha.
    plain = directory.number(PHOTOMETRIC, 0) == 2 and directory.number(SAMPLES, 1) == 4
    extra = directory.number(_EXTRA, 2 if plain and _EXTRA not in directory.values else 0)
    return ImageHeader(
        "tiff",
        directory.number(WIDTH, 0),
        directory.number(HEIGHT, 0),
        directory.whole and _end_of_image(directory) <= len(data),
        alpha=extra in _ALPHAS,
        orientation=turned.orientation(xmp),
        # Only libtiff multiplies 8-bit colour by alpha.
        premultiplied=extra == 1 or (_EXTRA in directory.values and directory.number(BITS, 1) == 8),
        profile=profile,
    )


def _end_of_image(directory: Directory) -> int:
    """Return the offset after the last strip or tile; 0 if unknown."""
    for places, sizes in ((STRIPS, STRIP_SIZES), (TILES, TILE_SIZES)):
        pairs = zip(directory.numbers(places), directory.numbers(sizes), strict=True)
        try:
            end = max(begin + length for begin, length in pairs)
        except ValueError:
            # Empty, or of different lengths.
            continue
        return int(end)
    return 0


def find_obstacle(data: bytes) -> str | None:
    """Return why the image must not be decoded with OpenCV; None if it may.

    OpenCV shows raw samples as a grey mosaic, and float or signed samples as black or not at all,
    because their range is unknown. It drops the alpha of grey samples, and shifts CIELAB colours.
    """
    directory = find_page(data).directory
    raw = _RAW.get(directory.number(PHOTOMETRIC, 1))
    if raw or data[8:10] == b"CR":
        raw = raw or "Canon CR2"
        return f"its full image is raw sensor data ({raw}): develop it to JPEG or PNG"
    kind = _FORMATS.get(directory.number(_FORMAT, 1))
    bits = directory.number(BITS, 1)
    if kind or bits > 16:
        kind = kind or "integer"
        return f"its samples are {bits}-bit {kind} numbers: save it with 8 or 16 bits a sample"
    if directory.number(PHOTOMETRIC, 1) in _LAB:
        return "its colours are CIELAB: save it as RGB"
    if directory.number(SAMPLES, 1) == 2 and directory.number(_EXTRA, 0) in (1, 2):
        colours = "has a palette" if directory.number(PHOTOMETRIC, 1) == _PALETTE else "is grey"
        return f"it {colours} with transparent parts: save it as PNG"
    return None


def explain_failure(data: bytes) -> str | None:
    """Return why OpenCV may have failed; None for a usual TIFF."""
    directory = find_page(data).directory
    name = _COMPRESSIONS.get(directory.number(COMPRESSION, 1))
    if name:
        return f"it is compressed with {name}: save it as PNG, or as TIFF with LZW or Deflate"
    samples = directory.number(SAMPLES, 1)
    if samples > 4:
        return f"it has {samples} channels: save it with at most 4"
    bits = directory.number(BITS, 1)
    if bits not in (1, 8, 16):
        return f"its samples are {bits}-bit numbers: save it with 8 or 16 bits a sample"
    if directory.number(PHOTOMETRIC, 1) == _INKS and (
        bits != 8 or directory.number(_INK_SET, _CMYK) != _CMYK
    ):
        return "its colours are inks other than 8-bit CMYK: save it as RGB"
    return None


def with_page(data: bytes) -> bytes:
    """Return the file with the image to classify as the first one, and orientation 1.

    OpenCV decodes the first image, and its versions apply orientation to different formats.
    """
    layout, page = _layout(data), find_page(data)
    turned = page.directory.values.get(ORIENTATION)
    values = list(islice(page.directory.numbers(ORIENTATION), 2))
    plain = turned is None or (turned[0] == _SHORT and values == [1])
    if page.offset == layout.first and plain:
        return data
    changed = bytearray(data)
    start, wide = (8, "Q") if layout.big else (4, "I")
    struct.pack_into(layout.order + wide, changed, start, page.offset)
    count_wide, step, one = ("Q", 20, "HHQH") if layout.big else ("H", 12, "HHIH")
    (count,) = struct.unpack_from(layout.order + count_wide, changed, page.offset)
    first = page.offset + struct.calcsize(layout.order + count_wide)
    for entry in range(first, min(first + count * step, len(changed) - step + 1), step):
        if struct.unpack_from(layout.order + "H", changed, entry) == (ORIENTATION,):
            struct.pack_into(layout.order + one, changed, entry, ORIENTATION, _SHORT, 1, 1)
    return bytes(changed)

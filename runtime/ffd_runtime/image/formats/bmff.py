"""AVIF and HEIC: boxes of the ISO base media file format, after ISO/IEC 14496-12 and 23008-12."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .exif import exif_orientation
from .header import MAX_PARTS, ImageHeader, take
from .icc import profile_of_codes

_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
# Brands of still images in this container, for any codec.
_ANY = frozenset({b"mif1", b"mif2", b"mif3", b"msf1", b"miaf"})
# First brands of image sequences, which viewers show as an animation.
_SEQUENCES = frozenset({b"avis", b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"})
# Types of a colour box with an ICC profile.
_PROFILES = (b"prof", b"rICC")
# Code point of ITU-T H.273 for primaries and for transfer.
_UNSPECIFIED = 2
_MAX_BOXES = 20_000
# Side of HEVC's largest coding block, in pixels.
_BLOCK = 64
_NOT_IN_UNIT = re.compile(rb"\0\0[\0-\2]")
_XMP = b"application/rdf+xml"
# Boxes that a `meta` box contains at most once.
_SINGLE = frozenset({b"pitm", b"iinf", b"iloc", b"iprp"})
_OVERLAP = "the places of its parts overlap"

# EXIF's orientation by quarter turns (against the clock) and mirror axis (None, 0 or 1), as in
# libavif's and Pillow's conversion.
_ORIENTATION = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 1): 2, (0, 0): 4, (1, 0): 5, (3, 0): 7, (1, 1): 7, (3, 1): 5, (2, 0): 2, (2, 1): 4,
}  # fmt: skip


def with_brand(data: bytes) -> bytes:
    """Return an AVIF with a brand of AVIF, which its decoder requires."""
    return data if _brands(data) & _AVIF else data[:8] + b"avif" + data[12:]


def find_format(data: bytes) -> str:
    """Return `avif` or `heif` for an image in this container; empty for other files.

    Brands state the requirements for a reader. The configuration box states the codec.
    """
    brands = _brands(data)
    if not brands & (_AVIF | _HEIF | _ANY):
        return ""
    head = data[: 1 << 16]
    coded_as_av1, coded_as_hevc = b"av1C" in head, b"hvcC" in head
    if coded_as_av1 == coded_as_hevc:
        coded_as_av1 = bool(brands & _AVIF) and not brands & _HEIF
    return "avif" if coded_as_av1 else "heif"


def _brands(data: bytes) -> set[bytes]:
    """Return the brands; empty if the file does not start with a `ftyp` box."""
    if data[4:8] != b"ftyp":
        return set()
    listed = data[16 : min(int.from_bytes(data[:4], "big"), 4096)]
    return {data[8:12], *(listed[at : at + 4] for at in range(0, len(listed) - 3, 4))}


@dataclass
class _Item:
    """One item of a `meta` box; an extent is an offset and a length."""

    kind: bytes = b""
    mime: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)

    def find(self, kind: bytes) -> bytes | None:
        return next((content for name, content in self.properties if name == kind), None)


def read_bmff(name: str, data: bytes) -> ImageHeader:
    """Read the header of an image.

    Args:
        name: `avif` or `heif`. The orientation of HEIC is 1, because the decoder applies rotation.
        data: content of the file.
    """
    primary, items = _read_meta(data)
    item = items.get(primary)
    if item is None or item.find(b"ispe") is None:
        item = _search(data)
    size = item.find(b"ispe") or b""
    width, height = struct.unpack_from(">II", size, 4)
    turn, mirror, config = item.find(b"irot"), item.find(b"imir"), item.find(b"av1C")
    key = turn[0] & 3 if turn else 0, mirror[0] & 1 if mirror else None
    orientation = _ORIENTATION[key]
    if name == "heif":
        width, height = _crop(width, height, item.find(b"clap"))
        orientation = 1
    elif orientation == 1:
        orientation = _xmp_turn(data, items)
    # The third byte of av1C contains high_bitdepth and twelve_bit.
    flags = config[2] & 0x60 if config and len(config) > 2 else 0
    depth = {0: 8, 0x40: 10, 0x60: 12}.get(flags, 8)
    end = max((at + length for one in items.values() for at, length in one.extents), default=0)
    colours = [content for kind, content in item.properties if kind == b"colr"]
    codes = next((one for one in colours if one.startswith(b"nclx") and len(one) >= 8), bytes(8))
    return ImageHeader(
        name,
        width,
        height,
        end <= len(data),
        True,
        orientation,
        depth,
        animated=data[8:12] in _SEQUENCES,
        profile=next((one[4:] for one in colours if one.startswith(_PROFILES)), b""),
        other_profile=profile_of_codes(*_specify(*struct.unpack_from(">HH", codes, 4))),
    )


def _specify(primaries: int, transfer: int) -> tuple[int, int]:
    """Replace an unspecified code by that of sRGB, as Chromium does."""
    return (
        1 if primaries == _UNSPECIFIED else primaries,
        13 if transfer == _UNSPECIFIED else transfer,
    )


def _crop(width: int, height: int, aperture: bytes | None) -> tuple[int, int]:
    """Return the size of a clean aperture that only removes the padding of coding blocks.

    A smaller aperture is ignored, because the limit of pixels refers to the decoded size.
    """
    if aperture is None:
        return width, height
    wide, wide_by, high, high_by = struct.unpack_from(">4I", aperture)
    shown = wide // max(wide_by, 1), high // max(high_by, 1)
    if all(0 <= coded - size < _BLOCK for coded, size in zip((width, height), shown, strict=True)):
        return shown
    return width, height


def _xmp_turn(data: bytes, items: dict[int, _Item]) -> int:
    """Return the orientation of XMP if EXIF has none. Like Pillow, ignore that of EXIF itself.

    The EXIF item starts with the offset of its TIFF header (ISO/IEC 23008-12, A.2.1).
    """
    content = {one.mime or one.kind: one for one in items.values()}
    exif, xmp = (_content(data, content.get(kind)) for kind in (b"Exif", _XMP))
    if exif_orientation([exif[4:]], b'tiff:Orientation="9') != 1:
        return 1
    return exif_orientation([exif[4:]], xmp)


def _content(data: bytes, item: _Item | None) -> bytes:
    """Return the content of an item, or raise `ValueError` if it is larger than the file."""
    pieces: list[bytes] = []
    left = len(data)
    for at, length in item.extents if item else ():
        pieces.append(data[at : at + length])
        left -= len(pieces[-1])
        if left < 0:
            raise ValueError(_OVERLAP)
    return b"".join(pieces)


def _search(data: bytes) -> _Item:
    """Find properties without a `meta` box for the image, as in sequences and damaged files."""
    head = data[: 1 << 16]
    item = _Item()
    # Every tile of the image has a size box (ispe); the image is the largest.
    sizes = [take(head, match.end(), 12) for match in re.finditer(b"ispe", head)]
    if not sizes:
        raise ValueError("its size is missing")
    item.properties.append((b"ispe", max(sizes, key=lambda one: struct.unpack_from(">II", one, 4))))
    for kind, length in ((b"irot", 1), (b"imir", 1), (b"av1C", 4)):
        at = head.find(kind)
        if at >= 0:
            item.properties.append((kind, head[at + 4 : at + 4 + length]))
    return item


def _boxes(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes in a range: type, and start and end of the content."""
    for _ in range(_MAX_BOXES):
        if begin + 8 > min(end, len(data)):
            return
        size, kind = struct.unpack_from(">I4s", data, begin)
        content = begin + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        close = end if size == 0 else begin + size
        if close < content:
            return
        yield kind, content, min(close, end)
        begin = close


def _read_meta(data: bytes) -> tuple[int, dict[int, _Item]]:
    """Return the number of the primary item, and all items."""
    items: dict[int, _Item] = {}
    primary = 0
    seen: set[bytes] = set()
    for kind, begin, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        # A full box starts with version and flags.
        for inner, at, close in _boxes(data, begin + 4, end):
            if inner in _SINGLE & seen:
                raise ValueError(f"its metadata contains the box {inner.decode()} twice")
            seen.add(inner)
            if inner == b"pitm":
                primary = _Fields(data, at + 4, close).next(4 if data[at] else 2)
            elif inner == b"iinf":
                _read_types(data, at, close, items)
            elif inner == b"iloc":
                _read_places(data, at, close, items)
            elif inner == b"iprp":
                _read_properties(data, at, close, items)
        break
    return primary, items


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with the HEVC data of an image, which libheif conceals.

    Each unit starts with its length, and an escape byte keeps it free of some sequences of bytes
    (ISO/IEC 23008-2, 7.4.2), so that zeros in a file that was not copied completely are found.
    """
    seen: set[tuple[tuple[int, int], ...]] = set()
    left = len(data)
    for item in _read_meta(data)[1].values():
        config = item.find(b"hvcC") or b""
        # The 22nd byte ends with the size of a length, less one.
        if item.kind != b"hvc1" or len(config) < 22 or config[21] & 3 != 3:
            continue
        # Tiles may share their data. Other overlaps would multiply the size of the file.
        places = tuple(item.extents)
        if places in seen:
            continue
        seen.add(places)
        try:
            content, at = _content(data, item), 0
        except ValueError:
            return _OVERLAP
        left -= len(content)
        if left < 0:
            return _OVERLAP
        while at < len(content):
            begin, at = at + 4, at + 4 + int.from_bytes(content[at : at + 4], "big")
            if at > len(content) or _NOT_IN_UNIT.search(content, begin, at):
                return "parts of its HEVC data are invalid"
    return None


class _Fields:
    """Reads consecutive big-endian integers, up to the end of their box."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def next(self, size: int) -> int:
        """Read an integer of `size` bytes; 0 if `size` is 0."""
        begin, self._at = self._at, self._at + size
        if self._at > self._end:
            raise IndexError
        return int.from_bytes(take(self._data, begin, size), "big")


def _read_types(data: bytes, begin: int, end: int, items: dict[int, _Item]) -> None:
    first = begin + (8 if data[begin] else 6)
    for kind, at, close in _boxes(data, first, end):
        if kind == b"infe" and data[at] >= 2:
            wide = 2 if data[at] == 2 else 4
            item = items.setdefault(_Fields(data, at + 4, close).next(wide), _Item())
            item.kind = take(data, at + 6 + wide, 4)
            if item.kind == b"mime":
                texts = data[at + 10 + wide : close].split(b"\0", 2)
                item.mime = texts[1] if len(texts) > 1 else b""


def _read_places(data: bytes, begin: int, end: int, items: dict[int, _Item]) -> None:
    version = data[begin]
    fields = _Fields(data, begin + 4, end)
    sizes, more = fields.next(1), fields.next(1)
    index_size, offset_size, length_size = more & 15 if version else 0, sizes >> 4, sizes & 15
    wide = 2 if version < 2 else 4
    left = MAX_PARTS
    for _ in range(min(fields.next(wide), _MAX_BOXES)):
        item = items.setdefault(fields.next(wide), _Item())
        method = fields.next(2) & 15 if version else 0
        fields.next(2)
        base = fields.next(more >> 4)
        count = fields.next(2)
        left -= count
        # Extents without fields take no bytes, so a small file could contain any number of them.
        if left < 0 or (count > 1 and not index_size + offset_size + length_size):
            raise ValueError("its parts have too many extents")
        for _ in range(count):
            fields.next(index_size)
            offset, length = base + fields.next(offset_size), fields.next(length_size)
            # Offsets of other methods refer to a box (1) or another item (2).
            if method == 0:
                item.extents.append((offset, length))


def _read_properties(data: bytes, begin: int, end: int, items: dict[int, _Item]) -> None:
    known: list[tuple[bytes, bytes]] = []
    for kind, at, close in _boxes(data, begin, end):
        if kind == b"ipco":
            known = [(name, data[first:last]) for name, first, last in _boxes(data, at, close)]
        elif kind == b"ipma":
            _associate(data, (at, close), known, items)


def _associate(
    data: bytes, box: tuple[int, int], known: list[tuple[bytes, bytes]], items: dict[int, _Item]
) -> None:
    begin, end = box
    wide, step = 4 if data[begin] else 2, 2 if data[begin + 3] & 1 else 1
    fields = _Fields(data, begin + 4, end)
    for _ in range(min(fields.next(4), _MAX_BOXES)):
        item = items.setdefault(fields.next(wide), _Item())
        for _ in range(fields.next(1)):
            # The highest bit marks an essential property.
            index = fields.next(step) & (0x7FFF if step == 2 else 0x7F)
            if 0 < index <= len(known):
                item.properties.append(known[index - 1])

"""JPEG: segments, scans and end marker, by ITU-T T.81."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ...core.errors import InputError
from .exif import PREFIX, exif_orientation
from .header import MAX_PARTS, ImageHeader

# Start-of-frame markers; C4, C8 and CC are tables and extensions (T.81, table B.1).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
DHT, SOS, EOI, APP1, _APP2 = 0xC4, 0xDA, 0xD9, 0xE1, 0xE2
# The limit of libjpeg-turbo's tools and fuzzers (TJFLAG_LIMITSCANS). Encoders write about 10.
MAX_SCANS = 500
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
# In entropy-coded data, FF is followed by 00 or starts a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
# The start of the segment that states the height after the first scan (T.81, B.2.5).
_HEIGHT = b"\xff\xdc\0\4"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"


class Segment(NamedTuple):
    """One marker segment; `at` is the offset of FF, `content` excludes marker and length."""

    marker: int
    at: int
    content: bytes


@dataclass(frozen=True)
class Frame:
    """The frame header.

    Attributes:
        marker: which of `SOF`.
        precision: bits of a sample.
        height: in pixels.
        width: in pixels.
        areas: product of the horizontal and vertical sampling factor, by component.
    """

    marker: int
    precision: int
    height: int
    width: int
    areas: dict[int, int]

    @classmethod
    def read(cls, segment: Segment) -> Frame:
        """Read a start-of-frame segment."""
        precision, height, width, _ = struct.unpack_from(">BHHB", segment.content)
        areas = {}
        for at in range(6, len(segment.content) - 2, 3):
            component, factors = segment.content[at : at + 2]
            areas[component] = (factors >> 4) * (factors & 15)
        return cls(segment.marker, precision, height, width, areas)

    def samples(self, scan: bytes) -> int:
        """Return the number of samples in a scan, by its start-of-scan segment."""
        largest = max(self.areas.values(), default=1) or 1
        covered = (
            sum(self.areas.get(name, 0) for name in scan[1 : 1 + 2 * scan[0] : 2]) if scan else 0
        )
        return self.width * self.height * covered // largest

    def lacks_scans(self, scans: list[bytes]) -> bool:
        """Return whether a progressive image lacks whole scans, for which libjpeg does not warn.

        Without its later scans, such an image is a blurred preview. Each scan sends a band of
        coefficients without their lowest bits, or refines them by one bit (T.81, G.1.1).
        """
        if self.marker not in _PROGRESSIVE:
            return False
        missing = {name: set(range(64)) for name in self.areas}
        for scan in scans:
            if len(scan) < 4 or len(scan) < 4 + 2 * scan[0]:
                continue
            start, end, bits = scan[1 + 2 * scan[0] : 4 + 2 * scan[0]]
            if bits & 15 == 0:
                for name in scan[1 : 1 + 2 * scan[0] : 2]:
                    missing.get(name, set()).difference_update(range(start, end + 1))
        return any(missing.values())


def read_segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG up to and including the first start of scan.

    Stray bytes between segments are skipped, as in libjpeg.

    Raises:
        IndexError: the file ends before the first scan.
        ValueError: an end marker precedes the first scan, or there are too many segments.
    """
    position = 2
    for _ in range(MAX_PARTS):
        position = data.find(b"\xff", position)
        if position < 0:
            raise IndexError
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0 or marker in _STANDALONE:
            position += 2
        elif marker == EOI:
            raise ValueError("it contains no image")
        else:
            length = max(_length(data, position), 2)
            content = data[position + 4 : position + 2 + length]
            if len(content) < length - 2:
                raise IndexError
            yield Segment(marker, position, content)
            if marker == SOS:
                return
            position += 2 + length
    raise ValueError("it has too many segments")


def read_jpeg(data: bytes) -> ImageHeader:
    """Read the header of a JPEG.

    Raises:
        InputError: `unsupported` if only the end of the file states the height.
    """
    frame = None
    exif: list[bytes] = []
    xmp = b""
    profile: list[bytes] = []
    scans: list[bytes] = []
    complete = False
    for segment in _read_all_segments(data):
        if segment.marker == SOS:
            scans.append(segment.content)
            if len(scans) > MAX_SCANS:
                break
        elif segment.marker == EOI:
            complete = True
        elif scans:
            continue
        elif segment.marker in SOF:
            frame = Frame.read(segment)
        elif segment.marker == APP1 and segment.content.startswith(PREFIX):
            exif.append(segment.content)
        elif segment.marker == APP1 and segment.content.startswith(_XMP):
            xmp = segment.content[len(_XMP) :]
        elif segment.marker == _APP2 and segment.content.startswith(_ICC):
            profile.append(segment.content[len(_ICC) :])
    if frame is None or not scans:
        raise ValueError("it has no frame header")
    if not scans[0]:
        raise IndexError
    if frame.height == 0 and _HEIGHT in data:
        raise InputError("unsupported", "a JPEG with its height at its end (DNL): save it again")
    return ImageHeader(
        "jpeg",
        frame.width,
        frame.height,
        complete,
        orientation=exif_orientation(exif, xmp),
        scans=len(scans),
        scanned=sum(frame.samples(one) for one in scans),
        lacks_scans=frame.lacks_scans(scans),
        # Browsers apply only profiles of CMYK to CMYK, and ffd none.
        profile=b"" if len(frame.areas) == 4 else _join_profile(profile),
    )


def _join_profile(parts: list[bytes]) -> bytes:
    """Join the parts of an ICC profile, which start with their number and count.

    The format is that of ICC.1:2010, B.4. As in Chromium, a first part that is the only one by its
    count is the profile. Otherwise the profile is empty if a part is absent or comes twice, or if
    the parts disagree on their count.
    """
    if parts and parts[0][:2] == b"\1\1":
        return parts[0][2:]
    parts = sorted(part for part in parts if len(part) >= 2)
    numbers = [tuple(part[:2]) for part in parts]
    if numbers != [(number, len(parts)) for number in range(1, len(parts) + 1)]:
        return b""
    return b"".join(part[2:] for part in parts)


def _length(data: bytes, position: int) -> int:
    (length,) = struct.unpack_from(">H", data, position + 2)
    return int(length)


def with_end(data: bytes) -> bytes:
    """Return the file with an end marker, without which libjpeg waits for more data."""
    return data.removesuffix(b"\xff") + b"\xff\xd9"


# Largest padding that encoders leave before the end marker, in bytes.
_MAX_PADDING_BYTES = 64
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
# No encoder writes that many zero bytes for the coefficients of an image.
_ZEROS = bytes(64)
# In a scan of fewer coefficients, such as those of a gradient, they may be valid.
_MIN_BAND = 4
# The symbols in the AC tables that a JPEG without tables uses (T.81, K.3.3.2).
_USUAL_SYMBOLS = {0: 1, 1: 0}


def find_damage(messages: str, data: bytes) -> tuple[str, str] | None:
    """Return the damage that libjpeg's warnings mean.

    Args:
        messages: printed by libjpeg while it decoded the file.
        data: content of the file.

    Returns:
        Error code and message; None if the image is complete.
    """
    skipped = 0
    for line in messages.splitlines():
        if "premature end" in line.lower() or "found marker 0xd9 instead" in line:
            return "truncated", "the JPEG ends early: a part of its image is missing"
        stray = _STRAY.search(line)
        if stray:
            count, marker = int(stray[1]), int(stray[2], 16)
            if marker == EOI:
                padding = data[max(_find_end(data) - count, 0) : _find_end(data)]
                if count <= _MAX_PADDING_BYTES or not padding.strip(b"\0\xff"):
                    skipped = count
                    continue
            return "corrupt", f"broken JPEG: {count} bytes of its data are invalid"
        if line.startswith("Corrupt JPEG data"):
            return "corrupt", f"broken JPEG: {line.partition(': ')[2]}"
    if _ZEROS in data and _lacks_data(data, skipped):
        return "corrupt", "broken JPEG: zero bytes replace a part of its data"
    return None


def _lacks_data(data: bytes, skipped: int) -> bool:
    """Return whether libjpeg decoded zero bytes that replace data, for which it does not warn.

    Files that were not copied completely contain them. They may be valid if the Huffman code of
    zero bits means the end of a block, as in images with large plain parts.

    Args:
        data: content of the file.
        skipped: number of bytes before the end marker that libjpeg did not decode.
    """
    end = skipped
    for has_details, begin, end in _read_coded_data(data):
        if has_details and data.find(_ZEROS, begin, end - skipped) >= 0:
            return True
    # Zero bytes are no padding if some of them were decoded.
    return skipped > len(_ZEROS) and data.endswith(_ZEROS, 0, end - skipped)


def _read_coded_data(data: bytes) -> Iterator[tuple[bool, int, int]]:
    """Yield whether zero bits code details of the image, and the offsets of the data, by scan."""
    symbols = dict(_USUAL_SYMBOLS)
    huffman = has_details = False
    begin = 0
    for segment in _read_all_segments(data):
        if begin:
            yield has_details, begin, segment.at
            begin = 0
        if segment.marker in SOF:
            huffman = segment.marker <= 0xC2
        elif segment.marker == DHT:
            symbols.update(_first_symbols(segment.content))
        elif segment.marker == SOS and huffman:
            begin = segment.at + 4 + len(segment.content)
            has_details = _has_details(segment.content, symbols)
    if begin:
        yield has_details, begin, len(data)


def _read_all_segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG up to its end marker, which is one of them."""
    position = 0
    for segment in read_segments(data):
        yield segment
        position = segment.at + 4 + len(segment.content)
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            return
        at = found.start()
        if data[at + 1] == EOI:
            yield Segment(EOI, at, b"")
            return
        if len(data) < at + 4:
            return
        position = at + 2 + max(_length(data, at), 2)
        yield Segment(data[at + 1], at, data[at + 4 : position])


def _first_symbols(tables: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of each AC table, and its symbol with the code of all zero bits."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] >> 4 == 1:
            yield tables[at] & 15, tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])


def _has_details(scan: bytes, symbols: dict[int, int]) -> bool:
    """Return whether zero bits give each block of a scan several coefficients that are not zero."""
    if len(scan) < 4 or len(scan) < 4 + 2 * scan[0]:
        return False
    start, end, bits = scan[1 + 2 * scan[0] : 4 + 2 * scan[0]]
    if bits >> 4 or end - start < _MIN_BAND:
        return False
    # The lower four bits of a symbol are the number of value bits.
    return any(symbols.get(table & 15, 0) & 15 for table in scan[2 : 2 + 2 * scan[0] : 2])


def without_padding(messages: str, data: bytes) -> bytes | None:
    """Return the file without bytes that libjpeg skipped before the end marker; None if it did not.

    libjpeg only prints its first warning. If the bytes replace restart intervals, it reports what
    is missing when they are absent.
    """
    stray = _STRAY.search(messages)
    if stray is None or int(stray[2], 16) != EOI:
        return None
    end = _find_end(data)
    return data[: max(end - int(stray[1]), 0)] + data[end:]


def _find_end(data: bytes) -> int:
    """Return the offset of the end marker, 0 if absent."""
    return next((one.at for one in _read_all_segments(data) if one.marker == EOI), 0)


def describe_coding(data: bytes) -> str | None:
    """Return a coding that libjpeg may not support; None for a usual JPEG."""
    for segment in read_segments(data):
        if segment.marker in SOF:
            frame = Frame.read(segment)
            if frame.precision != 8:
                return f"{frame.precision}-bit"
            if segment.marker in (0xC3, 0xC7, 0xCB, 0xCF):
                return "lossless"
            if segment.marker > 0xC8:
                return "arithmetic-coded"
            if segment.marker > 0xC2:
                return "hierarchical"
            return None
    return None

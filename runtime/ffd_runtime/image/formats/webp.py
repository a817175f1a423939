"""WebP: RIFF chunks, by RFC 9649."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .exif import exif_orientation
from .header import MAX_PARTS, ImageHeader, take

# Flags of the VP8X chunk.
_PROFILE, _ALPHA, _EXIF, _XMP = 0x20, 0x10, 0x08, 0x04
# Size of a disk sector in bytes.
_SECTOR = 512
# Chunks with the first image.
_IMAGES = frozenset({b"VP8 ", b"VP8L", b"ANMF"})


class _Chunk(NamedTuple):
    kind: bytes
    begin: int
    end: int
    whole: bool


def _read_chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks of the RIFF container; the last may be truncated."""
    (size,) = struct.unpack_from("<I", data, 4)
    limit = min(len(data), size + 8)
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > limit:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        yield _Chunk(kind, position + 8, min(end, limit), end <= len(data))
        position = end + length % 2
    raise ValueError("it has too many chunks")


def read_webp(data: bytes) -> ImageHeader:
    """Read the header of a WebP."""
    complete = any(chunk.kind in _IMAGES and chunk.whole for chunk in _read_chunks(data))
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF, complete)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return ImageHeader("webp", width, height, complete, alpha=bool(bits >> 28 & 1))
    if kind == b"VP8X":
        width, height = (int.from_bytes(take(data, at, 3), "little") + 1 for at in (24, 27))
        frames = sum(chunk.kind == b"ANMF" for chunk in _read_chunks(data))
        return ImageHeader(
            "webp",
            width,
            height,
            complete,
            bool(data[20] & _ALPHA),
            _turn(data),
            animated=frames > 1,
            profile=_read_metadata(data, {b"ICCP": data[20] & _PROFILE}).get(b"ICCP", b""),
        )
    raise ValueError("its first chunk is unknown")


def _turn(data: bytes) -> int:
    """Return the EXIF orientation."""
    found = _read_metadata(data, {b"EXIF": data[20] & _EXIF, b"XMP ": data[20] & _XMP})
    return exif_orientation([found.get(b"EXIF", b"")], found.get(b"XMP ", b""))


def _read_metadata(data: bytes, wanted: dict[bytes, int]) -> dict[bytes, bytes]:
    """Return the first chunk of each wanted kind. Like libwebp, ignore kinds without their flag."""
    found: dict[bytes, bytes] = {}
    for chunk in _read_chunks(data):
        if wanted.get(chunk.kind) and chunk.whole:
            found.setdefault(chunk.kind, data[chunk.begin : chunk.end])
    return found


def find_damage(data: bytes) -> str | None:
    """Return whether a sector of lossy data is zero, as in a file that was not copied completely.

    A plain image needs more than 30 million pixels to compress to as many zero bits.
    """
    for chunk in _read_chunks(data):
        if chunk.kind == b"VP8 " and data.find(bytes(_SECTOR), chunk.begin, chunk.end) >= 0:
            return f"{_SECTOR} or more bytes of its data are zero"
    return None


def whole_part(data: bytes) -> bytes:
    """Return the file without a truncated chunk at its end; keep a complete file."""
    (size,) = struct.unpack_from("<I", data, 4)
    if len(data) >= size + 8:
        return data
    end = 12
    for chunk in _read_chunks(data):
        if not chunk.whole:
            break
        end = chunk.end
    kept = data[12:end] + b"\0" * (end % 2)
    return b"RIFF" + struct.pack("<I", len(kept) + 4) + b"WEBP" + kept

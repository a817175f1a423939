"""What an image file says about itself, read from its first bytes without decoding it.

OpenCV decodes whatever size a file claims and hands back half a picture for a truncated JPEG, so
size and completeness are checked here, before it sees the bytes. JPEG 2000 is left out on purpose:
its decoder in OpenCV 4.10 and 4.11 brings the process down on damaged files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class ImageHeader:
    """Format and claimed size of an encoded image.

    Attributes:
        format: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`, `avif` or `pnm`.
        width: in pixels, before any EXIF rotation.
        height: in pixels, before any EXIF rotation.
        complete: False if the file certainly ends early.
        alpha: True if some of it may be transparent.
        orientation: as in EXIF, 1 to 8; of JPEG, PNG, WebP and AVIF.
        depth: bits a sample; of AVIF, where OpenCV leaves 10 and 12 bits as they are.
    """

    format: str
    width: int
    height: int
    complete: bool = True
    alpha: bool = False
    orientation: int = 1
    depth: int = 8


def read_header(data: bytes) -> ImageHeader:
    """Read the header of an encoded image.

    Args:
        data: the whole file.

    Raises:
        InputError: `empty`, `not_an_image` (no known signature) or `truncated` (the header itself
            ends early).
    """
    if not data:
        raise InputError("empty", "the file is empty")
    for name, matches, parse in _FORMATS:
        if matches(data):
            try:
                header = parse(data)
            except (struct.error, IndexError, OverflowError):
                raise InputError("truncated", f"the {name.upper()} header ends early") from None
            except ValueError as error:
                raise InputError("corrupt", f"broken {name.upper()}: {error}") from None
            if header.width < 1 or header.height < 1:
                size = f"{header.width}x{header.height}"
                raise InputError("corrupt", f"broken {name.upper()}: its size is {size}")
            return header
    raise InputError("not_an_image", "not an image in a format that ffd reads")


# Start-of-frame markers; C4, C8 and CC are tables and extensions (ITU-T T.81, table B.1).
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def _jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int] | None = None
    orientation = 1
    position = 2
    while True:
        if data[position] != 0xFF:
            # Stray bytes between markers: libjpeg skips them too.
            position = data.find(b"\xff", position)
            if position < 0:
                raise IndexError
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _JPEG_STANDALONE:
            position += 2
        elif marker == 0xDA:
            break
        elif marker == 0xD9:
            raise ValueError("it holds no picture")
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker in _JPEG_SOF:
                height, width = struct.unpack_from(">HH", data, position + 5)
                size = width, height
            elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
                orientation = _exif_orientation(data[position + 10 : position + 4106])
            position += 2 + max(length, 2)
    if size is None:
        raise ValueError("it has no frame header")
    # Inside entropy-coded data FF is only ever followed by 00 or a restart marker, so this finds
    # the true end of image, not one inside an EXIF thumbnail.
    complete = data.find(b"\xff\xd9", position) >= 0
    return ImageHeader("jpeg", *size, complete, orientation=orientation)


def _png(data: bytes) -> ImageHeader:
    width, height, _, colour_type = struct.unpack_from(">IIBB", data, 16)
    # Alpha comes as a channel (types 4 and 6) or as a tRNS chunk before the pixels.
    alpha = colour_type in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    complete = b"IEND" in data[-64 * 1024 :]
    return ImageHeader("png", width, height, complete, alpha, _exif(data, b"eXIf", 4))


def _gif(data: bytes) -> ImageHeader:
    return ImageHeader("gif", *struct.unpack_from("<HH", data, 6))


# The headers of BMP's versions: any other number is some text that begins with BM.
_DIB_SIZES = frozenset((12, 16, 40, 52, 56, 64, 108, 124))


def _bmp(data: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size not in _DIB_SIZES:
        raise InputError("not_an_image", "not an image in a format that ffd reads")
    if header_size == 12:
        return ImageHeader("bmp", *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    (offset,) = struct.unpack_from("<I", data, 10)
    bits, compression = struct.unpack_from("<HI", data, 28)
    row = (abs(width) * bits + 31) // 32 * 4
    complete = compression not in (0, 3) or len(data) >= offset + row * abs(height)
    return ImageHeader("bmp", abs(width), abs(height), complete)


def _webp(data: bytes) -> ImageHeader:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    complete = len(data) >= riff_size + 8
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF, complete)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return ImageHeader("webp", width, height, complete, alpha=bool(bits >> 28 & 1))
    if kind == b"VP8X":
        width, height = (int.from_bytes(_take(data, at, 3), "little") + 1 for at in (24, 27))
        alpha = bool(data[20] & 0x10)
        return ImageHeader("webp", width, height, complete, alpha, _exif(data, b"EXIF", 8))
    raise ValueError("its first chunk is unknown")


def _tiff(data: bytes) -> ImageHeader:
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    # Classic TIFF is 42; BigTIFF is 43, with 8-byte counts and offsets.
    big = version == 43
    offset_at, offset_format = (8, "Q") if big else (4, "I")
    (directory,) = struct.unpack_from(order + offset_format, data, offset_at)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    first, step, value_at = (directory + 8, 20, 12) if big else (directory + 2, 12, 8)
    found = {338: 0}
    for entry in range(first, first + step * min(entries, 4096), step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257, 338):
            value = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if value is None:
                raise ValueError("its size has an unknown type")
            (found[tag],) = struct.unpack_from(order + value, data, entry + value_at)
    if len(found) != 3:
        raise ValueError("it does not say its size")
    # Tag 338 says what a fourth sample is: 1 or 2 for alpha.
    return ImageHeader("tiff", found[256], found[257], alpha=found[338] in (1, 2))


def _exif(data: bytes, tag: bytes, skip: int) -> int:
    """Orientation in the EXIF chunk of a PNG or WebP; 1 where there is none."""
    at = data.find(tag)
    if at < 0:
        return 1
    return _exif_orientation(data[at + skip : at + skip + 4096].removeprefix(b"Exif\0\0"))


def _exif_orientation(block: bytes) -> int:
    """Orientation in the first directory of an EXIF block; 1 where it is absent or broken."""
    order = "<" if block[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * min(entries, 64), 12):
            tag_number, _, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if tag_number == 0x0112 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return 1


# EXIF's orientation by AVIF's quarter turns (against the clock) and mirror axis (None, 0 or 1).
_AVIF_ORIENTATION = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 1): 2, (0, 0): 4, (1, 0): 5, (3, 0): 7, (1, 1): 7, (3, 1): 5, (2, 0): 2, (2, 1): 4,
}  # fmt: skip


def _avif(data: bytes) -> ImageHeader:
    head = data[: 1 << 16]
    # Every part of the picture has a size box (ispe); the picture is the largest.
    at = [box.end() + 4 for box in re.finditer(b"ispe", head)]
    sizes = [struct.unpack_from(">II", head, position) for position in at]
    if not sizes:
        raise ValueError("it does not say its size")
    turn, mirror = head.find(b"irot"), head.find(b"imir")
    turns = head[turn + 4] & 3 if turn >= 0 else 0
    axis = head[mirror + 4] & 1 if mirror >= 0 else None
    # In av1C the third byte holds high_bitdepth and twelve_bit.
    config = head.find(b"av1C")
    flags = head[config + 6] & 0x60 if config >= 0 else 0
    depth = {0: 8, 0x40: 10, 0x60: 12}.get(flags, 8)
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    orientation = _AVIF_ORIENTATION[turns, axis]
    return ImageHeader("avif", width, height, alpha=True, orientation=orientation, depth=depth)


# A magic number, then a size: comments and blanks may stand between.
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+\s")


def _pnm(data: bytes) -> ImageHeader:
    # Only its head can hold the size; comments run from # to the end of the line.
    lines = (line.split(b"#", 1)[0] for line in data[2:4096].splitlines())
    tokens = b" ".join(lines).split()
    return ImageHeader("pnm", int(tokens[0][:9]), int(tokens[1][:9]))


def _take(data: bytes, start: int, length: int) -> bytes:
    if len(data) < start + length:
        raise IndexError
    return data[start : start + length]


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], ImageHeader]], ...] = (
    ("jpeg", _starts(b"\xff\xd8\xff"), _jpeg),
    ("png", _starts(b"\x89PNG\r\n\x1a\n"), _png),
    ("webp", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    ("gif", _starts(b"GIF87a", b"GIF89a"), _gif),
    ("bmp", _starts(b"BM"), _bmp),
    ("tiff", _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    ("avif", lambda data: data[4:12] in (b"ftypavif", b"ftypavis"), _avif),
    ("pnm", lambda data: _PNM.match(data) is not None, _pnm),
)

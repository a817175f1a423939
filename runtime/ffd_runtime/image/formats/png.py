"""PNG: chunks, after the W3C's recommendation (third edition)."""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ...core.errors import InputError
from .exif import exif_orientation
from .header import MAX_PARTS, ImageHeader
from .icc import MAX_PROFILE_BYTES, is_code, profile_of_codes, profile_of_gamma

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_EXIF_TEXT = b"Raw profile type exif"
_XMP_TEXT = b"XML:com.adobe.xmp"
# Pillow's limits of a compressed text, and of all together.
_MAX_TEXT_BYTES = 1 << 20
_MAX_TEXTS_BYTES = 1 << 26
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_COLOURS = frozenset({b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_KEYWORDS = (_EXIF_TEXT + b"\0", _XMP_TEXT + b"\0", b"exif\0")


class _Chunk(NamedTuple):
    kind: bytes
    content: bytes
    end: int
    whole: bool
    checksum: bytes

    def is_valid(self) -> bool:
        return int.from_bytes(self.checksum, "big") == zlib.crc32(
            self.content, zlib.crc32(self.kind)
        )


def _read_chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to IEND or to the end of the file; the last may be truncated."""
    position = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        whole = end <= len(data)
        yield _Chunk(kind, data[position + 8 : end - 4], end, whole, data[end - 4 : end])
        if kind == b"IEND" or not whole:
            return
        position = end
    raise ValueError("it has too many chunks")


def read_png(data: bytes) -> ImageHeader:
    """Read the header of a PNG.

    Raises:
        InputError: `unsupported` for Apple's variant, which is not a PNG by the recommendation;
            `too_large` if its data are larger than its image.
    """
    if data[12:16] == b"CgBI":
        raise InputError("unsupported", "a PNG that Xcode changed for iOS: convert it on a Mac")
    if len(data) >= 16 and data[12:16] != b"IHDR":
        raise ValueError("its first chunk is not a header")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    # Alpha is a channel (types 4 and 6) or a tRNS chunk.
    alpha = colour_type in (4, 6)
    transparent = None
    size = 0
    metadata, frames = _Metadata(), _Frames()
    complete, image = False, False
    for chunk in _read_chunks(data):
        if chunk.kind == b"IDAT":
            size += len(chunk.content)
            # Its checksum, the last four bytes, may be absent.
            image = chunk.end - 4 <= len(data)
        elif image or chunk.kind == b"IEND":
            # The IDAT chunks are consecutive (5.6), so the image has ended.
            complete = True
        frames.add(chunk, image)
        if chunk.kind == b"tRNS":
            alpha = True
            if colour_type == 0:
                transparent = _grey_level(chunk.content, depth)
        elif chunk.whole and not frames.second:
            metadata.add(chunk)
    if size > _max_data_bytes(width, height, depth * _CHANNELS.get(colour_type, 4)):
        raise InputError(
            "too_large",
            f"a PNG of {width}x{height} pixels with {size >> 10} KiB of data, which takes too long "
            "to decode: save it again",
        )
    complete = complete or (image and _holds_image(data))
    header = ImageHeader("png", width, height, complete, alpha, metadata.orientation())
    profile, other_profile = metadata.profiles()
    return replace(
        header,
        transparent=transparent,
        animated=frames.animated,
        profile=profile,
        other_profile=other_profile,
    )


def _max_data_bytes(width: int, height: int, bits: int) -> int:
    """Return the largest size of a compressed image.

    Deflate adds 5 bytes to a block that it cannot compress (RFC 1951, 3.2.4), and a filter byte
    precedes each row. libpng also decompresses what follows the image, up to 1032 times its size.

    Args:
        width: in pixels.
        height: in pixels.
        bits: of a pixel.
    """
    rows = height * (width * bits // 8 + 8)
    return rows + rows // 8 + (1 << 16)


def _grey_level(content: bytes, depth: int) -> int | None:
    """Return the level of a tRNS chunk as OpenCV decodes it, in 8 or 16 bits; None if invalid."""
    if len(content) < 2:
        return None
    highest = (1 << depth) - 1
    level = int.from_bytes(content[:2], "big") & highest
    return level * 255 // highest if 0 < depth < 8 else level


def with_end(data: bytes) -> bytes:
    """Return the file without its animation, and with an end chunk after its image.

    An animation need not contain the image (11.3.6), and versions of OpenCV show one or the other.
    """
    checked, end = b"", 0
    before = itertools.takewhile(lambda chunk: chunk.kind != b"IDAT", _read_chunks(data))
    animation = next((chunk for chunk in before if chunk.kind == b"acTL" and chunk.whole), None)
    if animation:
        data = data[: animation.end - 12 - len(animation.content)] + data[animation.end :]
    for chunk in _read_chunks(data):
        if chunk.kind == b"IEND" and chunk.whole:
            return data
        if chunk.kind == b"IDAT":
            checked, end = b"IDAT" + chunk.content, chunk.end
    if end <= len(data):
        return data[:end] + _END
    # The file ends within the checksum of its image.
    return data[: end - 4] + struct.pack(">I", zlib.crc32(checked)) + _END


def _holds_image(data: bytes) -> bool:
    """Return whether the file contains the whole compressed image."""
    stream = zlib.decompressobj()
    for chunk in _read_chunks(data):
        if chunk.kind == b"IDAT":
            rest = chunk.content
            while rest and not stream.eof:
                try:
                    stream.decompress(rest, 1 << 20)
                except zlib.error:
                    return False
                rest = stream.unconsumed_tail
    return stream.eof


class _Frames:
    """The frames of an animation (11.3.6).

    Attributes:
        second: whether the chunks belong to the second frame.
    """

    def __init__(self) -> None:
        self.second = False
        self._any, self._several, self._has_image = False, False, False

    def add(self, chunk: _Chunk, image: bool) -> None:
        """Consider a chunk, and whether it follows the image."""
        if chunk.kind == b"acTL":
            self._any, self._several = True, chunk.content[:4] > b"\0\0\0\1"
        elif chunk.kind == b"fcTL":
            self._has_image |= not image
            self.second |= image and self._several

    @property
    def animated(self) -> bool:
        """Whether viewers show other frames than the image."""
        return self._several or (self._any and not self._has_image)


class _Metadata:
    """EXIF and XMP, as Pillow's PngImagePlugin collects them: of each kind, the last counts.

    Of the chunks of colours, the first before the palette and the image counts, as in libpng.
    """

    def __init__(self) -> None:
        self._colours: dict[bytes, bytes] = {}
        self._early = True
        self._exif = b""
        self._texts: dict[bytes, bytes] = {}
        self._left = _MAX_TEXTS_BYTES

    def add(self, chunk: _Chunk) -> None:
        self._early &= chunk.kind not in (b"PLTE", b"IDAT")
        if chunk.kind == b"eXIf":
            self._exif = chunk.content
        elif chunk.kind in _COLOURS and self._early and chunk.is_valid():
            self._colours.setdefault(chunk.kind, chunk.content)
        elif chunk.kind in _TEXTS and chunk.content.startswith(_KEYWORDS) and self._left > 0:
            keyword, _, rest = chunk.content.partition(b"\0")
            text = _text(chunk.kind, rest)
            self._left -= len(text or b"")
            if keyword == b"exif" and chunk.kind == b"tEXt":
                self._exif = rest
            elif text is not None:
                self._texts[keyword] = text

    def profiles(self) -> tuple[bytes, bytes]:
        """Return the ICC profile, and another for the case that it is absent or invalid (4.3)."""
        codes = self._colours.get(b"cICP", b"")
        # The matrix of RGB, and full range.
        if codes[2:4] == b"\0\1" and is_code(*codes[:2]):
            return profile_of_codes(*codes[:2]), b""
        # Name, method, compressed profile.
        packed = self._colours.get(b"iCCP", b"").partition(b"\0")[2]
        profile = b"" if packed[:1] != b"\0" else _inflate_profile(packed[1:])
        gamma, points = self._colours.get(b"gAMA", b""), self._colours.get(b"cHRM", b"")
        if b"sRGB" in self._colours or len(gamma) != 4 or not any(gamma):
            return profile, b""
        exponent = 100_000 / int.from_bytes(gamma, "big")
        if len(points) != 32:
            return profile, profile_of_gamma(exponent)
        x_y = [point / 100_000 for point in struct.unpack(">8i", points)]
        return profile, profile_of_gamma(exponent, tuple(x_y))

    def orientation(self) -> int:
        exif = self._exif
        if not exif:
            # ImageMagick's form: a blank line, a name, a length, then hexadecimal digits.
            lines = self._texts.get(_EXIF_TEXT, b"").split(b"\n")[3:]
            digits = re.sub(rb"\s", b"", b"".join(lines))
            try:
                exif = bytes.fromhex(digits.decode("ascii"))
            except ValueError:
                exif = b""
        return exif_orientation([exif], self._texts.get(_XMP_TEXT, b""))


def _text(kind: bytes, rest: bytes) -> bytes | None:
    """Return the text after a keyword; None if it is invalid."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflate(rest[1:]) if rest[:1] == b"\0" else None
    # iTXt: compressed or not, method, language, translated keyword, text.
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        return None
    if rest[0]:
        return _inflate(parts[2]) if rest[1] == 0 else None
    return parts[2]


def _inflate_profile(data: bytes) -> bytes:
    """Return an ICC profile; empty if it is too large or incomplete."""
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(data, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if stream.eof else b""


def _inflate(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT_BYTES)
    except zlib.error:
        return None

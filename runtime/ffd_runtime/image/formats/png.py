"""PNG: chunks, after the W3C's recommendation (third edition)."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .exif import exif_orientation
from .header import MAX_PARTS, ImageHeader

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_EXIF_TEXT = b"Raw profile type exif"
_XMP_TEXT = b"XML:com.adobe.xmp"
# Pillow's limit of a compressed text.
_MAX_TEXT = 1 << 20
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


class Chunk(NamedTuple):
    """One chunk: its type, where its content lies, and how much of that the file holds."""

    kind: bytes
    begin: int
    length: int
    whole: bool

    @property
    def end(self) -> int:
        """Offset behind its checksum."""
        return self.begin + self.length + 4


def read_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG up to IEND or to the end of the file; the last may be cut."""
    position = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        whole = position + 12 + length <= len(data)
        yield Chunk(kind, position + 8, length, whole)
        if kind == b"IEND" or not whole:
            return
        position += 12 + length
    raise ValueError("it has too many chunks")


def read_png(data: bytes) -> ImageHeader:
    """Read the header of a PNG."""
    width, height, _, colour_type = struct.unpack_from(">IIBB", data, 16)
    # Alpha comes as a channel (types 4 and 6) or as a tRNS chunk.
    alpha = colour_type in (4, 6)
    metadata = _Metadata()
    picture, ended, following, animated = 0, False, False, False
    for chunk in read_chunks(data):
        if chunk.kind == b"IEND":
            ended = True
        elif chunk.kind == b"IDAT":
            picture = chunk.end if chunk.whole else 0
        elif picture:
            # The picture's own data is one run of chunks (5.6), so it has ended.
            following = True
        if chunk.kind == b"fcTL" and picture and animated:
            # What comes with the second frame is not about the first.
            metadata.closed = True
        elif chunk.kind == b"acTL":
            animated = data[chunk.begin : chunk.begin + 4] > b"\0\0\0\1"
        elif chunk.kind == b"tRNS":
            alpha = True
        elif chunk.whole:
            metadata.add(chunk.kind, data, chunk)
    complete = ended or (picture > 0 and (following or _holds_picture(data)))
    return ImageHeader("png", width, height, complete, alpha, metadata.orientation())


def with_end(data: bytes) -> bytes:
    """Return the file with an end chunk after its image; unchanged if it has one."""
    picture = 0
    for chunk in read_chunks(data):
        if chunk.kind == b"IEND" and len(data) >= chunk.end:
            return data
        if chunk.kind == b"IDAT":
            picture = min(chunk.end, len(data))
    return data[:picture] + _END


def _holds_picture(data: bytes) -> bool:
    """Return whether the file contains the whole compressed image."""
    stream = zlib.decompressobj()
    for chunk in read_chunks(data):
        if chunk.kind == b"IDAT":
            rest = data[chunk.begin : chunk.begin + chunk.length]
            while rest and not stream.eof:
                try:
                    stream.decompress(rest, 1 << 20)
                except zlib.error:
                    return False
                rest = stream.unconsumed_tail
    return stream.eof


class _Metadata:
    """EXIF and XMP, as Pillow's PngImagePlugin collects them: of each kind, the last counts."""

    def __init__(self) -> None:
        self.closed = False
        self._exif = b""
        self._texts: dict[bytes, bytes] = {}

    def add(self, kind: bytes, data: bytes, chunk: Chunk) -> None:
        content = data[chunk.begin : chunk.begin + chunk.length]
        if self.closed or (kind != b"eXIf" and kind not in _TEXTS):
            return
        if kind == b"eXIf":
            self._exif = content
        elif content.startswith((_EXIF_TEXT + b"\0", _XMP_TEXT + b"\0", b"exif\0")):
            keyword, _, rest = content.partition(b"\0")
            text = _text(kind, rest)
            if keyword == b"exif" and kind == b"tEXt":
                self._exif = rest
            elif text is not None:
                self._texts[keyword] = text

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


def _inflate(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT)
    except zlib.error:
        return None

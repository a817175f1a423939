"""Files with EXIF and XMP as cameras and editors write them, valid or damaged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

ORIENTATION = 274
PREFIX = b"Exif\0\0"


@dataclass(frozen=True)
class Entry:
    """A tag of a directory; a value of more than four bytes is stored behind it."""

    tag: int
    kind: int
    count: int
    value: bytes


def orientation(value: int, order: str = ">", kind: int = 3, count: int = 1) -> Entry:
    form = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}
    if kind in (5, 10):
        packed = struct.pack(order + ("II" if kind == 5 else "ii"), value, 1)
    elif kind in form:
        packed = struct.pack(order + form[kind], value)
    else:
        packed = bytes([value])
    return Entry(ORIENTATION, kind, count, packed * count)


def block(entries: Sequence[Entry], order: str = ">", gap: int = 0) -> bytes:
    """An EXIF block (a TIFF without a picture), its directory `gap` bytes behind its header."""
    offset = 8 + gap
    behind = offset + 2 + 12 * len(entries) + 4
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, offset)
    directory, tail = struct.pack(order + "H", len(entries)), b""
    for entry in entries:
        content = entry.value
        if len(content) > 4:
            content, tail = struct.pack(order + "I", behind + len(tail)), tail + content
        packed = struct.pack(order + "HHI", entry.tag, entry.kind, entry.count)
        directory += packed + content.ljust(4, b"\0")
    return head + bytes(gap) + directory + bytes(4) + tail


def turned(value: int, gap: int = 0) -> bytes:
    """The plainest block that states an orientation."""
    return block([orientation(value)], gap=gap)


def xmp(value: int | str, attribute: bool = True) -> bytes:
    if attribute:
        return f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()
    return f"<x:xmpmeta><tiff:Orientation>{value}</tiff:Orientation></x:xmpmeta>".encode()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif_segments(content: bytes, size: int = 65000) -> list[bytes]:
    """One APP1 segment for each `size` bytes of a block."""
    parts = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
    return [segment(0xE1, PREFIX + part) for part in parts]


def xmp_segment(content: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + content)


def in_jpeg(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def in_png(png: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """With chunks in front of the picture, or behind it."""
    at = len(png) - 12 if late else 33
    return png[:at] + b"".join(chunks) + png[at:]


def raw_profile(content: bytes, kind: bytes = b"zTXt") -> bytes:
    """EXIF as ImageMagick writes it: hexadecimal text."""
    digits = content.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = f"\nexif\n{len(content):8}\n{lines}\n".encode()
    keyword = b"Raw profile type exif\0"
    if kind == b"zTXt":
        return png_chunk(kind, keyword + b"\0" + zlib.compress(text))
    if kind == b"iTXt":
        return png_chunk(kind, keyword + b"\1\0\0\0" + zlib.compress(text))
    return png_chunk(kind, keyword + text)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def in_webp(
    webp: bytes, size: tuple[int, int], *chunks: tuple[bytes, bytes], flags: int = 0x0C
) -> bytes:
    """A simple WebP (lossy or lossless, opaque) as an extended one with more chunks."""
    (length,) = struct.unpack_from("<I", webp, 16)
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in size)
    picture = webp[12:16], webp[20 : 20 + length]
    return riff((b"VP8X", bytes([flags, 0, 0, 0]) + canvas), picture, *chunks)


def tiff(
    pages: Sequence[Sequence[Entry]], strips: Sequence[bytes], order: str = "<", big: bool = False
) -> bytes:
    """A TIFF of one uncompressed strip a page; each page's own tags come in the order given.

    A tag 273 or 330 with no value is filled in: with the place of the strip, or with the places of
    all later pages, which are then this page's children instead of its followers.
    """
    form, step, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    count_form = "Q" if big else "H"
    head = 16 if big else 8
    places, at = [], head
    for strip in strips:
        places.append(at)
        at += len(strip) + len(strip) % 2
    sizes = []
    for page in pages:
        extra = sum(len(one.value) for one in page if len(one.value) > inline)
        children = any(one.tag == 330 for one in page) * 8 * len(pages)
        sizes.append(struct.calcsize(order + count_form) + step * len(page) + 8 + extra + children)
    begins = [at + sum(sizes[:number]) for number in range(len(pages))]
    parts = [strip + b"\0" * (len(strip) % 2) for strip in strips]
    parental = any(one.tag == 330 for one in pages[0])
    for number, page in enumerate(pages):
        behind = begins[number] + struct.calcsize(order + count_form) + step * len(page)
        behind += struct.calcsize(order + form)
        directory, tail = struct.pack(order + count_form, len(page)), b""
        for one in page:
            content, count = one.value, one.count
            if one.tag == 273 and not content:
                content = struct.pack(order + form, places[number])
            elif one.tag == 330:
                count = len(pages) - 1
                content = struct.pack(f"{order}{count}{form}", *begins[1:])
            if len(content) > inline:
                content, tail = struct.pack(order + form, behind + len(tail)), tail + content
            kind = 16 if big and one.tag in (273, 330) else one.kind
            directory += struct.pack(f"{order}HH{form}", one.tag, kind, count)
            directory += content.ljust(inline, b"\0")
        last = number == len(pages) - 1 or parental
        directory += struct.pack(order + form, 0 if last else begins[number + 1])
        parts.append((directory + tail).ljust(sizes[number], b"\0"))
    magic = b"II" if order == "<" else b"MM"
    version = (
        struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at)
    )
    return magic + version + b"".join(parts)


def tiff_page(
    width: int, height: int, order: str = "<", *more: Entry, photometric: int = 2
) -> list[Entry]:
    """The tags of an uncompressed 8-bit RGB (or one-channel) page, sorted, with more."""
    channels = 3 if photometric == 2 else 1

    def short(tag: int, *values: int) -> Entry:
        return Entry(tag, 3, len(values), struct.pack(f"{order}{len(values)}H", *values))

    size = width * height * channels
    page = [
        short(256, width),
        short(257, height),
        short(258, *[8] * channels),
        short(259, 1),
        short(262, photometric),
        Entry(273, 4, 1, b""),
        short(277, channels),
        short(278, height),
        Entry(279, 4, 1, struct.pack(order + "I", size)),
    ]
    own = {entry.tag for entry in more}
    kept = [entry for entry in page if entry.tag not in own]
    return sorted([*kept, *more], key=lambda entry: entry.tag)

"""Read the header of an image file without decoding it.

OpenCV decodes any size that a file claims, so size and completeness are checked before. JPEG 2000
is not supported, because its decoder in OpenCV 4.10 and 4.11 crashes on damaged files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial

from ..core.errors import InputError
from .formats.bmff import find_format, read_bmff
from .formats.bmp import DIB_SIZES, read_bmp
from .formats.foreign import name_foreign
from .formats.gif import read_gif
from .formats.header import ImageHeader
from .formats.jpeg import read_jpeg
from .formats.png import SIGNATURE, read_png
from .formats.tiff import read_tiff
from .formats.webp import read_webp

__all__ = ["ImageHeader", "read_header"]


def read_header(data: bytes) -> ImageHeader:
    """Read the header of an encoded image.

    Args:
        data: content of the file.

    Raises:
        InputError: `empty`, `not_an_image` (no known signature), `unsupported` (a known format that
            ffd cannot read), `truncated` (in the header) or `corrupt`.
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
    raise name_foreign(data)


def _bmp(data: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size not in DIB_SIZES:
        raise InputError("not_an_image", "not an image in a format that ffd reads")
    return read_bmp(data)


_MAX_PNM_HEADER_BYTES = 4096
# A magic number and a size, with comments and spaces between.
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+\s")


def _pnm(data: bytes) -> ImageHeader:
    # The size is near the start; comments extend from # to the end of the line.
    lines = (line.split(b"#", 1)[0] for line in data[2:_MAX_PNM_HEADER_BYTES].splitlines())
    tokens = b" ".join(lines).split()
    # Bitmaps (P1 and P4) do not state a maximum.
    maximum = 255 if data[1:2] in b"14" else int(tokens[2][:9])
    if data[1:2] in b"23" and 0 < maximum < 255:
        # OpenCV scales the samples of such a text file.
        maximum = 255
    return ImageHeader("pnm", int(tokens[0][:9]), int(tokens[1][:9]), maximum=maximum)


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], ImageHeader]], ...] = (
    ("jpeg", _starts(b"\xff\xd8\xff"), read_jpeg),
    ("png", _starts(SIGNATURE), read_png),
    ("webp", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", read_webp),
    ("gif", _starts(b"GIF87a", b"GIF89a"), read_gif),
    ("bmp", _starts(b"BM"), _bmp),
    ("tiff", _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), read_tiff),
    ("avif", lambda data: find_format(data) == "avif", partial(read_bmff, "avif")),
    ("heif", lambda data: find_format(data) == "heif", partial(read_bmff, "heif")),
    ("pnm", lambda data: _PNM.match(data, 0, _MAX_PNM_HEADER_BYTES) is not None, _pnm),
)

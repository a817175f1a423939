"""The encoding of an image file, read without decoding the image."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL.JpegImagePlugin import JpegImageFile

from ffd_runtime.image.image_header import read_header

# Luminance quantisation of ITU-T T.81, table K.1; libjpeg scales it by quality.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()
# Chroma subsampling by the ratio of the first to the second component's sampling factors.
_SUBSAMPLING = {
    (1, 1): "4:4:4",
    (1, 2): "4:4:0",
    (2, 1): "4:2:2",
    (2, 2): "4:2:0",
    (4, 1): "4:1:1",
    (4, 2): "4:1:0",
}


@dataclass(frozen=True)
class Encoding:
    """The encoding of an image file.

    Width and height are in pixels, after EXIF orientation. The format is `ImageHeader.format`.

    Attributes:
        quality: JPEG quality on the scale of libjpeg, 1 to 100; None for other formats.
        subsampling: JPEG chroma subsampling, such as `4:2:0`, or `grey`; empty for other formats.
        progressive: whether the file is a progressive JPEG.
        exif: whether the file has an EXIF block.
    """

    format: str
    width: int
    height: int
    bytes: int
    quality: int | None = None
    subsampling: str = ""
    progressive: bool = False
    exif: bool = False


def read_encoding(data: bytes) -> Encoding:
    """Read the encoding of an image file.

    A JPEG whose segments are invalid has neither quality nor subsampling.

    Args:
        data: the whole file.

    Raises:
        InputError: the file is not an image, or its header is invalid.
    """
    header = read_header(data)
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    if header.format != "jpeg":
        block = {"png": b"eXIf", "webp": b"EXIF", "avif": b"Exif"}.get(header.format)
        exif = block is not None and block in data
        return Encoding(header.format, width, height, len(data), exif=exif)
    try:
        # Reads the header only, without the size limit of `PIL.Image.open`.
        jpeg = JpegImageFile(BytesIO(data))
    except (OSError, SyntaxError, ValueError, IndexError, struct.error):
        return Encoding("jpeg", width, height, len(data))
    quality = None
    if table := jpeg.quantization.get(jpeg.layer[0][3]):
        # Exact for libjpeg and compatible encoders; for other tables, a quality of similar loss.
        quality = int(np.abs(_ijg_tables() - table).sum(axis=1).argmin()) + 1
    return Encoding(
        "jpeg",
        width,
        height,
        len(data),
        quality,
        _chroma([(wide, high) for _, wide, high, _ in jpeg.layer]),
        progressive="progressive" in jpeg.info,
        exif="exif" in jpeg.info,
    )


@cache
def _ijg_tables() -> npt.NDArray[np.int64]:
    """Return libjpeg's luminance tables, [100, 64], of qualities 1 to 100.

    They are computed as in `jpeg_quality_scaling`.
    """
    quality = np.arange(1, 101)
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    scaled = (_LUMINANCE * percent[:, None] + 50) // 100
    return np.asarray(np.clip(scaled, 1, 255), np.int64)


def _chroma(sampling: Sequence[tuple[int, int]]) -> str:
    if len(sampling) == 1:
        return "grey"
    if len(sampling) != 3:
        return f"{len(sampling)} components"
    (wide, high), (chroma_wide, chroma_high) = sampling[:2]
    ratio = wide // max(chroma_wide, 1), high // max(chroma_high, 1)
    return _SUBSAMPLING.get(ratio, "{}x{}".format(*ratio))

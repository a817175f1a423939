"""One treatment for every picture, so that neither class is told by its size or codec."""

from __future__ import annotations

from collections.abc import Iterable

import cv2

from ffd_runtime.decode import Image
from ffd_runtime.preprocess import crop_centre, resize

# Of each source's pictures, at most this share is left out for being smaller than the common side.
SMALL = 0.05
# Above what any network here is fed; more would only fill the disk.
LARGEST = 512


# Bytes a pixel of a detailed portrait at quality 95; most take less than half.
BYTES_PER_PIXEL = 0.45


def common_side(sides: Iterable[list[int]]) -> int:
    """The largest side that nearly all pictures of each source have, none enlarged.

    Args:
        sides: for each source, the shorter side of each picture, in pixels.
    """
    return min(LARGEST, *(sorted(of)[int(SMALL * len(of))] for of in sides))


def draw_quality(sha256: str, low: int, high: int) -> int:
    """A JPEG quality from `low` to `high`, each as likely, by a picture's content."""
    return low + int(sha256[-16:], 16) % (high - low + 1)


def match(image: Image, side: int, quality: int) -> bytes:
    """The largest centre square, shrunk by area, as a baseline JPEG with chroma at half size.

    Args:
        image: uint8 [H, W, 3], BGR; no side shorter than `side`.
        side: of the result, in pixels.
        quality: 1 to 100.

    Returns:
        The JPEG: OpenCV's, without EXIF.
    """
    _, data = cv2.imencode(
        ".jpg",
        resize(crop_centre(image), side),
        [
            *(cv2.IMWRITE_JPEG_QUALITY, quality),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
        ],
    )
    return data.tobytes()

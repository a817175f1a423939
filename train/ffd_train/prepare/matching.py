"""Uniform size and encoding for all images, so that neither reveals the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ffd_runtime.core.errors import DataError
from ffd_runtime.image.decode import Image
from ffd_runtime.image.preprocess import crop_centre, resize

# Maximum share of a source's images that may be smaller than the common side.
MAX_SMALL_SHARE = 0.05
# Larger than the input of any network here.
MAX_SIDE_PIXELS = 512
# Smaller faces are hardly recognisable.
MIN_SIDE_PIXELS = 64


def common_side(sides: Mapping[str, Sequence[int]]) -> int:
    """Return the largest side, in pixels, that nearly all images of each source reach.

    Args:
        sides: shorter side of each image by source, in pixels.

    Raises:
        DataError: a source has too many images below `MIN_SIDE_PIXELS`.
    """
    least = {source: sorted(of)[int(MAX_SMALL_SHARE * len(of))] for source, of in sides.items()}
    source = min(least, key=lambda name: least[name])
    if least[source] < MIN_SIDE_PIXELS:
        small = sum(side < MIN_SIDE_PIXELS for side in sides[source])
        raise DataError(
            f"{small} of {source}'s {len(sides[source])} images have a side below "
            f"{MIN_SIDE_PIXELS} pixels: remove them, or choose --side to leave out smaller images"
        )
    return min(MAX_SIDE_PIXELS, least[source])


def draw_quality(sha256: str, low: int, high: int) -> int:
    """Return a JPEG quality from `low` to `high`, uniform over images, by the image's content."""
    return low + int(sha256[-16:], 16) % (high - low + 1)


def match(image: Image, side: int, quality: int) -> bytes:
    """Encode the largest centre square, shrunk to `side`, as a baseline 4:2:0 JPEG without EXIF.

    Args:
        image: uint8 [H, W, 3], BGR; no side shorter than `side`.
        side: side of the result, in pixels.
        quality: JPEG quality, 1 to 100.

    Returns:
        The JPEG file.
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


def max_jpeg_bytes(side: int, quality: int) -> int:
    """Return an upper limit of the size of a JPEG, in bytes: the size of black and white noise."""
    # Larger noise needs no more bytes per pixel.
    small = min(side, 256)
    noise = np.random.default_rng(0).integers(0, 2, (small, small, 3), np.uint8) * 255
    taken = len(match(noise.astype(np.uint8), small, quality))
    return taken * side**2 // small**2

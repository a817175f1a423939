"""One treatment for every picture, so that neither class is told by its size or codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ffd_runtime.core.errors import DataError
from ffd_runtime.image.decode import Image
from ffd_runtime.image.preprocess import crop_centre, resize

# Of each source's pictures, at most this share is left out for being smaller than the common side.
MAX_SMALL_SHARE = 0.05
# Above what any network here is fed; more would only fill the disk.
MAX_SIDE_PIXELS = 512
# Below this, faces are hardly to be seen: then a few small pictures would spoil all the others.
MIN_SIDE_PIXELS = 64


def common_side(sides: Mapping[str, Sequence[int]]) -> int:
    """The largest side that nearly all pictures of each source have, none enlarged.

    Args:
        sides: for each source, the shorter side of each picture, in pixels.

    Raises:
        DataError: some source's pictures are tiny.
    """
    least = {source: sorted(of)[int(MAX_SMALL_SHARE * len(of))] for source, of in sides.items()}
    source = min(least, key=lambda name: least[name])
    if least[source] < MIN_SIDE_PIXELS:
        small = sum(side < MIN_SIDE_PIXELS for side in sides[source])
        raise DataError(
            f"{small} of {source}'s {len(sides[source])} pictures have less than {MIN_SIDE_PIXELS} "
            "pixels: choose a --side, which leaves out what is smaller, or remove them"
        )
    return min(MAX_SIDE_PIXELS, least[source])


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


def most_bytes(side: int, quality: int) -> int:
    """What a JPEG of black and white noise takes: more than any picture.

    Args:
        side: in pixels.
        quality: 1 to 100.

    Returns:
        Bytes.
    """
    # A larger one takes no more for each pixel.
    small = min(side, 256)
    noise = np.random.default_rng(0).integers(0, 2, (small, small, 3), np.uint8) * 255
    taken = len(match(noise.astype(np.uint8), small, quality))
    return taken * side**2 // small**2

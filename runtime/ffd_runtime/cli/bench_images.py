"""The images that ffd-bench measures with: synthetic ones, or the user's."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..core.errors import FfdError, InputError
from ..image.decode import decode
from ..inputs import Item

# More images make a round longer and no more accurate.
MAX_IMAGES = 32


@dataclass(frozen=True)
class BenchImages:
    """Images to measure with.

    Attributes:
        items: readable images.
        unreadable: number of unreadable inputs before the last image.
        pixels: mean number of pixels.
        size: mean file size in bytes.
    """

    items: tuple[Item, ...]
    unreadable: int
    pixels: float
    size: float


def make_images(folder: Path, count: int = 16, side: int = 1024) -> list[Item]:
    """Write synthetic JPEGs, as large as profile pictures and the same in each call."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        image = np.full((side, side, 3), 128, np.float32)
        # As in photographs, there is structure at every scale, and finer structure is weaker.
        for cells, strength in ((4, 90), (32, 40), (256, 14), (side, 5)):
            coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{number:02}.jpg"
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        items.append(Item(str(path)))
    return items


def choose_images(items: Iterable[Item]) -> BenchImages:
    """Return the first `MAX_IMAGES` readable images.

    Raises:
        FfdError: no image is readable.
    """
    readable: list[tuple[Item, int, int]] = []
    unreadable = 0
    for item in items:
        try:
            data = item.read()
            height, width = decode(data).shape[:2]
        except InputError:
            unreadable += 1
            continue
        readable.append((item, height * width, len(data)))
        if len(readable) == MAX_IMAGES:
            break
    if not readable:
        raise FfdError(
            f"no readable image among the sources ({unreadable} unreadable): give other sources, "
            "or none to use synthetic images"
        )
    chosen, pixels, sizes = zip(*readable, strict=True)
    return BenchImages(chosen, unreadable, statistics.fmean(pixels), statistics.fmean(sizes))

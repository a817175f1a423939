"""Augmentation, after decoding and before preprocessing, from an explicit random generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ffd_runtime.decode import Image


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image, in this order, each with its probability.

    Attributes:
        horizontal_flip: probability.
        vertical_flip: probability.
        jitter: probability of a change of brightness, contrast, colour balance and saturation.
        jpeg: probability of being compressed again.
        jpeg_quality: range of the quality, both ends included.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.1
    jitter: float = 0.5
    jpeg: float = 0.3
    jpeg_quality: tuple[int, int] = (50, 95)

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Augment one image.

        Args:
            image: uint8 [H, W, 3], BGR; not changed.
            rng: the only source of chance, so that (seed, epoch, index) repeats an image exactly.

        Returns:
            uint8 [H, W, 3], BGR.
        """
        chance = rng.random(4)
        if chance[0] < self.horizontal_flip:
            image = image[:, ::-1]
        if chance[1] < self.vertical_flip:
            image = image[::-1]
        image = np.ascontiguousarray(image)
        if chance[2] < self.jitter:
            image = jitter(image, rng)
        if chance[3] < self.jpeg:
            low, high = self.jpeg_quality
            image = recompress(image, int(rng.integers(low, high + 1)))
        return image


def jitter(image: Image, rng: np.random.Generator) -> Image:
    """Change brightness (±20 levels), contrast (±20 %), balance (±8 %) and saturation (±30 %)."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, size=3)
    levels = (np.arange(256)[:, None] - 128) * gain + 128 + rng.uniform(-20, 20)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[None]
    coloured = cv2.LUT(image, table)
    grey = cv2.cvtColor(cv2.cvtColor(coloured, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    saturation = rng.uniform(0.7, 1.3)
    return np.asarray(cv2.addWeighted(coloured, saturation, grey, 1 - saturation, 0), np.uint8)


def recompress(image: Image, quality: int) -> Image:
    """Through JPEG and back, at a quality of 1 to 100."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)

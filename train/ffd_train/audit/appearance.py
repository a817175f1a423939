"""Measurements of a decoded image.

They use the largest centre square, the network's input, and do not depend on the aspect ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.image.decode import Image
from ffd_runtime.image.preprocess import crop_centre, resize

Floats = npt.NDArray[np.float32]

# Sharpness depends on the size. This one is close to the network's 299 and fast.
SHARPNESS_SIDE = 256
COLOUR_SIDE = 64
# Side of the thumbnail for border, thumbnail and copies.
SMALL = 16
# JPEG noise: maximum range within a line of a frame, and maximum difference to the outermost line.
_FRAME_RANGE = 20
_FRAME_STEP = 6


@dataclass(frozen=True)
class Appearance:
    """Measurements of an image.

    Attributes:
        sharpness: variance of the Laplacian of grey levels at 256 pixels a side (Pech-Pacheco et
            al., Diatom autofocusing in brightfield microscopy, 2000).
        brightness: mean of CIE L*, 0 to 100.
        contrast: standard deviation of L*.
        chroma: mean distance from grey, in units of CIE a* and b*.
        redness: mean a*; negative for green.
        yellowness: mean b*; negative for blue.
        background: mean colour (L*, a*, b*) of the border's upper half; the lower half of a
            portrait shows the shoulders.
        texture: standard deviation of colour within a patch of this border (a sixteenth of the
            side), in units of Lab; the median over patches, which ignores hair in front of a wall.
        frame: width of bars of one colour at two opposite sides, as a share of the side; 0 if none.
        frame_grey: grey level of these bars, or of the outermost lines, 0 to 255.
        phash: 64-bit perceptual hash.
        small: uint8 [16, 16, 3], BGR.
    """

    sharpness: float
    brightness: float
    contrast: float
    chroma: float
    redness: float
    yellowness: float
    background: tuple[float, float, float]
    texture: float
    frame: float
    frame_grey: float
    phash: int
    small: Image


def measure_appearance(image: Image) -> Appearance:
    """Measure a decoded image.

    Args:
        image: uint8 [height, width, 3], BGR.
    """
    square = crop_centre(image)
    grey = cv2.cvtColor(resize(square, SHARPNESS_SIDE), cv2.COLOR_BGR2GRAY)
    coloured = resize(square, COLOUR_SIDE)
    lab = np.asarray(
        cv2.cvtColor(coloured.astype(np.float32) / np.float32(255), cv2.COLOR_BGR2LAB), np.float32
    )
    lightness, red, yellow = (lab[..., channel] for channel in range(3))
    patches = _background(lab)
    colour = patches.mean(axis=(0, 1))
    frame, frame_grey = _frame(np.asarray(cv2.cvtColor(square, cv2.COLOR_BGR2GRAY), np.uint8))
    return Appearance(
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        brightness=float(lightness.mean()),
        contrast=float(lightness.std()),
        chroma=float(np.hypot(red, yellow).mean()),
        redness=float(red.mean()),
        yellowness=float(yellow.mean()),
        background=(float(colour[0]), float(colour[1]), float(colour[2])),
        texture=float(np.median(np.sqrt(patches.var(axis=1).sum(axis=1)))),
        frame=frame,
        frame_grey=frame_grey,
        phash=perceptual_hash(np.asarray(grey, np.uint8)),
        small=resize(coloured, SMALL),
    )


def _background(lab: Floats) -> Floats:
    """Return patches along the top and the upper half of both sides: [patches, pixels, 3]."""
    side = COLOUR_SIDE // SMALL
    cells = lab.reshape(SMALL, side, SMALL, side, 3).swapaxes(1, 2).reshape(SMALL, SMALL, -1, 3)
    beside = cells[1 : SMALL // 2, [0, -1]].reshape(-1, side * side, 3)
    return np.concatenate([cells[0], beside])


def perceptual_hash(grey: Image) -> int:
    """Compute pHash's DCT hash (Zauner, 2010): low frequencies compared with their median.

    Args:
        grey: uint8 [side, side].

    Returns:
        64 bits. Copies in another size or quality differ in a few bits.
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    # Without the mean of the image, which would shift the median.
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _frame(grey: Image) -> tuple[float, float]:
    """Return the width of the narrower of two opposite bars, as a share, and their grey level."""
    side = grey.shape[0]
    depth = max(1, side // 4)
    above_below = grey[:depth], grey[: -depth - 1 : -1]
    left_right = grey[:, :depth].T, grey[:, : -depth - 1 : -1].T
    width, level = max(
        (min(_bar(one), _bar(other)), (one[0].mean() + other[0].mean()) / 2)
        for one, other in (above_below, left_right)
    )
    return width / side, float(level)


def _bar(lines: Image) -> int:
    """Count the first lines that all have the same single colour."""
    means = lines.mean(axis=1)
    same = (np.ptp(lines, axis=1) <= _FRAME_RANGE) & (np.abs(means - means[0]) <= _FRAME_STEP)
    return int(same.argmin()) if not same.all() else len(same)

"""Preprocessing, shared by training, evaluation, calibration and runtime.

The next steps (cast, ImageNet scale, NHWC to NCHW) are in the exported graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import cv2
import numpy as np

from ..core.results import Box
from ..model.card import PreprocessSpec
from .decode import Image


def preprocess(image: Image, spec: PreprocessSpec, face: Box | None = None) -> Image:
    """Turn a decoded image into the input of the network.

    Args:
        image: uint8 [height, width, 3], BGR, as `decode` returns it.
        spec: `PreprocessSpec` of the card.
        face: `(x, y, width, height)` in pixels; None for the centre of the image.

    Returns:
        uint8 [size, size, 3], RGB, C-contiguous.
    """
    square = crop_face(image, face, spec.face_scale) if face else crop_centre(image)
    return normalise(resize(square, spec.size), spec)


@contextmanager
def warming_up() -> Iterator[None]:
    """Let OpenCV build its LAB tables in a thread during the block.

    The first image would otherwise wait 70 ms for them on a fast core.
    """
    pixel = np.zeros((1, 1, 3), np.uint8)
    thread = Thread(target=cv2.cvtColor, args=(pixel, cv2.COLOR_BGR2LAB), name="ffd-warm-up")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def classified_square(
    image: Image, face: Box | None = None, face_scale: float = PreprocessSpec.face_scale
) -> tuple[int, int, int]:
    """Return left, top and side of the square that is classified, in pixels.

    The square of a face near the edge may extend beyond the image.
    """
    if face is None:
        height, width = image.shape[:2]
        side = min(height, width)
        return (width - side) // 2, (height - side) // 2, side
    x, y, width, height = face
    side = max(1, round(max(width, height) * face_scale))
    return x + width // 2 - side // 2, y + height // 2 - side // 2, side


def crop_centre(image: Image) -> Image:
    """Cut the largest centre square, so that the aspect ratio does not reveal the class."""
    left, top, side = classified_square(image)
    return image[top : top + side, left : left + side]


def crop_face(image: Image, face: Box, scale: float) -> Image:
    """Cut a square around a face; beyond the image, repeat its edge."""
    left, top, side = classified_square(image, face, scale)
    bottom, right = top + side - image.shape[0], left + side - image.shape[1]
    inside = image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    if not inside.size:
        # A face outside the image: repeat the nearest edge or corner.
        rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
        columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
        return np.ascontiguousarray(image[rows[:, None], columns])
    above, below, before, after = (max(0, edge) for edge in (-top, bottom, -left, right))
    square = cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_REPLICATE)
    return np.asarray(square, np.uint8)


def resize(square: Image, size: int) -> Image:
    """Resize to `size` x `size`, by area down and linearly up.

    `INTER_LINEAR_EXACT` avoids the vendor-specific code of `INTER_LINEAR` (IPP, Carotene), whose
    results differ between a Jetson and a workstation.
    """
    if square.shape[0] == size and square.shape[1] == size:
        return np.ascontiguousarray(square)
    method = cv2.INTER_AREA if square.shape[0] > size else cv2.INTER_LINEAR_EXACT
    return np.asarray(cv2.resize(square, (size, size), interpolation=method), np.uint8)


def normalise(bgr: Image, spec: PreprocessSpec) -> Image:
    """Normalise brightness and contrast, then apply CLAHE, on L of LAB only.

    Args:
        bgr: uint8 [size, size, 3].
        spec: targets, gain limit and CLAHE settings.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    lab = cv2.cvtColor(bgr, cv2.COLOR_BGR2LAB)
    lightness = cv2.extractChannel(lab, 0)
    mean, deviation = cv2.meanStdDev(lightness)
    gain = min(spec.max_gain, spec.target_deviation / max(float(deviation[0, 0]), 1e-6))
    levels = (np.arange(256) - float(mean[0, 0])) * gain + spec.target_mean
    # A table of 256 levels is exact on every machine.
    lightness = cv2.LUT(lightness, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    clahe = cv2.createCLAHE(spec.clahe_clip, (spec.clahe_tiles, spec.clahe_tiles))
    cv2.insertChannel(clahe.apply(lightness), lab, 0)
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)

"""Faces in a picture, and whether they are seen well enough to be judged.

The detector is YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
Intelligence Research, 2023) from OpenCV's model zoo, run by OpenCV itself. `face_model` finds its
file. Numbers here were measured with `face_detection_yunet_2026may.onnx` and the embedded model on
8,400 portraits, half of them StyleGAN's (docs/MODEL_CARD.md says which), mostly 256 or 320 pixels
wide with a face of 150.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, ModelError
from ..core.results import Box
from .decode import Image, read_file

REASONS = ("small", "blurred", "profile", "blank")

# Shorter side of a face's box, in pixels, below which photographs are taken for generated more
# often than they should be. Of 420 photographs of the validation set, cut out and reduced, this
# share was called generated: 0.7 % at their own 150 pixels, 1.0 % at 112, 1.2 % at 96, 1.9 % at 80,
# 3.6 % at 64, 4.0 % at 48. Of 420 generated faces at most 2.1 % were called photographs at any of
# these sizes; about one in six was left unsure.
MIN_SIDE = 96

# Pixels to which a face of `min_side` is reduced for detection: 280 of 280 were found at 32 pixels,
# 96 % at 24, 66 % at 16.
_FOUND_SIDE = 32
# Longer side of the reduced picture, at least; and at most, which bounds memory and time for the
# pictures of large cameras.
_LEAST_INPUT = 240
_MOST_INPUT = 2560
# In a larger picture, faces are missed again for being too large: of 280 portraits cut to two
# thirds of the face, all were found with a side of 240 pixels, 94 % with 320, 16 % with 640. So
# where the shorter side is longer than this, a second look at `_LEAST_INPUT` finds those that have
# `_LARGE` pixels and more there.
_SECOND_LOOK = 300
_LARGE = 60
# At this confidence all of the 8,400 faces were found; what it let through besides in a look at 40
# pictures were people in the background.
_CONFIDENCE = 0.7
# Share of their union that two boxes may have in common; FaceDetectorYN's own default.
_OVERLAP = 0.3
_MOST_FACES = 200

# Side of the grey square in which sharpness is measured.
_SHARPNESS_SIDE = 96
# Least sharpness, see `_sharpness`: 118 of the 8,400 faces have less, photographs all of them, most
# from one source of enlarged ones. Of validation faces blurred by a Gaussian of 0.005 times the
# face's side 32 % have less, 71 % at 0.006, 96 % at 0.007 and all at 0.01. The network has learned
# blur: up to 0.01, some 2 % of the generated faces are called photographs and 2 % of the
# photographs generated. Beyond, what tells them apart is going: of whole pictures blurred by 3
# pixels it finds half (docs/MODEL_CARD.md).
_LEAST_SHARPNESS = 0.4

# How far the nose may lie from the middle between the eyes, in distances of the eyes: to the one or
# the other eye. Beyond are faces turned by some 45 degrees and more: 55 of the 8,400, one of them
# generated, so the network has not learned to tell them apart.
_MOST_TURNED = 0.5

# Standard deviation of the levels (0 to 255) of a picture reduced to some 64 pixels, in its most
# varied channel, below which there is nothing to see. Of the 8,400 portraits the flattest has 23.
_LEAST_DEVIATION = 2.0


@dataclass(frozen=True)
class Face:
    """A face that was found.

    Attributes:
        box: `(x, y, width, height)` in whole pixels, within the picture.
        confidence: of the detector, 0 to 1.
        landmarks: float32 [5, 2], x and y in pixels, perhaps outside the picture: the person's
            right eye and left eye, the tip of the nose, right and left corner of the mouth.
        reason: why a verdict on it must be `unsure`, one of `REASONS`; None for a clear view.
    """

    box: Box
    confidence: float
    landmarks: npt.NDArray[np.float32] = field(compare=False, repr=False)
    reason: str | None = None


class FaceDetector:
    """Finds faces. Several threads may call it at once: each has a network of its own.

    Args:
        model: a YuNet ONNX.
        min_side: faces whose box has a shorter side, in pixels, are `small`. Faces of this size are
            found, in pictures of up to 80 times it; smaller ones often, too.

    Raises:
        ModelError: the file cannot be read, or is no YuNet that this OpenCV runs.
        ValueError: `min_side` is less than 1.

    Example:
        >>> detector = FaceDetector(find_face_model())  # doctest: +SKIP
        >>> [face.box for face in detector.detect(cv2.imread("portrait.jpg"))]  # doctest: +SKIP
        [(74, 62, 162, 232)]
    """

    def __init__(self, model: Path, *, min_side: int = MIN_SIDE) -> None:
        if min_side < 1:
            raise ValueError(f"min_side must be at least 1, not {min_side}")
        self._min_side = min_side
        self._networks = threading.local()
        try:
            self._model = np.frombuffer(read_file(model), np.uint8)
        except InputError as error:
            raise ModelError(f"face model {model} cannot be read: {error.message}") from None
        try:
            # A network that is none, or another one, shows it at its first picture.
            self._find(np.zeros((48, 80, 3), np.uint8))
        except Exception:
            raise ModelError(
                f"face model {model} is damaged, or no YuNet that OpenCV {cv2.__version__} runs: "
                "delete it to have it fetched again, or name another with --face-model"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_min_side": self._min_side}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Networks stay where they are; each thread of another process makes its own.
        vars(self).update(state, _networks=threading.local())

    @property
    def settings(self) -> dict[str, str | int]:
        """What decides on the faces that are found: the model's sha256, the smallest clear face."""
        digest = hashlib.sha256(self._model.tobytes()).hexdigest()
        return {"model_sha256": digest, "min_side": self._min_side}

    def detect(self, image: Image) -> list[Face]:
        """The faces in a picture, biggest first.

        Args:
            image: uint8 [height, width, 3], BGR.
        """
        found = self._look(image)
        height, width = image.shape[:2]
        corners = np.column_stack([found[:, :2], found[:, :2] + found[:, 2:4]])
        corners = np.rint(np.clip(corners, 0, [width, height, width, height])).astype(int)
        faces = []
        for (left, top, right, bottom), row in zip(corners.tolist(), found, strict=True):
            if left < right and top < bottom:
                box = left, top, right - left, bottom - top
                points = row[4:14].reshape(5, 2)
                confidence = min(float(row[14]), 1.0)
                faces.append(Face(box, confidence, points, self._reason(image, box, points)))
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _look(self, image: Image) -> npt.NDArray[np.float32]:
        """Rows as of `_find`, of a picture of any size."""
        side = max(image.shape[:2]) * _FOUND_SIDE / self._min_side
        reduced = _reduce(image, min(max(_LEAST_INPUT, side), _MOST_INPUT))
        found = _enlarge(self._find(reduced), reduced, image)
        if min(reduced.shape[:2]) <= _SECOND_LOOK:
            return found
        small = _reduce(reduced, _LEAST_INPUT)
        large = self._find(small)
        large = _enlarge(large[large[:, 2:4].min(axis=1) >= _LARGE], small, image)
        # What the first look has made of a large face may be a part of it.
        parts = (_covered(found, large) > 0.5).any(axis=1)
        return np.concatenate([large, found[~parts]])

    def _find(self, image: Image) -> npt.NDArray[np.float32]:
        """Rows of x, y, width, height, five points and confidence, all finite: float32 [N, 15]."""
        network = getattr(self._networks, "network", None)
        if network is None:
            network = cv2.FaceDetectorYN.create(
                "onnx",
                self._model,
                np.empty(0, np.uint8),
                (320, 320),
                _CONFIDENCE,
                _OVERLAP,
                _MOST_FACES,
            )
            self._networks.network = network
        network.setInputSize((image.shape[1], image.shape[0]))
        found = network.detect(image)[1]
        if found is None:
            return np.empty((0, 15), np.float32)
        rows = np.array(found, np.float32).reshape(-1, 15)
        return rows[np.isfinite(rows).all(axis=1)]

    def _reason(self, image: Image, box: Box, points: npt.NDArray[np.float32]) -> str | None:
        if min(box[2:]) < self._min_side:
            return "small"
        if _sharpness(image, box) < _LEAST_SHARPNESS:
            return "blurred"
        return None if _turned(points) <= _MOST_TURNED else "profile"


def is_blank(image: Image) -> bool:
    """Whether a picture has practically no content: black, or one colour with slight noise.

    Args:
        image: uint8 [height, width, 3], BGR.
    """
    height, width = image.shape[:2]
    # By a whole number, which OpenCV does three times as fast.
    step = max(1, min(height, width) // 64)
    whole = image[: height // step * step, : width // step * step]
    size = width // step, height // step
    small = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    return bool(cv2.meanStdDev(small)[1].max() < _LEAST_DEVIATION)


def _reduce(image: Image, side: float) -> Image:
    """A picture whose longer side is at most `side`."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _enlarge(rows: npt.NDArray[np.float32], of: Image, to: Image) -> npt.NDArray[np.float32]:
    """Rows as of `FaceDetector._find`, from the pixels of one picture to those of another."""
    # Of a sliver, one side may have been rounded far from the scale.
    scale = np.array([to.shape[1] / of.shape[1], to.shape[0] / of.shape[0]], np.float32)
    return np.hstack([rows[:, :14] * np.tile(scale, 7), rows[:, 14:]])


def _sharpness(image: Image, box: Box) -> float:
    """How much finer structure a face has than coarser: what blur takes first.

    The variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000) of the face's centre square, over that at half the size: contrast and
    lighting cancel out. A face is not enlarged for it, which would blur it. Strong noise passes for
    sharpness.
    """
    x, y, width, height = box
    side = min(width, height)
    left, top = x + (width - side) // 2, y + (height - side) // 2
    square = image[top : top + side, left : left + side]
    if side > _SHARPNESS_SIDE:
        size = (_SHARPNESS_SIDE, _SHARPNESS_SIDE)
        square = np.asarray(cv2.resize(square, size, interpolation=cv2.INTER_AREA), np.uint8)
    grey = cv2.cvtColor(square, cv2.COLOR_BGR2GRAY)
    fine, coarse = (
        float(cv2.meanStdDev(cv2.Laplacian(level, cv2.CV_32F))[1][0, 0]) ** 2
        for level in (grey, cv2.pyrDown(grey))
    )
    return fine / coarse if coarse else 0.0


def _turned(points: npt.NDArray[np.float32]) -> float:
    """How far the nose lies from the middle between the eyes, in distances of the eyes."""
    right, left, nose = points[:3].astype(np.float64)
    eyes = left - right
    square = float(eyes @ eyes)
    return abs(float((nose - right) @ eyes) / square - 0.5) if square else np.inf


def _covered(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """How much of each box in `rows` each of `others` covers, 0 to 1: float32 [rows, others]."""
    start, end = rows[:, None, :2], rows[:, None, :2] + rows[:, None, 2:4]
    common = np.minimum(end, others[:, :2] + others[:, 2:4]) - np.maximum(start, others[:, :2])
    area = np.maximum(rows[:, 2] * rows[:, 3], np.float32(1e-6))
    shared: npt.NDArray[np.float32] = common.clip(0).prod(axis=2) / area[:, None]
    return shared

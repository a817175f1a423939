"""Detect faces, and decide whether each is clear enough for a verdict.

The detector is YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
Intelligence Research, 2023) from OpenCV's model zoo, run by OpenCV. `face_model` finds its file.
The numbers below were measured with `face_detection_yunet_2026may.onnx` and the embedded model on
8,400 portraits, half of them by StyleGAN (see docs/MODEL_CARD.md), mostly 256 or 320 pixels wide
with a face of 150.
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

# Shorter side of a face's box, in pixels, below which too many photographs are called generated. Of
# 420 photographs of the validation set, cut out and reduced, the share that was called generated is
# 0.7 % at the original 150 pixels, 1.0 % at 112, 1.2 % at 96, 1.9 % at 80, 3.6 % at 64, 4.0 % at
# 48. Of 420 generated faces, at most 2.1 % were called photographs at any of these sizes, and about
# one in six was unsure.
MIN_SIDE = 96

# Side to which a face of `min_side` is reduced for detection, in pixels: 280 of 280 faces were
# found at 32 pixels, 96 % at 24, 66 % at 16.
_DETECTED_SIDE = 32
# Limits of the longer side of the reduced image, in pixels. The maximum bounds memory and time for
# images of large cameras.
_MIN_INPUT_SIDE = 240
_MAX_INPUT_SIDE = 2560
# Larger images also hide faces that are too large: of 280 portraits cut to two thirds of the face,
# all were found with a side of 240 pixels, 94 % with 320, 16 % with 640. Above this shorter side, a
# second pass at `_MIN_INPUT_SIDE` therefore finds faces of at least `_MIN_LARGE_SIDE` pixels.
_MAX_SINGLE_PASS_SIDE = 300
_MIN_LARGE_SIDE = 60
# All of the 8,400 faces were found at this confidence. In a review of 40 images, the only
# additional detections were people in the background.
_MIN_CONFIDENCE = 0.7
# Intersection over union of two boxes, above which one is dropped; the default of FaceDetectorYN.
_MAX_IOU = 0.3
_MAX_FACES = 200

# Side of the grey square in which sharpness is measured, in pixels.
_SHARPNESS_SIDE = 96
# See `_sharpness`: 118 of the 8,400 faces have less. All are photographs, most of them from one
# source of enlarged images. Of validation faces blurred by a Gaussian of 0.005 times the face's
# side, 32 % have less, 71 % at 0.006, 96 % at 0.007 and all at 0.01. The network tolerates blur up
# to 0.01: about 2 % of generated faces are called photographs, and 2 % of photographs generated.
# With more blur, accuracy falls: of generated images blurred by 3 pixels, the network finds half
# (docs/MODEL_CARD.md).
_MIN_SHARPNESS = 0.4

# Distance of the nose from the middle between the eyes, in distances of the eyes. Faces above it
# are turned by about 45 degrees or more: 55 of the 8,400, of which one is generated, so the network
# could not learn them.
_MAX_TURN = 0.5

# Standard deviation of the levels (0 to 255) of an image reduced to about 64 pixels, in the most
# varied channel. Below it, the image is blank. Of the 8,400 portraits, the flattest has 23.
_MIN_DEVIATION = 2.0


@dataclass(frozen=True)
class Face:
    """A detected face.

    Attributes:
        box: `(x, y, width, height)` in pixels, within the image.
        confidence: of the detector, 0 to 1.
        landmarks: float32 [5, 2], x and y in pixels, possibly outside the image: right and left eye
            of the person, tip of the nose, right and left corner of the mouth.
        reason: why the verdict must be `unsure`, one of `REASONS`; None for a clear face.
    """

    box: Box
    confidence: float
    landmarks: npt.NDArray[np.float32] = field(compare=False, repr=False)
    reason: str | None = None


class FaceDetector:
    """Detects faces. Several threads may call it; each has its own network.

    Args:
        model: a YuNet ONNX.
        min_side: minimum of the shorter side of a box, in pixels; smaller faces are `small`. Faces
            of this size are found in images of up to 80 times the side.

    Raises:
        ModelError: the file cannot be read, or OpenCV cannot run it as a YuNet.
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
            # An invalid model fails only at its first inference.
            self._find(np.zeros((48, 80, 3), np.uint8))
        except Exception:
            raise ModelError(
                f"face model {model} is damaged, or not a YuNet model for OpenCV "
                f"{cv2.__version__}: delete it to download it again, or name another with "
                "--face-model"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": self._model, "_min_side": self._min_side}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Networks cannot be pickled; each thread of another process creates its own.
        vars(self).update(state, _networks=threading.local())

    @property
    def settings(self) -> dict[str, str | int]:
        """The settings that affect the result: sha256 of the model, and `min_side`."""
        digest = hashlib.sha256(self._model.tobytes()).hexdigest()
        return {"model_sha256": digest, "min_side": self._min_side}

    def detect(self, image: Image) -> list[Face]:
        """Return the faces in an image, the largest first.

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
        """Return rows of `_find`, for an image of any size."""
        side = max(image.shape[:2]) * _DETECTED_SIDE / self._min_side
        reduced = _reduce(image, min(max(_MIN_INPUT_SIDE, side), _MAX_INPUT_SIDE))
        found = _enlarge(self._find(reduced), reduced, image)
        if min(reduced.shape[:2]) <= _MAX_SINGLE_PASS_SIDE:
            return found
        small = _reduce(reduced, _MIN_INPUT_SIDE)
        large = self._find(small)
        large = _enlarge(large[large[:, 2:4].min(axis=1) >= _MIN_LARGE_SIDE], small, image)
        # The first pass may have detected only a part of a large face.
        parts = (_covered(found, large) > 0.5).any(axis=1)
        return np.concatenate([large, found[~parts]])

    def _find(self, image: Image) -> npt.NDArray[np.float32]:
        """Return x, y, width, height, five points and confidence, all finite: float32 [N, 15]."""
        network = getattr(self._networks, "network", None)
        if network is None:
            size, config = (320, 320), np.empty(0, np.uint8)
            network = self._networks.network = cv2.FaceDetectorYN.create(
                "onnx", self._model, config, size, _MIN_CONFIDENCE, _MAX_IOU, _MAX_FACES
            )
        network.setInputSize((image.shape[1], image.shape[0]))
        found = network.detect(image)[1]
        if found is None:
            return np.empty((0, 15), np.float32)
        rows = np.array(found, np.float32).reshape(-1, 15)
        return rows[np.isfinite(rows).all(axis=1)]

    def _reason(self, image: Image, box: Box, points: npt.NDArray[np.float32]) -> str | None:
        if min(box[2:]) < self._min_side:
            return "small"
        if _sharpness(image, box) < _MIN_SHARPNESS:
            return "blurred"
        return None if _turned(points) <= _MAX_TURN else "profile"


def is_blank(image: Image) -> bool:
    """Return whether an image is black, or has one colour with slight noise.

    Args:
        image: uint8 [height, width, 3], BGR.
    """
    height, width = image.shape[:2]
    # Reduction by an integer is three times as fast in OpenCV.
    step = max(1, min(height, width) // 64)
    whole = image[: height // step * step, : width // step * step]
    size = width // step, height // step
    small = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    return bool(cv2.meanStdDev(small)[1].max() < _MIN_DEVIATION)


def _reduce(image: Image, side: float) -> Image:
    """Reduce an image to a longer side of at most `side`."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _enlarge(rows: npt.NDArray[np.float32], of: Image, to: Image) -> npt.NDArray[np.float32]:
    """Scale rows of `FaceDetector._find` from the pixels of one image to those of another."""
    # For a very narrow image, rounding may change the scale of one side.
    scale = np.array([to.shape[1] / of.shape[1], to.shape[0] / of.shape[0]], np.float32)
    return np.hstack([rows[:, :14] * np.tile(scale, 7), rows[:, 14:]])


def _sharpness(image: Image, box: Box) -> float:
    """Return the ratio of fine to coarse structure in a face, which blur lowers.

    The variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000) of the face's centre square, over that at half the size: contrast and
    lighting cancel out. The face is not enlarged, which would blur it. Strong noise counts as
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
    """Return the distance of the nose from the middle of the eyes, in distances of the eyes."""
    right, left, nose = points[:3].astype(np.float64)
    eyes = left - right
    square = float(eyes @ eyes)
    return abs(float((nose - right) @ eyes) / square - 0.5) if square else np.inf


def _covered(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the share of each of `rows` that each of `others` covers: float32 [rows, others]."""
    start, end = rows[:, None, :2], rows[:, None, :2] + rows[:, None, 2:4]
    common = np.minimum(end, others[:, :2] + others[:, 2:4]) - np.maximum(start, others[:, :2])
    area = np.maximum(rows[:, 2] * rows[:, 3], np.float32(1e-6))
    shared: npt.NDArray[np.float32] = common.clip(0).prod(axis=2) / area[:, None]
    return shared

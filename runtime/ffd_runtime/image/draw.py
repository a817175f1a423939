"""Draw verdicts and evidence on uint8 BGR images."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from ..core.results import LABEL_NAMES, Box, Label, Result
from ..model.card import PreprocessSpec
from .decode import Image
from .preprocess import classified_square

Colour = tuple[int, int, int]

# Blue, green, red. Vermilion, blue and amber stay apart for colour-blind eyes (Okabe and Ito,
# "Color Universal Design", 2008); each verdict also has its own shape.
VERDICT_COLOURS: dict[Label | None, Colour] = {
    "generated": (60, 108, 255),
    "groundtruth": (245, 165, 70),
    "unsure": (70, 195, 245),
    None: (170, 170, 170),
}
_GENERATED: Colour = (0, 60, 235)
_GROUNDTRUTH: Colour = (235, 95, 0)
PANEL: Colour = (28, 22, 20)
TEXT: Colour = (250, 250, 250)

# Log-odds of evidence that is drawn at full strength. The value is fixed, so that images can be
# compared; about one in ten values of the embedded model's heatmaps exceeds it.
EVIDENCE_LIMIT = 20.0
_OPACITY = 0.62

# In pixels. Images with a shorter side below _MIN_SIDE are enlarged, so that text is readable, but
# not beyond a longer side of _MAX_SIDE.
_MIN_SIDE = 192
_MAX_SIDE = 4096

FONT = cv2.FONT_HERSHEY_DUPLEX
# Height of that font's capitals at scale 1, in pixels.
CAPITAL = 22


def draw_verdict(
    image: Image, result: Result, face_scale: float = PreprocessSpec.face_scale
) -> Image:
    """Draw label and score in a corner, and marks around the classified square.

    Args:
        image: uint8 [height, width, 3], BGR; not changed.
        result: with a verdict or an error.
        face_scale: `preprocess.face_scale` of the card, for a result with a face.

    Returns:
        uint8 [k * height, k * width, 3]: a copy, enlarged by an integer k if it is too small
        for readable text (up to 4096 pixels a side), otherwise with k = 1.
    """
    height, width = image.shape[:2]
    factor = enlargement(image)
    size = (width * factor, height * factor)
    out = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    if height != width or result.face:
        left, top, side = classified_square(image, result.face, face_scale)
        side *= factor
        stroke, arm = max(1, round(side / 300)), max(1, side // 16)
        mark_corners(out, (left * factor, top * factor, side, side), arm, stroke, TEXT)
    text = f"{LABEL_NAMES[result.label]} {result.score:.3f}" if result.label else "no verdict"
    capital, (right, bottom) = fit_label(text, max(9.0, 0.042 * min(size)), *size)
    draw_label(out[:bottom, :right], result.label, text, capital)
    return out


def enlargement(image: Image) -> int:
    """Return the integer factor that makes an image large enough for readable text."""
    shorter, longer = sorted(map(int, image.shape[:2]))
    return min(math.ceil(_MIN_SIDE / shorter), max(1, _MAX_SIDE // longer))


def overlay_heatmap(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    face: Box | None = None,
    face_scale: float = PreprocessSpec.face_scale,
) -> Image:
    """Draw the evidence over the classified square.

    Red is evidence for generated, blue for photograph, and zero is transparent. The colour has full
    strength from `EVIDENCE_LIMIT` log-odds, in every image.

    Args:
        image: uint8 [height, width, 3], BGR; not changed.
        heatmap: float32 [h, w], a `Result.heatmap`.
        face: of the result, if any.
        face_scale: `preprocess.face_scale` of the card.

    Returns:
        uint8 [height, width, 3]: a copy.
    """
    out = image.copy()
    lay_heatmap(out, heatmap, face, face_scale)
    return out


def lay_heatmap(
    image: Image,
    heatmap: npt.NDArray[np.float32],
    face: Box | None = None,
    face_scale: float = PreprocessSpec.face_scale,
) -> None:
    """Draw the evidence in place; see `overlay_heatmap`."""
    height, width = image.shape[:2]
    left, top, side = classified_square(image, face, face_scale)
    levels = _evidence_levels(heatmap, side)
    first, last = max(left, 0), min(left + side, width)
    columns = slice(first, max(first, last))
    # In strips, because a whole image in 16 bits would need twice the memory.
    for start in range(max(top, 0), min(top + side, height), 128):
        rows = slice(start, min(start + 128, top + side, height))
        strip = levels[rows.start - top : rows.stop - top, first - left : columns.stop - left]
        if strip.size:
            image[rows, columns] = _tint(image[rows, columns], strip)


def evidence_layer(heatmap: npt.NDArray[np.float32], side: int) -> Image:
    """Return the overlay of `overlay_heatmap` as a separate image.

    Args:
        heatmap: float32 [h, w], a `Result.heatmap`.
        side: of the layer, in pixels.

    Returns:
        uint8 [side, side, 4], BGRA.
    """
    layer: Image = _TINTS[_evidence_levels(heatmap, side)]
    return layer


def _evidence_levels(heatmap: npt.NDArray[np.float32], side: int) -> Image:
    """Map evidence to 1 to 255, with 128 for zero, and enlarge it: uint8 [side, side]."""
    shares = np.clip(np.nan_to_num(heatmap.astype(np.float32)) / EVIDENCE_LIMIT, -1, 1)
    # Floats need four times the memory, so they are only enlarged to a medium size.
    middle = min(side, 1024)
    smooth = cv2.resize(shares, (middle, middle), interpolation=cv2.INTER_CUBIC)
    levels = np.rint(np.clip(smooth, -1, 1) * 127 + 128).astype(np.uint8)
    scaled = cv2.resize(levels, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.asarray(scaled, np.uint8)


# Colour and opacity of each level: uint8 [256, 4], BGRA.
_TINTS: Image = np.empty((256, 4), np.uint8)
_TINTS[:128, :3], _TINTS[128:, :3] = _GROUNDTRUTH, _GENERATED
_TINTS[:, 3] = np.rint(np.minimum(np.abs(np.arange(256) - 128) / 127, 1) * 255 * _OPACITY)
# For each level, the colour to add and the share of the image to keep, times 255: [1, 256, 3].
_ADDED = (_TINTS[None, :, :3].astype(np.uint16) * _TINTS[None, :, 3:]).astype(np.uint16)
_LEFT = np.repeat(255 - _TINTS[None, :, 3:].astype(np.uint16), 3, axis=2)


def _tint(image: Image, levels: Image) -> Image:
    """Blend an image with the colours of levels, in integers."""
    each = cv2.merge([levels] * 3)
    kept = cv2.multiply(image, cv2.LUT(each, _LEFT), dtype=cv2.CV_16U)
    blended: Image = ((kept + cv2.LUT(each, _ADDED)) // 255).astype(np.uint8)
    return blended


def mark_corners(image: Image, box: Box, arm: int, stroke: int, colour: Colour) -> None:
    """Draw marks at the corners of a box, with dark edges that are visible on any image.

    Args:
        image: uint8 [height, width, 3], BGR; changed in place.
        box: in pixels; may extend beyond the image.
        arm: length of each line, in pixels.
        stroke: its thickness, in pixels; a dark edge of the same thickness is added on each side.
        colour: of the lines.
    """
    left, top, width, height = box
    right, bottom = left + width - 1, top + height - 1
    for thickness, ink in ((3 * stroke, PANEL), (stroke, colour)):
        for x, inward in ((left, arm), (right, -arm)):
            for y, down in ((top, arm), (bottom, -arm)):
                cv2.line(image, (x, y), (x + inward, y), ink, thickness)
                cv2.line(image, (x, y), (x, y + down), ink, thickness)


def fit_label(text: str, capital: float, width: int, height: int) -> tuple[float, tuple[int, int]]:
    """Return the capital height, at most `capital`, and the size of a label within a space."""
    # In capital heights: the label is 2.2 high, and its shape and margins are 3 wide.
    across = measure_text(text, capital) / capital + 3
    capital = min(capital, width / across, height / 2.2)
    return capital, (math.ceil(across * capital), math.ceil(2.2 * capital))


def draw_label(panel: Image, label: Label | None, text: str, capital: float) -> None:
    """Fill a part of an image, of the size of `fit_label`, with the label's shape and text."""
    panel[:] = PANEL
    draw_shape(panel, label, (1.2 * capital, 1.1 * capital), 0.62 * capital)
    put_text(panel, text, (2.3 * capital, 1.6 * capital), capital, TEXT)


def put_text(
    image: Image, text: str, origin: tuple[float, float], capital: float, colour: Colour
) -> None:
    """Draw text from the left end of its baseline; `capital` is the capital height in pixels."""
    where = (round(origin[0]), round(origin[1]))
    scale, stroke = capital / CAPITAL, max(1, round(capital / 9))
    cv2.putText(image, _drawable(text), where, FONT, scale, colour, stroke, cv2.LINE_AA)


def measure_text(text: str, capital: float) -> float:
    """Return the width of a text in pixels."""
    scale, stroke = capital / CAPITAL, max(1, round(capital / 9))
    return float(cv2.getTextSize(_drawable(text), FONT, scale, stroke)[0][0])


def _drawable(text: str) -> str:
    # OpenCV 4 draws Hershey fonts, which are ASCII; OpenCV 5 has a font for most scripts.
    return text if hasattr(cv2, "FontFace") else text.encode("ascii", "replace").decode()


def draw_shape(image: Image, label: Label | None, centre: tuple[float, float], size: float) -> None:
    """Draw a triangle for generated, a disc for groundtruth, a diamond for unsure, a bar for None.

    Args:
        image: uint8 [height, width, 3], BGR; changed in place.
        label: of a result or a track.
        centre: in pixels.
        size: half of the width, in pixels.
    """
    x, y = centre
    outlines: dict[Label | None, list[tuple[float, float]]] = {
        "generated": [(-1, 0.8), (0, -0.9), (1, 0.8)],
        "unsure": [(-1, 0), (0, -1), (1, 0), (0, 1)],
        None: [(-1, -0.25), (1, -0.25), (1, 0.25), (-1, 0.25)],
    }
    colour = VERDICT_COLOURS[label]
    if label == "groundtruth":
        cv2.circle(image, (round(x), round(y)), round(0.85 * size), colour, cv2.FILLED, cv2.LINE_AA)
        return
    points = [
        (round(x + across * size), round(y + down * size)) for across, down in outlines[label]
    ]
    cv2.fillPoly(image, [np.array(points, np.int32)], colour, cv2.LINE_AA)

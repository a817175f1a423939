from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.core.results import LABELS, Label, Result
from ffd_runtime.image.draw import (
    EVIDENCE_LIMIT,
    draw_verdict,
    evidence_layer,
    overlay_heatmap,
)
from ffd_runtime.image.preprocess import classified_square, crop_centre, crop_face

from ..conftest import picture
from ..nightly import examples

Array = npt.NDArray[np.uint8]


def verdict(label: Label = "generated", score: float = 0.987) -> Result:
    return Result("a.jpg", label=label, score=score)


def evidence(value: float) -> npt.NDArray[np.float32]:
    return np.full((10, 10), value, np.float32)


def changed(before: Array, after: Array) -> npt.NDArray[np.bool_]:
    difference: npt.NDArray[np.bool_] = (before != after).any(axis=2)
    return difference


def text_height(image: Array) -> int:
    """Return the number of rows with pixels as white as the text."""
    return int(np.count_nonzero(image.min(axis=2).max(axis=1) > 200))


def test_square_image_changes_only_in_its_corner() -> None:
    image = picture(height=400, width=400)
    before = image.copy()
    drawn = draw_verdict(image, verdict())
    assert (image == before).all()
    assert drawn.shape == image.shape
    rows, columns = np.nonzero(changed(image, drawn))
    assert rows.max() < 80
    assert columns.max() < 320
    assert rows.min() == columns.min() == 0


def test_text_is_legible_at_every_size() -> None:
    for side in (1, 30, 100, 256, 1000):
        drawn = draw_verdict(np.full((side, side, 3), 128, np.uint8), verdict())
        # Capitals and digits of nine pixels can be read.
        assert text_height(drawn) >= 9
        assert drawn.shape[0] == drawn.shape[1] >= 192
        assert drawn.shape[0] % side == 0


def test_text_is_larger_on_a_large_image() -> None:
    image = np.full((4000, 5000, 3), 128, np.uint8)
    drawn = draw_verdict(overlay_heatmap(image, evidence(3)), verdict())
    assert drawn.shape == image.shape
    assert text_height(drawn[:2000]) > 120


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(LABELS), st.floats(0, 1))
def test_image_may_have_any_shape(height: int, width: int, label: Label, score: float) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    drawn = draw_verdict(overlay_heatmap(image, evidence(-5)), verdict(label, score))
    factor = drawn.shape[0] // height
    assert drawn.shape == (height * factor, width * factor, 3)
    assert drawn.dtype == np.uint8


def test_enlargement_of_narrow_images_is_limited() -> None:
    assert draw_verdict(np.zeros((1, 50_000, 3), np.uint8), verdict()).shape == (1, 50_000, 3)
    assert max(draw_verdict(np.zeros((2000, 2, 3), np.uint8), verdict()).shape) <= 4096


def test_verdicts_differ_without_colour() -> None:
    shapes = []
    for label in LABELS:
        drawn = draw_verdict(np.full((600, 600, 3), 20, np.uint8), verdict(label))
        corner = cv2.cvtColor(drawn[:60, :60], cv2.COLOR_BGR2GRAY)
        shapes.append(corner > 80)
    for one in range(3):
        other = (one + 1) % 3
        assert (shapes[one] != shapes[other]).mean() > 0.02


def test_error_has_no_verdict() -> None:
    image = picture(height=300, width=300)
    drawn = draw_verdict(image, Result.failed("a.jpg", InputError("empty", "the file is empty")))
    assert changed(image, drawn).any()


@pytest.mark.parametrize("shape", [(500, 300), (300, 500)])
def test_corners_of_the_classified_square_are_marked(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 128, np.uint8)
    left, top, side = classified_square(image)
    assert crop_centre(image).shape == (side, side, 3)
    drawn = changed(image, draw_verdict(image, verdict()))
    for y in (top, top + side - 1):
        for x in (left, left + side - 1):
            assert drawn[y, x]
    centre = drawn[top + 60 : top + side - 60, left + 60 : left + side - 60]
    assert not centre.any()


@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.tuples(st.integers(-20, 80), st.integers(-20, 80), st.integers(1, 60), st.integers(1, 60)),
)
def test_square_of_a_face_is_that_of_its_crop(
    height: int, width: int, face: tuple[int, int, int, int]
) -> None:
    rows, columns = np.mgrid[:height, :width]
    image = np.dstack([rows, columns, rows]).astype(np.uint8)
    left, top, side = classified_square(image, face, 1.3)
    cut = crop_face(image, face, 1.3)
    assert cut.shape[0] == side
    assert cut[0, 0].tolist()[:2] == [np.clip(top, 0, height - 1), np.clip(left, 0, width - 1)]
    assert overlay_heatmap(image, evidence(9), face, 1.3).shape == image.shape


def test_zero_evidence_does_not_change_an_image() -> None:
    image = picture(height=130, width=200)
    assert (overlay_heatmap(image, evidence(0)) == image).all()


def test_evidence_is_red_for_generated_and_blue_for_groundtruth() -> None:
    image = np.full((90, 90, 3), 128, np.uint8)
    for value, strong, weak in ((8, 2, 0), (-8, 0, 2)):
        drawn = overlay_heatmap(image, evidence(value))
        assert (drawn[..., strong] > drawn[..., weak] + 20).all()


def test_scale_of_evidence_is_fixed() -> None:
    image = np.full((60, 60, 3), 128, np.uint8)
    strengths = [
        int(
            np.abs(overlay_heatmap(image, evidence(share * EVIDENCE_LIMIT)).astype(int) - 128).max()
        )
        for share in (0.1, 0.3, 0.6, 1.0, 5.0)
    ]
    assert strengths == sorted(strengths)
    assert len(set(strengths)) == 4
    assert strengths[-1] == strengths[-2]
    # Strong evidence elsewhere has no effect here: images are not scaled to their own range.
    heatmap = evidence(0.3 * EVIDENCE_LIMIT)
    heatmap[:, 6:] = 90
    alone, beside = (overlay_heatmap(image, map_) for map_ in (evidence(6), heatmap))
    assert (alone[:, :18] == beside[:, :18]).all()


def test_evidence_is_smooth_and_in_its_place() -> None:
    heatmap = evidence(0)
    heatmap[2, 7] = EVIDENCE_LIMIT
    image = np.full((200, 300, 3), 128, np.uint8)
    red = overlay_heatmap(image, heatmap)[..., 2].astype(int)
    y, x = np.unravel_index(red.argmax(), red.shape)
    # Cells of 20 pixels; the square begins 50 pixels from the left.
    assert 40 <= y < 60
    assert 190 <= x < 210
    assert (red[:, :50] == 128).all()
    assert (red[:, 250:] == 128).all()
    assert np.abs(np.diff(red, axis=1)).max() < 20


def test_evidence_layer_equals_the_overlay() -> None:
    rng = np.random.default_rng(0)
    heatmap = rng.normal(0, 12, (10, 10)).astype(np.float32)
    image = picture(height=64, width=64)
    layer = evidence_layer(heatmap, 64).astype(int)
    alpha = layer[..., 3:]
    blended = (image * (255 - alpha) + layer[..., :3] * alpha) // 255
    assert (overlay_heatmap(image, heatmap) == blended).all()


def test_nan_evidence_does_not_change_an_image() -> None:
    image = picture(height=64, width=64)
    assert (overlay_heatmap(image, evidence(np.nan)) == image).all()

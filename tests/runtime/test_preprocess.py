from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.image.preprocess import crop_centre, crop_face, normalise, preprocess
from ffd_runtime.model.card import PreprocessSpec

from ..conftest import picture
from .golden import FILE, synthetic

SPEC = PreprocessSpec()


@pytest.mark.parametrize("name", sorted(synthetic()))
def test_the_golden_file_is_reproduced(name: str) -> None:
    with np.load(FILE) as golden:
        difference = preprocess(synthetic()[name], SPEC).astype(int) - golden[name]
    assert np.abs(difference).max() <= 1


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 255))
def test_any_size_becomes_the_same_shape(height: int, width: int, level: int) -> None:
    out = preprocess(np.full((height, width, 3), level, np.uint8), SPEC)
    assert out.shape == (299, 299, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous


def test_red_stays_red_and_comes_first() -> None:
    out = preprocess(picture("red"), SPEC).mean((0, 1))
    assert out[0] > out[2] + 20


def test_the_input_is_not_changed() -> None:
    image = picture("blue", 299, 299)
    before = image.copy()
    preprocess(image, SPEC)
    assert (image == before).all()


def test_brightness_and_contrast_are_normalised() -> None:
    image = picture("blue", 299, 299).astype(float)
    darker = (image * 0.5).astype(np.uint8)
    apart = np.abs(darker.mean() - image.mean())
    after = preprocess(darker, SPEC).mean() - preprocess(image.astype(np.uint8), SPEC).mean()
    assert abs(after) < apart / 10


def test_a_flat_image_does_not_become_noise() -> None:
    rng = np.random.default_rng(1)
    flat = (120 + rng.integers(-1, 2, (299, 299, 1))).astype(np.uint8).repeat(3, 2)
    unlimited = PreprocessSpec(max_gain=100.0)
    assert normalise(flat, SPEC).std() < normalise(flat, unlimited).std() / 4


def test_the_centre_square_is_cropped() -> None:
    image = np.zeros((50, 90, 3), np.uint8)
    image[:, 20:70] = 255
    assert crop_centre(image).shape == (50, 50, 3)
    assert (crop_centre(image) == 255).all()
    assert (crop_centre(image.transpose(1, 0, 2)) == 255).all()


@given(st.integers(-30, 120), st.integers(-30, 120), st.integers(0, 150), st.integers(0, 150))
def test_any_face_box_gives_a_square(x: int, y: int, width: int, height: int) -> None:
    square = crop_face(picture(height=80, width=100), (x, y, width, height), 1.3)
    assert square.shape[0] == square.shape[1] == max(1, round(1.3 * max(width, height)))


def test_a_face_box_is_enlarged_about_its_centre() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[40:60, 40:60] = 255
    square = crop_face(image, (40, 40, 20, 20), 1.5)
    assert square.shape == (30, 30, 3)
    assert (square[5:25, 5:25] == 255).all()
    assert square.sum() == 20 * 20 * 3 * 255
    assert (crop_face(image, (40, 40, 20, 20), 1.0) == 255).all()

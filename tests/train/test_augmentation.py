from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import DataError
from ffd_train import launder
from ffd_train.augmentation import AUGMENTATIONS, AugmentationPipeline

from ..conftest import Image, picture
from ..nightly import examples


def only(name: str, **ranges: object) -> AugmentationPipeline:
    return AugmentationPipeline.from_tables({name: {"probability": 1.0, **ranges}})


def apply(recipe: AugmentationPipeline, image: Image, seed: int = 0) -> Image:
    return recipe(image, np.random.default_rng(seed))


def test_the_default_names_every_change_and_repeats() -> None:
    recipe = AugmentationPipeline.default()
    assert {change.name for change in recipe.augmentations + recipe.laundering} == set(
        AUGMENTATIONS
    )
    image = picture("red", 80, 70)
    before = image.copy()
    changed = set()
    for seed in range(60):
        once, again = apply(recipe, image, seed), apply(recipe, image, seed)
        assert (once == again).all()
        assert once.dtype == np.uint8
        assert once.ndim == 3
        assert once.flags.c_contiguous
        changed.add(once.tobytes())
    assert (image == before).all()
    assert len(changed) > 50


@settings(max_examples=examples(40), deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from(sorted(AUGMENTATIONS)),
)
def test_every_change_takes_any_picture(height: int, width: int, seed: int, name: str) -> None:
    tables = AugmentationPipeline.default().to_tables()
    table = {**tables.get(name, tables["laundering"].get(name)), "probability": 1.0}
    out = apply(
        AugmentationPipeline.from_tables({name: table}), picture("blue", height, width), seed
    )
    assert out.dtype == np.uint8
    assert min(out.shape[:2]) >= 1
    assert out.shape[2] == 3


def test_a_share_of_the_pictures_is_laundered() -> None:
    gamma = {"probability": 1.0, "exponent": [2.0, 2.0]}
    recipe = AugmentationPipeline.from_tables({"laundering": {"probability": 0.3, "gamma": gamma}})
    image = picture("red", 20, 20)
    dark = sum(apply(recipe, image, seed).mean() < image.mean() - 5 for seed in range(400))
    assert 90 < dark < 150


@pytest.mark.parametrize(
    ("name", "expected"),
    [("horizontal_flip", lambda i: i[:, ::-1]), ("vertical_flip", lambda i: i[::-1])],
)
def test_flips(name: str, expected: object) -> None:
    image = picture("red", 20, 30)
    assert (apply(only(name), image) == expected(image)).all()  # type: ignore[operator]


def test_crops_are_parts_of_the_picture() -> None:
    image = picture("red", 40, 60)
    part = apply(only("crop", side=[0.5, 0.5]), image)
    assert part.shape == (20, 20, 3)
    found = cv2.matchTemplate(image, part, cv2.TM_SQDIFF)
    assert found.min() == 0


def test_augmentations_have_their_effect() -> None:
    image = np.asarray(cv2.GaussianBlur(picture("red", 96, 96), (0, 0), 1.5), np.uint8)

    def sharpness(of: Image) -> float:
        return float(cv2.Laplacian(of, cv2.CV_64F).var())

    assert sharpness(apply(only("blur", sigma=[2, 2]), image)) < sharpness(image) / 3
    assert sharpness(apply(only("noise", deviation=[9, 9]), image)) > sharpness(image) * 2
    assert apply(only("gamma", exponent=[2, 2]), image).mean() < image.mean() - 10
    small = {apply(only("rescale", factor=[0.5, 0.5]), image, seed).shape for seed in range(30)}
    assert small == {(96, 96, 3), (48, 48, 3)}
    framed = apply(only("screenshot", zoom=[1, 1], border=[0.5, 0.5], quality=[90, 90]), image)
    assert framed.shape == (192, 192, 3)
    errors = [
        float(np.abs(apply(only(codec, quality=[q, q]), image).astype(int) - image).mean())
        for codec in ("jpeg", "webp")
        for q in (95, 30)
    ]
    assert errors[0] < errors[1]
    assert errors[2] < errors[3]
    jittered = only(
        "jitter", brightness=[30, 30], contrast=[1, 1], balance=[1, 1], saturation=[1, 1]
    )
    assert apply(jittered, image).mean() == pytest.approx(image.mean() + 30, abs=3)


def test_images_too_large_for_a_codec_are_unchanged() -> None:
    long = np.zeros((2, 70_000, 3), np.uint8)
    for name in ("jpeg", "webp"):
        assert apply(only(name, quality=[50, 50]), long).shape == long.shape
    frame = only("screenshot", zoom=[1, 2], border=[0, 0], quality=[50, 50])
    assert apply(frame, long[:, :40_000]).shape == (2, 40_000, 3)
    assert apply(only("webp", quality=[50, 50]), long[:, :20_000]).shape == (2, 20_000, 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.sampled_from(["4:4:4", "4:2:0"]))
@settings(max_examples=examples(60), deadline=None)
def test_pillow_encodes_what_does_not_compress(seed: int, quality: int, subsampling: str) -> None:
    side = 8 + seed % 300
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert launder.jpeg_by_pillow(image, quality, subsampling).shape == image.shape


def test_both_jpeg_encoders_are_used() -> None:
    image = np.asarray(cv2.GaussianBlur(picture("red", 64, 64), (0, 0), 1.0), np.uint8)
    recipe = only("jpeg", quality=[50, 50])
    made = {apply(recipe, image, seed).tobytes() for seed in range(40)}
    assert launder.jpeg(image, 50).tobytes() in made
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        assert launder.jpeg_by_pillow(image, 50, subsampling).tobytes() in made


@pytest.mark.parametrize("name", ["recipe", "light"])
def test_a_recipe_survives_the_settings(name: str) -> None:
    recipe = AugmentationPipeline.packaged(name)
    assert AugmentationPipeline.from_tables(recipe.to_tables()) == recipe


def test_the_light_recipe_does_the_same_less_often() -> None:
    light, full = AugmentationPipeline.packaged("light"), AugmentationPipeline.default()
    assert light.laundering_share < full.laundering_share
    assert [change.name for change in light.laundering] == [c.name for c in full.laundering]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[blurr]\nprobability = 1", r"\[blurr\] is unknown: use crop, "),
        ("[blur]\nprobability = 2\nsigma = [1, 2]", r"\[blur\] needs a probability from 0 to 1"),
        ("[blur]\nsigma = [1, 2]", r"\[blur\] needs a probability"),
        ("[blur]\nprobability = 1", r"\[blur\] needs exactly these keys: probability, sigma"),
        ('[blur]\nprobability = 1\nsigma = "12"', r"\[blur\] sigma must be \[low, high\]"),
        ("[blur]\nprobability = 1\nsigma = 2", r"\[blur\] sigma must be \[low, high\]"),
        ("[blur]\nprobability = 1\nsigma = [2, 1]", r"within 0.01 and 100"),
        ("[blur]\nprobability = 1\nsigma = [nan, 1]", r"within 0.01 and 100"),
        ("[jpeg]\nprobability = 1\nquality = [0, 90]", r"within 1 and 100"),
        ("[laundering.crop]\nprobability = 1", r"\[laundering\] needs a probability"),
        ("laundering = 3", r"\[laundering\] must be a table"),
        ("blur = 3", r"\[blur\] must be a table"),
        ("[blur", r"invalid TOML"),
    ],
)
def test_an_invalid_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        AugmentationPipeline.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        AugmentationPipeline.load(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        AugmentationPipeline.load(tmp_path / "latin.toml")


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.integers(0, 2**32 - 1))
def test_resize_draws_the_shorter_side(height: int, width: int, seed: int) -> None:
    resized = apply(only("resize", pixels=[40, 90]), picture("red", height, width), seed)
    assert 40 <= min(resized.shape[:2]) <= 90
    assert resized.shape[0] / resized.shape[1] == pytest.approx(height / width, rel=0.05)


def test_every_packaged_recipe_can_be_read() -> None:
    for name in ("recipe", "light", "varied"):
        assert AugmentationPipeline.packaged(name).augmentations

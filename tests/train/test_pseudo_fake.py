from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import DataError
from ffd_runtime.model.card import PreprocessSpec
from ffd_train import pseudo_fake
from ffd_train.augmentation import AugmentationPipeline
from ffd_train.dataset import FaceDataset, TrainingView
from ffd_train.pseudo_fake import UPSAMPLERS, imitate_generator
from ffd_train.scanning import scan

from .. import tiny
from ..conftest import Image, picture
from ..nightly import examples

TABLE = {"probability": 1.0, "stride": [2, 8], "detail": [0.4, 1.0]}


def recipe(probability: float = 1.0) -> AugmentationPipeline:
    return AugmentationPipeline.from_tables({"pseudo_fake": {**TABLE, "probability": probability}})


def smooth(side: int = 96) -> Image:
    noise = picture("blue", side, side)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 2**32 - 1),
    st.floats(2, 32),
    st.sampled_from([(0.0, 0.0), (0.3, 0.9), (1.0, 1.0)]),
)
def test_any_picture_keeps_its_form(
    height: int, width: int, seed: int, stride: float, detail: tuple[float, float]
) -> None:
    image = picture("blue", height, width)
    before = image.copy()
    made = imitate_generator(image, rng(seed), (2, stride), detail)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert (image == before).all()
    assert (made == imitate_generator(image, rng(seed), (2, stride), detail)).all()


def test_a_pseudo_fake_resembles_the_photograph() -> None:
    image = smooth()
    made = [imitate_generator(image, rng(seed), (2, 8), (0.4, 1.0)) for seed in range(30)]
    errors = [float(np.abs(each.astype(int) - image).mean()) for each in made]
    assert min(errors) > 0.3
    assert max(errors) < 12
    assert all(abs(float(each.mean()) - image.mean()) < 2 for each in made)
    assert len({each.tobytes() for each in made}) == 30


def spectrum_at_the_grid(image: npt.NDArray[np.float32]) -> float:
    """Energy at the Nyquist frequency, where doubling leaves artefacts."""
    grey = image.mean(2)
    phases = [grey[y::2, x::2].mean() for y in (0, 1) for x in (0, 1)]
    return float(np.std(phases))


def test_an_uneven_kernel_leaves_a_checkerboard() -> None:
    flat = np.full((32, 32, 3), 128, np.float32)
    traces = {
        kind.__name__: max(spectrum_at_the_grid(kind(flat, rng(seed))) for seed in range(8))
        for kind in UPSAMPLERS
    }
    assert traces["_nearest"] == traces["_bilinear"] == 0
    assert traces["_transposed"] > 1
    # Doubling keeps brightness, and the position to half a pixel.
    image = smooth().astype(np.float32)
    for kind in UPSAMPLERS:
        doubled = kind(pseudo_fake._halve(image), rng())
        assert doubled.shape == image.shape
        assert np.abs(doubled - image).mean() < 4


def test_nearest_neighbour_upsampling_makes_neighbours_more_similar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pseudo_fake, "UPSAMPLERS", (pseudo_fake._nearest,))
    monkeypatch.setattr(pseudo_fake, "TEXTURE", (1e-3, 1e-3))
    monkeypatch.setattr(pseudo_fake, "TRACE", (1.0, 1.0))
    image = picture("blue", 96, 96)
    made = imitate_generator(image, rng(), (2, 2), (0.3, 0.3)).astype(int)
    inside = np.abs(made[::2, ::2] - made[::2, 1::2]).mean()
    across = np.abs(made[::2, 1:-1:2] - made[::2, 2::2]).mean()
    assert inside < 0.7 * across


def test_only_photographs_become_generated(tmp_path: Path) -> None:
    data = scan(tiny.make_faces(tmp_path / "faces", {"train": 40, "val": 2}), ("train", "val"))
    samples, spec = data.split("train"), PreprocessSpec()

    def labels(of: AugmentationPipeline | None) -> dict[int, list[int]]:
        dataset = FaceDataset(data, samples, spec, TrainingView(of, crop=32, sizes=(64, 64)))
        items = [dataset[i][1] for i in range(len(samples))]
        return {
            label: [item for item, s in zip(items, samples, strict=True) if s.label == label]
            for label in (0, 1)
        }

    assert labels(recipe()) == {0: [0] * 40, 1: [0] * 40}
    part = labels(recipe(0.5))
    assert part[0] == [0] * 40
    assert 10 < sum(part[1]) < 30
    for without in (None, AugmentationPipeline(), recipe(0.0)):
        assert labels(without) == {0: [0] * 40, 1: [1] * 40}
    # Image and label change together, and generated images do not change.
    plain = FaceDataset(data, samples, spec)
    faked = FaceDataset(data, samples, spec, TrainingView(recipe(0.5)))
    for i in range(0, len(samples), 7):
        (image, label), (made, given_label) = plain[i], faked[i]
        assert torch.equal(image, made) == (label == given_label)


def test_disabled_pseudo_fakes_draw_no_random_numbers() -> None:
    image = picture("blue", 64, 64)
    source, other = rng(), rng()
    assert AugmentationPipeline.default().fake(image, source) is None
    assert (
        AugmentationPipeline.default()(image, source)
        == AugmentationPipeline.default()(image, other)
    ).all()
    assert "pseudo_fake" not in AugmentationPipeline.default().to_tables()


def test_the_table_survives_the_settings() -> None:
    whole = AugmentationPipeline.from_tables(
        {"pseudo_fake": TABLE, **AugmentationPipeline.default().to_tables()}
    )
    assert AugmentationPipeline.from_tables(whole.to_tables()) == whole
    assert whole.augmentations == AugmentationPipeline.default().augmentations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pseudo_fake]\nprobability = 2", r"\[pseudo_fake\] needs a probability from 0 to 1"),
        ("[pseudo_fake]\nprobability = 1", "needs exactly these keys: probability, stride, detail"),
        (
            "[pseudo_fake]\nprobability = 1\nstride = [1, 8]\ndetail = [0, 1]",
            r"\[pseudo_fake\] stride must be \[low, high\] within 2 and 32",
        ),
        ("pseudo_fake = 3", r"\[pseudo_fake\] must be a table"),
        (
            "[laundering]\nprobability = 1\n[laundering.pseudo_fake]\nprobability = 1",
            r"\[laundering.pseudo_fake\] is unknown",
        ),
    ],
)
def test_a_damaged_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentationPipeline.parse(text)

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import DataError
from ffd_runtime.inputs import Item
from ffd_train import intervals
from ffd_train.evaluation import evaluate, measure_robustness
from ffd_train.intervals import wilson
from ffd_train.robustness import CLEAN, PERTURBATIONS, Perturbation, measure_cell, sweep
from ffd_train.scanning import find_labelled

from ..conftest import Image, picture
from ..models import CARD
from ..tiny import make_faces


def swap(image: Image) -> Image:
    return np.ascontiguousarray(image[..., ::-1])


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    for number in range(5):
        red, blue = (picture(colour, seed=number).astype(float) for colour in ("red", "blue"))
        # Little colour, so that scores are not all 0 or 1.
        share = 0.49 + 0.01 * number
        mixed = np.rint(share * red + (1 - share) * blue).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), mixed)
    return [Item(str(tmp_path / f"{number}.png")) for number in range(5)]


def test_the_sweep_has_the_specified_perturbations() -> None:
    names = {each.name for each in PERTURBATIONS}
    assert {f"jpeg-{quality}" for quality in (95, 80, 70, 50, 30)} <= names
    assert {"webp-80", "resize-0.75", "resize-0.5", "resize-0.25", "screenshot"} <= names
    assert {"blur-1", "blur-2", "blur-3", "noise-10", "brightness-1.5"} <= names
    assert len(names) == len(PERTURBATIONS) == 21
    assert len({each.label for each in PERTURBATIONS}) == 21


def test_no_perturbation_changes_the_picture_or_differs_from_run_to_run() -> None:
    image = picture(seed=3)
    before = image.copy()
    for each in PERTURBATIONS:
        once = each.apply(image)
        assert (image == before).all(), each.name
        assert (each.apply(image.copy()) == once).all(), each.name
        assert once.dtype == np.uint8
        assert once.shape != image.shape or (once != image).any(), each.name


def test_noise_differs_from_picture_to_picture() -> None:
    noise = next(each for each in PERTURBATIONS if each.name == "noise-10")
    flat, other = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64, 3), 129, np.uint8)
    drawn = noise.apply(flat).astype(int) - 128
    assert drawn.std() == pytest.approx(10, rel=0.05)
    assert (drawn != noise.apply(other).astype(int) - 129).mean() > 0.5


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_perturbed_images_are_scored_like_in_the_runtime(
    colour_model: Path, items: list[Item], batch: int
) -> None:
    some = [each for each in PERTURBATIONS if each.name in ("jpeg-30", "noise-20", "screenshot")]
    done = []
    with Classifier.open(colour_model, device="cpu", batch=batch) as classifier:
        found = sweep(classifier, items, lambda: done.append(1), some)
        assert list(found) == ["jpeg-30", "noise-20", "screenshot"]
        for each in some:
            for number, item in enumerate(items):
                image = cv2.imread(item.source)
                assert image is not None
                expected = classifier.classify(each.apply(np.asarray(image, np.uint8))).score
                assert found[each.name][number] == pytest.approx(expected, abs=1e-6)
        assert np.ptp([found[each.name] for each in some], axis=0).min() > 1e-4
    assert len(done) == 5


def test_a_sweep_with_known_scores(colour_model: Path, tmp_path: Path) -> None:
    faces = make_faces(tmp_path / "faces", {"test": 4}, sources=True)
    with Classifier.open(colour_model, device="cpu") as classifier:
        done = evaluate(classifier, find_labelled(faces))
        ticks: list[str] = []
        cells = measure_robustness(
            classifier, done, lambda: ticks.append("image"), lambda: ticks.append("cell")
        )
        swapped = sweep(
            classifier,
            [done.data.item(sample) for sample, _ in done.read],
            perturbations=[Perturbation("swap", "swapped colours", swap)],
        )
    assert [cell.name for cell in cells] == [CLEAN, *(each.name for each in PERTURBATIONS)]
    assert ticks == ["image"] * 8 + ["cell"] * 22
    # No perturbation of the sweep removes colour.
    assert all(cell.accuracy == cell.roc_auc == 1 for cell in cells)
    assert cells[0].per_source["red-0"] == {
        "images": 2,
        "accuracy": 1.0,
        "roc_auc": 1.0,
        "interval": wilson(2, 2),
    }
    labels = [sample.label for sample, _ in done.read]
    cell = measure_cell("swap", "", swapped["swap"], labels, classifier.card, done.sources)
    assert (cell.roc_auc, cell.accuracy, cell.false_alarms, cell.misses) == (0, 0, 1, 1)
    assert cell.intervals["misses"] == wilson(4, 4)
    assert cell.per_source["blue-1"]["accuracy"] == 0


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_large_images_are_perturbed_at_full_size(
    colour_model: Path, tmp_path: Path, name: str
) -> None:
    cv2.imwrite(str(tmp_path / name), picture("red", 1200, 1300))
    sides = []

    def note(image: Image) -> Image:
        sides.append(image.shape[:2])
        return image

    with Classifier.open(colour_model, device="cpu") as classifier:
        assert 2 * classifier.card.preprocess.decode_side <= 1200
        sweep(
            classifier, [Item(str(tmp_path / name))], perturbations=[Perturbation("n", "n", note)]
        )
    assert {max(side) for side in sides} == {1300}


def test_a_cell_of_many_images_is_measured_without_drawing_them() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200_000) % 2
    scores = rng.beta(2, 1, 200_000) * (1 - labels) + rng.beta(1, 2, 200_000) * labels
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "_draw", lambda _: drawn.append(1))
        cell = measure_cell("x", "X", scores, labels.tolist(), CARD, [None] * 200_000)
    assert drawn == []
    assert all(low < getattr(cell, name) < high for name, (low, high) in cell.intervals.items())


def test_the_metrics_of_a_cell() -> None:
    scores = np.array([0.9, 0.8, 0.45, 0.3, 0.2, 0.55])
    cell = measure_cell("x", "X", scores, [0, 0, 0, 1, 1, 1], CARD, ["a", "a", "a", "b", "b", None])
    assert cell.false_alarms == pytest.approx(1 / 3)
    assert cell.misses == pytest.approx(1 / 3)
    for name, (low, high) in cell.intervals.items():
        assert 0 <= low <= getattr(cell, name) <= high <= 1
    assert cell.per_source["b"]["interval"] == wilson(2, 2)
    assert "scores" not in cell.to_json()


def test_unsupported_images_are_a_one_line_error(
    colour_model: Path, items: list[Item], tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), np.zeros((2, 16_400, 3), np.uint8))
    with Classifier.open(colour_model, device="cpu") as classifier:
        with pytest.raises(
            DataError, match=r"wide.png: WebP 80 does not support an image of 16400x2"
        ):
            sweep(classifier, [*items, Item(str(wide))])
        Path(items[0].source).unlink()
        with pytest.raises(DataError, match=r"0.png can no longer be read: no such file"):
            sweep(classifier, items)

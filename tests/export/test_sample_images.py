"""Images to calibrate and to verify with."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_export.sample_images import (
    Example,
    balance,
    find_images,
    label_of,
    prepare_images,
    spread,
)
from ffd_export.training_runs import find_calibration, find_verification
from ffd_runtime.core.errors import DataError
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.prepare import preparing
from ffd_train.prepare.entries import Input

from ..conftest import picture


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10), st.integers(1, 40))
def test_balance_takes_equal_numbers_of_each_class(
    generated: int, groundtruth: int, unlabelled: int, count: int
) -> None:
    paths = [f"x/generated/{i}" for i in range(generated)]
    paths += [f"x/groundtruth/{i}" for i in range(groundtruth)]
    paths += [f"x/other/{i}" for i in range(unlabelled)]
    examples = [Example.of_file(path) for path in paths]
    chosen = balance(examples, count)
    assert len(chosen) == min(count, len(paths))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(examples)
    if not unlabelled and count <= 2 * min(generated, groundtruth):
        labels = [example.label for example in chosen]
        assert abs(labels.count(0) - labels.count(1)) <= 1


def test_labels_come_from_folders() -> None:
    assert label_of("faces/val/generated/a.jpg") == 0
    assert label_of("generated/groundtruth/deep/a.jpg") == 1
    assert label_of("faces/generated.jpg") is None
    assert spread(list(range(10)), 3) == [0, 3, 6]


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    (tmp_path / "b.png").write_bytes(b"broken")
    images = prepare_images(find_images(tmp_path, 10), PreprocessSpec())
    assert images.sources == [str(tmp_path / "a.png")]
    ((path, reason),) = images.unreadable
    assert path == str(tmp_path / "b.png")
    assert reason.startswith("not an image")
    assert images.describe() == "1 image (1 unlabelled)"
    assert not images.labelled
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "absent", 3)


def test_packed_sets_calibrate_and_verify_on_different_splits(tmp_path: Path) -> None:
    for seed, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        folder = tmp_path / "f" / split / ("generated", "groundtruth")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{seed}.png"), picture(seed=seed))
    packed = tmp_path / "packed"
    as_they_are = preparing.Settings(match=False)
    preparing.prepare(
        [Input(tmp_path / "f")], packed, as_they_are, 1, lambda _: None, lambda *_: lambda: None
    )

    def splits(examples: list[Example]) -> list[str]:
        return [Path(example.item.source).parent.name.split("-")[0] for example in examples]

    model = tmp_path / "absent.safetensors"
    assert splits(find_calibration(model, packed, 100)) == ["train"] * 8
    assert splits(find_verification(model, packed)) == ["val"] * 4
    with (packed / "val-000000.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"--calibrate .*val-000000.tar has .*: copy it again"):
        find_calibration(model, packed, 100)
    with pytest.raises(DataError, match=r"--verify .*val-000000.tar has .*: copy it again"):
        find_verification(model, packed)

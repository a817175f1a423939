from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ffd_runtime.card import PreprocessSpec
from ffd_runtime.errors import DataError
from ffd_runtime.pipeline import prepare
from ffd_runtime.sources import Item
from ffd_train.augment import Augmentation
from ffd_train.data import FaceDataset, find_labelled, scan, write_manifest

from ..conftest import picture
from ..tiny import make_faces

SPEC = PreprocessSpec()


def test_training_feeds_what_the_runtime_feeds(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 3, "val": 1}), ("train",))
    dataset = FaceDataset(data, data.samples, SPEC)
    for index, sample in enumerate(data.samples):
        fed = prepare(Item(str(data.root / sample.path)), SPEC).image
        assert isinstance(fed, np.ndarray)
        assert dataset[index][0].numpy().tobytes() == fed.tobytes()


def test_training_feeds_what_the_runtime_feeds_on_real_faces(faces: Path) -> None:
    samples = find_labelled(faces, "val")[::40]
    from ffd_train.data import FaceData

    dataset = FaceDataset(FaceData(faces, tuple(samples)), samples, SPEC)
    for index, sample in enumerate(samples):
        fed = prepare(Item(str(faces / sample.path)), SPEC).image
        assert isinstance(fed, np.ndarray)
        assert dataset[index][0].numpy().tobytes() == fed.tobytes()


def test_split_folders_are_kept(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 4, "val": 2, "test": 3}, sources=True))
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [8, 4, 6]
    assert {sample.source for sample in data.samples} == {"red-0", "red-1", "blue-0", "blue-1"}
    assert all((sample.label == 0) == ("red" in sample.path) for sample in data.samples)


def test_a_flat_folder_is_split_by_content(tmp_path: Path) -> None:
    make_faces(tmp_path / "a", {".": 60})
    data = scan(tmp_path / "a")
    sizes = [len(data.split(s)) for s in ("train", "val", "test")]
    assert sizes == [96, 12, 12]
    # Renaming and copying changes nobody's split.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in sorted((tmp_path / "b" / "generated").iterdir()):
        path.rename(path.with_name(f"other-{path.name}"))
    splits = {sample.sha256: sample.split for sample in data.samples}
    assert {s.sha256: s.split for s in scan(tmp_path / "b").samples} == splits


def test_train_gives_a_tenth_to_val_where_there_is_none(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 60, "test": 5}))
    assert len(data.split("test")) == 10
    assert len(data.split("val")) == 12
    assert len(data.split("train")) == 108


def test_the_manifest_names_what_was_trained_on(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 2, "val": 1})
    first = scan(root, ("train",)).manifest_sha256
    assert scan(root, ("train",)).manifest_sha256 == first
    write_manifest(tmp_path / "m.csv", scan(root, ("train",)))
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 7
    (root / "train/generated/red0.png").rename(root / "train/generated/x.png")
    assert scan(root, ("train",)).manifest_sha256 != first


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected the folders generated/ and groundtruth/"):
        scan(tmp_path / "empty")
    root = make_faces(tmp_path / "f", {"train": 4, "val": 1})
    (root / "train/generated/notes.txt").write_text("left out")
    assert scan(root, ("train", "val")).ignored == 1
    (root / "train/generated/a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (root / "val/generated/b.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"2 images cannot be read.*train/generated/a.jpg \(truncated"
    ):
        scan(root)
    (root / "train/generated/a.jpg").unlink()
    (root / "val/generated/b.png").unlink()
    shutil.rmtree(root / "train/groundtruth")
    with pytest.raises(DataError, match="no groundtruth image in train: both classes"):
        scan(root, ("train",))


@pytest.mark.parametrize("count", [2, 3, 5, 9, 11])
def test_a_small_set_has_both_classes_everywhere(tmp_path: Path, count: int) -> None:
    data = scan(make_faces(tmp_path / "f", {".": count}), ("train", "val"))
    for split in ("train", "val") if count == 2 else ("train", "val", "test"):
        assert {sample.label for sample in data.split(split)} == {0, 1}


def test_copies_stay_together(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {".": 20})
    for path in sorted((root / "generated").iterdir()):
        shutil.copy(path, path.with_name(f"copy-of-{path.name}"))
    splits: dict[str, set[str]] = {}
    for sample in scan(root).samples:
        splits.setdefault(sample.sha256, set()).add(sample.split)
    assert all(len(of) == 1 for of in splits.values())


def test_a_manifest_may_come_from_excel_or_be_of_another_kind(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 1, "val": 1})
    path = "train/generated/red0.png"
    (root / "manifest.csv").write_text(f"path,source\n{path},here\n", encoding="utf-8-sig")
    sources = {s.path: s.source for s in scan(root, ("train",)).samples}
    assert sources[path] == "here"
    (root / "manifest.csv").write_text("name,kind\n")
    assert {s.source for s in scan(root, ("train",)).samples} == {None}


def test_any_file_name_can_be_trained_on(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 1, "val": 1})
    (root / "train/generated/red0.png").rename(root / os.fsdecode(b"train/generated/\xff\n.png"))
    data = scan(root, ("train",))
    assert data.manifest_sha256
    write_manifest(tmp_path / "m.csv", data)
    assert b"\xff" in (tmp_path / "m.csv").read_bytes()


def test_evaluation_takes_test_or_everything(tmp_path: Path) -> None:
    split = make_faces(tmp_path / "split", {"train": 2, "val": 3})
    assert len(find_labelled(split, "val")) == 6
    assert len(find_labelled(split, "train")) == 4
    with pytest.raises(DataError, match=r"no images in test/ \(it has train, val\)"):
        find_labelled(split)
    flat = make_faces(tmp_path / "flat", {".": 30})
    assert len(find_labelled(flat)) == 60
    for name in ("train", "val", "test"):
        ours = [sample.path for sample in find_labelled(flat, name)]
        assert ours == [sample.path for sample in scan(flat).split(name)]
    held_out = make_faces(tmp_path / "held", {"train": 30, "test": 2})
    ours = [sample.path for sample in find_labelled(held_out, "val")]
    assert ours == [sample.path for sample in scan(held_out).split("val")]
    with pytest.raises(DataError, match="no such folder"):
        find_labelled(tmp_path / "absent")


def test_crops_come_from_the_preprocessed_image(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 1, "val": 1}), ("train",))
    whole = FaceDataset(data, data.samples, SPEC)[0][0]
    crops = FaceDataset(data, data.samples, SPEC, crop=64, epoch=3)
    crop = crops[0][0]
    assert crop.shape == (64, 64, 3)
    windows = whole.unfold(0, 64, 1).unfold(1, 64, 1).permute(0, 1, 3, 4, 2)
    corners = (windows[:, :, 0, 0] == crop[0, 0]).all(-1).nonzero()
    assert any(torch.equal(windows[y, x], crop) for y, x in corners.tolist())
    assert torch.equal(crops[0][0], crop)
    crops.epoch = 4
    assert not torch.equal(crops[0][0], crop)


def test_augmentation_repeats_and_does_not_touch_its_input() -> None:
    image = picture("red", 60, 50)
    before = image.copy()
    changed = set()
    for seed in range(40):
        once = Augmentation()(image, np.random.default_rng(seed))
        again = Augmentation()(image, np.random.default_rng(seed))
        assert once.shape == image.shape
        assert once.dtype == np.uint8
        assert (once == again).all()
        changed.add(once.tobytes())
    assert (image == before).all()
    assert len(changed) > 15


@pytest.mark.parametrize(
    ("only", "expected"),
    [("horizontal_flip", lambda i: i[:, ::-1]), ("vertical_flip", lambda i: i[::-1])],
)
def test_flips(only: str, expected: object) -> None:
    chances = dict.fromkeys(("horizontal_flip", "vertical_flip", "jitter", "jpeg"), 0.0)
    image = picture("red", 20, 30)
    out = Augmentation(**{**chances, only: 1.0})(image, np.random.default_rng(0))  # type: ignore[arg-type]
    assert (out == expected(image)).all()  # type: ignore[operator]


def test_recompression_and_jitter_change_the_picture_a_little() -> None:
    chances = dict.fromkeys(("horizontal_flip", "vertical_flip", "jitter", "jpeg"), 0.0)
    image = picture("red", 60, 60)
    for only in ("jitter", "jpeg"):
        out = Augmentation(**{**chances, only: 1.0})(image, np.random.default_rng(0))  # type: ignore[arg-type]
        difference = np.abs(out.astype(int) - image).mean()
        assert 0.5 < difference < 60

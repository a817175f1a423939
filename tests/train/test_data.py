from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.core.pipeline import prepare
from ffd_runtime.inputs import Item
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.dataset import FaceDataset, TrainingView
from ffd_train.face_data import manifest_bytes
from ffd_train.scanning import find_labelled, leave_out, list_samples, scan

from ..conftest import picture
from ..tiny import make_faces

SPEC = PreprocessSpec()


def test_training_and_runtime_preprocess_alike(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 3, "val": 1}), ("train",))
    dataset = FaceDataset(data, data.samples, SPEC)
    for index, sample in enumerate(data.samples):
        fed = prepare(Item(str(data.root / sample.path)), SPEC).image
        assert isinstance(fed, np.ndarray)
        assert dataset[index][0].numpy().tobytes() == fed.tobytes()


def test_training_and_runtime_preprocess_real_faces_alike(faces: Path) -> None:
    samples = find_labelled(faces, "val").samples[::40]
    from ffd_train.face_data import FaceData

    dataset = FaceDataset(FaceData(faces, samples), samples, SPEC)
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
    # Renaming and copying do not change the split.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in sorted((tmp_path / "b" / "generated").iterdir()):
        path.rename(path.with_name(f"other-{path.name}"))
    splits = {sample.sha256: sample.split for sample in data.samples}
    assert {s.sha256: s.split for s in scan(tmp_path / "b").samples} == splits


def test_a_tenth_of_train_becomes_val_if_val_is_missing(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 60, "test": 5}))
    assert len(data.split("test")) == 10
    assert len(data.split("val")) == 12
    assert len(data.split("train")) == 108


def test_the_manifest_lists_the_training_images(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 2, "val": 1})
    first = scan(root, ("train",)).manifest_sha256
    assert scan(root, ("train",)).manifest_sha256 == first
    assert len(manifest_bytes(scan(root, ("train",))).splitlines()) == 7
    (root / "train/generated/red0.png").rename(root / "train/generated/x.png")
    assert scan(root, ("train",)).manifest_sha256 != first


def test_unusable_data_sets_are_refused(tmp_path: Path) -> None:
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
def test_small_data_sets_have_both_classes_in_each_split(tmp_path: Path, count: int) -> None:
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


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffpath,source\ntrain/generated/red0.png,here\nremoved.png,there\n",
        "Path;Kind;Source\r\ntrain/generated/red0.png;a, b;here\r\n",
        "path,source\ntrain\\generated\\red0.png,here\n",
    ],
)
def test_a_manifest_may_come_from_excel(tmp_path: Path, text: str) -> None:
    root = make_faces(tmp_path / "f", {"train": 1, "val": 1})
    (root / "manifest.csv").write_text(text)
    for data in (list_samples(root), scan(root, ("train",)), find_labelled(root, "train")):
        sources = {s.path: s.source for s in data.samples}
        assert sources.pop("train/generated/red0.png") == "here"
        assert set(sources.values()) == {None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,kind\na,b\n", "needs the column path and one of source, .* has 'name, kind'"),
        (b"path,kind\na,b\n", "needs the column path and one of source, .* has 'path, kind'"),
        (b"", "needs the column path and one of source"),
        (b"path,source\nf/train/generated/red0.png,x\n", r"none of the .* \(it has 'f/train/gen"),
        (b"path,source\n", r"names none of the images in its folder \(it has no rows\)"),
        (
            b"path,split\ntrain/generated/red0.png,test\ntrain/generated/red0.png,train\n",
            "has two different rows for 'train/generated/red0.png'",
        ),
        ("path,source\na,b\n".encode("utf-16"), "is not UTF-8 .*save it as CSV"),
        (b"path" + b"x" * 200_000 + b",source\n", "is not valid CSV .*field larger than"),
        (None, "cannot read .*manifest.csv: Is a directory"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    # The limit applies to the whole process; a previous test may have raised it.
    csv.field_size_limit(1 << 17)
    root = make_faces(tmp_path / "f", {"train": 1, "val": 1})
    if content is None:
        (root / "manifest.csv").mkdir()
    else:
        (root / "manifest.csv").write_bytes(content)
    for read in (scan, list_samples):
        with pytest.raises(DataError, match=message):
            read(root)


def test_families_are_named_by_the_manifest_or_by_the_source(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"test": 4})
    rows = [
        "test/generated/red0.png,diffusion-flux,",
        "test/generated/red1.png,stylegan3,",
        "test/generated/red2.png,diffusion-like,autoregressive",
        "test/groundtruth/blue0.png,diffusion-museum,diffusion",
    ]
    (root / "manifest.csv").write_text("\n".join(["path,source,family", *rows]))
    for data in (scan(root, ("test",)), find_labelled(root)):
        families = {Path(sample.path).stem: sample.family for sample in data.samples}
        named = {"red0": "diffusion", "red1": "gan", "red2": "autoregressive"}
        assert {name: family for name, family in families.items() if family} == named


def test_a_manifest_splits_a_folder(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {".": 20})
    names = [p.relative_to(root).as_posix() for p in sorted(root.glob("*/*.png"))]
    said = {name: ("train", "val", "test", "")[n % 4] for n, name in enumerate(names)}
    manifest = root / "manifest.csv"

    def write(splits: dict[str, str], people: dict[str, str]) -> None:
        rows = "".join(f"{name},{split},{people.get(name, '')}\n" for name, split in splits.items())
        manifest.write_text("path,split,identity\n" + rows)

    # An image without a split follows the person's other images, or is assigned by content.
    write(said, {names[2]: "p", names[3]: "p"})
    data = scan(root)
    found = {sample.path: sample.split for sample in data.samples}
    assert {name: found[name] for name in names if said[name]} == {
        n: s for n, s in said.items() if s
    }
    assert found[names[3]] == "test"
    assert {found[name] for name in names if not said[name]} == {"train", "val", "test"}
    assert find_labelled(root).samples == find_labelled(root, "test").samples
    for split in ("train", "val", "test"):
        ours = [sample.path for sample in find_labelled(root, split).samples]
        assert ours == [sample.path for sample in data.split(split)]
    # As with folders, a tenth of train becomes val if val is missing.
    write({name: "test" if n % 4 == 2 else "train" for n, name in enumerate(names)}, {})
    data = scan(root)
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [26, 4, 10]
    assert [s.path for s in find_labelled(root, "val").samples] == [
        s.path for s in data.split("val")
    ]
    write(dict.fromkeys(names, "validation"), {})
    with pytest.raises(DataError, match="unknown split 'validation': use train, val, test"):
        scan(root)
    root = make_faces(tmp_path / "split", {"train": 1, "val": 1})
    (root / "manifest.csv").write_text("path,split\nval/generated/red0.png,train\n")
    for read in (partial(scan, root, ("train",)), partial(find_labelled, root, "val")):
        with pytest.raises(DataError, match="assigns val/generated/red0.png to train: move it"):
            read()


def test_an_incomplete_manifest_is_reported_or_refused(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 4, "val": 4})
    names = [p.relative_to(root).as_posix() for p in sorted(root.glob("*/*/*.png"))]

    def write(column: str, count: int, wrong: int) -> None:
        rows = [f"{'f/' if n < wrong else ''}{name},train" for n, name in enumerate(names[:count])]
        (root / "manifest.csv").write_text(f"path,{column}\n" + "\n".join(rows))

    readers = (partial(scan, root, ("train",)), partial(find_labelled, root, "val"))
    for column, count, wrong, named in (("source", 16, 8, 8), ("identity", 8, 2, 6)):
        write(column, count, wrong)
        for read in readers:
            assert read().notes == (f"{root}/manifest.csv names {named} of 16 images",)
    # Half of the identities would be unknown.
    write("identity", 16, 8)
    for read in readers:
        with pytest.raises(
            DataError,
            match=r"names 8 of 16 images, and 8 of its rows, for .* 'f/train/gen.*, name no image",
        ):
            read()
    # Rows of deleted images are harmless.
    shutil.rmtree(root / "val")
    write("identity", 16, 0)
    assert list_samples(root).samples
    assert find_labelled(root, "train").notes == ()


def test_a_person_in_two_splits_is_refused(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 3, "test": 1})
    shows = "path,identity\ntrain/groundtruth/blue{}.png,p1\n{}/groundtruth/blue0.png,p1\n"
    (root / "manifest.csv").write_text(shows.format(0, "test"))
    with pytest.raises(
        DataError,
        match=f"a person is in two splits, for .* in {root}/train/groundtruth/blue0.png and "
        f"{root}/test/.*png: move .*ffd-data prepare",
    ):
        scan(root, ("test",))
    (root / "manifest.csv").write_text("path,identity\ntrain/groundtruth/blue0.png,p1\n")
    assert scan(root, ("test",)).samples


def test_links_are_followed_but_cycles_refused(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {".": 3})
    make_faces(tmp_path / "other", {".": 2})
    (root / "groundtruth/more").symlink_to(tmp_path / "other/groundtruth")
    (root / "groundtruth/lost.png").symlink_to(tmp_path / "absent.png")
    assert [s.path for s in list_samples(root).samples if s.label == 1] == [
        *(f"groundtruth/blue{n}.png" for n in range(3)),
        "groundtruth/lost.png",
        "groundtruth/more/blue0.png",
        "groundtruth/more/blue1.png",
    ]
    with pytest.raises(DataError, match=r"1 images cannot be read.*lost.png \(not_found"):
        scan(root)
    (tmp_path / "other/groundtruth/back").symlink_to(root)
    with pytest.raises(DataError, match="more/back/groundtruth is a link to one of its parent"):
        list_samples(root)


@pytest.mark.parametrize("forbidden", ["", "generated/deep"])
def test_an_unreadable_folder_is_an_error(
    tmp_path: Path, forbidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_faces(tmp_path / "f", {".": 2})
    (root / "generated/deep").mkdir()
    listed = os.scandir

    def forbid(path: Path) -> object:
        if Path(path) == root / forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(DataError, match=f"cannot read {root / forbidden}: Permission denied"):
        list_samples(root)


def test_hidden_files_are_skipped_and_folders_may_have_an_image_suffix(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {".": 4})
    (root / "generated/._red0.png").write_bytes(b"a Mac was here")
    (root / "generated/.thumbs").mkdir()
    shutil.copy(root / "generated/red0.png", root / "generated/.thumbs/red0.png")
    (root / "groundtruth/album.jpg").mkdir()
    (root / "groundtruth/blue0.png").rename(root / "groundtruth/album.jpg/blue0.png")
    for data in (list_samples(root), scan(root, ("train",))):
        assert len(data.samples) == 8
        assert data.ignored == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_folders_next_to_split_folders_are_refused(tmp_path: Path, split: str) -> None:
    root = make_faces(tmp_path / "f", {".": 4})
    (root / split).mkdir()
    for read in (scan, list_samples):
        with pytest.raises(DataError, match=f"f has both generated/ and {split}/: move all images"):
            read(root)


def test_any_file_name_can_be_trained_on(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 1, "val": 1})
    (root / "train/generated/red0.png").rename(root / os.fsdecode(b"train/generated/\xff\n.png"))
    data = scan(root, ("train",))
    assert data.manifest_sha256
    assert b"\xff" in manifest_bytes(data)


def test_evaluation_selects_test_or_all_images(tmp_path: Path) -> None:
    split = make_faces(tmp_path / "split", {"train": 2, "val": 3})
    assert len(find_labelled(split, "val").samples) == 6
    assert len(find_labelled(split, "train").samples) == 4
    with pytest.raises(DataError, match=r"no images in test/ \(it has train, val\)"):
        find_labelled(split)
    flat = make_faces(tmp_path / "flat", {".": 30})
    assert len(find_labelled(flat).samples) == 60
    for name in ("train", "val", "test"):
        ours = [sample.path for sample in find_labelled(flat, name).samples]
        assert ours == [sample.path for sample in scan(flat).split(name)]
    held_out = make_faces(tmp_path / "held", {"train": 30, "test": 2})
    ours = [sample.path for sample in find_labelled(held_out, "val").samples]
    assert ours == [sample.path for sample in scan(held_out).split("val")]
    with pytest.raises(DataError, match="no such folder"):
        find_labelled(tmp_path / "absent")


@pytest.mark.parametrize("split", ["", "train/"])
@pytest.mark.parametrize(
    ("generated", "groundtruth", "found"),
    [("fake", "real", "fake/, {0}real/"), ("generated", "Real", "Real/"), ("", "groundtruth", "")],
)
def test_a_class_folder_with_another_name_is_suggested(
    tmp_path: Path, split: str, generated: str, groundtruth: str, found: str
) -> None:
    root = make_faces(tmp_path / "f", {split or ".": 2})
    for ours, theirs in (("generated", generated), ("groundtruth", groundtruth)):
        if theirs:
            (root / split / ours).rename(root / split / theirs)
        else:
            shutil.rmtree(root / split / ours)
    # If the existing class were read, this unreadable file would be reported.
    if (root / split / "groundtruth").exists():
        (root / split / "groundtruth/a.png").write_bytes(b"")
    for read in (partial(scan, root, ("train",)), partial(find_labelled, root, "train")):
        with pytest.raises(DataError) as raised:
            read()
        hint = f" (it has {split}{found.format(split)}; if that is one of the classes, rename it)"
        assert ("both classes are needed" in str(raised.value)) == (generated != "fake")
        assert ("has no images: expected the folders" in str(raised.value)) == (generated == "fake")
        assert str(raised.value).endswith(hint) == bool(found)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "meant"), [("validation", "val"), ("Test", "test")])
def test_a_split_folder_with_another_name_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    root = make_faces(tmp_path / "f", {"train": 20, name: 2})
    with pytest.raises(DataError, match=f"{name} is not a known split: rename it to {meant}/"):
        scan(root)


@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_split_within_a_class_is_refused(tmp_path: Path, name: str) -> None:
    root = make_faces(tmp_path / "f", {".": 3})
    make_faces(tmp_path / "other", {".": 2})
    shutil.copytree(tmp_path / "other/generated", root / "generated" / name)
    meant = {"test": "test", "Validation": "val"}[name]
    for read in (scan, list_samples):
        with pytest.raises(DataError, match=rf"{name} is a split .* to .*/{meant}/generated$"):
            read(root)


def test_a_picture_in_two_splits_or_classes_is_refused(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 3, "val": 2, "test": 2})
    shutil.copy(root / "train/generated/red1.png", root / "test/generated/again.png")
    with pytest.raises(
        DataError,
        match=r"an image is in two splits, for example train/generated/red1.png and "
        r"test/generated/again.png: remove .*ffd-data prepare",
    ):
        # Also if the test split is not requested: it may be used for evaluation later.
        scan(root, ("train", "val"))
    shutil.copy(root / "train/generated/red2.png", root / "val/generated/again.png")
    with pytest.raises(DataError, match="2 images are in two splits"):
        scan(root)
    shutil.copy(root / "train/generated/red0.png", root / "train/groundtruth/too.png")
    with pytest.raises(DataError, match="an image is in both classes, for example train/generated"):
        scan(root)


def test_the_manifest_digest_is_stable(tmp_path: Path) -> None:
    for path in ("train/generated/a.png", "val/groundtruth/b.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"P5 1 1 255 " + path.encode()[-5:-4])
    data = scan(tmp_path, ())
    # Runs store this digest, to refuse resuming with other data.
    known = "bd651659285e6f2095285e36d4fd767246956e071ff9e3429d87c4e8e0254840"
    assert data.manifest_sha256 == known


def test_listing_reads_no_image_and_accepts_an_empty_class(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 2, "val": 1}, sources=True)
    shutil.rmtree(root / "val/groundtruth")
    (root / "train/generated/broken.png").write_bytes(b"")
    data = list_samples(root)
    assert len(data.samples) == 6
    assert {(s.split, s.label) for s in data.samples} == {("train", 0), ("train", 1), ("val", 0)}
    with pytest.raises(InputError, match="no such file"):
        data.read(replace(data.samples[0], path="absent.png"))


def test_crops_come_from_the_preprocessed_image(tmp_path: Path) -> None:
    data = scan(make_faces(tmp_path / "f", {"train": 1, "val": 1}), ("train",))
    whole = FaceDataset(data, data.samples, SPEC)[0][0]
    crops = FaceDataset(data, data.samples, SPEC, TrainingView(crop=64, epoch=3))
    crop = crops[0][0]
    assert crop.shape == (64, 64, 3)
    windows = whole.unfold(0, 64, 1).unfold(1, 64, 1).permute(0, 1, 3, 4, 2)
    corners = (windows[:, :, 0, 0] == crop[0, 0]).all(-1).nonzero()
    assert any(torch.equal(windows[y, x], crop) for y, x in corners.tolist())
    assert torch.equal(crops[0][0], crop)
    crops.view = replace(crops.view, epoch=4)
    assert not torch.equal(crops[0][0], crop)


def test_sources_can_be_left_out(tmp_path: Path) -> None:
    root = make_faces(tmp_path / "f", {"train": 4, "val": 2, "test": 2}, sources=True)
    data = scan(root)
    kept = leave_out(data, ("red-1",))
    assert {s.source for s in kept.samples} == {"red-0", "blue-0", "blue-1"}
    assert kept.manifest_sha256 != data.manifest_sha256
    assert leave_out(data, ()) == data
    with pytest.raises(DataError, match=r"no source 'red-2' to leave out: it has blue-0, blue-1, "):
        leave_out(data, ("red-2",))
    with pytest.raises(DataError, match="no generated image in train: both classes"):
        leave_out(data, ("red-0", "red-1"))


@pytest.mark.parametrize("sizes", [None, (800, 800)])
def test_formats_are_alike_if_images_are_resized(
    tmp_path: Path, sizes: tuple[int, int] | None
) -> None:
    """The runtime decodes large JPEGs at a fraction of their size; training must not."""
    for split in ("train", "val"):
        for label, colour in (("generated", "red"), ("groundtruth", "blue")):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            image = picture(colour, 1400, 1400, seed=len(split))
            cv2.imwrite(str(folder / "a.png"), image)
            cv2.imwrite(str(folder / "b.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    data = scan(tmp_path, ("train", "val"))
    samples = [s for s in data.samples if s.split == "train" and s.label == 0]
    dataset = FaceDataset(data, samples, PreprocessSpec(), TrainingView(sizes=sizes))
    one, other = (dataset[index][0].numpy().astype(float) for index in range(2))
    detail = [np.abs(np.diff(pixels, axis=1)).mean() for pixels in (one, other)]
    assert (abs(detail[0] / detail[1] - 1) < 0.05) == bool(sizes)

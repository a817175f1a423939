from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from ffd_runtime.core.errors import DataError, InputError, OutputError
from ffd_runtime.image.decode import read_file
from ffd_runtime.model.card import CLASSES
from ffd_train.cli.data_prepare import prepare as ffd_data_prepare
from ffd_train.folders import SPLITS
from ffd_train.prepare import reading
from ffd_train.prepare.entries import Entry, Input, find_entries
from ffd_train.prepare.matching import common_side, draw_quality, match, max_jpeg_bytes
from ffd_train.prepare.preparing import Settings, prepare
from ffd_train.prepare.reading import FileFacts
from ffd_train.prepare.selection import Picture, assign
from ffd_train.scanning import find_labelled, scan
from ffd_train.shards import _parse_manifest

from ..conftest import picture
from ..nightly import examples


def save(path: Path, seed: int, height: int = 72, width: int = 72, colour: str = "red") -> Path:
    """Write a unique image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = picture(colour, 8, 8, seed=seed)
    large = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), large)
    return path


def make_classes(root: Path, count: int = 20) -> list[Input]:
    for i in range(count):
        save(root / f"photos/{i // 10:02d}/{i:05d}.png", i, 68, 76, "blue")
        save(root / f"made/{i}.jpg", 1000 + i, 66, 66)
    return [Input(root / "photos", "groundtruth"), Input(root / "made", "generated")]


def pack(inputs: list[Input], output: Path, settings: Settings | None = None) -> list[str]:
    said: list[str] = []
    prepare(inputs, output, settings or Settings(), 2, said.append, lambda *_: lambda: None)
    return said


def call(*arguments: object) -> Result:
    return CliRunner().invoke(ffd_data_prepare, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def left_out(output: Path) -> dict[str, str]:
    return {row["original"]: row["reason"] for row in rows(output / "left_out.csv")}


def test_shards_have_the_webdataset_layout(tmp_path: Path) -> None:
    pack(make_classes(tmp_path / "raw"), tmp_path / "out", Settings(shard_images=10))
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert shards == [
        "test-000000.tar",
        *(f"train-00000{n}.tar" for n in range(4)),
        "val-000000.tar",
    ]
    listed = {row["path"]: row for row in rows(tmp_path / "out/manifest.csv")}
    for shard in shards:
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(tmp_path / "out" / shard) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file
                # WebDataset groups files by the name up to the first dot.
                key, suffix = info.name.split(".", 1)
                samples.setdefault(key, {})[suffix] = file.read()
                if suffix == "jpg":
                    row = listed.pop(f"{shard}!/{info.name}")
                    assert (int(row["offset"]), int(row["size"])) == (info.offset_data, info.size)
        known = [json.loads(sample["json"]) for sample in samples.values()]
        assert all(set(sample) == {"jpg", "json"} for sample in samples.values())
        assert list(samples) == sorted(samples)
        if shard.startswith("train"):
            assert {one["label"] for one in known} == {"generated", "groundtruth"}
            assert {one["source"] for one in known} == {"photos", "made"}
    assert not listed
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert document["images"]["train"] == {"generated": 16, "groundtruth": 16}
    assert document["sources"]["made"] == {"generated": 20}


def test_both_classes_are_encoded_alike(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / f"photos/{i}.png", i, 70, 90)
        save(tmp_path / f"made/{i}.jpg", 100 + i, 200, 64)
        with Pillow.open(tmp_path / f"made/{i}.jpg") as image:
            exif = Pillow.Exif()
            exif[0x010F] = "a camera"
            image.save(tmp_path / f"made/{i}.jpg", quality=60, exif=exif, subsampling=0)
    save(tmp_path / "photos/small.png", 999, 40, 40)
    inputs = [Input(tmp_path / "photos", "groundtruth"), Input(tmp_path / "made", "generated")]
    said = pack(inputs, tmp_path / "out", Settings(quality=(80, 90)))
    assert "encoding squares of 64 pixels as JPEG, quality 80 to 90, 4:2:0" in said
    assert left_out(tmp_path / "out") == {"small.png": "too_small"}
    data = scan(tmp_path / "out")
    qualities: dict[int, set[int]] = {0: set(), 1: set()}
    tables = {}
    for quality in range(80, 91):
        _, encoded = cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, quality])
        with Pillow.open(io.BytesIO(encoded.tobytes())) as image:
            tables[str(image.quantization)] = quality  # type: ignore[attr-defined]
    for sample in data.samples:
        with Pillow.open(io.BytesIO(data.read(sample))) as image:
            assert image.size == (64, 64)
            assert not image.getexif()
            assert image.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]
            qualities[sample.label].add(tables[str(image.quantization)])  # type: ignore[attr-defined]
    assert all(len(seen) > 6 for seen in qualities.values())


def test_common_side_and_uniform_qualities() -> None:
    assert common_side({"a": [100] * 96 + [20] * 4, "b": [300] * 10}) == 100
    assert common_side({"a": [100] * 90 + [80] * 10, "b": [300] * 10}) == 80
    assert common_side({"a": [2000], "b": [1024]}) == 512
    with pytest.raises(
        DataError, match=r"10 of b's 100 images have a side below 64 pixels: .* choose --side"
    ):
        common_side({"a": [300] * 10, "b": [100] * 90 + [63] * 10})
    drawn = Counter(draw_quality(f"{i * 2654435761:064x}", 75, 95) for i in range(2100))
    assert set(drawn) == set(range(75, 96))
    assert max(drawn.values()) < 160


def test_without_match_the_original_files_are_packed(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    pack(inputs, tmp_path / "out", Settings(match=False))
    data = scan(tmp_path / "out")
    packed = {data.read(sample) for sample in data.samples}
    assert packed == set(contents(tmp_path / "raw").values())
    suffixes = {(sample.path.split(".")[-1], sample.label) for sample in data.samples}
    assert suffixes == {("png", 1), ("jpg", 0)}


def test_the_largest_copy_is_kept_unless_in_both_classes(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    photos, made = tmp_path / "raw/photos", tmp_path / "raw/made"
    shutil.copy(made / "3.jpg", made / "z-exact.jpg")
    image = cv2.imread(str(made / "4.jpg"))
    assert image is not None
    cv2.imwrite(str(made / "larger.png"), cv2.resize(image, (110, 110)))
    shutil.copy(made / "5.jpg", photos / "theirs.jpg")
    pack(inputs, tmp_path / "out")
    assert left_out(tmp_path / "out") == {
        "z-exact.jpg": "copy",
        "4.jpg": "near_copy",
        "5.jpg": "both_classes",
        "theirs.jpg": "both_classes",
    }
    (row,) = (r for r in rows(tmp_path / "out/left_out.csv") if r["original"] == "4.jpg")
    assert row["detail"] == "made: larger.png"
    assert scan(tmp_path / "out").samples


def celeba(root: Path, *, partition: bool = True, persons: bool = True) -> Input:
    """Twenty people with three images each, in torchvision's layout of CelebA."""
    for i in range(60):
        save(root / f"img_align_celeba/{i + 1:06d}.jpg", i, 75, 65, "blue")
    if partition:
        lines = [f"{i + 1:06d}.jpg {(i // 3) // 8}\n" for i in range(60)]
        (root / "list_eval_partition.txt").write_text("".join(lines))
    if persons:
        lines = [f"{i + 1:06d}.jpg {2880 + i // 3}\n" for i in range(60)]
        (root / "identity_CelebA.txt").write_text("".join(lines))
    return Input(root, "groundtruth")


def test_celeba_keeps_its_partition_and_no_person_is_in_two_splits(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba")
    made = make_classes(tmp_path / "raw")[1]
    pack([given, made], tmp_path / "out")
    photos = [row for row in rows(tmp_path / "out/manifest.csv") if row["source"] == "celeba"]
    assert Counter(row["split"] for row in photos) == {"train": 24, "val": 24, "test": 12}
    assert {row["split"] for row in photos if int(row["identity"]) < 2888} == {"train"}
    # The folder of the images, with the authors' lists next to it, or as CSV.
    alone = Input(tmp_path / "celeba/img_align_celeba", "groundtruth")
    text = (tmp_path / "celeba/list_eval_partition.txt").read_text().replace(" ", ",")
    (tmp_path / "celeba/list_eval_partition.txt").unlink()
    csv_file = tmp_path / "celeba/list_eval_partition.csv"
    csv_file.write_text("image_id,partition\n" + text)
    known = [(e.name, e.identity, e.split) for e in find_entries([alone]).entries]
    assert known[0] == ("000001.jpg", "2880", "train")
    assert known[-1] == ("000060.jpg", "2899", "test")
    csv_file.write_text("image_id,partition\n" + text.replace("000002.jpg,0", "000002.jpg,2"))
    with pytest.raises(DataError, match=r"a person is in two splits, .*000001.jpg .train. and"):
        find_entries([alone])
    csv_file.write_text("what is this\n")
    with pytest.raises(DataError, match="a file name and a number in each line"):
        find_entries([alone])


def test_without_a_partition_persons_stay_together(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba", partition=False)
    pack([given, make_classes(tmp_path / "raw")[1]], tmp_path / "out")
    of: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    for row in rows(tmp_path / "out/manifest.csv"):
        if row["identity"]:
            of.setdefault(row["identity"], set()).add(row["split"])
            counts[row["split"]] += 1
    assert len(of) == 20
    assert all(len(splits) == 1 for splits in of.values())
    assert counts == {"train": 48, "val": 6, "test": 6}


def test_a_split_by_content_does_not_move_with_names(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    pack(inputs, tmp_path / "a")
    for number, path in enumerate(sorted((tmp_path / "raw/made").iterdir())):
        path.rename(path.with_name(f"{99 - number}-{path.name}"))
    pack(inputs, tmp_path / "b")
    one, two = ({s.sha256: s.split for s in scan(tmp_path / x).samples} for x in "ab")
    assert one == two


def test_a_folder_for_training_keeps_its_splits_and_sources(tmp_path: Path) -> None:
    root = tmp_path / "f"
    lines = ["path,source,identity"]
    for seed in range(18):
        name = f"{SPLITS[seed % 3]}/{CLASSES[seed % 2]}/{seed}.png"
        save(root / name, seed)
        lines.append(f"{name},{'here' if seed < 9 else ''},person-{seed}")
    (root / "manifest.csv").write_text("\n".join(lines))
    pack([Input(root)], tmp_path / "out", Settings(match=False))
    before, after = scan(root), scan(tmp_path / "out")
    names = ("f-generated", "f-groundtruth")
    described = {(s.sha256, s.split, s.label, s.source or names[s.label]) for s in before.samples}
    assert {(s.sha256, s.split, s.label, s.source) for s in after.samples} == described
    with pytest.raises(DataError, match="is already packed"):
        pack([Input(tmp_path / "out")], tmp_path / "again")


def test_a_bad_file_is_listed_and_many_are_an_error(tmp_path: Path) -> None:
    make_classes(tmp_path / "raw", 25)
    made = tmp_path / "raw/made"
    (made / "cut.jpg").write_bytes((made / "1.jpg").read_bytes()[:300])
    (made / "notes.txt").write_text("not a picture")
    (made / "._1.jpg").write_bytes(b"a Mac was here")
    folders = ("--groundtruth", tmp_path / "raw/photos", "--generated", f"sg2={made}")
    done = call(*folders, "--output", tmp_path / "out")
    assert done.exit_code == 3, done.stderr
    assert "51 images of 2 sources (skipped 2 other files)" in done.stderr
    assert "left out 1: 1 unreadable" in done.stderr
    (row,) = rows(tmp_path / "out/left_out.csv")
    assert row["original"] == "cut.jpg"
    assert row["source"] == "sg2"
    assert row["detail"].startswith("truncated: ")
    for name in ("a.jpg", "b.jpg"):
        (made / name).write_bytes(b"")
    done = call(*folders, "--output", tmp_path / "again")
    assert done.exit_code == 1
    assert "3 of sg2's 28 images cannot be read, for example" in done.stderr


def test_packing_is_deterministic_and_keeps_its_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_classes(tmp_path / "raw")
    before = contents(tmp_path / "raw")
    pack(inputs, tmp_path / "a", Settings(shard_images=9))
    # Shards must not contain any time.
    monkeypatch.setattr(time, "time", lambda: 1e9)
    shutil.copytree(tmp_path / "raw", tmp_path / "moved/raw", copy_function=shutil.copy)
    elsewhere = [Input(tmp_path / "moved/raw" / i.path.name, i.label) for i in inputs]
    said: list[str] = []
    settings = Settings(shard_images=9)
    prepare(elsewhere, tmp_path / "b", settings, 5, said.append, lambda *_: lambda: None)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "raw") == before
    assert not {"reading.jsonl", "prepare.json"} & set(contents(tmp_path / "a"))


def start(*arguments: object) -> subprocess.Popen[bytes]:
    code = "from ffd_train.cli.data_prepare import prepare; prepare()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert process.stderr
    process.stderr.close()


def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw", 150)
    settings = Settings(shard_images=10)
    pack(inputs, tmp_path / "unbroken", settings)
    output = tmp_path / "out"
    folders = ("--groundtruth", inputs[0].path, "--generated", inputs[1].path)
    command = (*folders, "--output", output, "--shard-images", 10, "--workers", 1)
    journal, third = output / "reading.jsonl", output / "train-000002.tar"
    kill_when(start(*command), lambda: journal.exists() and journal.stat().st_size > 30_000)
    assert not third.exists()
    kill_when(start(*command), third.exists)
    assert not (output / "dataset.json").exists()
    with pytest.raises(DataError, match="is not fully packed: run the same ffd-data prepare"):
        scan(output)
    kept = {path: path.stat().st_ino for path in output.glob("*.tar")}
    # An incomplete line.
    with journal.open("ab") as file:
        file.write(b'["/some/where"')
    pack(inputs, output, settings)
    assert contents(output) == contents(tmp_path / "unbroken")
    assert kept == {path: path.stat().st_ino for path in kept}


def test_a_resumed_run_reads_no_image_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_classes(tmp_path / "raw")
    with monkeypatch.context() as patch:
        # Enough space to read, but not to pack; then not even to read.
        for free, read_before in ((100_000, 40), (1, 40)):
            patch.setattr(
                shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(1, 1, free)
            )
            with pytest.raises(OutputError, match=r"needs about .* GB, and 0.0 GB are free"):
                pack(inputs, tmp_path / "out")
            lines = (tmp_path / "out/reading.jsonl").read_text().splitlines()
            assert len(lines) == 1 + read_before
    # Only the changed file is read again.
    save(tmp_path / "raw/made/0.jpg", 5000, 66, 66)
    read: list[str] = []

    def note(entry: Entry) -> reading.FileFacts:
        read.append(entry.name)
        return facts(entry)

    facts = reading.read_facts
    monkeypatch.setattr(reading, "read_facts", note)
    pack(inputs, tmp_path / "out")
    assert read == ["0.jpg"]


def test_an_old_output_is_not_mixed_with_other_inputs_or_settings(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    folders = ("--groundtruth", inputs[0].path, "--generated", inputs[1].path)
    output = tmp_path / "out"
    assert call(*folders, "--output", output).exit_code == 0
    before = contents(output)
    done = call(*folders, "--output", output)
    assert done.exit_code == 0
    assert f"{output} is already complete" in done.stderr
    done = call(*folders, "--output", output, "--side", 64)
    assert done.exit_code == 1
    assert "was made with other settings (side was None): remove it" in done.stderr
    save(tmp_path / "raw/made/new.jpg", 5000)
    done = call(*folders, "--output", output)
    assert done.exit_code == 1
    assert "was made with other inputs: remove it or choose another --output" in done.stderr
    assert contents(output) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    done = call(*folders, "--output", tmp_path / "full")
    assert "is not empty: choose another --output" in done.stderr
    done = call(*folders, "--output", inputs[1].path / "out")
    assert "choose an --output outside of it" in done.stderr


def test_a_shard_of_another_plan_is_refused(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    pack(inputs, tmp_path / "out")
    # As after a kill shortly before the end, with a shard changed since.
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    begun = {name: document[name] for name in ("version", "opencv", "settings", "inputs_sha256")}
    (tmp_path / "out/prepare.json").write_text(json.dumps(begun))
    (tmp_path / "out/dataset.json").unlink()
    shutil.copy(tmp_path / "out/val-000000.tar", tmp_path / "out/test-000000.tar")
    with pytest.raises(OutputError, match="test-000000.tar does not match these inputs: remove it"):
        pack(inputs, tmp_path / "out")
    (tmp_path / "out/test-000000.tar").unlink()
    pack(inputs, tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == document


def test_the_family_of_a_generator_is_packed(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    rows = "".join(f"{i}.jpg,flux,diffusion\n" for i in range(20))
    (tmp_path / "raw/made/manifest.csv").write_text("path,source,family\n" + rows)
    pack(inputs, tmp_path / "out")
    samples = scan(tmp_path / "out").samples
    assert {(s.source, s.family) for s in samples} == {("flux", "diffusion"), ("photos", None)}
    # A manifest from before the column existed.
    lines = (tmp_path / "out/manifest.csv").read_bytes().splitlines()
    members = _parse_manifest(b"\r\n".join(line.rpartition(b",")[0] for line in lines))
    assert {member.family for member in members} == {""}


def test_a_full_disk_is_one_line_and_resumable(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, hard))
    try:
        with pytest.raises(
            OutputError, match=r"cannot write .*train-000000.tar.partial: .*to resume"
        ):
            pack(inputs, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pack(inputs, tmp_path / "out")
    pack(inputs, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_two_runs_cannot_share_an_output(tmp_path: Path) -> None:
    import fcntl

    inputs = make_classes(tmp_path / "raw", 2)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/reading.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another ffd-data prepare is writing"):
            pack(inputs, tmp_path / "out")


def test_a_refused_run_keeps_the_files_of_the_other(tmp_path: Path) -> None:
    import fcntl

    inputs, output = make_classes(tmp_path / "raw"), tmp_path / "out"
    pack(inputs, output)
    assert not (output / "reading.jsonl").exists()
    # The other run packs missing files of a complete data set.
    (output / "val-000000.tar").unlink()
    (output / "prepare.json").write_text("{}")
    with (output / "reading.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another ffd-data prepare is writing"):
            pack(inputs, output)
        assert (output / "reading.jsonl").exists()
        assert (output / "prepare.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groundtruth", "x"], "give --groundtruth and --generated, or a DATA with both"),
        (["x", "--side", "64", "--no-match"], "--side needs --match"),
        (["x", "--quality", "50-60", "--no-match"], "--quality needs --match"),
        (["x", "--quality", "95-75"], "1 <= LOW <= HIGH <= 100"),
        (["x", "--quality", "80"], "expected a value like 75-95, not 80"),
        (["x", "--split", "80/10/20"], "must sum to 100"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str) -> None:
    done = call(*arguments, "--output", "absent")
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_folders_that_cannot_be_prepared(tmp_path: Path) -> None:
    photos, made = make_classes(tmp_path / "raw", 4)
    out = tmp_path / "out"
    for inputs, message in (
        ([Input(tmp_path / "absent", "generated")], "absent: no such folder"),
        ([photos, Input(made.path, "generated", "photos")], "two sources are named photos"),
    ):
        with pytest.raises(DataError, match=message):
            pack(inputs, out)
        assert not out.exists()
    with pytest.raises(DataError, match="no generated image is left for val"):
        pack([photos, made], out)
    with pytest.raises(DataError, match="no image of made has 67 pixels: lower --side"):
        pack([photos, made], tmp_path / "side", Settings(side=67))
    (tmp_path / "raw/none").mkdir()
    with pytest.raises(DataError, match="none has no images"):
        pack([photos, Input(tmp_path / "raw/none", "generated")], out)


def test_any_file_name_can_be_packed(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw", 10)
    os.rename(tmp_path / "raw/made/3.jpg", tmp_path / "raw/made" / os.fsdecode(b'\xff,\n".jpg'))
    pack(inputs, tmp_path / "out", Settings(match=False))
    assert b"\xff" in (tmp_path / "out/manifest.csv").read_bytes()
    data = scan(tmp_path / "out")
    assert np.unique([data.read(sample) for sample in data.samples]).size == 20


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("pictures", "lists", "given"),
    [
        ("celeba/img_align_celeba_png/{}.png", "celeba", "celeba"),
        ("CelebA/Img/img_align_celeba/{}.jpg", "CelebA/{}", "CelebA"),
        ("CelebA/Img/img_align_celeba/{}.jpg", "CelebA/{}", "CelebA/Img"),
        ("CelebA/Img/img_align_celeba/{}.jpg", "CelebA/{}", "CelebA/Img/img_align_celeba"),
        ("k/img_align_celeba/img_align_celeba/{}.jpg", "k", "k/img_align_celeba/img_align_celeba"),
        ("celeba/images/{}.jpg", "celeba", "celeba/images"),
        ("celeba/images/{}.jpg", "celeba", "photographs"),
    ],
)
def test_celeba_is_known_in_every_layout(
    tmp_path: Path, pictures: str, lists: str, given: str
) -> None:
    touch(*(tmp_path / pictures.format(f"{n:06d}") for n in range(1, 10)))
    for folder, name in (("Eval", "list_eval_partition.txt"), ("Anno", "identity_CelebA.txt")):
        touch(path := tmp_path / lists.format(folder) / name)
        # The lists do not name all images.
        path.write_text("".join(f"{n:06d}.jpg {n // 4}\n" for n in range(1, 9)))
    if given == "photographs":
        (tmp_path / given).symlink_to(tmp_path / "celeba/images")
    found = find_entries([Input(tmp_path / given, "groundtruth")])
    name = given.rsplit("/")[-1] if given != "photographs" else "images"
    (note,) = found.notes
    assert note == (f"{name}: CelebA's lists assign a split to 8 and an identity to 8 of 9 images")
    splits = [*["train"] * 3, *["val"] * 4, "test", ""]
    identities = [*"00011112", ""]
    assert [(e.split, e.identity) for e in found.entries] == list(
        zip(splits, identities, strict=True)
    )


def test_lists_of_other_images_are_refused_and_missing_ones_reported(tmp_path: Path) -> None:
    touch(*(tmp_path / f"celeba/img/face-{n:06d}.jpg" for n in range(1, 9)))
    given = Input(tmp_path / "celeba/img", "groundtruth")
    assert find_entries([given]).notes == [
        "img: CelebA's lists assign a split to 0 and an identity to 0 of 8 images"
    ]
    path = tmp_path / "celeba/list_eval_partition.txt"
    path.write_text("".join(f"{n:06d}.jpg 0\n" for n in range(1, 9)))
    with pytest.raises(
        DataError, match=r"names 0 of 8 images, for example not 'face-000001.jpg': restore CelebA's"
    ):
        find_entries([given])
    # A truncated list names only the first images.
    touch(tmp_path / "short/1.jpg", *(tmp_path / f"short/{n}.jpg" for n in range(2, 6)))
    (tmp_path / "short/identity_CelebA.txt").write_text("1.jpg 7\n2.jpg 7\n")
    with pytest.raises(
        DataError, match="2 of 5 images, for example not '3.jpg': .* if it is truncated"
    ):
        find_entries([Input(tmp_path / "short", "groundtruth")])
    # A neighbouring folder may hold other images.
    touch(tmp_path / "archive/ffhq/1.jpg")
    path.rename(tmp_path / "archive/list_eval_partition.txt")
    beside = Input(tmp_path / "archive/ffhq", "groundtruth")
    assert [entry.split for entry in find_entries([beside]).entries] == [""]
    (tmp_path / "archive/list_eval_partition.txt").rename(path)
    generated = Input(tmp_path / "celeba/img", "generated")
    assert {entry.split for entry in find_entries([generated]).entries} == {""}


@pytest.mark.parametrize("split", ["", "train/"])
def test_celebas_lists_apply_to_a_linked_folder(tmp_path: Path, split: str) -> None:
    celeba(tmp_path / "celeba")
    made = make_classes(tmp_path / "x", 30)[1]
    root = tmp_path / "raw" / split
    root.mkdir(parents=True)
    (root / "groundtruth").symlink_to(tmp_path / "celeba/img_align_celeba")
    (root / "generated").symlink_to(made.path)
    found = find_entries([Input(tmp_path / "raw")])
    splits = 0 if split else 60
    note = (
        f"raw/{split}groundtruth: CelebA's lists assign a split to {splits} and an identity to 60 "
        "of 60 images"
    )
    assert note in found.notes
    photos = [entry for entry in found.entries if entry.label == "groundtruth"]
    assert {entry.identity for entry in photos} == {str(2880 + n) for n in range(20)}
    # The user's split folder takes precedence over the list.
    assert Counter(entry.split for entry in photos) == (
        {"train": 60} if split else {"train": 24, "val": 24, "test": 12}
    )
    if split:
        # A val split by content would separate images of one person.
        with pytest.raises(DataError, match=r"people are in two splits, .* with ffd-data prepare"):
            scan(tmp_path / "raw", ("train",))
        return
    scanned = scan(tmp_path / "raw")
    assert note in scanned.notes
    assert {s.path: s.split for s in scanned.samples if s.label} == {
        entry.name: entry.split for entry in photos
    }
    for name in SPLITS:
        assert [s.path for s in find_labelled(tmp_path / "raw", name).samples] == [
            s.path for s in scanned.split(name)
        ]
    (tmp_path / "celeba/list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"people are in two splits, .* with ffd-data prepare"):
        scan(tmp_path / "raw")


def test_one_list_means_the_same_persons_in_all_folders(tmp_path: Path) -> None:
    for name in ("a", "b", "c/c"):
        touch(tmp_path / name / "000001.jpg", tmp_path / name / "000002.jpg")
    for folder in (tmp_path, tmp_path / "c"):
        (folder / "identity_CelebA.txt").write_text("000001.jpg 7\n000002.jpg 8\n")
    inputs = [Input(tmp_path / name, "groundtruth") for name in ("a", "b", "c/c")]
    persons = Counter(entry.person for entry in find_entries(inputs).entries)
    assert sorted(persons.values()) == [1, 1, 2, 2]
    for name, split in (("a", "train"), ("b", "val")):
        lines = f"000001.jpg,{split}\n000002.jpg,train\n"
        (tmp_path / name / "manifest.csv").write_text("path,split\n" + lines)
    with pytest.raises(DataError, match=r"a person is in two splits, .*a/000001.*b/000001"):
        find_entries(inputs)


def test_a_manifest_is_applied_or_refused(tmp_path: Path) -> None:
    names = [f"{label}/{n}.png" for label in CLASSES for n in range(6)]
    touch(*(tmp_path / "flat" / name for name in names))
    listed = "".join(f"{name};{SPLITS[n % 3]}\n" for n, name in enumerate(names))
    (tmp_path / "flat/manifest.csv").write_text("path;split\n" + listed)
    entries = find_entries([Input(tmp_path / "flat")]).entries
    assert [entry.split for entry in entries] == list(SPLITS) * 4
    one = Input(tmp_path / "flat/generated", "generated")
    for text, message in (
        (listed.replace("val", "validation"), "unknown split 'validation': use train, val, test"),
        ("other/0.png;val\n", "names none of the images in its folder"),
    ):
        for given, start in ((Input(tmp_path / "flat"), "-"), (one, "generated/")):
            path = given.path / "manifest.csv"
            path.write_text("path;split\n" + text.replace(start, ""))
            with pytest.raises(DataError, match=message):
                find_entries([given])
    touch(*(tmp_path / "split" / split / name for split in SPLITS for name in names))
    (tmp_path / "split/manifest.csv").write_text("path,split\ntrain/generated/0.png,val\n")
    with pytest.raises(DataError, match=r"assigns train/generated/0.png to val: move it there"):
        find_entries([Input(tmp_path / "split")])


def test_a_person_of_two_sources_stays_in_one_split(tmp_path: Path) -> None:
    listed = ["path,source,identity"]
    for label in CLASSES:
        for n in range(40):
            name = f"{label}/{n}.png"
            save(tmp_path / "f" / name, n if label == "generated" else 100 + n)
            person = f"p{n // 2}" if label == "groundtruth" else ""
            listed.append(f"{name},{'a' if n % 2 == 0 or n < 10 else 'b'},{person}")
    (tmp_path / "f/manifest.csv").write_text("\n".join(listed))
    pack([Input(tmp_path / "f")], tmp_path / "out")
    of: dict[str, set[str]] = {}
    for row in rows(tmp_path / "out/manifest.csv"):
        if row["identity"]:
            of.setdefault(row["identity"], set()).add(row["split"])
    assert len(of) == 20
    assert all(len(splits) == 1 for splits in of.values())
    # Sources with both classes count in each.
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert document["sources"] == {
        "a": {"generated": 25, "groundtruth": 25},
        "b": {"generated": 15, "groundtruth": 15},
    }


def test_a_copy_that_stays_is_of_the_same_person_and_split(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba")
    (tmp_path / "larger").mkdir()
    for number in (*range(1, 60, 3), 2):
        small = cv2.imread(str(tmp_path / f"celeba/img_align_celeba/{number:06d}.jpg"))
        assert small is not None
        cv2.imwrite(str(tmp_path / f"larger/{number}.png"), cv2.resize(small, (130, 150)))
    # Its given split differs from CelebA's; the first person has one more image there.
    save(tmp_path / "larger/other.png", 999)
    (tmp_path / "larger/manifest.csv").write_text(
        "path,split,identity\n1.png,test,me\n2.png,test,me\nother.png,,me\n"
    )
    larger = Input(tmp_path / "larger", "groundtruth")
    said = pack([given, larger, make_classes(tmp_path / "raw")[1]], tmp_path / "out")
    told = "2 images have copies in another split, for example larger: 1.png in test and celeba: "
    assert any(line.startswith(told) for line in said)
    packed = {
        int(Path(row["original"]).stem): row
        for row in rows(tmp_path / "out/manifest.csv")
        if row["source"] == "larger" and row["original"] != "other.png"
    }
    assert len(packed) == 21
    for number, row in packed.items():
        person = (number - 1) // 3
        ours = number <= 2
        assert row["identity"] == ("me" if ours else str(2880 + person))
        assert row["split"] == ("test" if ours else SPLITS[person // 8])


def test_a_split_that_comes_with_a_copy_is_that_of_the_person(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba")
    (tmp_path / "larger").mkdir()
    small = cv2.imread(str(tmp_path / "celeba/img_align_celeba/000060.jpg"))
    assert small is not None
    cv2.imwrite(str(tmp_path / "larger/1.png"), cv2.resize(small, (130, 150)))
    save(tmp_path / "larger/other.png", 999)
    (tmp_path / "larger/manifest.csv").write_text(
        "path,split,identity\n1.png,,me\nother.png,train,me\n"
    )
    larger = Input(tmp_path / "larger", "groundtruth")
    said = pack([given, larger, make_classes(tmp_path / "raw")[1]], tmp_path / "out")
    assert (
        "left out 1 image of people whom copies connect to another split, for example larger: "
        "other.png in train; celeba: img_align_celeba/000058.jpg is in test "
        "(listed in left_out.csv)"
    ) in said
    assert left_out(tmp_path / "out")["other.png"] == "other_split"
    packed = {row["original"]: row["split"] for row in rows(tmp_path / "out/manifest.csv")}
    assert packed["1.png"] == packed["img_align_celeba/000058.jpg"] == "test"
    assert "other.png" not in packed


ENTRIES = st.builds(
    Entry,
    source=st.sampled_from("st"),
    split=st.sampled_from(["", "", *SPLITS]),
    identity=st.sampled_from(["", *"abcdef"]),
    scope=st.just(Path("r")),
    label=st.just("groundtruth"),
    root=st.just(Path("r")),
    name=st.just("n"),
)


@drawn(st.lists(st.lists(ENTRIES, min_size=1, max_size=3), max_size=12))
@settings(max_examples=examples(200), deadline=None)
def test_no_person_is_in_two_splits(groups: list[list[Entry]]) -> None:
    pictures = [
        Picture(best, FileFacts(sha256=f"{n:064x}"), tuple(copies))
        for n, (best, *copies) in enumerate(groups)
    ]
    splits, dropped = assign(pictures, (60, 20, 20))
    of: dict[tuple[Path, str], set[str]] = {}
    for split, kept in splits.items():
        for one in kept:
            # If all have splits, and none has val, some of train become val.
            may_move = all(p.split in ("train", "test") for p in pictures)
            moved = may_move and (one.split, split) == ("train", "val")
            assert one.split in ("", split) or moved
            for entry in one.entries:
                if entry.person:
                    of.setdefault(entry.person, set()).add(split)
    assert all(len(seen) == 1 for seen in of.values())
    assert sum(map(len, splits.values())) + len(dropped) == len(pictures)
    # Nothing is left out without a conflict.
    assert all(out.entry in [p.entry for p in pictures if p.split] for out in dropped)
    if len({p.split for p in pictures} - {""}) < 2:
        assert not dropped


@pytest.mark.parametrize("size", [1, 3, 5, 6, 7])
def test_small_sources_share_val_and_test(size: int) -> None:
    pictures = [
        Picture(
            Entry(
                source=f"{source:03}",
                split="",
                identity="",
                label=label,
                root=Path("r"),
                name=f"{source}/{number}",
                scope=Path("r"),
            ),
            FileFacts(sha256=f"{size:08x}{source:08x}{number:08x}{kind:040x}"),
        )
        for kind, label in enumerate(CLASSES)
        for source in range(300 // size)
        for number in range(size)
    ]
    splits, left_out = assign(pictures, (80, 10, 10))
    assert not left_out
    for label in CLASSES:
        counts = {
            split: sum(p.entry.label == label for p in kept) for split, kept in splits.items()
        }
        total = sum(counts.values())
        assert counts["val"] == pytest.approx(total / 10, abs=1)
        assert counts["test"] == pytest.approx(total / 10, abs=1)


def test_a_large_person_does_not_take_other_sources_out_of_train() -> None:
    def make(source: str, count: int, identity: str = "") -> list[Picture]:
        return [
            Picture(
                Entry(
                    source=source,
                    split="",
                    identity=identity,
                    label="generated",
                    root=Path("r"),
                    name=f"{source}/{number}",
                    scope=Path("r"),
                ),
                FileFacts(sha256=f"{ord(source):032x}{number:032x}"),
            )
            for number in range(count)
        ]

    pictures = [*make("a", 3000, "one person"), *make("b", 300), *make("c", 300)]
    splits, _ = assign(pictures, (80, 10, 10))
    counts = Counter((p.entry.source, split) for split in splits for p in splits[split])
    for source in "bc":
        assert counts[source, "train"] == 240
        assert counts[source, "val"] == counts[source, "test"] == 30


def test_only_a_class_without_val_gets_it_from_train(tmp_path: Path) -> None:
    splits = ["train"] * 15 + ["test"] * 5
    for number in range(20):
        save(tmp_path / f"made/{number}.png", number)
        save(tmp_path / f"photos/{number}.png", 100 + number, colour="blue")
    listed = [f"{number}.png,{split}" for number, split in enumerate(splits)]
    (tmp_path / "photos/manifest.csv").write_text("\n".join(["path,split", *listed]))
    given = ("--generated", tmp_path / "made", "--groundtruth", tmp_path / "photos")
    done = call(*given, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "no image is in val: 10 % of the training images of groundtruth are" in done.output
    counts = Counter((row["label"], row["split"]) for row in rows(tmp_path / "out/manifest.csv"))
    assert counts["generated", "val"] == counts["generated", "test"] == 2
    assert [counts["groundtruth", split] for split in SPLITS] == [14, 1, 5]


def test_a_folder_without_val_gets_it_from_train(tmp_path: Path) -> None:
    """As ffd-train does without packing."""
    for label, colour in zip(CLASSES, ("red", "blue"), strict=True):
        for number in range(25):
            split = "train" if number < 20 else "test"
            seed = 100 * CLASSES.index(label) + number
            save(tmp_path / f"in/{split}/{label}/{number}.png", seed, colour=colour)
    done = call(tmp_path / "in", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    counts = Counter((row["label"], row["split"]) for row in rows(tmp_path / "out/manifest.csv"))
    for label in CLASSES:
        assert counts[label, "val"] == 2
        assert counts[label, "train"] == 18
        assert counts[label, "test"] == 5


def test_persons_linked_by_a_copy_go_together(tmp_path: Path) -> None:
    for name in "ab":
        for n in range(20):
            save(tmp_path / name / f"{n}.png", 100 * ord(name) + n)
        shown = "".join(f"{n}.png,{name}{n // 2}\n" for n in range(20))
        (tmp_path / name / "manifest.csv").write_text("path,identity\n" + shown)
    for n in range(0, 20, 2):
        shutil.copy(tmp_path / f"a/{n}.png", tmp_path / f"b/{n}.png")
    inputs = [Input(tmp_path / name, "groundtruth") for name in "ab"]
    pack([*inputs, make_classes(tmp_path / "raw")[1]], tmp_path / "out")
    of: dict[str, set[str]] = {}
    for row in rows(tmp_path / "out/manifest.csv"):
        if row["identity"]:
            of.setdefault(row["identity"][1:], set()).add(row["split"])
    assert len(of) == 10
    assert all(len(splits) == 1 for splits in of.values())


def test_unreadable_images_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_classes(tmp_path / "raw")
    broken = [tmp_path / f"raw/made/{n}.jpg" for n in range(3)]
    for path in broken:
        path.rename(path.with_suffix(".away"))
        # Like an unmounted drive: size and time do not change when it is mounted again.
        path.symlink_to("absent")
    with pytest.raises(DataError, match="3 of made's 20 images cannot be read"):
        pack(inputs, tmp_path / "out")
    assert "absent" not in (tmp_path / "out/reading.jsonl").read_text()

    def fail(path: Path) -> bytes:
        if path in broken:
            raise InputError("read_failed", "cannot be read: Input/output error")
        return read_file(path)

    for path in broken:
        path.unlink()
        path.with_suffix(".away").rename(path)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_file", fail)
        with pytest.raises(DataError, match="3 of made's 20 images cannot be read"):
            pack(inputs, tmp_path / "out")
    pack(inputs, tmp_path / "out")
    assert len(scan(tmp_path / "out").samples) == 40


def test_a_journal_of_another_opencv_is_replaced(tmp_path: Path) -> None:
    save(tmp_path / "raw/0.png", 1)
    raw = tmp_path / "raw"
    entry = Entry("raw", "", "", raw, label="generated", root=raw, name="0.png")
    for version, known in (("", 1), ("0.1", 0)):
        with reading.Journal(tmp_path / "j") as journal:
            journal.add(*journal.facts(entry))
        journal_text = (tmp_path / "j").read_text()
        if version:
            (tmp_path / "j").write_text(journal_text.replace(cv2.__version__, version))
        with reading.Journal(tmp_path / "j") as journal:
            assert len(journal._known) == known


def test_a_picture_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "raw/0.jpg", 1)
    raw = tmp_path / "raw"
    entry = Entry("raw", "", "", raw, label="generated", root=raw, name="0.jpg")
    facts = reading.read_facts

    def disturb(entry: Entry) -> reading.FileFacts:
        found = facts(entry)
        save(path, 2, 80, 80)
        return found

    with monkeypatch.context() as patch, reading.Journal(tmp_path / "journal") as journal:
        patch.setattr(reading, "read_facts", disturb)
        journal.add(*journal.facts(entry))
    with reading.Journal(tmp_path / "journal") as journal:
        assert journal.facts(entry)[1] == facts(entry)


def test_a_run_stopped_at_any_file_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_classes(tmp_path / "raw", 8)
    settings = Settings(split=(50, 25, 25))
    pack(inputs, tmp_path / "unbroken", settings)
    replace, output = os.replace, tmp_path / "out"
    stopped = []

    def stop(source: Path, target: Path) -> None:
        if target.name not in stopped:
            stopped.append(target.name)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    while len(stopped) < 7:
        with pytest.raises(KeyboardInterrupt):
            pack(inputs, output, settings)
        # A killed run would leave it.
        (output / f"{stopped[-1]}.partial").write_bytes(b"a part")
    pack(inputs, output, settings)
    assert contents(output) == contents(tmp_path / "unbroken")


def test_missing_files_of_a_complete_set_are_packed_again(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    output = tmp_path / "out"
    pack(inputs, output)
    before = contents(output)
    for name in ("train-000000.tar", "manifest.csv"):
        (output / name).unlink()
        if name.endswith("tar"):
            with pytest.raises(
                DataError, match=r"is missing: copy it again, or run the same ffd-data"
            ):
                scan(output)
        said = pack(inputs, output)
        assert any(line.endswith("; packing it again") for line in said)
        assert contents(output) == before
    document = json.loads(before["dataset.json"])
    (output / "train-000000.tar").unlink()
    (output / "dataset.json").write_text(json.dumps({**document, "opencv": "0.1"}))
    with pytest.raises(OutputError, match=r"was made with other opencv \(0.1\): remove it"):
        pack(inputs, output)
    (output / "dataset.json").unlink()
    for run in (lambda: scan(output), lambda: pack(inputs, output)):
        with pytest.raises((DataError, OutputError), match="no dataset.json: copy that file from"):
            run()


def test_an_empty_selection_gives_its_reasons(tmp_path: Path) -> None:
    made = make_classes(tmp_path / "raw", 4)[1]
    shutil.copytree(made.path, tmp_path / "same")
    with pytest.raises(DataError, match="no generated image is left: 4 in both classes"):
        pack([made, Input(tmp_path / "same", "groundtruth")], tmp_path / "out")


def test_no_picture_is_given_twice(tmp_path: Path) -> None:
    photos, made = make_classes(tmp_path / "raw", 4)
    (tmp_path / "link").symlink_to(photos.path)
    for again, message in (
        (Input(photos.path, "groundtruth"), "photos is given twice: give it once"),
        (Input(photos.path, "groundtruth", "other"), "photos is given twice"),
        (Input(tmp_path / "link", "generated"), "link is given twice"),
        (Input(photos.path / "00", "groundtruth"), "is inside the other: give each image once"),
        (Input(tmp_path / "raw"), "is inside the other"),
    ):
        with pytest.raises(DataError, match=message):
            find_entries([photos, made, again])


def test_folders_with_the_same_name_can_be_renamed(tmp_path: Path) -> None:
    for name in "ab":
        for n in range(20):
            save(tmp_path / name / "faces" / CLASSES[n % 2] / f"{n}.png", 100 * ord(name) + n)
    one, two = (tmp_path / name / "faces" for name in "ab")
    done = call(one, two, "--output", tmp_path / "out")
    assert "two sources are named faces: give one as OTHER_NAME=PATH" in done.stderr
    done = call(one, f"other={two}", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    sources = {row["source"] for row in rows(tmp_path / "out/manifest.csv")}
    assert sources == {f"{n}-{label}" for n in ("faces", "other") for label in CLASSES}


def test_identically_encoded_images_are_packed_once(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw", 16)
    for n in range(24):
        # Different sizes without any other difference.
        black = np.zeros((66 + n, 66 + n, 3), np.uint8)
        cv2.imwrite(str(inputs[n % 2].path / f"black{n}.png"), black)
    settings = Settings(quality=(80, 81), split=(50, 25, 25), shard_images=20)
    said = pack(inputs, tmp_path / "out", settings)
    # One image for each quality.
    assert any(line.startswith("left out 22 with the same encoding as others: ") for line in said)
    assert len(scan(tmp_path / "out").samples) == 34
    assert Counter(left_out(tmp_path / "out").values()).keys() == {"copy", "both_classes"}
    # Shards without the left-out images match the plan again.
    before = contents(tmp_path / "out")
    (tmp_path / "out/test-000000.tar").unlink()
    pack(inputs, tmp_path / "out", settings)
    assert contents(tmp_path / "out") == before


def test_each_split_with_pictures_has_both_classes(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba")
    made = make_classes(tmp_path / "raw")[1]
    with pytest.raises(DataError, match="no generated image is left for test: add more, or"):
        pack([given, made], tmp_path / "out", Settings(split=(80, 20, 0)))


def test_no_image_exceeds_the_estimated_size() -> None:
    rng = np.random.default_rng(1)
    for quality in (75, 95, 100):
        noise = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
        taken = len(match(noise, 128, quality))
        assert taken <= max_jpeg_bytes(128, quality) <= 2 * taken

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
from PIL import Image as Pillow

from ffd_runtime.card import CLASSES
from ffd_runtime.errors import DataError, OutputError
from ffd_train.commands.data_prepare import prepare as ffd_data_prepare
from ffd_train.data import SPLITS, scan
from ffd_train.prepare import reading
from ffd_train.prepare.inputs import Entry, Input, find_entries
from ffd_train.prepare.matching import common_side, draw_quality
from ffd_train.prepare.preparing import Settings, prepare

from ..conftest import picture


def save(path: Path, seed: int, height: int = 48, width: int = 48, colour: str = "red") -> Path:
    """A picture unlike any other, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = picture(colour, 8, 8, seed=seed)
    large = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(path), large)
    return path


def make_classes(root: Path, count: int = 20) -> list[Input]:
    for i in range(count):
        save(root / f"photos/{i // 10:02d}/{i:05d}.png", i, 52, 60, "blue")
        save(root / f"made/{i}.jpg", 1000 + i, 50, 50)
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


def test_shards_hold_what_webdataset_expects_mixed_and_described(tmp_path: Path) -> None:
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
                # A sample is what has one name up to the first dot.
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
    assert document["sources"]["made"] == {"label": "generated", "images": 20}


def test_both_classes_leave_in_the_same_size_and_codec(tmp_path: Path) -> None:
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
    assert "each becomes a square of 64 pixels, a JPEG of quality 80 to 90 (4:2:0)" in said
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


def test_the_common_side_is_nearly_everybodys_and_qualities_are_drawn_evenly() -> None:
    assert common_side([[100] * 96 + [20] * 4, [300] * 10]) == 100
    assert common_side([[100] * 90 + [20] * 10, [300] * 10]) == 20
    assert common_side([[2000], [1024]]) == 512
    drawn = Counter(draw_quality(f"{i * 2654435761:064x}", 75, 95) for i in range(2100))
    assert set(drawn) == set(range(75, 96))
    assert max(drawn.values()) < 160


def test_without_match_the_files_are_packed_as_they_are(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    pack(inputs, tmp_path / "out", Settings(match=False))
    data = scan(tmp_path / "out")
    packed = {data.read(sample) for sample in data.samples}
    assert packed == set(contents(tmp_path / "raw").values())
    suffixes = {(sample.path.split(".")[-1], sample.label) for sample in data.samples}
    assert suffixes == {("png", 1), ("jpg", 0)}


def test_of_copies_the_largest_stays_and_none_that_is_in_both_classes(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    photos, made = tmp_path / "raw/photos", tmp_path / "raw/made"
    shutil.copy(made / "3.jpg", made / "z-exact.jpg")
    image = cv2.imread(str(made / "4.jpg"))
    assert image is not None
    cv2.imwrite(str(made / "larger.png"), cv2.resize(image, (90, 90)))
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
    """Twenty persons with three pictures each, laid out as torchvision leaves CelebA."""
    for i in range(60):
        save(root / f"img_align_celeba/{i + 1:06d}.jpg", i, 55, 45, "blue")
    if partition:
        lines = [f"{i + 1:06d}.jpg {(i // 3) // 8}\n" for i in range(60)]
        (root / "list_eval_partition.txt").write_text("".join(lines))
    if persons:
        lines = [f"{i + 1:06d}.jpg {2880 + i // 3}\n" for i in range(60)]
        (root / "identity_CelebA.txt").write_text("".join(lines))
    return Input(root, "groundtruth")


def test_celeba_keeps_its_partition_and_nobody_is_in_two_splits(tmp_path: Path) -> None:
    given = celeba(tmp_path / "celeba")
    made = make_classes(tmp_path / "raw")[1]
    pack([given, made], tmp_path / "out")
    photos = [row for row in rows(tmp_path / "out/manifest.csv") if row["source"] == "celeba"]
    assert Counter(row["split"] for row in photos) == {"train": 24, "val": 24, "test": 12}
    assert {row["split"] for row in photos if int(row["identity"]) < 2888} == {"train"}
    # The pictures' own folder, with the authors' files beside it, or as others' CSV.
    alone = Input(tmp_path / "celeba/img_align_celeba", "groundtruth")
    text = (tmp_path / "celeba/list_eval_partition.txt").read_text().replace(" ", ",")
    (tmp_path / "celeba/list_eval_partition.txt").unlink()
    csv_file = tmp_path / "celeba/list_eval_partition.csv"
    csv_file.write_text("image_id,partition\n" + text)
    known = [(e.name, e.identity, e.split) for e in find_entries([alone])[0]]
    assert known[0] == ("000001.jpg", "2880", "train")
    assert known[-1] == ("000060.jpg", "2899", "test")
    csv_file.write_text("image_id,partition\n" + text.replace("000002.jpg,0", "000002.jpg,2"))
    with pytest.raises(DataError, match=r"1 persons are in two splits, such as 2880 in train"):
        find_entries([alone])
    csv_file.write_text("what is this\n")
    with pytest.raises(DataError, match="a file's name and a number in each line"):
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
    with pytest.raises(DataError, match="is packed already"):
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
    assert "51 pictures of 2 sources (1 files without an image's name left out)" in done.stderr
    assert "left out 1: 1 that cannot be read" in done.stderr
    (row,) = rows(tmp_path / "out/left_out.csv")
    assert row["original"] == "cut.jpg"
    assert row["source"] == "sg2"
    assert row["detail"].startswith("truncated: ")
    for name in ("a.jpg", "b.jpg"):
        (made / name).write_bytes(b"")
    done = call(*folders, "--output", tmp_path / "again")
    assert done.exit_code == 1
    assert "3 of sg2's 28 pictures cannot be read, such as" in done.stderr


def test_the_same_folders_give_the_same_bytes_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_classes(tmp_path / "raw")
    before = contents(tmp_path / "raw")
    pack(inputs, tmp_path / "a", Settings(shard_images=9))
    # No time, neither of the day nor of a file, may get into a shard.
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
    code = "from ffd_train.commands.data_prepare import prepare; prepare()"
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


def test_killed_at_any_moment_it_goes_on_to_the_same_result(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match="has shards but no dataset.json"):
        scan(output)
    kept = {path: path.stat().st_ino for path in output.glob("*.tar")}
    # A line of which a part was written.
    with journal.open("ab") as file:
        file.write(b'["/some/where"')
    pack(inputs, output, settings)
    assert contents(output) == contents(tmp_path / "unbroken")
    assert kept == {path: path.stat().st_ino for path in kept}


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_classes(tmp_path / "raw")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1))
        with pytest.raises(OutputError, match=r"needs about .* GB, its disk has 0.0 GB left"):
            pack(inputs, tmp_path / "out")
    # A file that changed meanwhile is read anew, the others are not.
    save(tmp_path / "raw/made/0.jpg", 5000, 50, 50)
    read: list[str] = []

    def note(entry: Entry) -> reading.Facts:
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
    assert f"{output} holds all of this already" in done.stderr
    done = call(*folders, "--output", output, "--side", 40)
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


def test_a_shard_that_is_another_is_not_taken_for_ours(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    pack(inputs, tmp_path / "out")
    # As if killed just before its end, and a shard changed since.
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    begun = {name: document[name] for name in ("version", "opencv", "settings", "inputs_sha256")}
    (tmp_path / "out/prepare.json").write_text(json.dumps(begun))
    (tmp_path / "out/dataset.json").unlink()
    shutil.copy(tmp_path / "out/val-000000.tar", tmp_path / "out/test-000000.tar")
    with pytest.raises(OutputError, match="test-000000.tar holds something else: remove it"):
        pack(inputs, tmp_path / "out")
    (tmp_path / "out/test-000000.tar").unlink()
    pack(inputs, tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == document


def test_a_disk_that_fills_up_is_one_line_and_can_be_gone_on_with(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*train-000000.tar.partial: .*go on"):
            pack(inputs, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pack(inputs, tmp_path / "out")
    pack(inputs, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_two_at_a_time_do_not_share_an_output(tmp_path: Path) -> None:
    import fcntl

    inputs = make_classes(tmp_path / "raw", 2)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/reading.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another ffd-data prepare writes"):
            pack(inputs, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groundtruth", "x"], "give --groundtruth and --generated, or a DATA with both"),
        (["x", "--side", "64", "--no-match"], "--side is for --match"),
        (["x", "--quality", "95-75"], "the lower first"),
        (["x", "--quality", "80"], "expected a form like 75-95, not 80"),
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
        ([photos, Input(made.path, "generated", "photos")], "two sources are called photos"),
    ):
        with pytest.raises(DataError, match=message):
            pack(inputs, out)
        assert not out.exists()
    with pytest.raises(DataError, match="no generated picture is left for val"):
        pack([photos, made], out)
    with pytest.raises(DataError, match="no picture of made has 51 pixels: lower --side"):
        pack([photos, made], tmp_path / "side", Settings(side=51))
    (tmp_path / "raw/none").mkdir()
    with pytest.raises(DataError, match="none has no pictures"):
        pack([photos, Input(tmp_path / "raw/none", "generated")], out)


def test_any_file_name_can_be_packed(tmp_path: Path) -> None:
    inputs = make_classes(tmp_path / "raw", 10)
    os.rename(tmp_path / "raw/made/3.jpg", tmp_path / "raw/made" / os.fsdecode(b'\xff,\n".jpg'))
    pack(inputs, tmp_path / "out", Settings(match=False))
    assert b"\xff" in (tmp_path / "out/manifest.csv").read_bytes()
    data = scan(tmp_path / "out")
    assert np.unique([data.read(sample) for sample in data.samples]).size == 20

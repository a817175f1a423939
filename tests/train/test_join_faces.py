from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ffd_runtime.core.errors import DataError
from ffd_train.scanning import scan

from .. import tiny

TOOL = Path(__file__).parents[2] / "tools" / "join_faces.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("join_faces", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(root: Path, prefix: str, identities: bool = False) -> Path:
    """A data set of unique images with a prefix in the names of images and sources."""
    tiny.make_faces(root, {"train": 3, "val": 2}, sources=True)
    rows = list(csv.DictReader((root / "manifest.csv").open(newline="")))
    for i, row in enumerate(rows):
        old = root / row["path"]
        path = old.with_name(f"{prefix}{old.name}")
        # Decoders ignore bytes after the end of a PNG.
        old.write_bytes(old.read_bytes() + prefix.encode())
        old.rename(path)
        row["path"] = path.relative_to(root).as_posix()
        row["source"] = f"{prefix}{row['source']}"
        if identities:
            row["identity"] = str(i)
    write(root, rows)
    return root


def write(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_images_without_a_row_are_counted(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [make(tmp_path / "one", "a"), make(tmp_path / "two", "b")]
    (sets[1] / "val/generated/new.png").write_bytes(b"")
    tool.main([str(tmp_path / "joint"), *map(str, sets)])
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [f"{sets[1]}: manifest.csv omits 1 file(s), which are not joined"]


@pytest.mark.parametrize("hard", [False, True])
def test_the_joined_folder_has_all_images(tmp_path: Path, tool: ModuleType, hard: bool) -> None:
    sets = [make(tmp_path / "one", "a, "), make(tmp_path / "two", 'b"é', identities=True)]
    joint = tmp_path / "new" / "joint"
    assert tool.join(joint, sets, hard) == 20
    picture = next((joint / "val" / "generated").iterdir())
    assert picture.is_symlink() != hard
    assert sorted(path.name for path in joint.parent.iterdir()) == ["joint"]

    whole, parts = scan(joint, ("train", "val")), [scan(root, ("train", "val")) for root in sets]
    assert not whole.notes
    assert set(whole.samples) == {sample for part in parts for sample in part.samples}
    assert {s.source for s in whole.samples if s.source and s.source.startswith("a, ")}
    rows = list(csv.DictReader((joint / "manifest.csv").open(newline="", encoding="utf-8")))
    assert [row["identity"] for row in rows] == [""] * 10 + [f"2:{i}" for i in range(10)]


def test_persons_of_two_data_sets_stay_different(tmp_path: Path, tool: ModuleType) -> None:
    sets = [make(tmp_path / name, name, identities=True) for name in ("one", "two")]
    # Numbered in reverse, so that the same number is in train of one and in val of the other.
    rows = list(csv.DictReader((sets[1] / "manifest.csv").open(newline="")))
    write(sets[1], [{**row, "identity": str(9 - i)} for i, row in enumerate(rows)])
    tool.join(tmp_path / "joint", sets)
    scan(tmp_path / "joint", ("train", "val"))


def test_images_in_both_are_still_refused_by_training(tmp_path: Path, tool: ModuleType) -> None:
    sets = [make(tmp_path / "one", "x"), make(tmp_path / "two", "y")]
    copy = sets[0] / "train/generated/xred0.png"
    (sets[1] / "val/generated/yred0.png").write_bytes(copy.read_bytes())
    tool.join(tmp_path / "joint", sets)
    with pytest.raises(DataError, match="in two splits"):
        scan(tmp_path / "joint", ("train", "val"))


@pytest.mark.parametrize("name", ["red0.png", "RED0.PNG"])
def test_two_images_with_one_path_are_refused(tmp_path: Path, tool: ModuleType, name: str) -> None:
    sets = [make(tmp_path / "one", ""), make(tmp_path / "two", "y")]
    rows = list(csv.DictReader((sets[1] / "manifest.csv").open(newline="")))
    own = sets[1] / rows[0]["path"]
    own.rename(own.with_name(name))
    write(sets[1], [{**rows[0], "path": f"./train/generated/{name}"}, *rows[1:]])
    with pytest.raises(tool.JoinError, match=f"two/train/generated/{name} and .*one path: rename"):
        tool.join(tmp_path / "joint", sets)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*manifest.csv: No such file"),
        ("", "has no column path"),
        ("path,label\na,b\n", "has no column source"),
        ("path,source\n../train/generated/a.png,b\n", "is not SPLIT/CLASS/NAME"),
        ("path,source\n/train/generated/a.png,b\n", "is not SPLIT/CLASS/NAME"),
        ("path,source\ntrain/generated/../../a.png,b\n", "is not SPLIT/CLASS/NAME"),
        ("path,source\ntrain/fake/a.png,b\n", "is not SPLIT/CLASS/NAME"),
        ("path,source\n,b\n", "is not SPLIT/CLASS/NAME"),
        ("path,source\ntrain/generated/a.png,b\n", "a.png' is absent: remove its row"),
        ("path,source\ntrain/generated/a.png,b,c\n", "more fields than there are columns"),
        ('path,source\n"train/generated/a.png,b\n', "line 1: unexpected end of data"),
    ],
)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, tool: ModuleType, text: str | None, message: str
) -> None:
    sets = [make(tmp_path / "one", "x"), tmp_path / "two"]
    sets[1].mkdir()
    if text is not None:
        (sets[1] / "manifest.csv").write_text(text)
    with pytest.raises(tool.JoinError, match=message) as caught:
        tool.join(tmp_path / "joint", sets)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "joint").exists()


def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [make(tmp_path / "one", "x"), make(tmp_path / "two", "y")]

    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link", str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(tool.JoinError, match="cross-device link .without --hard, links are symb"):
        tool.join(tmp_path / "joint", sets, hard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert len(list(sets[0].rglob("*.png"))) == 10


def test_the_command_line_joins_and_reports(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, name)

    def call() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TOOL), "joint", "one", "two"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = call()
    assert (done.returncode, done.stdout) == (0, "joint: 20 images of 2 data sets\n")
    # Links point to their images from any working directory.
    assert all(os.path.isabs(os.readlink(path)) for path in (tmp_path / "joint").rglob("*.png"))
    again = call()
    assert again.returncode == 1
    assert again.stderr == "join_faces: joint exists: remove it, or choose another folder\n"

"""Resumed runs: no row, face, copy or report is lost or doubled."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result

from ffd_runtime.cli import lost_storage
from ffd_runtime.cli.run import main
from ffd_runtime.cli.run_images import EarlierRows
from ffd_runtime.core.errors import InputError
from ffd_runtime.core.results import Result as Row
from ffd_runtime.image import decode
from ffd_runtime.inputs import Item, items
from ffd_runtime.outputs import html_report, open_file_sink
from ffd_runtime.outputs.provenance import RunProvenance

from ..conftest import picture
from .encoded import opencv

PICTURE = opencv(".png", picture("red"))
ORIGIN = RunProvenance("m", "a" * 64, {}, "c" * 64)
FACES = [(1, 2, 30, 40), (50, 2, 30, 40), (100, 2, 30, 40)]


def call(model: Path, *arguments: object) -> Result:
    words = [*map(str, arguments), "--model", str(model), "--device", "cpu"]
    return CliRunner().invoke(main, words, prog_name="ffd-run")


def face(source: str, number: int) -> Row:
    return Row(source, face=FACES[number], label="unsure", score=0.5)


def resume(folder: Path, rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """Resume a run with faces after some rows; return what is classified again, and its new rows.

    Each image has three faces now.
    """
    path = folder / "rows.csv"
    with suppress(KeyboardInterrupt), open_file_sink(path, ORIGIN) as sink:
        for row in rows:
            sink.write(row)
        raise KeyboardInterrupt
    earlier = EarlierRows(False, Counter())
    with suppress(KeyboardInterrupt), open_file_sink(path, ORIGIN, True) as sink:
        earlier.read(sink, None, None)
        raise KeyboardInterrupt
    left = [item.source for item in earlier.remaining([Item("a.jpg"), Item("b.jpg")])]
    results = [face(source, number) for source in left for number in range(3)]
    return left, list(earlier.without_known(results))


def test_the_last_image_gets_the_faces_that_are_missing(tmp_path: Path) -> None:
    left, rows = resume(tmp_path, [*(face("a.jpg", n) for n in range(3)), face("b.jpg", 0)])
    assert left == ["b.jpg"]
    assert rows == [face("b.jpg", 1), face("b.jpg", 2)]


def test_an_unreadable_last_image_is_complete(tmp_path: Path) -> None:
    """The image may be readable now. It keeps its row, and no face of it is lost beside that."""
    error = Row.failed("b.jpg", InputError("empty", "the file is empty"))
    assert resume(tmp_path, [*(face("a.jpg", n) for n in range(3)), error]) == ([], [])


@pytest.mark.parametrize(
    ("failure", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)]
)
def test_rows_stay_resumable_until_the_report_is_written(
    portraits: Path,
    colour_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
) -> None:
    output, page = tmp_path / "rows.csv", tmp_path / "night.html"
    command = (portraits, "--output", output, "--report", page)

    def render(report: object) -> str:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(html_report, "render", render)
        done = call(colour_model, *command)
    assert done.exit_code == code
    assert f"rows so far are in {output}.partial; resume with --resume" in done.stderr
    assert not output.exists()
    done = call(colour_model, *command, "--resume")
    assert done.exit_code == 0, done.stderr
    assert output.exists()
    assert "3 inputs" in page.read_text()


def interrupt(output: Path, rows: int) -> None:
    """Return a complete CSV to the state after its first rows."""
    partial = output.with_name(output.name + ".partial")
    lines = output.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[: 1 + rows]))
    output.unlink()
    record = output.with_name(output.name + ".origin.json")
    record.rename(partial.with_name(partial.name + ".origin.json"))


def test_a_resumed_run_keeps_the_names_of_copies(colour_model: Path, tmp_path: Path) -> None:
    folder, output, shown = tmp_path / "in", tmp_path / "rows.csv", tmp_path / "shown"
    folder.mkdir()
    paths = [folder / name for name in ("A.jpg", "a.jpg", "a-2.jpg")]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), picture(seed=number))
    command = (*paths, "--output", output, "--annotate", shown)
    assert call(colour_model, *command).exit_code == 0
    expected = {path.name: path.read_bytes() for path in shown.iterdir()}
    assert sorted(expected) == ["A.jpg", "a-2-2.jpg", "a-2.jpg"]
    for rows in (1, 2):
        interrupt(output, rows)
        done = call(colour_model, *command, "--resume")
        assert done.exit_code == 0, done.stderr
        assert {path.name: path.read_bytes() for path in shown.iterdir()} == expected
        assert "has no copies" not in done.stderr


def test_earlier_rows_without_copies_are_reported(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    output, shown = tmp_path / "rows.csv", tmp_path / "shown"
    command = (portraits, "--output", output)
    assert call(colour_model, *command).exit_code == 0
    interrupt(output, 2)
    done = call(colour_model, *command, "--resume", "--annotate", shown)
    assert f"{shown} has no copies of 2 earlier rows" in done.stderr
    assert len(list(shown.iterdir())) == 1
    done = call(colour_model, *command, "--resume", "--annotate", shown)
    assert done.exit_code == 0
    assert "nothing to resume, so --annotate will not be written" in done.stderr


def test_a_complete_file_is_not_replaced_by_rows_of_other_sources(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    """A run with --overwrite that was killed before its first row leaves an empty partial file."""
    output = tmp_path / "rows.csv"
    assert call(colour_model, portraits, "--output", output).exit_code == 0
    rows = output.read_bytes()
    partial = output.with_name("rows.csv.partial")
    shutil.copy(output.with_name("rows.csv.origin.json"), f"{partial}.origin.json")
    partial.touch()
    other = next(portraits.iterdir())
    done = call(colour_model, other, "--output", output, "--resume")
    assert done.exit_code == 1
    assert "from other SOURCEs" in done.stderr
    assert output.read_bytes() == rows
    done = call(colour_model, portraits, "--output", output, "--resume")
    assert done.exit_code == 0, done.stderr
    assert output.read_bytes() == rows


def test_a_lost_disk_ends_the_run_without_rows_for_its_files(
    colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "share", tmp_path / "rows.jsonl"
    folder.mkdir()
    for number in range(160):
        (folder / f"{number:03}.png").write_bytes(b"" if number == 150 else PICTURE)
    real, lost = decode.read_file, {3, 4, *range(40, 160)}

    def read_file(path: str) -> bytes:
        if int(Path(path).stem) in lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(items, "read_file", read_file)
    done = call(colour_model, folder, "--output", output)
    assert done.exit_code == 1, done.stderr
    assert f"100 files in a row cannot be read, the first is {folder}/040.png" in done.stderr
    assert "resume with --resume" in done.stderr
    lost.clear()
    done = call(colour_model, folder, "--output", output, "--resume")
    assert done.exit_code == 3, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(row["source"]).stem for row in rows] == [f"{n:03}" for n in range(160)]
    failed = {int(Path(row["source"]).stem): row["error"]["code"] for row in rows if row["error"]}
    assert failed == {3: "read_failed", 4: "read_failed", 150: "empty"}


def test_few_unreadable_files_have_rows_in_order(
    colour_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_storage, "MAX_UNREADABLE_IN_A_ROW", 4)
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        Path(f"{number}.png").write_bytes(PICTURE)

    def read_file(path: str) -> bytes:
        if Path(path).stem in "2346780":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return PICTURE

    monkeypatch.setattr(items, "read_file", read_file)
    done = call(colour_model, ".")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.exit_code, len(rows)) == (3, 9), done.stderr
    assert "".join(Path(row["source"]).stem for row in rows if row["error"]) == "0234678"
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    # A program that waits for each row gets it at once, however many are unreadable.
    words = ["-", "--model", str(colour_model), "--device", "cpu"]
    done = CliRunner().invoke(main, words, input="2.png\n3.png\n4.png\n6.png\n7.png\n")
    assert (done.exit_code, len(done.stdout.splitlines())) == (3, 5), done.stderr

"""ffd-run in this process: lists, folders with other files, and outputs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import cv2
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.cli import run_images, run_progress
from ffd_runtime.cli.bench import main as bench
from ffd_runtime.cli.run import main
from ffd_runtime.core import pipeline
from ffd_runtime.image.decode import MAX_FILE_BYTES
from ffd_runtime.inputs.kinds import Skipped, has_image_suffix, is_image
from ffd_runtime.inputs.lists import read_list
from ffd_runtime.outputs import open_file_sink

from ..conftest import picture
from ..nightly import examples
from .test_urls import Server, ok

COMMAND = Path(sys.executable).with_name("ffd-run")
APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(60)


@pytest.fixture
def here(portraits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with three valid images."""
    monkeypatch.chdir(portraits)
    return portraits


@pytest.fixture
def run(colour_model: Path) -> Any:
    """Return a function that runs the command: exit code, rows on stdout, lines on stderr."""

    def run(*arguments: object, **options: Any) -> tuple[int, list[dict[str, Any]], list[str]]:
        words = [*map(str, arguments), "--model", str(colour_model), "--device", "cpu"]
        done = CliRunner().invoke(main, words, prog_name="ffd-run", **options)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done.exit_code, rows, done.stderr.splitlines()

    return run


def jpeg(colour: str = "red") -> bytes:
    done, data = cv2.imencode(".jpg", picture(colour))
    assert done
    return data.tobytes()


# --- lists --------------------------------------------------------------------------------------

NAMES = ["a b.jpg", "ü.png", "写真.jpg", "c"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@settings(deadline=None, max_examples=examples(50))
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0\r\n\ufeff", exclude_categories=["Cs"]))
        .filter(str.strip)
        .map(lambda name: f"ab{name}"),
        max_size=5,
    ),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 9),
)
def test_a_list_is_read_in_any_encoding(
    names: list[str], encoding: str, end: str, ended: bool, size: int
) -> None:
    # Without a mark, two bytes are too few to recognise UTF-16.
    ended = ended and bool(names)
    data = (end.join(names) + (end if ended else "")).encode(encoding)
    head = data[:4]
    pieces = [head, *(data[at : at + size] for at in range(4, len(data), size))]
    assert list(read_list(pieces)) == names


@given(st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name), max_size=4))
def test_a_list_with_nul_is_read_byte_for_byte(names: list[bytes]) -> None:
    found = [os.fsencode(name) for name in read_list([b"\0".join(names)], null=True)]
    # A mark may only precede the first name.
    assert found[1:] == names[1:]
    assert found[:1] == [name.removeprefix(b"\xef\xbb\xbf") for name in names[:1]]


def test_a_file_name_may_contain_a_line_end_or_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg\r", "\ufeffb.jpg"):
        Path(name).touch()
    assert list(read_list([b"a.jpg\r\nc.jpg\r\n"])) == ["a.jpg\r", "c.jpg"]
    assert list(read_list(["\ufeffb.jpg\n".encode()])) == ["\ufeffb.jpg"]


def test_a_name_is_yielded_at_the_end_of_its_line() -> None:
    asked: list[bytes] = []

    def pieces() -> Any:
        for piece in (b"a.jpg\nb", b".jpg\n", b""):
            asked.append(piece)
            yield piece

    names = read_list(pieces())
    assert next(names) == "a.jpg"
    assert asked == [b"a.jpg\nb"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_kinds_of_lists_accept_windows_encodings(here: Path, run: Any, encoding: str) -> None:
    text = "0-red.png\r\n1-blue.png\r\n"
    Path("list").write_bytes(text.encode(encoding))
    for arguments, given_ in ((("--sources", "list"), None), (("-",), text.encode(encoding))):
        code, rows, err = run(*arguments, input=given_)
        assert code == 0, err
        assert [row["source"] for row in rows] == ["0-red.png", "1-blue.png"]


@pytest.mark.parametrize("content", [b"", b"\n# none\n \r\n", b"\xff\xfe"])
def test_an_empty_list_is_named(here: Path, run: Any, content: bytes) -> None:
    Path("list.txt").write_bytes(content)
    code, _, err = run("--sources", "list.txt")
    assert code == 2
    assert err == ["ffd-run: error: --sources list.txt contains no SOURCE (ffd-run --help)"]
    assert run("--sources", "list.txt", "0-red.png")[0] == 0


def test_null_applies_to_both_kinds_of_lists(here: Path, run: Any) -> None:
    Path("0-red.png").rename("#new\nline.png")
    data = b"#new\nline.png\0" + b"1-blue.png"
    Path("list").write_bytes(data)
    for arguments, given_ in ((("--sources", "list"), None), (("-",), data)):
        code, rows, err = run(*arguments, "--null", input=given_)
        assert code == 0, err
        assert [row["source"] for row in rows] == ["#new\nline.png", "1-blue.png"]


# --- folders ------------------------------------------------------------------------------------

JUNK = {
    "v.csv": b"source,label\r\n",
    "v.csv.origin.json": b"{}\n",
    "v.html": b"<!DOCTYPE html><title>ffd</title>",
    "v.parquet": b"PAR1" + bytes(40),
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(60),
    "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(60),
    "desktop.ini": b"\xff\xfe[\0.\0",
    "._0-red.png": APPLE_DOUBLE,
    "__MACOSX/._0-red.jpg": APPLE_DOUBLE,
    "000.cls": b"1",
    "000.json": b'{"a": 1}',
    "notes": b"",
    "clip.mp4": b"\0\0\0\x20ftypisom" + bytes(60),
    "shard.tar": bytes(512),
}
# Damaged images, or files with the suffix of one: each has a row.
DAMAGED = {
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<!DOCTYPE html>", "not_an_image"),
    "half.jpg": (jpeg()[:500], "truncated"),
    "half without a name": (jpeg()[:500], "truncated"),
    "half.dat": (jpeg()[:500], "truncated"),
    "UPPER.JPG": (b"text", "not_an_image"),
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(data)


def test_other_files_in_a_folder_are_counted(here: Path, run: Any) -> None:
    write(here, JUNK)
    (here / "gone.lock").symlink_to("nowhere")
    os.mkfifo(here / "fifo")
    (here / "no ending").write_bytes(jpeg())
    (here / "._kept.png").write_bytes(jpeg())
    code, rows, err = run(".")
    assert code == 0, err
    assert len(rows) == 5
    assert "skipped 16 files that are not images: " in err[-1]
    assert "2 .json" in err[-1]
    code, rows, err = run(".", "--output", "v.csv", "--overwrite")
    assert code == 0, err


def test_few_skipped_files_are_listed(here: Path, run: Any) -> None:
    code, _, err = run(".", "--output", "v.csv", "--report", "v.html")
    assert (code, "skipped" in err[-1]) == (0, False)
    (here / ".DS_Store").write_bytes(JUNK[".DS_Store"])
    code, rows, err = run(".")
    assert (code, len(rows)) == (0, 3)
    assert err[-1].endswith(
        "; skipped 4 files that are not images: .DS_Store, v.csv, v.csv.origin.json, v.html"
    )


def test_a_damaged_image_has_a_row(here: Path, run: Any) -> None:
    write(here, {name: data for name, (data, _) in DAMAGED.items()})
    code, rows, _ = run(".")
    assert code == 3
    errors = {row["source"][2:]: row["error"]["code"] for row in rows if row["error"]}
    assert errors == {name: code for name, (_, code) in DAMAGED.items()}


def test_an_image_that_is_too_large_has_a_row_without_an_image_suffix(here: Path, run: Any) -> None:
    for name, head in (("scan", jpeg()), ("film", JUNK["clip.mp4"])):
        with open(name, "wb") as file:
            file.write(head)
            file.truncate(MAX_FILE_BYTES + 1)  # sparse
    code, rows, err = run(".")
    assert code == 3
    assert [row["source"] for row in rows if row["error"]] == ["./scan"]
    assert err[-1].endswith("skipped 1 file that is not an image: film")


def test_a_file_named_by_the_user_has_a_row(here: Path, run: Any) -> None:
    write(here, JUNK)
    names = [name for name in JUNK if name != "shard.tar"]
    for arguments, options in ((names, {}), (["-"], {"input": "\n".join(names).encode()})):
        # A video beside images is a file that is not an image.
        code, rows, err = run(*arguments, **options)
        assert code == 3, err
        assert [row["source"] for row in rows] == names
        assert all(row["error"] for row in rows)
        assert "skipped" not in err[-1]
    code, rows, _ = run("*.csv")
    assert (code, len(rows)) == (3, 1)


def test_a_folder_without_images_lists_its_files(tmp_path: Path, run: Any) -> None:
    write(tmp_path / "x", {"a.json": b"{}"})
    code, rows, err = run(tmp_path / "x")
    assert (code, rows) == (0, [])
    assert err[-1] == "no images found; skipped 1 file that is not an image: a.json"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_other_files_in_an_archive_are_counted(tmp_path: Path, run: Any, kind: str) -> None:
    files = {"000.jpg": jpeg(), "half.jpg": jpeg()[:500], **JUNK}
    path = tmp_path / f"shard.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, data in files.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    code, rows, err = run(path)
    assert code == 3
    assert [row["source"].partition("!/")[2] for row in rows] == ["000.jpg", "half.jpg"]
    assert f"skipped {len(JUNK)} files that are not images" in err[-1]


def test_resume_begins_where_the_output_is_empty(here: Path, run: Any) -> None:
    Path("rows.csv").touch()
    assert run(".", "--output", "rows.csv", "--resume")[0] == 0
    assert len(Path("rows.csv").read_text().splitlines()) == 1 + 3


def test_a_list_may_contain_the_copies_of_an_earlier_run(here: Path, run: Any) -> None:
    """As `find . | ffd-run - --annotate shown` does."""
    for _ in range(2):
        listed = "\n".join(map(str, sorted(Path().rglob("*.png"))))
        code, rows, err = run("-", "--annotate", "shown", input=listed)
        assert (code, len(rows)) == (0, 3), err
    assert len(list(Path("shown").iterdir())) == 3


def test_copies_may_be_written_above_the_images(here: Path, run: Any) -> None:
    """Only copies are left out of the inputs, not every file in their folder."""
    (here / "in").mkdir()
    for name in ("0-red.png", "1-blue.png"):
        Path(name).rename(f"in/{name}")
    for _ in range(2):
        code, rows, err = run("in", "--annotate", ".")
        assert (code, [row["source"] for row in rows]) == (0, ["in/0-red.png", "in/1-blue.png"]), (
            err
        )
    assert Path("0-red.png").exists()
    # An image of the user in the folder of copies.
    assert run("in", "--annotate", "shown")[0] == 0
    Path("2-red.png").rename("shown/2-red.png")
    listed = "shown/2-red.png\nin/1-blue.png\nshown/0-red.png\n"
    code, rows, err = run("-", "--annotate", "shown", input=listed)
    assert [row["source"] for row in rows] == ["shown/2-red.png", "in/1-blue.png"], err
    assert "skipped 1 file" in err[-1]
    # Paths that cannot be followed have their rows.
    Path("loop").symlink_to("loop")
    listed = "loop/a.png\nno\0where.png\nhttp://127.0.0.1:1/a.png\nin/1-blue.png\n"
    code, rows, err = run("-", "--annotate", "shown", input=listed)
    assert (code, len(rows)) == (3, 4), err


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_the_list_of_sources_is_not_overwritten(here: Path, run: Any, option: str) -> None:
    name = "names.csv" if option == "--output" else "names.html"
    Path(name).write_text("0-red.png\n")
    more = ("--overwrite",) if option == "--output" else ()
    code, _, err = run("--sources", name, option, f"./{name}", *more)
    assert (code, Path(name).read_text()) == (2, "0-red.png\n")
    assert "is also the list of --sources" in err[-1]


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_the_list_on_standard_input_is_not_overwritten(
    here: Path, colour_model: Path, option: str
) -> None:
    name = Path("names.csv" if option == "--output" else "names.html")
    name.write_text("0-red.png\n")
    more = ["--overwrite"] if option == "--output" else []
    with name.open() as listed:
        done = subprocess.run(
            [COMMAND, "-", option, name, *more, "--model", colour_model],
            stdin=listed,
            capture_output=True,
            text=True,
        )
    assert (done.returncode, name.read_text()) == (2, "0-red.png\n")
    assert "names" in done.stderr
    assert "is also the list on standard input" in done.stderr


def test_a_path_that_is_given_twice_is_wrong_usage(here: Path, run: Any) -> None:
    for option, names in (
        ("--output", ("a.csv", "a.parquet")),
        ("--report", ("a.html", "b.html")),
    ):
        code, rows, err = run(".", option, names[0], option, names[1])
        assert (code, rows) == (2, [])
        assert err[0].startswith(f"ffd-run: error: Invalid value for '{option}'")
        assert "given twice" in err[0]
    assert len(os.listdir()) == 3


def test_inputs_are_counted_unless_that_takes_long(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def progress(console: Any, count: Any, done: int) -> Any:
        counted.append(count and count())
        return real(console, None, done)

    real = run_progress.progress
    monkeypatch.setattr(run_images, "progress", progress)
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")):
        with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]
            archive.add("0-red.png")
        assert run(name)[0] == 0
    assert run("1-blue.png", "2-red.png")[0] == 0
    assert counted == [1, None, None, 2]


def test_a_replaced_file_keeps_its_permissions(here: Path, run: Any) -> None:
    Path("rows.csv").touch(0o600)
    assert run(".", "--output", "rows.csv", "--overwrite")[0] == 0
    assert Path("rows.csv").stat().st_mode & 0o777 == 0o600


def test_rows_on_stdout_are_written_once(here: Path, colour_model: Path) -> None:
    words = ("0-red.png", "--model", str(colour_model), "--output", "/dev/stdout", "--json")
    done = subprocess.run([COMMAND, *words], capture_output=True, check=True)
    assert done.stdout.count(b"\n") == 1


def test_an_interruption_of_an_import_is_not_a_broken_installation(
    here: Path, tmp_path: Path
) -> None:
    """pybind11 makes an ImportError of an exception that ends the import of its module."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "onnxruntime.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(modules)}
    done = subprocess.run([COMMAND, "0-red.png"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, b"ffd-run: interrupted")


def test_a_run_killed_between_its_last_steps_is_complete(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("0-red.png", "--output", "rows.jsonl")[0] == 0
    record = Path("rows.jsonl.origin.json")
    replace = os.replace

    def kill(source: str | Path, target: str | Path) -> None:
        if Path(target).name == record.name:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        assert run(".", "--output", "rows.jsonl", "--overwrite")[0] == 130
    # The rows are complete, and their record is not that of the first run.
    assert len(Path("rows.jsonl").read_text().splitlines()) == 3
    assert not record.exists()
    assert run("0-red.png", "--output", "rows.jsonl", "--resume")[0] == 1
    code, _, err = run(".", "--output", "rows.jsonl", "--resume")
    assert code == 0
    assert "is complete: nothing to resume" in err[-1]


def test_rows_that_another_run_completed_meanwhile_are_kept(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_sink(*arguments: Any) -> Any:
        Path("rows.csv").write_text("source\nanother run\n")
        return open_file_sink(*arguments)

    monkeypatch.setattr(run_images, "open_file_sink", open_sink)
    code, _, err = run(".", "--output", "rows.csv")
    assert code == 1
    assert "rows.csv exists" in err[-1]
    assert "another run" in Path("rows.csv").read_text()
    assert not Path("rows.csv.partial").exists()


def test_large_members_of_an_archive_have_annotated_copies(
    here: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg()
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.jpg", data)
    # A large file is read again, which is not possible for a member.
    monkeypatch.setattr(pipeline, "MAX_KEPT_BYTES", 100)
    code, _, err = run("a.zip", "0-red.png", "--annotate", "shown")
    assert (code, len(err)) == (0, 2), err
    assert len([path for path in Path("shown").rglob("*") if path.is_file()]) == 2
    monkeypatch.setattr(pipeline, "MAX_KEPT_FETCHED_BYTES", 100)
    code, _, err = run("a.zip", "--annotate", "again")
    assert code == 0
    said = "no annotated copy of a.zip!/a.jpg: no such file; images in archives and at addresses"
    assert any(said in line for line in err)


def test_a_resumed_run_skips_the_same_files(here: Path, run: Any) -> None:
    write(here, JUNK)
    assert run(".", "--output", "rows.jsonl")[0] == 0
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl.partial").write_text("".join(lines[:2]))
    Path("rows.jsonl").unlink()
    Path("rows.jsonl.origin.json").rename("rows.jsonl.partial.origin.json")
    code, _, err = run(".", "--output", "rows.jsonl", "--resume")
    assert code == 0, err
    assert Path("rows.jsonl").read_text() == "".join(lines)
    assert err[-1].startswith("3 inputs: ")
    assert f"skipped {len(JUNK)} files" in err[-1]


@given(st.text(min_size=1).map(lambda name: name.replace("/", "_")), st.binary(max_size=64))
def test_images_are_recognised_by_name_or_content(name: str, data: bytes) -> None:
    assert not has_image_suffix(f"a.jpg/{name}.json")
    assert has_image_suffix(f"a.json/x{name}.JPG")
    assert not has_image_suffix(f"__MACOSX/{name}.jpg")
    assert is_image(b"\xff\xd8\xff" + data)
    assert not is_image(b"{" + data)


def test_many_skipped_files_are_counted_by_suffix() -> None:
    skipped = Skipped()
    for number in range(9):
        skipped.add(f"x/{number}.txt")
    for letter in "abcdefg":
        skipped.add(f"x/0.{letter}")
    assert str(skipped) == (
        "skipped 16 files that are not images: 9 .txt, 1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 2 others"
    )


# --- credentials --------------------------------------------------------------------------------


def test_no_signature_is_written_anywhere(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secrets = [f"Hunter{number}" for number in range(3)]
    with Server(ok(jpeg())) as server:
        addresses = [f"{server.url}?X-Amz-Signature={one}&key={one}" for one in secrets]
        addresses.append("http://u:Hunter9@cret/x@host/a.jpg?sig=Hunter9")
        extra = ["--report", "page.html", "--annotate", "shown"]
        for ending in ("jsonl", "csv", "parquet"):
            output = f"rows.{ending}"
            code, _, err = run(*addresses, "--allow-private", "--output", output, *extra, "-v")
            assert code == 3, err
            assert "Hunter" not in "".join(err)
            assert "cret" not in "".join(err)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6 + 1 + len(secrets)
    for path in written:
        assert b"Hunter" not in path.read_bytes()
        assert "Hunter" not in str(path)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len({row["source"] for row in rows}) == 4
    assert [row["error"] and row["error"]["code"] for row in rows] == [None] * 3 + ["refused"]


def test_the_output_must_not_be_an_address(tmp_path: Path, here: Path, run: Any) -> None:
    code, _, err = run(".", "--output", "https://b.example/rows.csv?X-Amz-Signature=Hunter2")
    assert code == 1
    assert "not an address" in err[-1]
    assert "Hunter2" not in err[-1]


# --- where rows are written ---------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("there", [True, False])
def test_rows_are_written_through_a_link(
    here: Path, run: Any, tmp_path: Path, ending: str, there: bool
) -> None:
    (tmp_path / "far").mkdir()
    target, link, again = tmp_path / "far" / f"x.{ending}", tmp_path / f"v.{ending}", "--overwrite"
    if there:
        target.write_text("old")
    (tmp_path / "between").symlink_to(target)
    link.symlink_to("between")
    code, _, err = run(here, "--output", link, again)
    assert code == 0, err
    assert link.is_symlink()
    assert target.stat().st_size > 100
    assert {path.name for path in (tmp_path / "far").iterdir()} == {
        target.name,
        f"{target.name}.origin.json",
    }
    # The link identifies the same run.
    code, _, err = run(here, "--output", link, "--resume")
    assert (code, "nothing to resume" in err[-1]) == (0, True)


def test_a_report_is_written_through_a_link(here: Path, run: Any, tmp_path: Path) -> None:
    (tmp_path / "v.html").symlink_to("real.html")
    assert run(here, "--report", tmp_path / "v.html")[0] == 0
    assert (tmp_path / "v.html").is_symlink()
    assert "<title>" in (tmp_path / "real.html").read_text()


@pytest.mark.parametrize("name", ["v.jsonl", "v.csv", "pipe"])
def test_rows_are_streamed_into_a_fifo(here: Path, run: Any, tmp_path: Path, name: str) -> None:
    fifo = tmp_path / name
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    code, rows, err = run(here, "--output", fifo)
    reader.join(30)
    assert (code, rows) == (0, []), err
    if name.endswith("csv"):
        labels = [row["label"] for row in csv.DictReader(io.StringIO(read[0]))]
    else:
        labels = [json.loads(line)["label"] for line in read[0].splitlines()]
    assert labels == ["generated", "groundtruth", "generated"]
    assert fifo.is_fifo()
    assert [path.name for path in tmp_path.iterdir() if path.name != "portraits"] == [name]


def test_fifo_whose_reader_leaves_is_an_error(
    here: Path, colour_model: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: fifo.open("rb").close())
    reader.start()
    command = [*map(str, (COMMAND, here, "--model", colour_model, "--output", fifo))]
    done = subprocess.run(command, capture_output=True, text=True)
    reader.join(30)
    assert (done.returncode, "its reader has closed it" in done.stderr) == (1, True), done.stderr


def test_rows_go_to_standard_output(here: Path, colour_model: Path, tmp_path: Path) -> None:
    command = [*map(str, (COMMAND, here, "--model", colour_model, "--output"))]
    done = subprocess.run([*command, "/dev/stdout"], capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    with (tmp_path / "rows").open("ab") as file:
        file.write(b"before\n")
        file.flush()
        subprocess.run([*command, "/dev/fd/1"], stdout=file, stderr=subprocess.PIPE, check=True)
    assert len((tmp_path / "rows").read_bytes().splitlines()) == 4


def test_output_to_a_pipe_cannot_be_resumed(here: Path, run: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.parquet")
    for arguments, code, words in (
        (["--output", "/dev/null", "--resume"], 2, "--resume needs a regular file"),
        (["--output", tmp_path / "v.parquet"], 1, ".parquet file cannot be written to a pipe"),
        (["--output", "rows.csv", "--resume", "--overwrite"], 2, "give one"),
        (["--overwrite"], 2, "needs --output"),
    ):
        ended, _, err = run(here, *arguments)
        assert (ended, words in err[-1]) == (code, True), err
    assert run(here, "--output", "/dev/null")[0] == 0


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_complete_rows_are_replaced_only_with_overwrite(here: Path, run: Any, ending: str) -> None:
    output = Path(f"rows.{ending}")
    # An empty file, as mktemp creates it, may be replaced.
    output.touch()
    assert run(".", "--output", output)[0] == 0
    content = output.read_bytes()
    code, _, err = run("0-red.png", "--output", output)
    assert code == 1
    assert "exists: replace it with --overwrite" in err[-1]
    # The error is raised before the model is loaded.
    assert len(err) == 1
    assert output.read_bytes() == content
    assert run("0-red.png", "--output", output, "--overwrite")[0] == 0
    assert output.read_bytes() != content


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_a_missing_folder_is_named_in_the_error(here: Path, run: Any, option: str) -> None:
    name = "rows.csv" if option == "--output" else "page.html"
    code, _, err = run(".", option, f"absent/below/{name}")
    assert code == 1
    assert err == [
        f"ffd-run: error: {option} absent/below/{name}: the folder absent/below does not exist: "
        "create it, or name another"
    ]
    code, _, err = run(".", option, f"0-red.png/{name}")
    assert (code, "0-red.png is not a folder" in err[0]) == (1, True)


@pytest.mark.parametrize(
    "option", ["--sources", "--face-model", "--output", "--annotate", "--report"]
)
def test_an_empty_path_is_wrong_usage(here: Path, run: Any, option: str) -> None:
    code, rows, err = run(".", option, "")
    assert (code, rows) == (2, [])
    assert err[0].startswith(f"ffd-run: error: Invalid value for '{option}'")
    assert err[0].endswith(": the path is empty (ffd-run --help)")
    assert len(os.listdir()) == 3


def test_an_empty_path_is_wrong_usage_of_every_command() -> None:
    for command, arguments in ((main, ["0", "--record="]), (bench, ["--model", ""])):
        done = CliRunner().invoke(command, arguments)
        assert (done.exit_code, "the path is empty" in done.stderr) == (2, True), done.stderr


def test_csv_is_resumed_after_a_name_like_a_formula(here: Path, run: Any) -> None:
    sources = ("=1+1.png", "@x.png", "0-red.png")
    for name in sources[:2]:
        Path(name).write_bytes(Path("0-red.png").read_bytes())
    assert run(*sources, "--output", "rows.csv")[0] == 0
    whole = Path("rows.csv").read_bytes()
    assert b"\n'=1+1.png," in whole
    Path("rows.csv").unlink()
    Path("rows.csv.partial").write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    Path("rows.csv.origin.json").rename("rows.csv.partial.origin.json")
    assert run(*sources, "--output", "rows.csv", "--resume")[0] == 0
    assert Path("rows.csv").read_bytes() == whole

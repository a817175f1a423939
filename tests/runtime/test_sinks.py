from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import resource
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.results import Result, Track
from ffd_runtime.core.text import printable
from ffd_runtime.outputs import (
    FILE_SINKS,
    check_file_sink,
    jsonlines,
    open_file_sink,
    open_pipe_sink,
)
from ffd_runtime.outputs.csv_file import _from_field, to_line
from ffd_runtime.outputs.jsonlines import MAX_ROW_BYTES, AppendedJsonLines, JsonLines
from ffd_runtime.outputs.provenance import RunProvenance
from ffd_runtime.outputs.table import Table

ORIGIN = RunProvenance("tiny (fp32)", "0" * 64, {"size": 299}, "1" * 64)
# All outputs of os.fsdecode: any text, with undecodable bytes as surrogates.
names = st.binary(min_size=1).map(os.fsdecode)
results = st.one_of(
    st.builds(
        Result,
        source=names,
        frame=st.none() | st.integers(0, 10**9),
        face=st.none() | st.tuples(*[st.integers(0, 9999)] * 4),
        label=st.sampled_from(["generated", "groundtruth", "unsure"]),
        score=st.floats(0, 1),
        reason=st.sampled_from([None, "small"]),
        time=st.none() | st.floats(0, 1e10),
        track=st.none()
        | st.builds(
            Track,
            number=st.integers(1, 10**9),
            label=st.sampled_from(["generated", "unsure"]),
            score=st.none() | st.floats(0, 1),
        ),
    ),
    st.builds(
        lambda source, code, message: Result.failed(source, InputError(code, message)),
        names,
        st.sampled_from(InputError.CODES),
        st.text(),
    ),
)


@given(st.lists(results))
def test_json_lines_can_be_read_back_and_printed(rows: list[Result]) -> None:
    stream = io.StringIO()
    with JsonLines(stream) as sink:
        for row in rows:
            sink.write(row)
    text = stream.getvalue()
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert [json.loads(line) for line in text.splitlines()] == [row.to_dict() for row in rows]


@given(st.lists(results))
def test_csv_keeps_all_names(tmp_path_factory: pytest.TempPathFactory, rows: list[Result]) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with open_file_sink(path) as sink:
        for row in rows:
            sink.write(row)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        read = list(csv.DictReader(file))
    for row, fields in zip(rows, read, strict=True):
        # A name that a spreadsheet would read as a formula has an additional apostrophe.
        assert fields["source"] in (row.source, f"'{row.source}")
        assert _from_field(fields["source"]) == row.source
        assert fields["source"].lstrip()[:1] not in {*"=+-@"}
    for row, fields in zip(rows, read, strict=True):
        assert fields["label"] == (row.label or "")
        assert fields["error_code"] == (row.error.code if row.error else "")
        assert fields["face_width"] == (str(row.face[2]) if row.face else "")


FORMULAS = (
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1.jpg",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u00a0=1",
    "\uff1d1",
    "'=1",
    "''-1",
    "a;=1",
    "a\t=1",
    "'a",
    "'",
    '"=1',
)


@pytest.mark.parametrize("name", FORMULAS)
def test_csv_has_no_formulas(tmp_path: Path, name: str) -> None:
    rows = [Result(name, label="unsure", score=0.5), Result.failed(name, InputError("empty", name))]
    path = tmp_path / "rows.csv"
    with suppress(KeyboardInterrupt), open_file_sink(path, ORIGIN) as sink:
        for row in rows:
            sink.write(row)
        raise KeyboardInterrupt
    text = (tmp_path / "rows.csv.partial").read_bytes().decode()
    fields = [field for row in csv.reader(io.StringIO(text, newline="")) for field in row]
    # A spreadsheet may be set to another delimiter.
    for delimiter in ";\t|":
        line = io.StringIO(to_line(rows[0]), newline="")
        fields += [row[0].split(",")[0] for row in csv.reader(line, delimiter=delimiter)]
    assert not any(field.lstrip()[:1] in {*"=+-@\uff1d"} for field in fields if field.strip())
    assert not any(field[0] in "\t\r\n" for field in fields if field)
    with open_file_sink(path, ORIGIN, resume=True) as sink:
        assert list(sink.earlier()) == rows


@given(st.text(st.sampled_from([*"'=+-@\t\r\n a,;\"\uff1d"]), min_size=1))
def test_csv_names_can_be_read_back(name: str) -> None:
    line = to_line(Result(name, label="unsure", score=0.5))
    (fields,) = csv.reader(io.StringIO(line, newline=""))
    assert _from_field(fields[0]) == name


@given(names)
def test_names_have_no_control_characters_on_a_terminal(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()


def test_printable_name_is_unchanged() -> None:
    assert printable("Zoë Müller 4.jpg 写真") == "Zoë Müller 4.jpg 写真"


def test_table_escapes_names() -> None:
    stream = io.StringIO()
    with Table(Console(file=stream, width=200)) as table:
        table.write(Result("[bold]x[/]\x1b[2J\n.jpg", label="generated", score=0.98765))
        table.write(Result.failed("a\udcff.jpg", InputError("empty", "the file is empty")))
    header, good, bad = stream.getvalue().splitlines()
    assert header.split() == ["verdict", "score", "source"]
    assert good == "generated    0.988   [bold]x[/]\\x1b[2J\\n.jpg"
    assert bad == "error                a\\xff.jpg  empty: the file is empty"


def test_file_is_renamed_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("older\n")
    row = Result("a.jpg", label="unsure", score=0.5)
    with pytest.raises(KeyError), open_file_sink(path) as sink:
        sink.write(row)
        assert json.loads((tmp_path / "rows.jsonl.partial").read_text()) == row.to_dict()
        raise KeyError
    assert path.read_text() == "older\n"
    with open_file_sink(path, resume=True) as sink:
        assert list(sink.earlier()) == [row]
        sink.write(row)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row.to_dict()] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@settings(deadline=None)
@given(rows=st.lists(results, min_size=1, max_size=6), data=st.data())
def test_interrupted_file_can_be_resumed_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[Result], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"rows.{ending}"
    partial = path.with_name(path.name + ".partial")
    with suppress(KeyboardInterrupt), open_file_sink(path, ORIGIN) as sink:
        for row in rows:
            sink.write(row)
        raise KeyboardInterrupt
    content = partial.read_bytes()
    partial.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    rounded = [Result.from_dict(row.to_dict()) for row in rows]
    with open_file_sink(path, ORIGIN, resume=True) as sink:
        earlier = list(sink.earlier())
        assert earlier == rounded[: len(earlier)]
        for row in rows[len(earlier) :]:
            sink.write(row)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        path.name,
        f"{path.name}.origin.json",
    ]
    if ending == "parquet":
        text = pyarrow.parquet.read_table(path).to_pylist()
        for row, expected in zip(text, rows, strict=True):
            assert row["source"] == expected.source.encode("utf-8", "backslashreplace").decode()
            assert row["label"] == expected.label
            assert row["face"] == (list(expected.face) if expected.face else None)
    else:
        assert path.read_bytes() == content


def test_only_the_same_run_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"

    def begin(origin: RunProvenance | None, resume: bool = True) -> None:
        with open_file_sink(path, origin, resume) as sink:
            sink.write(Result("a.jpg", label="unsure", score=0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin(ORIGIN)
    with pytest.raises(OutputError, match="continue it with --resume"):
        begin(ORIGIN, resume=False)
    for change, words in (
        ({"model_sha256": "2" * 64}, "by the model tiny .fp32., not by "),
        ({"preprocess": {"size": 300}}, "with other preprocessing"),
        ({"sources_sha256": "2" * 64}, "from other SOURCEs or in another folder"),
    ):
        with pytest.raises(OutputError, match=words):
            begin(dataclasses.replace(ORIGIN, **change))
    (tmp_path / "rows.csv.partial.origin.json").write_text("{")
    with pytest.raises(OutputError, match="does not describe the run"):
        begin(ORIGIN)
    assert len((tmp_path / "rows.csv.partial").read_text().splitlines()) == 2


def test_provenance_of_an_older_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open_file_sink(path, ORIGIN) as sink:
        sink.write(Result("a.jpg", label="unsure", score=0.5))
    with open_file_sink(path) as sink:
        sink.write(Result("b.jpg", label="unsure", score=0.5))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with (
        open_file_sink(tmp_path / "rows.jsonl") as sink,
        pytest.raises(OutputError, match="another run is writing"),
    ):
        open_file_sink(tmp_path / "rows.jsonl", resume=True)
    assert sink.path.exists()


def test_removed_or_replaced_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(OutputError, match="removed or replaced"), open_file_sink(path) as sink:
        sink.partial.unlink()
        # Another run has started to write it.
        sink.partial.write_text("half")
    assert not path.exists()
    assert sink.partial.read_text() == "half"


def test_failed_run_without_rows_leaves_no_file(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        with pytest.raises(KeyError), open_file_sink(tmp_path / name, ORIGIN):
            raise KeyError
    assert not list(tmp_path.iterdir())


def test_long_name_can_be_read_back(tmp_path: Path) -> None:
    row = Result("data:" + "x" * 200_000, label="unsure", score=0.5)
    with suppress(KeyboardInterrupt), open_file_sink(tmp_path / "rows.csv", ORIGIN) as sink:
        sink.write(row)
        raise KeyboardInterrupt
    with open_file_sink(tmp_path / "rows.csv", ORIGIN, resume=True) as sink:
        assert list(sink.earlier()) == [row]


def test_invalid_row_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.partial").write_text('{"source": "a.jpg"}\n')
    with (
        pytest.raises(OutputError, match="contains an invalid row"),
        open_file_sink(tmp_path / "rows.jsonl", resume=True) as sink,
    ):
        list(sink.earlier())


def test_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end with .jsonl or .csv or .parquet"):
        open_file_sink(tmp_path / "rows.txt")
    with pytest.raises(OutputError, match="the folder .*absent does not exist: create it"):
        open_file_sink(tmp_path / "absent" / "rows.csv")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a folder"):
        open_file_sink(tmp_path / "file" / "rows.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(OutputError, match="the links form a loop"):
        open_file_sink(tmp_path / "loop.csv")
    (tmp_path / "rows.csv.partial").symlink_to("/dev/null")
    with pytest.raises(OutputError, match="not a regular file"):
        open_file_sink(tmp_path / "rows.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_on_standard_output_is_an_error() -> None:
    full = open("/dev/full", "w")
    with pytest.raises(OutputError, match="standard output"):
        JsonLines(full).write(Result("a.jpg", label="unsure", score=0.5))
    with suppress(OSError):
        full.close()


DUMMY = """
from ffd_runtime.outputs import FILE_SINKS
from ffd_runtime.outputs.partial_file import PartialFile

FILE_SINKS[".names"] = (__name__, "NamesFile")


class NamesFile(PartialFile):
    header = "names"

    @staticmethod
    def to_line(result):
        return f"\\n{result.source}"

    def _whole_rows(self, file):
        return len(file.read())

    def _read(self, lines):
        return iter(())
"""


def test_new_file_format_needs_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dummy_sink.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ffd_runtime.outputs.FILE_SINKS", dict(FILE_SINKS))
    import_module("dummy_sink")
    with pytest.raises(OutputError, match=r"must end with .jsonl or .csv or .parquet or .names$"):
        check_file_sink(tmp_path / "rows.txt")
    with open_file_sink(tmp_path / "rows.names") as file:
        file.write(Result("a.png"))
    assert (tmp_path / "rows.names").read_text() == "names\na.png"
    os.mkfifo(pipe := tmp_path / "pipe.names")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_pipe_sink(pipe) as sink:
        sink.write(Result("b.png"))
    assert os.read(reader, 100) == b"names\nb.png"
    os.close(reader)


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("", ""),
        ('{"source": "a"}\n', '{"source": "a"}\n'),
        # A power failure cut the last row.
        ('{"source": "a"}\n{"source": "b", "fr', '{"source": "a"}\n'),
        ('{"sou', ""),
        # Only the line end is missing, or it is not a row.
        ('{"source": "a"}', '{"source": "a"}\n'),
        ("notes", "notes\n"),
        ("x" * 2 * MAX_ROW_BYTES, "x" * 2 * MAX_ROW_BYTES + "\n"),
    ],
)
def test_rows_are_appended_after_the_last_whole_row(tmp_path: Path, before: str, kept: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(before)
    row = Result("c", label="unsure", score=0.5)
    for _ in range(2):
        with AppendedJsonLines(path) as sink:
            sink.write(row)
    assert path.read_text() == kept + 2 * jsonlines.to_line(row)


def test_a_full_disk_leaves_no_torn_row(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.jsonl", Result("c", label="unsure", score=0.5)
    size = len(jsonlines.to_line(row))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with AppendedJsonLines(path) as sink:
        sink.write(row)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, before[1]))
        try:
            with pytest.raises(OutputError, match="cannot write to .*: File too large"):
                sink.write(row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, usual)
        assert path.read_text() == jsonlines.to_line(row)
        sink.write(row)
    assert path.read_text() == 2 * jsonlines.to_line(row)

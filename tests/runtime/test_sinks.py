from __future__ import annotations

import csv
import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ffd_runtime.errors import InputError, OutputError
from ffd_runtime.results import Result
from ffd_runtime.sinks import JsonLines, open_file_sink
from ffd_runtime.sinks.table import Table
from ffd_runtime.text import printable

# What os.fsdecode can give: any text, undecodable bytes as surrogates.
names = st.binary(min_size=1).map(os.fsdecode)
results = st.one_of(
    st.builds(
        Result,
        source=names,
        frame=st.none() | st.integers(0, 10**9),
        face=st.none() | st.tuples(*[st.integers(0, 9999)] * 4),
        label=st.sampled_from(["generated", "groundtruth", "unsure"]),
        score=st.floats(0, 1),
    ),
    st.builds(
        lambda source, code, message: Result.failed(source, InputError(code, message)),
        names,
        st.sampled_from(InputError.CODES),
        st.text(),
    ),
)


@given(st.lists(results))
def test_json_lines_round_trip_and_are_safe_to_print(rows: list[Result]) -> None:
    stream = io.StringIO()
    with JsonLines(stream) as sink:
        for row in rows:
            sink.write(row)
    text = stream.getvalue()
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert [json.loads(line) for line in text.splitlines()] == [row.to_row() for row in rows]


@given(st.lists(results))
def test_csv_keeps_every_name(tmp_path_factory: pytest.TempPathFactory, rows: list[Result]) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with open_file_sink(path) as sink:
        for row in rows:
            sink.write(row)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        read = list(csv.DictReader(file))
    assert [row["source"] for row in read] == [row.source for row in rows]
    for row, fields in zip(rows, read, strict=True):
        assert fields["label"] == (row.label or "")
        assert fields["error_code"] == (row.error.code if row.error else "")
        assert fields["face_width"] == (str(row.face[2]) if row.face else "")


@given(names)
def test_no_name_can_steer_a_terminal(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()


def test_a_printable_name_is_left_alone() -> None:
    assert printable("Zoë Müller 4.jpg 写真") == "Zoë Müller 4.jpg 写真"


def test_the_table_shows_names_safely() -> None:
    stream = io.StringIO()
    with Table(Console(file=stream, width=200)) as table:
        table.write(Result("[bold]x[/]\x1b[2J\n.jpg", label="generated", score=0.98765))
        table.write(Result.failed("a\udcff.jpg", InputError("empty", "the file is empty")))
    header, good, bad = stream.getvalue().splitlines()
    assert header.split() == ["verdict", "score", "source"]
    assert good == "generated    0.988   [bold]x[/]\\x1b[2J\\n.jpg"
    assert bad == "error                a\\xff.jpg  empty: the file is empty"


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("older\n")
    row = Result("a.jpg", label="unsure", score=0.5)
    with pytest.raises(KeyError), open_file_sink(path) as sink:
        sink.write(row)
        assert json.loads((tmp_path / "rows.jsonl.partial").read_text()) == row.to_row()
        raise KeyError
    assert path.read_text() == "older\n"
    with open_file_sink(path) as sink:
        sink.write(row)
    assert json.loads(path.read_text()) == row.to_row()
    assert not (tmp_path / "rows.jsonl.partial").exists()


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end with .jsonl or .csv"):
        open_file_sink(tmp_path / "rows.txt")
    with pytest.raises(OutputError, match="No such file or directory"):
        open_file_sink(tmp_path / "absent" / "rows.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_not_a_lost_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv.partial").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match="No space left"),
        open_file_sink(tmp_path / "rows.csv") as sink,
    ):
        sink.write(Result("a.jpg", label="unsure", score=0.5))
    full = open("/dev/full", "w")
    with pytest.raises(OutputError, match="standard output"):
        JsonLines(full).write(Result("a.jpg", label="unsure", score=0.5))
    with suppress(OSError):
        full.close()

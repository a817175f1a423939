"""JSON Lines in ASCII, so that any name is safe on a terminal and can be read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, TextIO

from ..core.errors import OutputError, os_errors_as
from ..core.results import Result
from .partial_file import PartialFile

# A longer last line is not a row of ffd: it is kept.
MAX_ROW_BYTES = 1 << 16


def to_line(result: Result) -> str:
    """Return a row as one line; bytes that are not UTF-8 become escaped lone surrogates."""
    return json.dumps(result.to_dict(), allow_nan=False) + "\n"


class JsonLines:
    """Rows to an open stream, which stays open; messages contain its name."""

    def __init__(self, stream: TextIO, name: str = "standard output") -> None:
        self.stream = stream
        self.name = name

    def write(self, result: Result) -> None:
        """Write one row and flush it, for programs that read the rows immediately."""
        with os_errors_as(OutputError, f"cannot write to {self.name}"):
            self.stream.write(to_line(result))
            self.stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class AppendedJsonLines:
    """Appends rows to a file, for streams that do not end.

    A row that a full disk or a power failure cut is removed, as no reader could parse it.

    Args:
        path: created if absent. A program that rotates the file must truncate it or restart ffd.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors_as(OutputError, f"cannot write {path}"):
            # Without a buffer, which would write the rest of a cut row later.
            self._file = path.open("a+b", buffering=0)
            self._remove_torn_row()

    def write(self, result: Result) -> None:
        """Append one row."""
        data = to_line(result).encode("ascii")
        try:
            with os_errors_as(OutputError, f"cannot write to {self._path}"):
                while data:
                    data = data[self._file.write(data) :]
        except OutputError:
            with suppress(OSError):
                self._remove_torn_row()
            raise

    def _remove_torn_row(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, end - MAX_ROW_BYTES))
        tail = self._file.read()
        last = tail.rpartition(b"\n")[2]
        is_whole_line = len(last) < len(tail) or not start
        if is_whole_line and last.startswith(b"{") and not _is_json(last):
            self._file.truncate(end - len(last))
        elif last:
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class JsonLinesFile(PartialFile):
    """Rows to a `.jsonl` file."""

    to_line = staticmethod(to_line)

    def _whole_rows(self, file: IO[bytes]) -> int:
        return sum(len(line) for line in file if line.endswith(b"\n"))

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        for line in lines:
            yield Result.from_dict(json.loads(line))

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


class AppendedJsonLines(JsonLines):
    """Appends rows to a file, for streams that do not end.

    Args:
        path: created if absent. A program that rotates the file must truncate it or restart ffd.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            stream = path.open("a+", encoding="ascii")
            # A row that a power failure cut must not join the first new row.
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            if stream.read(1) not in ("", "\n"):
                stream.write("\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "the file is not text"
            raise OutputError(f"cannot write {path}: {reason}") from None
        super().__init__(stream, str(path))

    def __exit__(self, *_: object) -> None:
        # Each row was flushed when it was written.
        with suppress(OSError):
            self.stream.close()


class JsonLinesFile(PartialFile):
    """Rows to a `.jsonl` file."""

    to_line = staticmethod(to_line)

    def _whole_rows(self, file: IO[bytes]) -> int:
        return sum(len(line) for line in file if line.endswith(b"\n"))

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        for line in lines:
            yield Result.from_dict(json.loads(line))

"""JSON Lines: a row a line, ASCII only, so that any name is safe on a terminal and round-trips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO, Self, TextIO

from ..errors import OutputError
from ..results import Result
from .partial import PartialFile

CHUNK = 1 << 20


def to_line(result: Result) -> str:
    """A row as one line; undecodable bytes of a name become lone surrogate escapes."""
    return json.dumps(result.to_row(), allow_nan=False) + "\n"


class JsonLines:
    """Rows to an open stream, such as stdout.

    Args:
        stream: not closed here.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, result: Result) -> None:
        """Write one row and flush it, for a program that reads along."""
        try:
            self.stream.write(to_line(result))
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class JsonLinesFile(PartialFile):
    """Rows to a `.jsonl` file."""

    def _write(self, result: Result) -> None:
        self.file.write(to_line(result))

    def _whole_rows(self, file: IO[bytes]) -> int:
        end = 0
        offset = 0
        while chunk := file.read(CHUNK):
            last = chunk.rfind(b"\n")
            if last >= 0:
                end = offset + last + 1
            offset += len(chunk)
        return end

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        for line in lines:
            yield Result.from_row(json.loads(line))

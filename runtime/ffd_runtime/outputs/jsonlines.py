"""JSON Lines: a row a line, ASCII only, so that any name is safe on a terminal and round-trips."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from ..core.errors import OutputError
from ..core.results import Result


def to_line(result: Result) -> str:
    """A row as one line; undecodable bytes of a name become lone surrogate escapes."""
    return json.dumps(result.to_row(), allow_nan=False) + "\n"


class JsonLines:
    """Rows to an open stream, such as stdout.

    Args:
        stream: not closed here.
        name: what messages call it.
    """

    def __init__(self, stream: TextIO, name: str = "standard output") -> None:
        self.stream = stream
        self.name = name

    def write(self, result: Result) -> None:
        """Write one row and flush it, for a program that reads along."""
        try:
            self.stream.write(to_line(result))
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {self.name}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class AppendedJsonLines(JsonLines):
    """Rows to the end of a file that grows, for what has no end of its own.

    Args:
        path: made if it is absent. A program that rotates it must truncate it or restart us.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            stream = path.open("a+", encoding="ascii")
            # What was being written when the machine went down must not spoil the first row.
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            if stream.read(1) not in ("", "\n"):
                stream.write("\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise OutputError(f"cannot write {path}: {reason}") from None
        super().__init__(stream, str(path))

    def __exit__(self, *_: object) -> None:
        # Each row was handed over when it was written.
        with suppress(OSError):
            self.stream.close()

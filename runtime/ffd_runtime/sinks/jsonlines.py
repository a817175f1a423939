"""JSON Lines: a row a line, ASCII only, so that any name is safe on a terminal and round-trips."""

from __future__ import annotations

import json
from typing import Self, TextIO

from ..errors import OutputError
from ..results import Result


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

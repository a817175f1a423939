"""A file that appears whole: rows go to NAME.partial, which takes its name at the end."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import OutputError
from ..results import Result


class PartialFile:
    """Base of the sinks that write files.

    A run that fails leaves its rows in NAME.partial; NAME itself is only ever whole.

    Args:
        path: the file to write.
        errors: how text that is not valid UTF-8 is written; see `open`.
    """

    def __init__(self, path: Path, errors: str = "strict") -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        try:
            self.file = open(self.partial, "w", encoding="utf-8", errors=errors, newline="")
        except OSError as error:
            raise OutputError(f"cannot write {self.partial}: {error.strerror}") from None

    def write(self, result: Result) -> None:
        """Write one row and hand it to the operating system at once."""
        try:
            self._write(result)
            self.file.flush()
        except OSError as error:
            raise OutputError(self._failure(error)) from None

    def _write(self, result: Result) -> None:
        raise TypeError("a sink must define _write")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.replace(self.partial, self.path)
        except OSError as failure:
            if kind is None:
                raise OutputError(self._failure(failure)) from None

    def _failure(self, error: OSError) -> str:
        return f"cannot write {self.path}: {error.strerror}; rows so far are in {self.partial}"

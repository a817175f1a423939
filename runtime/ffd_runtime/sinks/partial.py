"""A file that appears whole: rows go to NAME.partial, which takes its name at the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ..errors import OutputError
from ..results import Result
from .origin import Origin


def own_files(path: Path) -> list[Path]:
    """The files that writing `path` makes, whose pictures must not be looked for."""
    endings = ("", ".partial", ".partial.json", ".partial.json.draft", ".partial.draft")
    return [path.with_name(path.name + ending) for ending in endings]


class PartialFile:
    """Base of the sinks that write files.

    A run that fails leaves its rows in NAME.partial; NAME itself is only ever whole. What they were
    made by is in NAME.partial.json, so that a later run can continue them.

    Args:
        path: the file to write.
        origin: what makes the rows; None for a file that nobody will continue.
        resume: keep the rows of an interrupted run; `earlier` gives them.
        errors: how text that is not valid UTF-8 is written; see `open`.

    Raises:
        OutputError: it cannot be written, another run is writing it, there are rows of an
            interrupted run and `resume` is not set, or they are of another origin.
    """

    def __init__(
        self,
        path: Path,
        origin: Origin | None = None,
        resume: bool = False,
        errors: str = "strict",
    ) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._record = path.with_name(path.name + ".partial.json")
        self._errors = errors
        if self.partial.exists() and not self.partial.is_file():
            raise OutputError(f"{self.partial} is not a regular file: give another --output")
        try:
            self.file = open(self.partial, "a", encoding="utf-8", errors=errors, newline="")
        except OSError as error:
            raise OutputError(f"cannot write {self.partial}: {error.strerror}") from None
        try:
            self._begin(origin, resume)
        except OSError as error:
            self.file.close()
            raise OutputError(f"cannot write {self.partial}: {error.strerror}") from None
        except BaseException:
            self.file.close()
            raise

    def _begin(self, origin: Origin | None, resume: bool) -> None:
        _lock(self.file, self.partial)
        with self.partial.open("rb") as file:
            self._whole = self._whole_rows(file)
        begun = self._whole > len(self._header())
        if begun and not resume:
            raise OutputError(
                f"{self.partial} holds the rows of an interrupted run: "
                "continue it with --resume, or delete it to begin again"
            )
        if begun and origin:
            origin.require_same(self._record)
        elif origin:
            origin.save(self._record)
        # What follows the last whole row was being written when the run ended.
        self.file.truncate(self._whole if begun else 0)
        if not begun:
            self.file.write(self._header())
            self.file.flush()
            self._whole = len(self._header())

    def earlier(self) -> Iterator[Result]:
        """The rows of the interrupted run that this one continues.

        Raises:
            OutputError: one of them cannot be read.
        """
        with self.partial.open("rb") as file:
            try:
                yield from self._read(_Lines(file, self._whole, self._errors))
            except (ValueError, KeyError, TypeError):
                raise OutputError(
                    f"{self.partial} holds what is no row: delete it to begin again"
                ) from None

    def write(self, result: Result) -> None:
        """Write one row and hand it to the operating system at once."""
        try:
            self._write(result)
            self.file.flush()
        except OSError as error:
            raise OutputError(self._failure(error)) from None

    def _header(self) -> str:
        """What stands before the first row; ASCII."""
        return ""

    def _whole_rows(self, file: IO[bytes]) -> int:
        """Bytes up to the end of the last whole row."""
        raise NotImplementedError

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        """Rows from the file's lines, header included."""
        raise NotImplementedError

    def _write(self, result: Result) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Give the file its name."""
        os.replace(self.partial, self.path)

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
                self._finish()
                self._record.unlink(missing_ok=True)
        except OSError as failure:
            if kind is None:
                raise OutputError(self._failure(failure)) from None

    def _failure(self, error: OSError) -> str:
        reason = error.strerror or error
        return f"cannot write {self.path}: {reason}; rows so far are in {self.partial}"


class _Lines:
    """Lines of a file's first bytes, line ends kept."""

    def __init__(self, file: IO[bytes], size: int, errors: str) -> None:
        self._file = file
        self._size = size
        self._errors = errors

    def __iter__(self) -> Iterator[str]:
        left = self._size
        while left > 0 and (line := self._file.readline(left)):
            left -= len(line)
            yield line.decode("utf-8", self._errors)


def _lock(file: IO[str], path: Path) -> None:
    """Hold the file until it is closed, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks; a run there is not refused for it.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputError(f"another run is writing {path}: give another --output") from None

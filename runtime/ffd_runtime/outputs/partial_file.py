"""A file of rows that is written as NAME.partial, and renamed when it is complete."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar, Self

from ..core.errors import OutputError, os_errors_as
from ..core.file_lock import lock_file
from ..core.results import Result
from .provenance import RunProvenance
from .target import follow_links


def files_of_sink(path: Path) -> list[Path]:
    """Return all files that a sink for `path` may create; they must not be inputs."""
    partial = ("", ".draft", ".origin.json", ".origin.json.draft")
    endings = ("", ".origin.json", *(f".partial{ending}" for ending in partial))
    return [path.with_name(path.name + ending) for ending in endings]


def provenance_path(path: Path) -> Path:
    """Return the path of the provenance of a file of rows."""
    return path.with_name(path.name + ".origin.json")


class PartialFile(ABC):
    """Base class of the sinks that write files.

    A failed run leaves its rows in NAME.partial, and its provenance in NAME.partial.origin.json, so
    that a later run can resume it. A complete run renames them to NAME and NAME.origin.json.

    Attributes:
        header: text before the first row, in ASCII.
        pipes: whether the format can be written to a pipe, as `header` and lines.

    Args:
        path: the file to write; a link is followed.
        origin: provenance of the rows; None for a file that cannot be resumed.
        resume: keep the rows of an interrupted run; `earlier` yields them.

    Raises:
        OutputError: the file cannot be written, another run writes it, or it has rows of an
            interrupted run and `resume` is not set or the provenance differs.
    """

    header: ClassVar[str] = ""
    pipes: ClassVar[bool] = True
    _errors: ClassVar[str] = "strict"

    def __init__(
        self, path: Path, origin: RunProvenance | None = None, resume: bool = False
    ) -> None:
        self.path = path = follow_links(path)
        self.partial = path.with_name(path.name + ".partial")
        self._record = provenance_path(self.partial)
        if self.partial.exists() and not self.partial.is_file():
            raise OutputError(f"{self.partial} is not a regular file: give another --output")
        with os_errors_as(OutputError, f"cannot write {self.partial}"):
            self.file = open(self.partial, "a", encoding="utf-8", errors=self._errors, newline="")
            self._lock: int | None = None
            try:
                self._begin(origin, resume)
                self._copy_mode(self.partial)
            except BaseException:
                self._close()
                raise

    def _begin(self, origin: RunProvenance | None, resume: bool) -> None:
        refusal = f"another run is writing {self.partial}: give another --output"
        if lock_file(self.file.fileno(), refusal):
            # A duplicate descriptor shares the lock, and keeps it after the file is closed.
            self._lock = os.dup(self.file.fileno())
        with self.partial.open("rb") as file:
            self._whole = self._whole_rows(file)
        begun = self._whole > len(self.header)
        if begun and not resume:
            way = "continue it with --resume, or delete" if origin else "delete"
            raise OutputError(
                f"{self.partial} holds the rows of an interrupted run: {way} it to begin again"
            )
        if begun and origin:
            origin.require_same_file(self._record, self.partial)
        elif origin:
            # A run that was to overwrite NAME may have been killed before its first row.
            if resume and self.path.is_file() and self.path.stat().st_size:
                origin.require_same_file(provenance_path(self.path), self.path)
            origin.save(self._record)
        self._recorded = origin is not None
        # Remove the row that was incomplete when the run ended.
        self.file.truncate(self._whole if begun else 0)
        if not begun:
            self.file.write(self.header)
            self.file.flush()
            self._whole = len(self.header)

    def earlier(self) -> Iterator[Result]:
        """Yield the rows of the interrupted run that this run resumes.

        Raises:
            OutputError: a row is invalid.
        """
        with self.partial.open("rb") as file:
            try:
                yield from self._read(_read_lines(file, self._whole, self._errors))
            except (ValueError, KeyError, TypeError):
                raise OutputError(
                    f"{self.partial} contains an invalid row: delete it to begin again"
                ) from None

    def write(self, result: Result) -> None:
        """Write one row and flush it to the operating system."""
        try:
            self.file.write(self.to_line(result))
            self.file.flush()
        except OSError as error:
            raise OutputError(self._failure(error)) from None

    @staticmethod
    @abstractmethod
    def to_line(result: Result) -> str:
        """Return the text of one row, its line end included."""

    @abstractmethod
    def _whole_rows(self, file: IO[bytes]) -> int:
        """Return the size of the complete rows, in bytes."""

    @abstractmethod
    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        """Yield rows from the lines of the file, header included."""

    def _copy_mode(self, path: Path) -> None:
        """Give a file the permissions of the one that it replaces, which may be private."""
        # Absent, or on a file system without permissions.
        with suppress(OSError):
            path.chmod(stat.S_IMODE(self.path.stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR)

    def _finish(self) -> None:
        """Rename the file to its final name."""
        os.replace(self.partial, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.flush()
            empty = os.fstat(self.file.fileno()).st_size <= len(self.header)
            if kind is None:
                os.fsync(self.file.fileno())
                self._require_there()
            self.file.close()
            if kind is None:
                # A kill between these steps must not leave the rows with another run's record.
                provenance_path(self.path).unlink(missing_ok=True)
                self._finish()
                if self._recorded:
                    os.replace(self._record, provenance_path(self.path))
            elif empty:
                # No rows to resume, so leave no files.
                self.partial.unlink(missing_ok=True)
                self._record.unlink(missing_ok=True)
        except OSError as failure:
            if kind is None:
                raise OutputError(self._failure(failure)) from None
        finally:
            self._close()

    def _require_there(self) -> None:
        """Check that NAME.partial is still the file that was written."""
        try:
            same = os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.partial))
        except OSError:
            same = False
        if not same:
            raise OutputError(
                f"{self.partial} was removed or replaced while rows were written to it: run again"
            )

    def _close(self) -> None:
        """Close the file, then release its lock."""
        with suppress(OSError):
            self.file.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _failure(self, error: OSError) -> str:
        reason = error.strerror or error
        return f"cannot write {self.path}: {reason}; rows so far are in {self.partial}"


def completed_record(path: Path) -> Path:
    """Return the record of a complete file, renamed if a kill prevented that."""
    record = provenance_path(path)
    unfinished = provenance_path(path.with_name(path.name + ".partial"))
    if unfinished.exists() and not record.exists():
        os.replace(unfinished, record)
    return record


def _read_lines(file: IO[bytes], size: int, errors: str) -> Iterator[str]:
    """Yield the lines in the first bytes of a file, with their line ends."""
    while size > 0 and (line := file.readline(size)):
        size -= len(line)
        yield line.decode("utf-8", errors)

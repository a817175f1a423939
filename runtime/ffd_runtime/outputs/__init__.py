"""Sinks: where result rows go; a new one is one file here and one line in `FILE_SINKS`."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ..core.errors import OutputError
from ..core.results import Result
from .jsonlines import JsonLines, to_line
from .target import follow_links, is_pipe, require_folder

if TYPE_CHECKING:
    from .partial_file import PartialFile
    from .provenance import Origin


class Sink(Protocol):
    """Takes rows; a context manager."""

    def write(self, result: Result) -> None:
        """Write one row.

        Raises:
            OutputError: it cannot be written.
        """

    def __enter__(self) -> Sink: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


# By the end of a file's name: module and class, imported when such a file is written.
FILE_SINKS = {
    ".jsonl": ("jsonlines_file", "JsonLinesFile"),
    ".csv": ("csv_file", "CsvFile"),
    ".parquet": ("parquet_file", "ParquetFile"),
}


def check_file_sink(path: Path) -> None:
    """Refuse early what could only fail after a night's work.

    Raises:
        OutputError: no sink writes such a file, a folder has its name, or its folder is missing.
    """
    if "://" in str(path) or re.match("[a-z][a-z0-9+.-]+:/[^/]", str(path), re.IGNORECASE):
        raise OutputError("--output takes a file of this machine, not an address")
    if path.is_dir():
        raise OutputError(f"--output {path} is a folder: name a file")
    suffix = path.suffix.lower()
    if is_pipe(path):
        if suffix == ".parquet":
            raise OutputError(f"--output {path}: Parquet cannot be written to a pipe, .csv can")
        return
    if suffix not in FILE_SINKS:
        endings = " or ".join(FILE_SINKS)
        raise OutputError(f"--output {path}: the name must end with {endings}")
    require_folder("--output", path)


def require_new(path: Path) -> None:
    """Refuse to replace rows that exist already; an empty file holds none.

    Raises:
        OutputError: there are some.
    """
    if not is_pipe(path) and path.is_file() and path.stat().st_size:
        raise OutputError(
            f"--output {path} exists: replace it with --overwrite, continue its run with --resume, "
            "or name another file"
        )


def open_pipe_sink(path: Path) -> Sink:
    """The sink for a pipe or a device: CSV if its name ends so, else JSON Lines.

    Raises:
        OutputError: it cannot be opened.
    """
    from .pipe import Pipe

    if path.suffix.lower() == ".csv":
        from . import csv_file as csv

        return Pipe(path, csv.to_line, csv.to_header())
    return Pipe(path, to_line)


def open_file_sink(path: Path, origin: Origin | None = None, resume: bool = False) -> PartialFile:
    """The sink for a file, by the end of its name.

    Args:
        path: the file to write; a symbolic link stays, and the file that it leads to is written.
        origin: what makes the rows.
        resume: continue the rows of an interrupted run, if there are any.

    Raises:
        OutputError: as `check_file_sink` and `PartialFile`.
    """
    check_file_sink(path)
    module, name = FILE_SINKS[path.suffix.lower()]
    sink: PartialFile = getattr(import_module(f".{module}", __name__), name)(path, origin, resume)
    return sink


__all__ = [
    "FILE_SINKS",
    "JsonLines",
    "Sink",
    "check_file_sink",
    "follow_links",
    "is_pipe",
    "open_file_sink",
    "open_pipe_sink",
    "require_folder",
    "require_new",
]

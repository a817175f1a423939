"""Sinks for result rows.

To add a file format, write a module with a subclass of `PartialFile`, and add it to `FILE_SINKS`.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..core.errors import OutputError
from ..core.results import Result
from .jsonlines import JsonLinesFile
from .target import Pipe, is_pipe, require_file_name, require_folder

if TYPE_CHECKING:
    from .partial_file import PartialFile
    from .provenance import RunProvenance


class RowWriter(Protocol):
    """An object that receives rows."""

    def write(self, result: Result) -> None:
        """Write one row.

        Raises:
            OutputError: the row cannot be written.
        """


class Sink(RowWriter, AbstractContextManager["Sink", None], Protocol):
    """A context manager that receives rows."""


# Module and class of the sink for each suffix. The module is imported when such a file is written.
FILE_SINKS = {
    ".jsonl": ("ffd_runtime.outputs.jsonlines", "JsonLinesFile"),
    ".csv": ("ffd_runtime.outputs.csv_file", "CsvFile"),
    ".parquet": ("ffd_runtime.outputs.parquet_file", "ParquetFile"),
}


def find_file_sink(path: Path) -> type[PartialFile] | None:
    """Return the class of the sink for a file name; None if no sink has its suffix."""
    suffix = path.suffix.lower()
    if suffix not in FILE_SINKS:
        return None
    module, name = FILE_SINKS[suffix]
    sink: type[PartialFile] = getattr(import_module(module), name)
    return sink


def check_file_sink(path: Path) -> None:
    """Check a path before the run, which could otherwise fail at its end.

    Raises:
        OutputError: no sink has its suffix, it is a folder, or its folder is absent.
    """
    if "://" in str(path) or re.match("[a-z][a-z0-9+.-]+:/[^/]", str(path), re.IGNORECASE):
        raise OutputError("--output needs a local file, not an address")
    sink = find_file_sink(path)
    if not is_pipe(path):
        require_file_name("--output", path, FILE_SINKS)
        require_folder("--output", path)
    elif sink and not sink.pipes:
        raise OutputError(
            f"--output {path}: a {path.suffix} file cannot be written to a pipe: use .csv or .jsonl"
        )


def require_new(path: Path, resumable: bool) -> None:
    """Raise an OutputError if a file has rows that would be overwritten."""
    if not is_pipe(path) and path.is_file() and path.stat().st_size:
        resume = "resume its run with --resume, " if resumable else ""
        raise OutputError(
            f"--output {path} exists: replace it with --overwrite, {resume}or name another file"
        )


def open_pipe_sink(path: Path) -> Sink:
    """Return the sink for a pipe or a device: by its suffix, or JSON Lines.

    Raises:
        OutputError: the pipe cannot be opened.
    """
    sink = find_file_sink(path) or JsonLinesFile
    return Pipe(path, sink.to_line, sink.header)


def open_file_sink(
    path: Path, origin: RunProvenance | None = None, resume: bool = False
) -> PartialFile:
    """Return the sink for a file, by its suffix; a symbolic link stays, its target is written.

    Args:
        path: the file to write.
        origin: provenance of the rows.
        resume: keep the rows of an interrupted run, if there are any.

    Raises:
        OutputError: see `check_file_sink` and `PartialFile`.
    """
    check_file_sink(path)
    sink = find_file_sink(path)
    assert sink
    return sink(path, origin, resume)

"""Sinks: where result rows go; a new one is one file here and one line in `FILE_SINKS`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..errors import OutputError
from ..results import Result
from .csv import CsvFile
from .jsonlines import JsonLines, JsonLinesFile
from .origin import Origin
from .parquet import ParquetFile
from .partial import own_files


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


FileSink = CsvFile | JsonLinesFile | ParquetFile

FILE_SINKS: dict[str, type[FileSink]] = {
    ".jsonl": JsonLinesFile,
    ".csv": CsvFile,
    ".parquet": ParquetFile,
}


def check_file_sink(path: Path) -> None:
    """Refuse early what could only fail after a night's work.

    Raises:
        OutputError: no sink writes such a file, or a folder has its name.
    """
    if path.suffix.lower() not in FILE_SINKS:
        endings = " or ".join(FILE_SINKS)
        raise OutputError(f"--output {path}: the name must end with {endings}")
    if path.is_dir():
        raise OutputError(f"--output {path} is a folder: name a file")


def open_file_sink(path: Path, origin: Origin | None = None, resume: bool = False) -> FileSink:
    """The sink for a file, by the end of its name.

    Args:
        path: the file to write.
        origin: what makes the rows.
        resume: continue the rows of an interrupted run, if there are any.

    Raises:
        OutputError: as `check_file_sink` and `PartialFile`.
    """
    check_file_sink(path)
    return FILE_SINKS[path.suffix.lower()](path, origin, resume)


__all__ = [
    "FILE_SINKS",
    "CsvFile",
    "FileSink",
    "JsonLines",
    "JsonLinesFile",
    "Origin",
    "ParquetFile",
    "Sink",
    "check_file_sink",
    "open_file_sink",
    "own_files",
]

"""Sinks: where result rows go; a new one is one file here and one line in `FILE_SINKS`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

from ..errors import OutputError
from ..results import Result
from .csv import CsvFile
from .jsonlines import JsonLines, JsonLinesFile


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


FILE_SINKS: dict[str, type[CsvFile] | type[JsonLinesFile]] = {
    ".jsonl": JsonLinesFile,
    ".csv": CsvFile,
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


def open_file_sink(path: Path) -> CsvFile | JsonLinesFile:
    """The sink for a file, by the end of its name.

    Raises:
        OutputError: as `check_file_sink`, or the file cannot be made.
    """
    check_file_sink(path)
    return FILE_SINKS[path.suffix.lower()](path)


__all__ = [
    "FILE_SINKS",
    "CsvFile",
    "JsonLines",
    "JsonLinesFile",
    "Sink",
    "check_file_sink",
    "open_file_sink",
]

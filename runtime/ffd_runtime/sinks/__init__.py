"""Sinks: where result rows go; a new one is one file here and one line in `FILE_SINKS`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from ..errors import OutputError
from ..results import Result
from .jsonlines import JsonLines

if TYPE_CHECKING:
    from .origin import Origin
    from .partial import PartialFile


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
    ".csv": ("csv", "CsvFile"),
    ".parquet": ("parquet", "ParquetFile"),
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


def open_file_sink(path: Path, origin: Origin | None = None, resume: bool = False) -> PartialFile:
    """The sink for a file, by the end of its name.

    Args:
        path: the file to write.
        origin: what makes the rows.
        resume: continue the rows of an interrupted run, if there are any.

    Raises:
        OutputError: as `check_file_sink` and `PartialFile`.
    """
    check_file_sink(path)
    module, name = FILE_SINKS[path.suffix.lower()]
    sink: PartialFile = getattr(import_module(f".{module}", __name__), name)(path, origin, resume)
    return sink


__all__ = ["FILE_SINKS", "JsonLines", "Sink", "check_file_sink", "open_file_sink"]

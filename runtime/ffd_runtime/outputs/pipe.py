"""Rows to a pipe or a device, without buffering."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ..core.errors import OutputError
from ..core.results import Result
from .target import descriptor_of, output_errors


class Pipe:
    """Writes rows to a FIFO, `/dev/stdout` or a character device.

    Opening a FIFO waits until a program opens its other end. `header` and `to_line` are those of
    `PartialFile`.

    Raises:
        OutputError: the pipe cannot be opened.
    """

    def __init__(self, path: Path, to_line: Callable[[Result], str], header: str = "") -> None:
        self._path = path
        self._to_line = to_line
        descriptor = descriptor_of(path)
        with output_errors(f"cannot write to {path}"):
            # A descriptor may be a socket, which cannot be opened by name.
            flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY
            self._file = os.open(path, flags) if descriptor is None else os.dup(descriptor)
        self._named = descriptor is None
        self._send(header)

    def write(self, result: Result) -> None:
        self._send(self._to_line(result))

    def _send(self, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        try:
            with output_errors(f"cannot write to {self._path}"):
                while data:
                    data = data[os.write(self._file, data) :]
        except BrokenPipeError:
            # The end of a reader of standard output is no error.
            if not self._named:
                raise
            raise OutputError(f"cannot write to {self._path}: its reader has closed it") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

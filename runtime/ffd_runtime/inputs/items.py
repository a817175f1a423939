"""One input: a file, an archive member or an address, or the reason why it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.errors import InputError
from ..image.decode import os_error, read_file
from .kinds import HEAD, holds_picture, is_called_picture
from .members import open_file


@dataclass(frozen=True)
class Item:
    """One input: something to read, or the reason why there is nothing.

    Attributes:
        source: what the row will call it; undecodable bytes as surrogates (PEP 383).
        error: set if it is already known that it cannot be read.
        fetch: gives the file's bytes, in a worker's thread, or raises `InputError`; None for a
            file of this machine, whose path is `source`.
        skip: is given the source, in a worker's thread, if the input turns out to be no picture:
            it then has no row. None for what a user named, which always has its row.
    """

    source: str
    error: InputError | None = None
    fetch: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    skip: Callable[[str], object] | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            InputError: it cannot be read.
        """
        if self.error:
            raise self.error
        if self.fetch:
            return self.fetch()
        if self.skip and not is_called_picture(self.source):
            _require_picture(self.source)
        return read_file(self.source)


def _require_picture(path: str) -> None:
    """Refuse a file by its first bytes, since a video may be large.

    Raises:
        InputError: it is not a picture, or cannot be read.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD)
    except OSError as error:
        raise os_error(error, path) from None
    if not holds_picture(head):
        raise InputError("not_an_image", "not a picture by its name and its first bytes")

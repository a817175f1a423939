"""One input: a file, an archive member or an address, or the reason why it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.errors import InputError
from ..image.decode import os_error, read_file
from .kinds import HEAD_BYTES, holds_picture, is_called_picture
from .members import open_file


@dataclass(frozen=True)
class Item:
    """One input, or the reason why it cannot be read.

    Attributes:
        source: of the row; undecodable bytes are surrogates (PEP 383).
        error: why the input cannot be read, if that is already known.
        fetch: returns the bytes or raises `InputError`, in a worker thread; None for a local file
            with the path `source`.
        skip: called with the source, in a worker thread, if the input is not an image; it then has
            no row. None for an input that the user named, which always has its row.
    """

    source: str
    error: InputError | None = None
    fetch: Callable[[], bytes] | None = field(default=None, compare=False, repr=False)
    skip: Callable[[str], object] | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """Read the bytes of the file.

        Raises:
            InputError: the file cannot be read.
        """
        if self.error:
            raise self.error
        if self.fetch:
            return self.fetch()
        if self.skip and not is_called_picture(self.source):
            _require_picture(self.source)
        return read_file(self.source)


def _require_picture(path: str) -> None:
    """Check the first bytes of a file before reading it: a video may be large.

    Raises:
        InputError: the file is not an image, or cannot be read.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise os_error(error, path) from None
    if not holds_picture(head):
        raise InputError("not_an_image", "not an image by its name and its first bytes")

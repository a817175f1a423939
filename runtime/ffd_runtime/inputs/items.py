"""One input: a file, an archive member or an address, or the reason why it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..core.errors import InputError
from ..image.decode import open_file, os_error, read_file
from .kinds import HEAD_BYTES, has_image_suffix, is_image


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
        try:
            if self.fetch:
                return self.fetch()
            if self.skip and not has_image_suffix(self.source):
                # Check the first bytes before reading the rest: a video may be large.
                with open_file(self.source) as file:
                    if not is_image(file.read(HEAD_BYTES)):
                        reason = "not an image by its name and its first bytes"
                        raise InputError("not_an_image", reason)
            return read_file(self.source)
        except OSError as error:
            raise os_error(error, self.source) from None

    def is_not_image(self, encoded: bytes | None, error: InputError) -> bool:
        """Return whether a failed input is not an image, by name and content.

        Args:
            encoded: its bytes; None if reading failed.
            error: why it failed.
        """
        if has_image_suffix(self.source):
            return False
        if encoded is None:
            # A file without permission, or with a read error, may be an image. A local file that
            # is too large is one: `read` checked its first bytes before.
            too_large = ["too_large"] if self.fetch else []
            return error.code in ("not_found", "not_a_file", "not_an_image", *too_large)
        return not is_image(encoded[:HEAD_BYTES])

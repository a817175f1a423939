"""Images in archives: zip, and tar without compression or with gzip, bzip2 or xz.

Nothing is written to disk, and no field of an archive is trusted: sizes are counted while reading,
and names are only shown. `zipfile` and `tarfile` do not suffice: they hold the whole directory in
memory, one damaged entry hides all others, and damage inside a tar looks like its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import BinaryIO

from ..core.errors import InputError
from ..image.decode import os_error
from .inflate import find_compression, inflate
from .items import Item
from .kinds import holds_picture
from .members import TAR_BLOCK_BYTES, open_file

Reader = Callable[[str, BinaryIO], Iterator[Item]]


def is_archive(path: str) -> bool:
    """Return whether a file is a supported archive, by its first bytes.

    An image is not an archive, whatever data follows it. False if the file cannot be opened.
    """
    try:
        with open_file(path) as file:
            return _kind(file) is not None
    except (OSError, ValueError, InputError):
        return False


def find_in_archive(path: str) -> Iterator[Item]:
    """Yield every member of an archive, except for folders, in the archive's order.

    The source of a member is `PATH!/MEMBER`. Members of a zip or an uncompressed tar are read in a
    worker thread; those of a compressed tar already hold their bytes. Links, devices, encrypted
    members and names that leave the archive are `refused`. An error of the archive itself becomes
    an item with the source `PATH`. Archives inside archives are not opened.

    Args:
        path: the archive.
    """
    try:
        with open_file(path) as file:
            read = _kind(file)
            if read is None:
                raise InputError("not_an_image", "not a zip or tar archive")
            yield from read(path, file)
    except OSError as error:
        yield Item(path, os_error(error, path))
    except ValueError:
        yield Item(path, InputError("not_found", "not a valid file name"))
    except InputError as error:
        yield Item(path, error)


def _kind(file: BinaryIO) -> Reader | None:
    """Return what yields the members of a file; None for a file that is not an archive."""
    head = file.read(TAR_BLOCK_BYTES)
    file.seek(0)
    if holds_picture(head):
        return None
    for recognise, module, function in _READERS:
        found = recognise(file, head)
        file.seek(0)
        if found:
            # Imported on demand: most files that a user names are pictures.
            reader: Reader = getattr(import_module(f".{module}", __package__), function)
            return reader
    return None


def _is_zip(_: BinaryIO, head: bytes) -> bool:
    return head.startswith((b"PK\3\4", b"PK\5\6"))


def _is_tar(file: BinaryIO, head: bytes) -> bool:
    start = find_compression(head)
    if start:
        try:
            # Only the first block: a checksum that is wrong further on does not matter here.
            head = next(inflate(file.read, start, TAR_BLOCK_BYTES), b"")
        except InputError:
            return False
    return head[257:262] == b"ustar"


# Kinds of archives, and the module and the function that yields their members.
_READERS: tuple[tuple[Callable[[BinaryIO, bytes], bool], str, str], ...] = (
    (_is_zip, "zips", "find_zipped"),
    (_is_tar, "tars", "find_tarred"),
)

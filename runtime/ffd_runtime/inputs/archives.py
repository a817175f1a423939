"""Pictures in archives: zip, and tar plain or compressed by gzip, bzip2 or xz.

Nothing is ever written to disk, and nothing that an archive says of itself is trusted: sizes are
counted while reading, and names are only shown. `zipfile` and `tarfile` are not enough for that:
they hold the whole directory in memory, one broken entry hides all others, and damage inside a tar
looks like its end.
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
    """Whether a file is an archive that can be read here, by its first bytes.

    A picture is none, whatever follows it. False for what cannot be opened.
    """
    try:
        with open_file(path) as file:
            return _kind(file) is not None
    except (OSError, ValueError, InputError):
        return False


def find_in_archive(path: str) -> Iterator[Item]:
    """Every member of an archive that is not a folder, in the archive's order.

    Members are called `PATH!/MEMBER`. Those of a zip or a plain tar are read when the item is, in
    a worker's thread; those of a compressed tar come with their bytes. Links, devices, encrypted
    members and names that lead out of the archive are `refused`; what is wrong with the archive
    itself becomes an item called `PATH`. Archives in archives are not opened.

    Args:
        path: the archive.
    """
    try:
        with open_file(path) as file:
            read = _kind(file)
            if read is None:
                raise InputError("not_an_image", "neither a zip nor a tar")
            yield from read(path, file)
    except OSError as error:
        yield Item(path, os_error(error, path))
    except ValueError:
        yield Item(path, InputError("not_found", "not a possible file name"))
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

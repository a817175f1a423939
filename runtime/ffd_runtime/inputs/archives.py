"""Pictures in archives: zip, and tar plain or compressed by gzip, bzip2 or xz.

Nothing is ever written to disk, and nothing that an archive says of itself is trusted: sizes are
counted while reading, and names are only shown. `zipfile` and `tarfile` are not enough for that:
they hold the whole directory in memory, one broken entry hides all others, and damage inside a tar
looks like its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from ..core.errors import InputError
from ..image.decode import os_error
from ..image.image_header import read_header
from .files import Item
from .inflate import find_compression, inflate
from .members import open_file

# Of a tar; its magic stands in the first.
BLOCK = 512


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


def _kind(file: BinaryIO) -> Callable[[str, BinaryIO], Iterator[Item]] | None:
    """What reads a file's members; None if it is no archive."""
    head = file.read(BLOCK)
    file.seek(0)
    if _is_picture(head):
        return None
    # Only what is needed is imported: most files that are named are pictures.
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        from .zips import find_zipped

        return find_zipped
    start = find_compression(head)
    if start:
        try:
            # No more than is asked for: a checksum that is wrong further on is not yet of interest.
            head = next(inflate(file.read, start, BLOCK), b"")
        except InputError:
            return None
        finally:
            file.seek(0)
    if head[257:262] != b"ustar":
        return None
    from .tars import find_tarred

    return find_tarred


def _is_picture(head: bytes) -> bool:
    try:
        read_header(head)
    except InputError as error:
        # Anything else is said of a known signature.
        return error.code not in ("not_an_image", "empty")
    return True

"""The registry of the kinds of sources besides files and folders, which imports none of them.

To add a kind, write its module and add its line here. The module provides a generator:

- for addresses, `find_inputs(address: str, policy: FetchPolicy) -> Iterator[Item]`, whose sources
  contain no credentials;
- for archives, `find_members(path: str, file: BinaryIO) -> Iterator[Item]`, whose sources start
  with `PATH!/`. `file` is open until the generator ends; items may be read later, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from ..core.errors import InputError
from .inflate import find_compression, inflate
from .members import TAR_BLOCK_BYTES

# Full names of the modules, by scheme.
ADDRESS_MODULES = {
    "http": f"{__package__}.urls",
    "https": f"{__package__}.urls",
}


def _is_tar(head: bytes, file: BinaryIO) -> bool:
    start = find_compression(head)
    if start:
        try:
            # Only the first block: a wrong checksum later in the file does not matter here.
            head = next(inflate(file.read, start, TAR_BLOCK_BYTES), b"")
        except InputError:
            return False
    # The volume label of GNU tar and the headers of old tars have only a checksum.
    return head[257:262] == b"ustar" or _is_tar_header(head)


def _is_tar_header(block: bytes) -> bool:
    import tarfile

    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


# By full name of the module: a function that recognises an archive by its first `TAR_BLOCK_BYTES`
# bytes and the file, positioned at its start.
ARCHIVE_MODULES: dict[str, Callable[[bytes, BinaryIO], bool]] = {
    f"{__package__}.zips": lambda head, _: head.startswith((b"PK\3\4", b"PK\5\6")),
    f"{__package__}.tars": _is_tar,
}

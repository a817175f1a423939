"""Limits and name checks for the members of all archives."""

from __future__ import annotations

import re
import stat

from ..core.errors import InputError

MAX_MEMBERS = 10_000_000
# A higher ratio of unpacked to packed size means a decompression bomb, above a minimum size.
MAX_RATIO = 200
# A tar consists of blocks of this size; the first holds its magic number.
TAR_BLOCK_BYTES = 512
# Size of a read.
CHUNK_BYTES = 1 << 16


def refuse_name(name: str, mode: int) -> InputError | None:
    """Return why a member must not be read; None if it may.

    Args:
        name: in the archive.
        mode: as in `stat`; 0 if unknown.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or re.match("[A-Za-z]:", name):
        return InputError("refused", "its name is a path outside the archive")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "a link" if stat.S_ISLNK(mode) else "a device or a pipe"
        return InputError("refused", f"{kind} instead of a file")
    return None


def too_many() -> InputError:
    """Return the error of an archive with more than `MAX_MEMBERS` members."""
    return InputError("too_large", f"more than {MAX_MEMBERS} members: the rest is not read")


def too_large(limit: int) -> InputError:
    """Return the error of a member with more than `limit` bytes."""
    return InputError("too_large", f"over the limit of {limit >> 20} MiB")

"""What holds for the members of any archive: limits, and names that are refused."""

from __future__ import annotations

import os
import re
import stat
from typing import BinaryIO

from ..core.errors import InputError

MAX_MEMBERS = 10_000_000
# What unpacks to more than this many times its size is a bomb, if it is more than a picture or two.
MAX_RATIO = 200
# A tar consists of blocks of this size; the first holds its magic number.
TAR_BLOCK_BYTES = 512
# Bytes that are read at once.
PIECE = 1 << 16


def open_file(path: str) -> BinaryIO:
    """Open a regular file.

    Raises:
        InputError: it is none.
        OSError, ValueError: as of `open`.
    """
    # Opening a pipe would wait for somebody to write into it.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError("not_a_file", "not a regular file")
    return open(path, "rb")


def refuse_name(name: str, mode: int) -> InputError | None:
    """Why a member must not be read, if so.

    Args:
        name: as the archive has it.
        mode: as in `stat`; 0 if the archive does not say.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or re.match("[A-Za-z]:", name):
        return InputError("refused", "its name leads out of the archive")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "a link" if stat.S_ISLNK(mode) else "a device or a pipe"
        return InputError("refused", f"not a file but {kind}")
    return None


def too_many() -> InputError:
    """Of an archive with more than `MAX_MEMBERS`."""
    return InputError("too_large", f"over {MAX_MEMBERS} members: the rest is not read")


def too_large(limit: int) -> InputError:
    """Of a member with more than `limit` bytes."""
    return InputError("too_large", f"over the limit of {limit >> 20} MiB")

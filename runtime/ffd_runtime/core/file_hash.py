"""SHA-256 digests of files, in hexadecimal digits."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(value: object) -> bool:
    """Return whether a value is a SHA-256 digest in lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None

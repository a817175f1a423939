"""Which files of a folder or an archive are pictures, by their names and by their content."""

from __future__ import annotations

import os
import threading
from collections import Counter

from ..core.errors import InputError
from ..core.text import counted, printable
from ..image.image_header import read_header

# Pictures to the person who named them, whether or not ffd decodes them: each has a row.
PICTURE_ENDINGS = frozenset(
    "jpg jpeg jpe jif jfif jfi mpo png apng webp gif bmp dib tif tiff avif avifs pnm pbm pgm ppm "
    "pam pfm heic heif heics heifs hif jxl jp2 j2k j2c jpf jpx jpm jps jxr wdp hdp exr hdr tga psd "
    "psb dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f raw 3fr iiq insp".split()
)
# Bytes by which a file is judged that is not called a picture.
HEAD = 1 << 12
# Files that are named one by one, at most; more are counted by their endings.
_MOST_NAMED = 5
_MOST_ENDINGS = 6


def is_called_picture(source: str) -> bool:
    """Whether a file has a picture's name.

    macOS keeps a file's attributes beside it, in `._NAME` or in `__MACOSX/`, under its name.
    """
    *folders, name = source.split("/")
    if name.startswith("._") or "__MACOSX" in folders:
        return False
    return os.path.splitext(name)[1][1:].lower() in PICTURE_ENDINGS


def holds_picture(head: bytes) -> bool:
    """Whether a file holds a picture, whole or damaged, by its first `HEAD` bytes."""
    try:
        read_header(head)
    except InputError as error:
        # Any other code is about a signature that is known.
        return error.code not in ("empty", "not_an_image")
    return True


def is_no_picture(source: str, encoded: bytes | None, error: InputError) -> bool:
    """Whether an input that failed is no picture, by name and content, instead of a damaged one.

    Args:
        source: its path or address.
        encoded: what was read of it; None if reading failed.
        error: why it has no verdict.
    """
    if is_called_picture(source):
        return False
    if encoded is None:
        # Forbidden or unreadable, it might be one.
        return error.code in ("not_found", "not_a_file", "not_an_image", "too_large")
    return not holds_picture(encoded[:HEAD])


class Skipped:
    """Files that are no pictures: their number, and names for the summary of a run."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._kinds: Counter[str] = Counter()
        # Workers add to it.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._kinds.total()

    def add(self, source: str) -> None:
        """Count a file."""
        name = source.rpartition("/")[2]
        ending = os.path.splitext(name)[1].lower()
        with self._lock:
            self._kinds[ending or name] += 1
            if len(self._names) <= _MOST_NAMED:
                self._names.append(name)

    def __str__(self) -> str:
        """What was skipped, in a few words.

        Example:
            >>> skipped = Skipped()
            >>> skipped.add("portraits/.DS_Store")
            >>> str(skipped)
            'skipped 1 file that is not a picture: .DS_Store'
        """
        total = len(self)
        if total <= _MOST_NAMED:
            listed = ", ".join(map(printable, sorted(self._names)))
        else:
            kinds = self._kinds.most_common(_MOST_ENDINGS)
            listed = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds)
            rest = total - sum(count for _, count in kinds)
            listed += f", {rest} others" if rest else ""
        are = "that is not a picture" if total == 1 else "that are not pictures"
        return f"skipped {counted(total, 'file')} {are}: {listed}"

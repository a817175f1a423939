"""Recognise images among the files of a folder or an archive, by name and by content."""

from __future__ import annotations

import os
import threading
from collections import Counter

from ..core.errors import InputError
from ..core.text import counted, printable
from ..image.image_header import read_header

# Suffixes of images, including unsupported formats: each such file has a row.
IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jif jfif jfi mpo png apng webp gif bmp dib tif tiff avif avifs pnm pbm pgm ppm "
    "pam pfm heic heif heics heifs hif jxl jp2 j2k j2c jpf jpx jpm jps jxr wdp hdp exr hdr tga psd "
    "psb dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f raw 3fr iiq insp".split()
)
# Size of the start of a file that decides whether it is an image.
HEAD_BYTES = 1 << 12
# Above this number, skipped files are counted by suffix instead of listed.
_MAX_NAMES = 5
_MAX_SUFFIXES = 6


def has_image_suffix(source: str) -> bool:
    """Return whether a file has the suffix of an image.

    Files `._NAME` and in `__MACOSX/`, which hold attributes on macOS, are not images.
    """
    *folders, name = source.split("/")
    if name.startswith("._") or "__MACOSX" in folders:
        return False
    return os.path.splitext(name)[1][1:].lower() in IMAGE_SUFFIXES


def is_image(head: bytes) -> bool:
    """Return whether a file is an image, complete or damaged, by its first `HEAD_BYTES` bytes."""
    try:
        read_header(head)
    except InputError as error:
        # Any other code means that the signature of an image was found.
        return error.code not in ("empty", "not_an_image")
    return True


class Skipped:
    """Counts skipped files, with names for the summary of a run."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._kinds: Counter[str] = Counter()
        # Worker threads call `add`.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._kinds.total()

    def add(self, source: str) -> None:
        """Count a file."""
        name = source.rpartition("/")[2]
        ending = os.path.splitext(name)[1].lower()
        with self._lock:
            self._kinds[ending or name] += 1
            if len(self._names) <= _MAX_NAMES:
                self._names.append(name)

    def __str__(self) -> str:
        """Return a short summary.

        Example:
            >>> skipped = Skipped()
            >>> skipped.add("portraits/.DS_Store")
            >>> str(skipped)
            'skipped 1 file that is not an image: .DS_Store'
        """
        total = len(self)
        if total <= _MAX_NAMES:
            listed = ", ".join(map(printable, sorted(self._names)))
        else:
            kinds = self._kinds.most_common(_MAX_SUFFIXES)
            listed = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds)
            rest = total - sum(count for _, count in kinds)
            listed += f", {rest} others" if rest else ""
        are = "that is not an image" if total == 1 else "that are not images"
        return f"skipped {counted(total, 'file')} {are}: {listed}"

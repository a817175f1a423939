"""The first pass: read and decode every image once, and keep a journal of the results."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from ffd_runtime import __version__
from ffd_runtime.core.errors import InputError, OutputError, os_errors_as
from ffd_runtime.core.file_lock import lock_file
from ffd_runtime.core.ordered_map import In, Out, map_in_order
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import crop_centre, resize

from ..audit.appearance import COLOUR_SIDE, SHARPNESS_SIDE, SMALL, perceptual_hash
from .entries import Entry

JOURNAL = "reading.jsonl"
# Size of a line of the journal, without the path.
LINE_BYTES = 1400
# Number of results that each thread may compute in advance.
PREFETCH_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Facts about an image file.

    Attributes:
        sha256: digest of the file; empty if unreadable.
        size: size of the file, in bytes.
        side: shorter side of the image, in pixels.
        hash: 64-bit perceptual hash.
        small: uint8 [16, 16, 3], BGR, thumbnail of the centre square, as bytes.
        error: why the file is unreadable; else empty.
    """

    sha256: str = ""
    size: int = 0
    side: int = 0
    hash: int = 0
    small: bytes = b""
    error: str = ""


def read_facts(entry: Entry) -> FileFacts:
    """Read and decode an image."""
    try:
        data = read_file(entry.path)
        image = decode(data)
    except InputError as error:
        return FileFacts(error=f"{error.code}: {error.message}")
    square = crop_centre(image)
    grey = cv2.cvtColor(resize(square, SHARPNESS_SIDE), cv2.COLOR_BGR2GRAY)
    return FileFacts(
        hashlib.sha256(data).hexdigest(),
        len(data),
        min(image.shape[:2]),
        perceptual_hash(np.asarray(grey, np.uint8)),
        resize(resize(square, COLOUR_SIDE), SMALL).tobytes(),
    )


class OrderedPool(ThreadPoolExecutor):
    """Threads with ordered results and a bounded prefetch."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._ahead = PREFETCH_PER_THREAD * count

    def in_order(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """Yield the result for each item, in order."""
        return map_in_order(self, function, items, ahead=self._ahead)


# Path, size and modification time of a file.
Key = tuple[str, int, int]


class Journal:
    """The facts that interrupted runs have read. Use as a context manager.

    A file is unchanged if its size and modification time are. Unreadable files are not recorded,
    and read again. A journal of another version is discarded.

    Args:
        path: path of the journal; locked by one run at a time.

    Raises:
        OutputError: the journal cannot be written, or another run has locked it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors_as(OutputError, f"cannot write {path}"):
            self._file = path.open("a+", encoding="utf-8")
        refusal = f"another ffd-data prepare is writing {path.parent}: wait until it ends"
        lock_file(self._file.fileno(), refusal)
        self._file.seek(0)
        self._known: dict[Key, FileFacts] = {}
        head = json.dumps({"ffd": __version__, "opencv": cv2.__version__}) + "\n"
        first, *lines = self._file.read().splitlines(keepends=True) or [""]
        # Remove an incomplete last line; the text is ASCII.
        self._file.truncate(self._take(lines, len(head)) if first == head else 0)
        if first != head:
            self._write(head)

    def _take(self, lines: Iterable[str], whole: int) -> int:
        """Take in complete lines; returns the position after the last one."""
        for line in lines:
            try:
                name, size, time, facts = json.loads(line)
                facts["small"] = base64.b64decode(facts["small"])
                known = FileFacts(**facts)
            except (ValueError, TypeError, KeyError):
                break
            if not line.endswith("\n"):
                break
            self._known[name, size, time] = known
            whole += len(line)
        return whole

    def facts(self, entry: Entry) -> tuple[Key | None, FileFacts]:
        """Return the key and the facts of an entry; read the file if they are unknown."""
        # The key comes first, so that a later change of the file is detected.
        key = _key(entry)
        return key, (key and self._known.get(key)) or read_facts(entry)

    def add(self, key: Key | None, facts: FileFacts) -> None:
        """Record the facts of a file."""
        if key and key not in self._known and not facts.error:
            document = asdict(facts) | {"small": base64.b64encode(facts.small).decode()}
            self._write(json.dumps([*key, document]) + "\n")

    def remove(self) -> None:
        """Delete the journal while it is locked."""
        if os.name == "nt":
            # Windows cannot delete an open file, and the journal is not locked there.
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        with os_errors_as(OutputError, f"cannot write {self._file.name}"):
            self._file.write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Images of lost lines are read again.
        with suppress(OSError):
            self._file.close()


def read_all(
    entries: list[Entry], journal: Journal, pool: OrderedPool, advance: Callable[[], None]
) -> list[FileFacts]:
    """Return the facts of all entries, in order."""
    found = []
    for key, facts in pool.in_order(journal.facts, entries):
        journal.add(key, facts)
        found.append(facts)
        advance()
    return found


def _key(entry: Entry) -> Key | None:
    try:
        status = os.stat(entry.path)
    except OSError:
        return None
    return str(entry.path), status.st_size, status.st_mtime_ns

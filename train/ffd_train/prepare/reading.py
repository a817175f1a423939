"""The first pass: every picture is read and decoded once; what was found survives a kill."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import cv2
import numpy as np

from ffd_runtime import __version__
from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.image.decode import Image, decode, read_file
from ffd_runtime.image.preprocess import crop_centre, resize

from ..audit.picture import COLOUR_SIDE, SHARPNESS_SIDE, SMALL, perceptual_hash
from .entries import Entry

JOURNAL = "reading.jsonl"
# A line of it, but for the file's path.
LINE_BYTES = 1400
# Results that may wait for their turn, for each thread.
AHEAD = 4

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a picture's file is.

    Attributes:
        sha256: of the file; empty where it cannot be read.
        size: of the file, in bytes.
        side: the picture's shorter one, in pixels.
        hash: perceptual, of 64 bits.
        small: uint8 [16, 16, 3], BGR, of the centre square, as bytes.
        error: why it cannot be read; else empty.
    """

    sha256: str = ""
    size: int = 0
    side: int = 0
    hash: int = 0
    small: bytes = b""
    error: str = ""


def read_facts(entry: Entry) -> Facts:
    """Read and decode a picture."""
    try:
        data = read_file(entry.path)
        image = decode(data)
    except InputError as error:
        return Facts(error=f"{error.code}: {error.message}")
    digest = hashlib.sha256(data).hexdigest()
    return Facts(digest, len(data), min(image.shape[:2]), *_fingerprint(image))


def _fingerprint(image: Image) -> tuple[int, bytes]:
    """What copies are found by: a hash, and a small picture to make sure."""
    square = crop_centre(image)
    grey = cv2.cvtColor(resize(square, SHARPNESS_SIDE), cv2.COLOR_BGR2GRAY)
    small = resize(resize(square, COLOUR_SIDE), SMALL)
    return perceptual_hash(np.asarray(grey, np.uint8)), small.tobytes()


class Threads(ThreadPoolExecutor):
    """Threads that work ahead of their reader, but not far."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._waiting = AHEAD * count

    def in_order(self, function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """What a function gives for each item, in order; few of them wait at a time."""
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(self.submit(function, item))
                if len(waiting) > self._waiting:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# Path, size and time of a file.
Key = tuple[str, int, int]


class Journal:
    """Facts of earlier, interrupted readings; a context manager that adds those of this one.

    A file counts as the one that was read while its size and time are the same. What could not be
    read is not kept: it may be there again. A journal of other versions is begun anew.

    Args:
        path: the journal; held by one run at a time.

    Raises:
        OutputError: it cannot be written, or another run holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None
        _lock(self._file.fileno(), path)
        self._file.seek(0)
        self._known: dict[Key, Facts] = {}
        head = json.dumps({"ffd": __version__, "opencv": cv2.__version__}) + "\n"
        first, *lines = self._file.read().splitlines(keepends=True) or [""]
        # What follows the last whole line was being written when the run ended; all is ASCII.
        self._file.truncate(self._take(lines, len(head)) if first == head else 0)
        if first != head:
            self._write(head)

    def _take(self, lines: Iterable[str], whole: int) -> int:
        """Know what whole lines say; gives where they end."""
        for line in lines:
            try:
                name, size, time, facts = json.loads(line)
                facts["small"] = base64.b64decode(facts["small"])
                known = Facts(**facts)
            except (ValueError, TypeError, KeyError):
                break
            if not line.endswith("\n"):
                break
            self._known[name, size, time] = known
            whole += len(line)
        return whole

    def facts(self, entry: Entry) -> tuple[Key | None, Facts]:
        """Those of an entry, read now unless they are known, and of which file they are."""
        # Asked before it is read: what is written to it from here on makes it another.
        key = _key(entry)
        return key, (key and self._known.get(key)) or read_facts(entry)

    def add(self, key: Key | None, facts: Facts) -> None:
        """Keep what was found of a file."""
        if key and key not in self._known and not facts.error:
            document = asdict(facts) | {"small": base64.b64encode(facts.small).decode()}
            self._write(json.dumps([*key, document]) + "\n")

    def remove(self) -> None:
        """Delete the file, while it is still held; nothing can be added from here on."""
        if os.name == "nt":
            # Windows deletes no file that is open, and has no lock to lose.
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self._file.name}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Lines that are lost here are read again, at worst.
        with suppress(OSError):
            self._file.close()


def read_all(
    entries: list[Entry], journal: Journal, pool: Threads, advance: Callable[[], None]
) -> list[Facts]:
    """The facts of every entry, in order."""
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


def _lock(descriptor: int, path: Path) -> None:
    """Hold the journal until it is closed, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another ffd-data prepare writes {path.parent}: wait for it") from None
    except OSError:
        # Some network file systems know no locks; a run there is not refused for it.
        return

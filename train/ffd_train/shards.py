"""Packed data sets: the index of their tar shards, and random access to images in a shard.

A shard is a plain tar, which the webdataset library also reads, with KEY.jpg (or the original
suffix) and KEY.json for each image. `manifest.csv` holds the shard, offset and size of each image,
so that nothing is unpacked. `dataset.json` is written last, and marks the data set as complete.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.image.decode import os_error

DATASET = "dataset.json"
MANIFEST = "manifest.csv"
# Inputs and settings of a data set that is not complete yet.
BEGUN = "prepare.json"
SCHEMA = 1
# Separates a shard and its member, as in ffd-run's names of archive members.
INSIDE = "!/"
# Neighbouring images are needed soon, and a disk or a mounted drive reads 4 MiB in little more
# time than 30 KiB.
READ_AHEAD_BYTES = 1 << 22
# The kernel limits one read-ahead request to about the device's window.
ADVICE_BYTES = 1 << 17
MAX_OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar file: name, split, number of images, and size in bytes."""

    name: str
    split: str
    images: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a shard: a row of manifest.csv.

    Attributes:
        path: shard and member, `train-000000.tar!/KEY.jpg`.
        label: `generated` or `groundtruth`.
        identity: the person in the image; empty if unknown.
        original: path of the original image in its source.
        offset: position in the shard, in bytes, as is the size.
        family: generator family; empty if the source's manifest.csv names none.
    """

    path: str
    label: str
    split: str
    source: str
    identity: str
    sha256: str
    original: str
    offset: int
    size: int
    family: str = ""


class ShardReader:
    """Reads members of shards. Safe for threads and forks; can be pickled.

    Args:
        root: folder of the shards.
        names: file names of the shards, by index.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.names = names
        self._open: dict[int, _File] = {}

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, tuple[str, ...]]]:
        return type(self), (self.root, self.names)

    def read(self, shard: int, offset: int, size: int, sha256: str) -> bytes:
        """Read a member.

        Raises:
            InputError: the shard cannot be read, or the bytes have changed.
        """
        path = self.root / self.names[shard]
        try:
            data = self._file(shard, path).read(offset, size)
        except OSError as error:
            raise os_error(error, path) from None
        if len(data) < size:
            raise InputError("truncated", f"{path.name} ends early")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InputError("corrupt", f"{path.name} has changed since it was packed")
        return data

    def _file(self, shard: int, path: Path) -> _File:
        # A fork could copy a held lock, so ffd uses no lock. Each step is atomic, and a removed
        # file stays open while threads read from it.
        file = self._open.get(shard)
        if file is None:
            if len(self._open) >= MAX_OPEN_SHARDS:
                self._open.clear()
            file = self._open.setdefault(shard, _File(path))
        return file


class _File:
    """An open shard. Reads at an offset, without a file position shared by threads."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._size = os.fstat(self._descriptor).st_size
        self._ahead: set[int] = set()
        self._served = 0
        self._seeking = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        self._read_ahead(offset // READ_AHEAD_BYTES, size)
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        # A lock is safe here: Windows has no forks.
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def _read_ahead(self, piece: int, size: int) -> None:
        """Ask the system to read a piece of the shard in the background.

        The requests are repeated after half of the shard has been read, because the page cache may
        not keep the pieces until the next epoch.
        """
        self._served += size
        if 2 * self._served > self._size:
            self._served = 0
            self._ahead.clear()
        if piece in self._ahead or not hasattr(os, "posix_fadvise"):
            return
        self._ahead.add(piece)
        for start in range(piece * READ_AHEAD_BYTES, (piece + 1) * READ_AHEAD_BYTES, ADVICE_BYTES):
            os.posix_fadvise(self._descriptor, start, ADVICE_BYTES, os.POSIX_FADV_WILLNEED)


def is_packed(root: Path) -> bool:
    """Whether a folder holds a packed data set."""
    # Path.is_file would raise for a folder without permission.
    return os.path.isfile(root / DATASET)


def read_index(root: Path) -> tuple[ShardReader, list[tuple[int, Member]]]:
    """Read the index of a packed data set, but no images.

    Returns:
        The reader, and each member with the index of its shard, in the manifest's order.

    Raises:
        DataError: a file is missing, truncated or has changed since it was packed.
    """
    shards, digest = _read_dataset(root / DATASET)
    for shard in shards:
        try:
            size = (root / shard.name).stat().st_size
        except OSError:
            raise DataError(
                f"{root / shard.name} is missing: copy it again, or run the same ffd-data prepare "
                "command"
            ) from None
        if size != shard.bytes:
            raise DataError(
                f"{root / shard.name} has {size} bytes instead of {shard.bytes}: copy it again"
            )
    try:
        manifest = (root / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {root / MANIFEST}: {error.strerror}") from None
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise DataError(f"{root / MANIFEST} has changed since it was packed: copy it again")
    numbers = {shard.name: number for number, shard in enumerate(shards)}
    members = [(numbers[m.path.split(INSIDE)[0]], m) for m in _parse_manifest(manifest)]
    return ShardReader(root, tuple(numbers)), members


def manifest_bytes(members: Iterable[Member]) -> bytes:
    """Return manifest.csv."""
    return csv_bytes([field.name for field in fields(Member)], map(astuple, members))


def csv_bytes(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file; file names keep bytes that are not UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _parse_manifest(data: bytes) -> Iterator[Member]:
    rows = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    next(rows)
    for row in rows:
        # The column family is missing in older data sets.
        path, label, split, source, identity, sha256, original, offset, size, *family = row
        numbers = int(offset), int(size)
        yield Member(path, label, split, source, identity, sha256, original, *numbers, *family)


def _read_dataset(path: Path) -> tuple[list[Shard], str]:
    """Read the shards and the manifest's sha256."""
    try:
        document = json.loads(path.read_bytes())
        schema = document["schema"]
        if schema == SCHEMA:
            return [Shard(**shard) for shard in document["shards"]], document["manifest_sha256"]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged or not from ffd-data prepare: pack it again") from None
    raise DataError(f"{path} has schema {schema}, and this version reads {SCHEMA}: pack it again")

"""Packed data sets: the index of their tar shards, and how one picture is read out of a shard.

A shard is a plain tar that the webdataset library reads as well: of each picture KEY.jpg (or the
suffix that it came with) and KEY.json. `manifest.csv` says where in which shard each picture's
bytes lie, so that nothing is unpacked, and `dataset.json`, written last, that all of it is whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.image.decode import os_error

DATASET = "dataset.json"
MANIFEST = "manifest.csv"
# What a set that is not whole yet will be made of.
BEGUN = "prepare.json"
SCHEMA = 1
# Between a shard and a member of it, as ffd-run names the members of an archive.
INSIDE = "!/"
# Read in pieces of this many bytes: what lies next to a picture is wanted soon, and a disk or a
# mounted drive delivers 4 MiB in little more time than 30 KiB.
READ_AHEAD = 1 << 22
# The kernel cuts one request for reading ahead to about the device's own window.
ADVICE = 1 << 17
MAX_OPEN = 64


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar: file name, split, number of pictures, size in bytes."""

    name: str
    split: str
    images: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in a shard, a row of manifest.csv.

    Attributes:
        path: shard and member, `train-000000.tar!/KEY.jpg`.
        label: `generated` or `groundtruth`.
        split: `train`, `val` or `test`.
        source: where it came from.
        identity: whom it shows, where the source says; else empty.
        sha256: of the packed bytes.
        original: path of the picture that it was made from, in its source.
        offset: of the bytes in the shard.
        size: of the bytes.
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


class ShardReader:
    """Reads members of shards; safe across threads and forks, and it can be pickled.

    Args:
        root: folder of the shards.
        names: the shards' files; a shard's number is its place here.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.names = names
        self._open: dict[int, _File] = {}

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, tuple[str, ...]]]:
        return type(self), (self.root, self.names)

    def read(self, shard: int, offset: int, size: int, sha256: str) -> bytes:
        """The bytes of a member.

        Raises:
            InputError: the shard cannot be read, or holds other bytes than were packed.
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
        # No lock, which a fork could copy while it is held: each step here is atomic, and a file
        # that is dropped stays open for the threads that read from it.
        file = self._open.get(shard)
        if file is None:
            if len(self._open) >= MAX_OPEN:
                self._open.clear()
            file = self._open.setdefault(shard, _File(path))
        return file


class _File:
    """An open shard. Reading at a position moves none that processes or threads could share."""

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
        self._read_ahead(offset // READ_AHEAD, size)
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        # Windows has no forks that could copy the lock while it is held.
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def _read_ahead(self, piece: int, size: int) -> None:
        """Have the system fetch, without waiting, the piece of the shard that is begun.

        It is asked for anew when half of the shard was read since: in the next epoch the memory may
        long hold something else.
        """
        self._served += size
        if 2 * self._served > self._size:
            self._served = 0
            self._ahead.clear()
        if piece in self._ahead or not hasattr(os, "posix_fadvise"):
            return
        self._ahead.add(piece)
        for start in range(piece * READ_AHEAD, (piece + 1) * READ_AHEAD, ADVICE):
            os.posix_fadvise(self._descriptor, start, ADVICE, os.POSIX_FADV_WILLNEED)


def is_packed(root: Path) -> bool:
    """Whether a folder holds a packed data set."""
    # Unlike Path's, this answers where the folder may not be read.
    return os.path.isfile(root / DATASET)


def read_index(root: Path) -> tuple[ShardReader, list[tuple[int, Member]]]:
    """What a packed data set holds, and the reader for it; no picture is read.

    Returns:
        The reader, and each member with the number of its shard, in the manifest's order.

    Raises:
        DataError: something is missing, truncated or changed since it was packed.
    """
    shards, digest = _read_dataset(root / DATASET)
    for shard in shards:
        try:
            size = (root / shard.name).stat().st_size
        except OSError:
            raise DataError(
                f"{root / shard.name} is missing: copy it again, or run its ffd-data prepare again"
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
    """manifest.csv; names that are no UTF-8 keep their bytes."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow([field.name for field in fields(Member)])
    rows.writerows(astuple(member) for member in members)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _parse_manifest(data: bytes) -> Iterator[Member]:
    rows = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    next(rows)
    for path, label, split, source, identity, sha256, original, offset, size in rows:
        yield Member(path, label, split, source, identity, sha256, original, int(offset), int(size))


def _read_dataset(path: Path) -> tuple[list[Shard], str]:
    """The shards, and the manifest's sha256."""
    try:
        document = json.loads(path.read_bytes())
        schema = document["schema"]
        if schema == SCHEMA:
            return [Shard(**shard) for shard in document["shards"]], document["manifest_sha256"]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not of ffd-data prepare, or damaged: pack it again") from None
    raise DataError(f"{path} has schema {schema}, this ffd reads {SCHEMA}: pack it again")

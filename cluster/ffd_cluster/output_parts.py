"""The output of a cluster's run: a folder of Parquet parts, each whole, and what made them.

    part-<digest>.parquet   rows of some inputs
    _origin.json            what makes the rows: a run may go on only with the same
    _SUCCESS                the run has ended; counts of all rows

Readers of Parquet folders (pyarrow, DuckDB, Spark) skip names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.text import printable
from ffd_runtime.outputs.provenance import RunProvenance

from .object_address import is_object, join
from .storage import DRAFT, Storage

log = logging.getLogger(__name__)

COUNTS = ("generated", "groundtruth", "unsure", "errors")
ORIGIN = "_origin.json"
SUCCESS = "_SUCCESS"
# Parts that are read at a time.
READS = 16
PART = re.compile(r"part-[0-9a-f]{32}\.parquet")


class TakenError(OutputError):
    """Another run has begun to write an output."""


def is_own(address: str, folder: str) -> bool:
    """Whether a file is one that a run writes into its output."""
    above, _, name = address.rpartition("/")
    if not (PART.fullmatch(name) or name in (ORIGIN, SUCCESS) or name.startswith(DRAFT)):
        return False
    if is_object(address) != is_object(folder):
        return False
    if is_object(address):
        return above.partition("://")[2] == folder.partition("://")[2].rstrip("/")
    return os.path.realpath(above or ".") == os.path.realpath(folder)


def identify(source: str) -> bytes:
    """What tells an input from every other: 16 bytes of its name as rows have it."""
    return digest([source.encode("utf-8", "backslashreplace")])


def digest(values: Iterable[bytes]) -> bytes:
    """16 bytes that stand for some values, in their order."""
    state = hashlib.blake2b(digest_size=16)
    for value in values:
        state.update(value)
    return state.digest()


def part_name(sources: Iterable[str]) -> str:
    """Name of the part that holds these inputs, in whatever order."""
    return f"part-{digest(sorted(map(identify, sources))).hex()}.parquet"


class Seen:
    """Inputs that have been taken: 16 bytes for each, however many there are."""

    def __init__(self) -> None:
        # Sorted runs, each at least twice as long as the next, so that adding costs little however
        # many are known. numpy's strings end before their last zero bytes; two digests differ
        # elsewhere as well.
        self._runs: list[npt.NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def find_new(self, sources: Iterable[str]) -> list[bool]:
        """Which of them are not known; of those that are there twice, the first."""
        ids = _ids(sources)
        new = np.zeros(len(ids), bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for known in self._runs:
            place = np.searchsorted(known, ids)
            inside = place < len(known)
            new[inside] &= known[place[inside]] != ids[inside]
        return new.tolist()

    def add(self, sources: Iterable[str]) -> None:
        """Know these from now on; `find_new` has said that they are new."""
        ids = np.unique(_ids(sources))
        while self._runs and len(self._runs[-1]) < 2 * len(ids):
            known = self._runs.pop()
            ids = np.insert(known, np.searchsorted(known, ids), ids)
        if len(ids):
            self._runs.append(ids)


def _ids(sources: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array(list(map(identify, sources)), "S16")


class Parts:
    """The output folder of a run.

    Attributes:
        folder: address or path.
        storage: what it is in.
        inputs: how many have rows in the parts that have been counted.
        counts: rows of each label in them.

    Args:
        folder: see above.
        storage: see above.
    """

    def __init__(self, folder: str, storage: Storage) -> None:
        self.folder = folder
        self.inputs = 0
        self.counts: Counter[str] = Counter()
        self.storage = storage
        self._known: set[str] = set()
        self._run = uuid.uuid4().hex

    def begin(self, origin: RunProvenance, resume: bool) -> Seen:
        """Take the folder for a run.

        Args:
            origin: what makes its rows.
            resume: go on with the parts that are there.

        Returns:
            Inputs that have rows.

        Raises:
            OutputError: there are parts and `resume` is not set, or they were made by something
                else, or cannot be read.
            StorageError: the store refuses.
        """
        self.storage.require_bucket(self.folder)
        self.storage.create_folder(self.folder)
        self._delete_drafts()
        names = self.storage.names(self.folder)
        parts = list(filter(PART.fullmatch, names))
        if not resume and (parts or SUCCESS in names):
            raise OutputError(
                f"{self.folder} holds rows of an earlier run: go on with --resume, "
                "or give another --output"
            )
        if parts:
            text = self._read(ORIGIN) if ORIGIN in names else None
            origin.require_same(text, join(self.folder, ORIGIN), self.folder, sources=False)
        elif others := [name for name in names if name not in (ORIGIN, SUCCESS)]:
            raise OutputError(
                f"{self.folder} holds {printable(others[0])}, which is no part: "
                "give an --output of its own"
            )
        record = asdict(origin) | {"run": self._run}
        self.storage.write(self.folder, ORIGIN, json.dumps(record, indent=2).encode())
        self.storage.delete(self.folder, SUCCESS)
        seen = Seen()
        for name, rows in self._read_parts(parts):
            # Of a run that was broken off, a machine may have finished one that another replaced.
            if all(seen.find_new(set(rows["source"]))):
                seen.add(rows["source"])
                self.add(name, len(set(rows["source"])), _count(rows))
            else:
                self._drop(name)
        return seen

    def add(self, name: str, inputs: int, counts: Counter[str]) -> None:
        """Count a part that this run has written."""
        if name not in self._known:
            self._known.add(name)
            self.inputs += inputs
            self.counts += counts

    def recover(self, names: Iterable[str], pending: Container[bytes]) -> set[bytes]:
        """See what a run that broke has left, beside what it has told.

        Args:
            names: the parts that it told of.
            pending: ids of the inputs that it was given.

        Returns:
            Ids of the inputs that have rows.

        Raises:
            TakenError: another run has begun to write here.
            StorageError: the store refuses; nothing has been counted.
        """
        self.require_ours()
        done = {
            identify(source) for _, rows in self._read_parts(names) for source in rows["source"]
        }
        wanted: list[tuple[str, int, Counter[str]]] = []
        for name, rows in self._read_parts(self._unknown()):
            ids = set(map(identify, rows["source"]))
            if ids.isdisjoint(done) and all(one in pending for one in ids):
                wanted.append((name, len(ids), _count(rows)))
                done |= ids
            else:
                self._drop(name)
        # Last, so that what the store refuses until here can be done again.
        for part in wanted:
            self.add(*part)
        return done

    def require_ours(self) -> None:
        """See that no other run has taken the folder.

        Raises:
            TakenError: one has.
        """
        try:
            run = json.loads(self._read(ORIGIN))["run"]
        except (ValueError, KeyError, TypeError):
            run = None
        if run != self._run:
            raise TakenError(
                f"another run has begun to write {self.folder}: this one leaves it to that"
            )

    def finish(self) -> None:
        """Say that all parts are there.

        Raises:
            TakenError: another run has begun to write here.
        """
        self.require_ours()
        for name in self._unknown():
            self._drop(name)
        self._delete_drafts()
        rows = {kind: self.counts[kind] for kind in COUNTS}
        text = json.dumps({"inputs": self.inputs, "rows": self.counts.total(), **rows})
        self.storage.write(self.folder, SUCCESS, text.encode())

    def _drop(self, name: str) -> None:
        """Delete a part of a stage that had been given up, and ended its work all the same."""
        log.warning("%s came late, its inputs have rows or get them: deleted", name)
        self.storage.delete(self.folder, name)

    def _delete_drafts(self) -> None:
        """Delete what machines were writing when they ended."""
        for name in self.storage.names(self.folder):
            if name.startswith(DRAFT):
                self.storage.delete(self.folder, name)

    def _unknown(self) -> list[str]:
        names = filter(PART.fullmatch, self.storage.names(self.folder))
        return [name for name in names if name not in self._known]

    def _read_parts(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        names = list(names)
        with ThreadPoolExecutor(READS) as pool:
            yield from zip(names, pool.map(self._rows, names), strict=True)

    def _rows(self, name: str) -> dict[str, list[Any]]:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            file = io.BytesIO(self._read(name))
            table = pa.parquet.read_table(file, columns=["source", "label"])
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(
                f"{join(self.folder, name)} is no part of a run ({reason}): move it away"
            ) from None
        return {column: table[column].to_pylist() for column in ("source", "label")}

    def _read(self, name: str) -> bytes:
        try:
            return self.storage.read(join(self.folder, name))
        except InputError as error:
            raise OutputError(f"cannot read {join(self.folder, name)}: {error}") from None


def _count(rows: dict[str, list[Any]]) -> Counter[str]:
    return Counter(label or "errors" for label in rows["label"])

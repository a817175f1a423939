"""The output of a cluster run: a folder of Parquet files, called parts, and their origin.

    part-<digest>.parquet   rows of some inputs
    _origin.json            model and preprocessing; a run resumes only with the same
    _SUCCESS                the run is complete; counts of all rows

Readers of Parquet folders (pyarrow, DuckDB, Spark) skip names that begin with an underscore.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.ordered_map import map_in_order
from ffd_runtime.core.text import printable
from ffd_runtime.outputs.provenance import RunProvenance

from .object_address import is_object, join
from .seen_inputs import Seen, digest, identify
from .storage import DRAFT_PREFIX, Storage

log = logging.getLogger(__name__)

COUNTS = ("generated", "groundtruth", "unsure", "errors")
ORIGIN = "_origin.json"
SUCCESS = "_SUCCESS"
MAX_PARALLEL_READS = 16
# A network file system may list the files of other machines after up to a minute.
MAX_LISTING_DELAY_S = 60.0
LISTING_INTERVAL_S = 2.0
PART_NAME = re.compile(r"part-[0-9a-f]{32}\.parquet")


class TakenError(OutputError):
    """Another run has started to write to the output."""


def is_run_file(address: str, folder: str) -> bool:
    """Return whether a file is one that a run writes to its output folder."""
    above, _, name = address.rpartition("/")
    if not (
        PART_NAME.fullmatch(name) or name in (ORIGIN, SUCCESS) or name.startswith(DRAFT_PREFIX)
    ):
        return False
    if is_object(address) != is_object(folder):
        return False
    if is_object(address):
        return above.partition("://")[2] == folder.partition("://")[2].rstrip("/")
    return os.path.realpath(above or ".") == os.path.realpath(folder)


def part_name(sources: Iterable[str]) -> str:
    """Return the name of the part with these inputs; their order does not matter."""
    return f"part-{digest(sorted(map(identify, sources))).hex()}.parquet"


class Parts:
    """The output folder of a run.

    Attributes:
        folder: address or path.
        storage: of the folder.
        inputs: number of inputs with rows in the counted parts.
        counts: number of rows with each label in the counted parts.
    """

    def __init__(self, folder: str, storage: Storage) -> None:
        self.folder = folder
        self.inputs = 0
        self.counts: Counter[str] = Counter()
        self.storage = storage
        self._known: set[str] = set()
        self._run = uuid.uuid4().hex

    def begin(self, origin: RunProvenance, resume: bool) -> Seen:
        """Take over the folder for a run, and return the inputs that have rows.

        Raises:
            OutputError: there are parts and `resume` is not set, or the parts have another origin,
                or cannot be read.
            StorageError: the store refuses.
        """
        self.storage.require_bucket(self.folder)
        self.storage.create_folder(self.folder)
        found = self.storage.names(self.folder)
        names = [name for name in found if not name.startswith(DRAFT_PREFIX)]
        parts = list(filter(PART_NAME.fullmatch, names))
        if not resume and (parts or SUCCESS in names):
            raise OutputError(
                f"{self.folder} contains rows of an earlier run: continue with --resume, "
                "or give another --output"
            )
        if parts:
            text = self._read(ORIGIN) if ORIGIN in names else None
            origin.require_same(text, join(self.folder, ORIGIN), self.folder, sources=False)
        elif others := [name for name in names if name not in (ORIGIN, SUCCESS)]:
            raise OutputError(
                f"{self.folder} contains {printable(others[0])}, which no run wrote: "
                "give an empty or new folder as --output"
            )
        # Not before: a run that is refused must not delete the drafts of a run that is writing.
        self._delete_drafts()
        record = asdict(origin) | {"run": self._run}
        self.storage.write(self.folder, ORIGIN, json.dumps(record, indent=2).encode())
        self.storage.delete(self.folder, SUCCESS)
        seen = Seen()
        for name, rows in self._read_parts(parts):
            # In an interrupted run, a slow machine may have written a part that another replaced.
            if all(seen.find_new(set(rows["source"]))):
                seen.add(rows["source"])
                self.add(name, len(set(rows["source"])), _count(rows))
            else:
                self._drop(name)
        return seen

    def add(self, name: str, inputs: int, counts: Counter[str]) -> None:
        """Count a part that this run wrote; a repeated call changes nothing."""
        if name not in self._known:
            self._known.add(name)
            self.inputs += inputs
            self.counts += counts

    def recover(self, names: Iterable[str], pending: Container[bytes]) -> set[bytes]:
        """Count the parts that a failed attempt wrote without reporting them.

        A part is deleted if any of its inputs has rows already, or was not in the attempt.

        Args:
            names: the parts that the attempt reported.
            pending: ids of the attempt's inputs; the result contains those that have rows.

        Raises:
            TakenError: another run has started to write here.
            StorageError: the store refuses; nothing was counted.
        """
        self.require_ours()
        done = {
            identify(source) for _, rows in self._read_parts(names) for source in rows["source"]
        }
        wanted: list[tuple[str, int, Counter[str]]] = []
        for name, rows in self._read_parts(self._unknown()):
            ids = set(map(identify, rows["source"]))
            if ids.isdisjoint(done) and all(input_id in pending for input_id in ids):
                wanted.append((name, len(ids), _count(rows)))
                done |= ids
            else:
                self._drop(name)
        # Last, so that a caller can retry after an error of the store.
        for part in wanted:
            self.add(*part)
        return done

    def require_ours(self) -> None:
        """Raise `TakenError` if another run has taken over the folder."""
        try:
            run = json.loads(self._read(ORIGIN))["run"]
        except (ValueError, KeyError, TypeError):
            run = None
        if run != self._run:
            raise TakenError(f"another run has started to write to {self.folder}: this one stops")

    def finish(self) -> None:
        """Write `_SUCCESS`, and delete parts and drafts that do not count; see `require_ours`.

        Raises:
            OutputError: parts are missing, because a machine has another folder of this name.
        """
        self.require_ours()
        self._require_parts()
        for name in self._unknown():
            self._drop(name)
        self._delete_drafts()
        rows = {kind: self.counts[kind] for kind in COUNTS}
        text = json.dumps({"inputs": self.inputs, "rows": self.counts.total(), **rows})
        self.storage.write(self.folder, SUCCESS, text.encode())

    def _require_parts(self) -> None:
        deadline = time.monotonic() + MAX_LISTING_DELAY_S
        while missing := set(self._known) - set(self.storage.names(self.folder)):
            if time.monotonic() > deadline:
                raise OutputError(
                    f"{len(missing)} of {len(self._known)} files are not in {self.folder}: give a "
                    "folder that all machines share, or repeat with --resume"
                )
            time.sleep(LISTING_INTERVAL_S)

    def _drop(self, name: str) -> None:
        """Delete a part that an abandoned task wrote late."""
        log.warning(
            "deleted %s: other files contain, or will contain, the rows of its inputs", name
        )
        self.storage.delete(self.folder, name)

    def _delete_drafts(self) -> None:
        """Delete the temporary files of machines that stopped while writing."""
        for name in self.storage.names(self.folder):
            if name.startswith(DRAFT_PREFIX):
                self.storage.delete(self.folder, name)

    def _unknown(self) -> list[str]:
        names = filter(PART_NAME.fullmatch, self.storage.names(self.folder))
        return [name for name in names if name not in self._known]

    def _read_parts(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        names = list(names)
        with ThreadPoolExecutor(MAX_PARALLEL_READS) as pool:
            # `pool.map` would read all parts at once.
            rows = map_in_order(pool, self._rows, names, ahead=MAX_PARALLEL_READS)
            yield from zip(names, rows, strict=True)

    def _rows(self, name: str) -> dict[str, list[Any]]:
        import pyarrow as pa
        import pyarrow.parquet

        try:
            file = io.BytesIO(self._read(name))
            table = pa.parquet.read_table(file, columns=["source", "label"])
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(
                f"{join(self.folder, name)} is not a Parquet file of a run ({reason}): remove it"
            ) from None
        return {column: table[column].to_pylist() for column in ("source", "label")}

    def _read(self, name: str) -> bytes:
        try:
            return self.storage.read(join(self.folder, name))
        except InputError as error:
            raise OutputError(f"cannot read {join(self.folder, name)}: {error}") from None


def _count(rows: dict[str, list[Any]]) -> Counter[str]:
    return Counter(label or "errors" for label in rows["label"])

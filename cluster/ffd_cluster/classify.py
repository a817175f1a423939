"""A run over a cluster, from what the command line names to the last part."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

from ffd_runtime.core.errors import (
    BackendError,
    DeviceError,
    FfdError,
    InputError,
    OutputError,
    StorageError,
)
from ffd_runtime.core.text import printable
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.inputs.files import Search, ignore
from ffd_runtime.inputs.kinds import Skipped
from ffd_runtime.inputs.lists import read_names

from .object_address import is_object, place_of
from .output_parts import Parts, Seen, identify, is_own
from .plan import Plan
from .ray_pipeline import LEAST_INPUTS, MOST_INPUTS, BrokenError, Work, explaining, run
from .storage import PAUSES, patiently, require_no_credentials, storage_of

log = logging.getLogger(__name__)

T = TypeVar("T")

UNREAD = "with --ray, archives and web addresses are not read: run them without it"

# Inputs that are listed before they are handed to the cluster: memory holds the names of two waves.
WAVE = 1_000_000


def find_inputs(sources: Iterable[str], output: str, null: bool = False) -> Iterator[Item]:
    """Every input that the sources stand for.

    Args:
        sources: addresses of objects and prefixes; files, folders and patterns that all machines
            have; `-` for a list of files and objects on standard input.
        output: the run's own, which is no input.
        null: names on standard input end with NUL.

    Raises:
        StorageError: a store refuses.
        FfdError: it is something that a cluster does not read.
    """
    for source in sources:
        for item in _find_list(null) if source == "-" else _find(source):
            if not is_own(item.source, output):
                yield item


class Counted:
    """Inputs as they come, and how many there were.

    Args:
        items: gone through once.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self._count = 0
        self._ended = threading.Event()

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self._count += 1
            yield item
        self._ended.set()

    def total(self) -> int:
        """All of them; waits until the last has come."""
        self._ended.wait()
        return self._count


def _find_list(null: bool) -> Iterator[Item]:
    """What a list names: objects are not looked for, they are read; what is none gets its row."""
    search = Search()
    for number, name in enumerate(read_names(null), 1):
        if not is_object(name):
            for item in search.expand([name]):
                yield Item(item.source, InputError("refused", UNREAD)) if item.fetch else item
            continue
        try:
            require_no_credentials(name)
            storage_of(place_of(name))
            yield Item(name)
        except StorageError as error:
            # It may hold a secret.
            shown = f"{name.partition('://')[0]}://*** ({number} on standard input)"
            yield Item(shown, InputError("refused", str(error)))


def _find(source: str) -> Iterator[Item]:
    if not is_object(source):
        for item in find_files([source]):
            if item.fetch:
                raise FfdError(f"{printable(item.source)}: {UNREAD}")
            yield item
        return
    require_no_credentials(source)
    storage = storage_of(place_of(source))
    storage.require_bucket(source)
    found = False
    for address in storage.files(source):
        found = True
        yield Item(address, skip=None if address == source else ignore)
    if not found:
        yield Item(source, InputError("not_found", "no such file or folder"))


@dataclass
class Run:
    """A run over a cluster.

    Attributes:
        ray: the module, connected.
        work: what is done with each input.
        parts: the output.
        seen: inputs that have rows or will get them.
        replan: gives a plan for the machines as they are.
        tally: the actor that machines tell of their work.
        skipped: files that are not pictures, which have no rows.
    """

    ray: Any
    work: Work
    parts: Parts
    seen: Seen
    replan: Callable[[], Plan]
    tally: Any
    skipped: Skipped = field(default_factory=Skipped)
    # A machine that dies may have told of its inputs, which another does again.
    _skipped_ids: set[bytes] = field(default_factory=set)

    def classify(self, items: Iterable[Item]) -> None:
        """Write rows of all that have none yet.

        Raises:
            FfdError: it cannot go on; the parts that are written stay.
        """
        for wave in _ahead(_waves(items)):
            new = self.seen.find_new(item.source for item in wave)
            fresh = [item for item, is_new in zip(wave, new, strict=True) if is_new]
            self.seen.add(item.source for item in fresh)
            self._classify_wave({identify(item.source): item for item in fresh})
        wanted = len(self.seen) - len(self._skipped_ids)
        if self.parts.inputs != wanted:
            raise OutputError(
                f"{self.parts.folder} has rows of {self.parts.inputs} inputs instead of "
                f"{wanted}: it was changed during the run; go on with --resume"
            )
        patiently(self.parts.finish)

    def _classify_wave(self, pending: dict[bytes, Item]) -> None:
        """Write rows of some inputs, whatever of the cluster is lost meanwhile."""
        fruitless = 0
        told: list[str] = []
        broken: BrokenError | None = None
        while pending:
            before = self.parts.inputs
            try:
                if broken:
                    self._recover(told, pending)
                self._write_rows(pending, told)
                return
            except BrokenError as error:
                broken = error
            fruitless = 0 if self.parts.inputs > before else fruitless + 1
            if fruitless == len(PAUSES):
                raise BackendError(f"{broken}, {fruitless} times in a row") from None
            pause = PAUSES[fruitless]
            log.warning("%s; going on in %.0f s with what has no row", broken, pause)
            time.sleep(pause)

    def _write_rows(self, pending: dict[bytes, Item], told: list[str]) -> None:
        items = list(pending.values())
        for name, inputs, counts in self._run(items) if items else ():
            told.append(name)
            self.parts.add(name, inputs, counts)
            with explaining(self.ray):
                self.parts.require_ours()

    def _recover(self, told: list[str], pending: dict[bytes, Item]) -> None:
        """Leave out what an attempt that broke has written, whether it told of it or not."""
        with explaining(self.ray):
            done = self.parts.recover(told, pending)
        for one in done:
            pending.pop(one, None)
        told.clear()

    def _run(self, items: list[Item]) -> Iterator[tuple[str, int, Counter[str]]]:
        try:
            with explaining(self.ray):
                plan = self.replan()
        except DeviceError as error:
            # There were some when the run began.
            raise BrokenError(str(error)) from None
        places = {place_of(item.source) for item in items if not item.error}
        return run(
            self.ray,
            self.work,
            plan,
            _tables(items, plan),
            {place: storage_of(place) for place in places},
            self.tally,
            self._skip,
        )

    def _skip(self, source: str) -> None:
        if (one := identify(source)) not in self._skipped_ids:
            self._skipped_ids.add(one)
            self.skipped.add(source)


def _waves(items: Iterable[Item]) -> Iterator[list[Item]]:
    items = iter(items)
    while wave := list(islice(items, WAVE)):
        yield wave


def _ahead(values: Iterable[T]) -> Iterator[T]:
    """The values, the next one found while this one is worked with."""
    found: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    room = threading.Semaphore()
    stop = threading.Event()

    def find() -> None:
        iterator = iter(values)
        value: T | None
        failure: BaseException | None
        while True:
            room.acquire()
            if stop.is_set():
                return
            try:
                value, failure = next(iterator, None), None
            except BaseException as error:
                value, failure = None, error
            found.put((value, failure))
            if value is None:
                return

    # It may wait for standard input for ever, and must not hold up the end.
    thread = threading.Thread(target=find, name="ffd-list", daemon=True)
    thread.start()
    try:
        while True:
            value, failure = found.get()
            if failure:
                raise failure
            if value is None:
                thread.join()
                return
            room.release()
            yield value
    finally:
        stop.set()
        room.release()


def _tables(items: list[Item], plan: Plan) -> list[Any]:
    """Arrow tables of inputs, each for a task: enough of them to keep all machines busy."""
    import pyarrow as pa

    size = -(-len(items) // (8 * max(1, plan.cpus)))
    # A block at least, if there are so many: more tasks are only more work for the driver.
    size = min(MOST_INPUTS, max(size, min(LEAST_INPUTS, -(-len(items) // max(1, plan.cpus)))))
    tables = []
    for start in range(0, len(items), size):
        some = items[start : start + size]
        names = [item.source.encode("utf-8", "surrogateescape") for item in some]
        errors = [item.error for item in some]
        said = [error and error.message.encode("utf-8", "surrogateescape") for error in errors]
        tables.append(
            pa.table(
                {
                    "source": pa.array(names, pa.binary()),
                    "named": pa.array([item.skip is None for item in some], pa.bool_()),
                    "code": pa.array([error and error.code for error in errors], pa.string()),
                    "message": pa.array(said, pa.binary()),
                }
            )
        )
    return tables

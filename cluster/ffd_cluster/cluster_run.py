"""Classify inputs on a cluster in waves, and retry what fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from ffd_runtime.core.errors import BackendError, DeviceError, OutputError
from ffd_runtime.inputs import Item
from ffd_runtime.inputs.kinds import Skipped

from .object_address import bucket_of
from .output_parts import Parts
from .plan import Plan
from .ray_errors import RetryableError, translate_ray_errors
from .ray_pipeline import MAX_TASK_INPUTS, MIN_TASK_INPUTS, Work, run
from .seen_inputs import Seen, identify
from .storage import storage_of
from .store_errors import RETRY_PAUSES_S, retry_unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Inputs that are listed before Ray receives them. Memory holds the names of two waves.
WAVE_INPUTS = 1_000_000


@dataclass
class ClusterRun:
    """A run on a cluster.

    Attributes:
        ray: the module, connected.
        seen: inputs that have rows or will get them.
        replan: returns a plan for the current machines.
        tally: the actor that counts progress.
        skipped: files that are not images, which have no rows.
    """

    ray: Any
    work: Work
    parts: Parts
    seen: Seen
    replan: Callable[[], Plan]
    tally: Any
    skipped: Skipped = field(default_factory=Skipped)
    # A retry also reports the inputs that a failed machine has already reported.
    _skipped_ids: set[bytes] = field(default_factory=set)

    def classify(self, items: Iterable[Item]) -> None:
        """Write the rows of all inputs that have none.

        Raises:
            FfdError: the run cannot continue; the parts that are written stay.
        """
        names = iter(items)
        for wave in _prefetch(iter(lambda: list(islice(names, WAVE_INPUTS)), [])):
            new = self.seen.find_new(item.source for item in wave)
            fresh = [item for item, is_new in zip(wave, new, strict=True) if is_new]
            self.seen.add(item.source for item in fresh)
            self._classify_wave({identify(item.source): item for item in fresh})
        expected = len(self.seen) - len(self._skipped_ids)
        if self.parts.inputs != expected:
            raise OutputError(
                f"{self.parts.folder} has rows of {self.parts.inputs} inputs instead of "
                f"{expected}: it was changed during the run; continue with --resume"
            )
        retry_unreachable(self.parts.finish)

    def _classify_wave(self, pending: dict[bytes, Item]) -> None:
        """Write the rows of some inputs, and retry when machines or the store fail."""
        failures = 0
        written: list[str] = []
        failure: RetryableError | None = None
        while pending:
            before = self.parts.inputs
            try:
                if failure:
                    self._recover(written, pending)
                self._write_rows(pending, written)
                return
            except RetryableError as error:
                failure = error
            failures = 0 if self.parts.inputs > before else failures + 1
            if failures == len(RETRY_PAUSES_S):
                raise BackendError(f"{failure}, {failures} times in a row") from None
            pause = RETRY_PAUSES_S[failures]
            log.warning("%s; retrying inputs without rows in %.0f s", failure, pause)
            time.sleep(pause)

    def _write_rows(self, pending: dict[bytes, Item], written: list[str]) -> None:
        items = list(pending.values())
        for name, inputs, counts in self._run(items) if items else ():
            written.append(name)
            self.parts.add(name, inputs, counts)
            with translate_ray_errors(self.ray):
                self.parts.require_ours()

    def _recover(self, written: list[str], pending: dict[bytes, Item]) -> None:
        """Remove from `pending` the inputs whose rows a failed attempt wrote, reported or not."""
        with translate_ray_errors(self.ray):
            done = self.parts.recover(written, pending)
        for input_id in done:
            pending.pop(input_id, None)
        written.clear()

    def _run(self, items: list[Item]) -> Iterator[tuple[str, int, Counter[str]]]:
        try:
            with translate_ray_errors(self.ray):
                plan = self.replan()
        except DeviceError as error:
            # The device was there when the run began, so it may return.
            raise RetryableError(str(error)) from None
        buckets = {bucket_of(item.source) for item in items if not item.error}
        return run(
            self.ray,
            self.work,
            plan,
            make_tables(items, plan),
            {bucket: storage_of(bucket) for bucket in buckets},
            self.tally,
            self._skip,
        )

    def _skip(self, source: str) -> None:
        if (input_id := identify(source)) not in self._skipped_ids:
            self._skipped_ids.add(input_id)
            self.skipped.add(source)


def _prefetch(values: Iterable[T]) -> Iterator[T]:
    """Yield the values; a thread computes the next one while the caller uses the current one."""
    iterator = iter(values)

    def find(found: Future[T | None]) -> None:
        try:
            found.set_result(next(iterator, None))
        except BaseException as error:
            found.set_exception(error)

    value: T | None = None
    while True:
        found: Future[T | None] = Future()
        # The thread may wait for standard input forever, and must not delay the exit.
        thread = threading.Thread(target=find, args=(found,), name="ffd-list", daemon=True)
        thread.start()
        if value is not None:
            yield value
        value = found.result()
        thread.join()
        if value is None:
            return


def make_tables(items: list[Item], plan: Plan) -> list[Any]:
    """Return Arrow tables of inputs, one for each task: enough to keep all machines busy."""
    import pyarrow as pa

    size = -(-len(items) // (8 * max(1, plan.cpus)))
    # At least a block if there are enough inputs: more tasks only cost the driver time.
    least = min(MIN_TASK_INPUTS, -(-len(items) // max(1, plan.cpus)))
    size = min(MAX_TASK_INPUTS, max(size, least))
    tables = []
    for start in range(0, len(items), size):
        some = items[start : start + size]
        names = [item.source.encode("utf-8", "surrogateescape") for item in some]
        errors = [item.error for item in some]
        messages = [error and error.message.encode("utf-8", "surrogateescape") for error in errors]
        tables.append(
            pa.table(
                {
                    "source": pa.array(names, pa.binary()),
                    "named": pa.array([item.skip is None for item in some], pa.bool_()),
                    "code": pa.array([error and error.code for error in errors], pa.string()),
                    "message": pa.array(messages, pa.binary()),
                }
            )
        )
    return tables

"""Count the progress of all machines, and how often each task was started."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

POLL_INTERVAL_S = 0.5


class Tally:
    """Counts of a run, as a Ray actor."""

    def __init__(self) -> None:
        self._count = 0
        self._starts: Counter[bytes] = Counter()

    def add(self, count: int) -> None:
        """Count classified inputs."""
        self._count += count

    def read(self) -> int:
        """Return the number of classified inputs; a retried input counts again."""
        return self._count

    def begin(self, task: bytes) -> int:
        """Count a start of a task, and return the number of its starts."""
        self._starts[task] += 1
        return self._starts[task]


def start_tally(ray: Any) -> Any:
    """Start a `Tally` on this machine, so that it survives the failure of the others."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # With soft=True, Ray 2.60 may use any machine for an actor that requests no resources.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options, scheduling_strategy=here)(Tally).remote()


@contextmanager
def following(ray: Any, tally: Any, advance: Callable[[int], None]) -> Iterator[None]:
    """Call `advance` with the number of inputs since its last call, while the block runs."""
    stop = threading.Event()

    def follow() -> None:
        shown = 0
        while not stop.wait(POLL_INTERVAL_S):
            # An error of the progress bar must not end the run.
            with suppress(Exception):
                count = ray.get(tally.read.remote(), timeout=10)
                advance(count - shown)
                shown = count

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(POLL_INTERVAL_S * 4)

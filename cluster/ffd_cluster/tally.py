"""What machines tell of their work: how far they have come, and what is begun again and again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Seconds between two looks.
LOOK = 0.5


class Tally:
    """What the machines tell of their work; itself an actor."""

    def __init__(self) -> None:
        self._count = 0
        self._begun: Counter[bytes] = Counter()

    def add(self, count: int) -> None:
        """Count inputs that are classified."""
        self._count += count

    def read(self) -> int:
        """All so far; inputs that were classified again are counted again."""
        return self._count

    def begin(self, work: bytes) -> int:
        """How often some work has been begun, this time included."""
        self._begun[work] += 1
        return self._begun[work]


def start_tally(ray: Any) -> Any:
    """A `Tally` on this machine, which outlives the others."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # With soft=True, Ray 2.60 takes any machine for an actor that asks for nothing.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options, scheduling_strategy=here)(Tally).remote()


@contextmanager
def following(ray: Any, tally: Any, advance: Callable[[int], None]) -> Iterator[None]:
    """Tell a progress bar how far the cluster has come."""
    stop = threading.Event()

    def follow() -> None:
        shown = 0
        while not stop.wait(LOOK):
            # A bar is not worth the end of a run.
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
        thread.join(LOOK * 4)

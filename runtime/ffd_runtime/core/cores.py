"""Processors that this process may use."""

from __future__ import annotations

import os

_max_cores: int | None = None


def limit_cores(count: int) -> None:
    """Limit the number that `count_cores` returns in this process; the minimum is 1."""
    global _max_cores
    _max_cores = max(1, count)


def count_cores() -> int:
    """Return the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    available = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(available, _max_cores or available)

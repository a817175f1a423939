"""Keep tests that compute on a core of their own while pytest runs several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Bind this process to one core, if it is one of several of pytest-xdist.

    The libraries of each process start a thread per core. Those of two processes would wait for
    each other, and run 1.4 times longer.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[int(worker) % len(before)]})
    yield
    os.sched_setaffinity(0, before)

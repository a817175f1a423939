"""How often tests repeat by day, and in `make test-nightly`."""

from __future__ import annotations

import os

IS_NIGHTLY = "FFD_NIGHTLY" in os.environ


def repeat(by_day: int, at_night: int) -> int:
    """Return how often a loop runs."""
    return at_night if IS_NIGHTLY else by_day


def examples(at_night: int) -> int:
    """Return the number of examples of a property test: by day, a quarter of those at night."""
    return repeat(max(10, at_night // 4), at_night)

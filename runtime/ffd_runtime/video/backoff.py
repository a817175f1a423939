"""How long to wait before a source is tried again."""

from __future__ import annotations

import random


class Backoff:
    """Waits that double up to a limit, each with jitter.

    The jitter takes up to half of a wait away, so that cameras behind a switch that was restarted
    do not all come back at once ("equal jitter" in Brooker, "Exponential Backoff And Jitter",
    2015).

    Args:
        first: seconds of the first wait, at most.
        most: seconds of the longest.
    """

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._next = first

    def wait(self) -> float:
        """Seconds to wait now; the next time they are twice as many."""
        whole = self._next
        self._next = min(2 * whole, self._most)
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

    def played(self, seconds: float) -> None:
        """A source has played: if for longer than the coming wait, waits begin anew.

        A source that gives a frame and breaks again would be tried without end otherwise.
        """
        if seconds > self._next:
            self._next = self._first

"""Exponential backoff with jitter."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double up to a limit, each reduced by up to half at random.

    With jitter, cameras behind a restarted switch do not all reconnect at once. See "equal jitter"
    in Brooker, "Exponential Backoff And Jitter", 2015.

    Args:
        initial: upper bound of the first delay in seconds.
        maximum: upper bound of every delay in seconds.
    """

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial = initial
        self._maximum = maximum
        self._next = initial

    def next_delay(self) -> float:
        """Return the delay before the next attempt in seconds, and double the one after it."""
        bound = self._next
        self._next = min(2 * bound, self._maximum)
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 (not cryptographic)

    def record_success(self, seconds: float) -> None:
        """Reset the delay if a source played for longer than the next delay.

        A shorter success does not count: a source that fails after its first frame would otherwise
        be retried at the initial rate for ever.
        """
        if seconds > self._next:
            self._next = self._initial

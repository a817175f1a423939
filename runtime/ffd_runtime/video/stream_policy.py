"""How streams are read: timeouts, retries and frame sampling."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Timestamps are rounded to milliseconds.
ROUNDING_SECONDS = 1e-3


@dataclass(frozen=True)
class StreamPolicy:
    """Timeouts, retries and sampling.

    Attributes:
        timeout: limit in seconds for opening a stream, and for each frame.
        retries: number of consecutive retries of a live stream; None for no limit.
        every: classify only each Nth frame.
        fps: maximum number of frames per second to classify; None for no limit.
        initial_backoff: upper bound of the first delay before a retry in seconds.
        max_backoff: upper bound of every delay in seconds.

    Raises:
        ValueError: a number is out of range.
    """

    timeout: float = 10.0
    retries: int | None = None
    every: int = 1
    fps: float | None = None
    initial_backoff: float = 0.5
    max_backoff: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 86400:
            raise ValueError(f"timeout must be above 0 and at most 86400 s, not {self.timeout}")
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries must be at least 0, not {self.retries}")
        if self.every < 1 or (self.fps is not None and self.fps <= 0):
            raise ValueError(f"every and fps must be positive, not {self.every} and {self.fps}")
        if not 0 < self.initial_backoff <= self.max_backoff:
            raise ValueError(
                "initial_backoff must be positive and at most max_backoff, not "
                f"{self.initial_backoff} and {self.max_backoff}"
            )


class FrameSampler:
    """Select the frames to classify, by `every` and `fps` of the policy."""

    def __init__(self, policy: StreamPolicy) -> None:
        self._every = policy.every
        self._gap = 1 / policy.fps if policy.fps else 0.0
        self._due: float | None = None

    def takes(self, number: int, at: float) -> bool:
        """Return True for a frame to classify; times in seconds are ascending."""
        if number % self._every:
            return False
        if not self._gap:
            return True
        if self._due is not None and self._due - self._gap < at < self._due - ROUNDING_SECONDS:
            return False
        late = self._due is None or abs(at - self._due) > self._gap + ROUNDING_SECONDS
        self._due = (at if late or self._due is None else self._due) + self._gap
        return True


class Backoff:
    """Delays that double up to a limit, each reduced by up to half at random.

    With jitter, cameras behind a restarted switch do not all reconnect at once. See "equal jitter"
    in Brooker, "Exponential Backoff And Jitter", 2015. Both bounds are in seconds.
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

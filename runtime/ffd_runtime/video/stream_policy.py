"""How streams are read: timeouts, retries and frame sampling."""

from __future__ import annotations

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
            raise ValueError(f"retries must not be negative, not {self.retries}")
        if self.every < 1 or (self.fps is not None and self.fps <= 0):
            raise ValueError(f"every and fps must be positive, not {self.every} and {self.fps}")
        if not 0 < self.initial_backoff <= self.max_backoff:
            raise ValueError(
                "initial_backoff must be positive and at most max_backoff, not "
                f"{self.initial_backoff} and {self.max_backoff}"
            )


class FrameSampler:
    """Select the frames to classify.

    Args:
        policy: its `every` and `fps` are used.
    """

    def __init__(self, policy: StreamPolicy) -> None:
        self._every = policy.every
        self._gap = 1 / policy.fps if policy.fps else 0.0
        self._due: float | None = None

    def takes(self, number: int, at: float) -> bool:
        """Return True if a frame is to be classified.

        Args:
            number: of the frame, from 0.
            at: its time in seconds, ascending.
        """
        if number % self._every:
            return False
        if not self._gap:
            return True
        if self._due is not None and self._due - self._gap < at < self._due - ROUNDING_SECONDS:
            return False
        late = self._due is None or abs(at - self._due) > self._gap + ROUNDING_SECONDS
        self._due = (at if late or self._due is None else self._due) + self._gap
        return True

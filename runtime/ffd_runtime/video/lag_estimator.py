"""How old frames are when they come, because they have piled up."""

from __future__ import annotations

# Seconds: a jump of the stream's clock, not a delay.
MIN_CLOCK_JUMP_SECONDS = 30.0
# Share of the time that a reader spends waiting for frames at which nothing has piled up.
IDLE_SHARE = 0.2
# Share of an average that is its newest value: it looks back about a second of video.
SMOOTHING_FACTOR = 0.05


class LagEstimator:
    """Compares a stream's timestamps with the clock while its reader is busy.

    A reader that has to wait for frames has what there is: they are not late, whatever their
    timestamps say, and those of many cameras run too fast or too slow. One that never waits decodes
    more slowly than frames come: they pile up on the way, and how much later than at first they
    are, their timestamps tell.
    """

    def __init__(self) -> None:
        self._quickest: float | None = None
        self._last = 0.0
        self._gap = 0.0
        self._waited = 0.0

    def measure(self, timestamp: float, now: float, waited: float) -> float:
        """Seconds by which a frame is late.

        Args:
            timestamp: of the frame, in seconds of the stream's clock.
            now: when it was read, in seconds of `time.monotonic`.
            waited: seconds for which it was waited for.
        """
        offset = now - timestamp
        if self._quickest is None:
            self._last = now
        self._gap += SMOOTHING_FACTOR * (now - self._last - self._gap)
        self._waited += SMOOTHING_FACTOR * (waited - self._waited)
        self._last = now
        idle = self._waited > IDLE_SHARE * self._gap
        if self._quickest is None or idle or abs(offset - self._quickest) > MIN_CLOCK_JUMP_SECONDS:
            self._quickest = offset
        self._quickest = min(self._quickest, offset)
        return offset - self._quickest

"""Estimate how late frames arrive because they have queued up."""

from __future__ import annotations

# A larger change of the offset is a jump of the stream's clock, not a delay.
MIN_CLOCK_JUMP_SECONDS = 30.0
# If the reader is idle for more than this share of the time, nothing has queued up.
IDLE_SHARE = 0.2
# Weight of the newest value in moving averages, which then cover about one second of video.
SMOOTHING_FACTOR = 0.05


class LagEstimator:
    """Compare a stream's timestamps with the clock while its reader is busy.

    A reader that waits for frames has no backlog, even if the camera's clock runs too fast or too
    slow. A reader that never waits decodes more slowly than frames arrive. The offset between
    timestamps and clock then grows with the backlog.
    """

    def __init__(self) -> None:
        self._min_offset: float | None = None
        self._last = 0.0
        self._interval = 0.0
        self._waited = 0.0

    def measure(self, timestamp: float, now: float, waited: float) -> float:
        """Return the lag of a frame in seconds.

        Args:
            timestamp: of the frame, in seconds of the stream's clock.
            now: time at which it was read, in seconds of `time.monotonic`.
            waited: idle seconds before it.
        """
        offset = now - timestamp
        if self._min_offset is None:
            self._last, self._min_offset = now, offset
        self._interval += SMOOTHING_FACTOR * (now - self._last - self._interval)
        self._waited += SMOOTHING_FACTOR * (waited - self._waited)
        self._last = now
        idle = self._waited > IDLE_SHARE * self._interval
        jump = abs(offset - self._min_offset) > MIN_CLOCK_JUMP_SECONDS
        self._min_offset = offset if idle or jump else min(self._min_offset, offset)
        return offset - self._min_offset

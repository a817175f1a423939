"""Estimate how late frames arrive because they have queued up."""

from __future__ import annotations

import math

# A larger step between two timestamps, forward or back, is a jump of the stream's clock.
MIN_CLOCK_JUMP_SECONDS = 30.0
MIN_BACKWARD_JUMP_SECONDS = 1.0
# If the reader is idle for more than this share of the time, nothing has queued up.
IDLE_SHARE = 0.2
# Weight of the newest value in moving averages, which then cover about one second of video.
SMOOTHING_FACTOR = 0.05


class LagEstimator:
    """Compare a stream's timestamps with the clock while its reader is busy.

    A reader that waits for frames has no backlog, even if the camera's clock runs too fast or too
    slow. A reader that never waits decodes more slowly than frames arrive. The offset between
    timestamps and clock then grows with the backlog. It also grows while the process is stopped
    (`docker pause`, Ctrl-Z), which is not idle time.
    """

    def __init__(self) -> None:
        self._min_offset = math.inf
        self._last: tuple[float, float] | None = None
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
        last_timestamp, last_now = self._last or (timestamp, now)
        self._last = timestamp, now
        step, interval = timestamp - last_timestamp, now - last_now
        jump = not -MIN_BACKWARD_JUMP_SECONDS <= step <= MIN_CLOCK_JUMP_SECONDS
        if interval - step > MIN_CLOCK_JUMP_SECONDS and not jump:
            # The process was stopped: the frames of this time have queued up.
            self._interval = self._waited = 0.0
        else:
            self._interval += SMOOTHING_FACTOR * (interval - self._interval)
            self._waited += SMOOTHING_FACTOR * (waited - self._waited)
        idle = self._waited > IDLE_SHARE * self._interval
        self._min_offset = offset if idle or jump else min(self._min_offset, offset)
        return offset - self._min_offset

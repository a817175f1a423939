"""How old frames are when they come, by the stream's own clock."""

from __future__ import annotations

# Seconds a second by which a camera's clock may run slower than ours without being called late: ten
# times a bad crystal's 200 parts in a million.
DRIFT = 0.002
# Seconds: a jump of the stream's clock, not a delay.
JUMP = 30.0


class Lag:
    """Compares a stream's timestamps with the clock.

    The quickest frame so far tells what a frame without delay would show; whatever comes later than
    that has waited on the way: in the camera, the network, or because the decoder is too slow.
    """

    def __init__(self) -> None:
        self._quickest: float | None = None
        self._last = 0.0

    def measure(self, timestamp: float, now: float) -> float:
        """Seconds by which a frame is late.

        Args:
            timestamp: of the frame, in seconds of the stream's clock.
            now: when it came, in seconds of `time.monotonic`.
        """
        offset = now - timestamp
        if self._quickest is None or abs(offset - self._quickest) > JUMP:
            self._quickest = offset
        else:
            allowed = self._quickest + DRIFT * (now - self._last)
            self._quickest = min(offset, allowed)
        self._last = now
        return offset - self._quickest

"""Recognise frames that a live HLS playlist sends again after a reconnection."""

from __future__ import annotations

import math

# FFmpeg starts three segments before the end of a live playlist, and segments have 2 to 10 s.
MAX_REPLAY_SECONDS = 60.0


class ReplayFilter:
    """Compare the timestamps of a connection with those of the connections before it.

    If the encoder of a playlist has stopped, its last segments stay on the server. Without this
    filter, each reconnection would show them again as live.

    Attributes:
        replaying: whether the connection has sent nothing but known frames.
    """

    def __init__(self) -> None:
        self.replaying = False
        self._begun = False
        self._newest = -math.inf

    def connect(self) -> None:
        """Begin a connection."""
        self.replaying = self._begun = False

    def is_new(self, timestamp: float) -> bool:
        """Return whether a frame was not sent before.

        Args:
            timestamp: of the frame, in seconds of the stream's clock. A first frame more than
                `MAX_REPLAY_SECONDS` older than the newest one means that the clock was reset.
        """
        if not self._begun:
            self._begun = True
            self.replaying = self._newest - MAX_REPLAY_SECONDS <= timestamp <= self._newest
        if self.replaying and timestamp <= self._newest:
            return False
        self.replaying = False
        self._newest = timestamp
        return True

"""Read several streams concurrently."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from threading import Condition
from typing import Self

from .frame_result import StreamHealth
from .remote_reader import open_capture
from .stream_address import Stream
from .stream_policy import StreamPolicy
from .stream_reader import FileReader, LiveReader, OpenCapture, StreamReader

# Interval at which waiting threads check the state of the streams.
TICK_SECONDS = 0.25
JOIN_TIMEOUT_SECONDS = 0.5


class Feed:
    """Read each stream in its own thread; a context manager.

    A stream that does not respond does not delay the others. `StreamPipeline` classifies the
    frames.

    Example:
        >>> from ffd_runtime.video.stream_address import to_streams
        >>> with Feed(to_streams(["rtsp://127.0.0.1:9/door"]), StreamPolicy(retries=0)) as feed:
        ...     print(feed.health()[0].source)
        rtsp://127.0.0.1:9/door
    """

    def __init__(
        self,
        streams: Iterable[Stream],
        policy: StreamPolicy | None = None,
        open_capture: OpenCapture = open_capture,
    ) -> None:
        self.changed = Condition()
        """Notified when a stream has a frame or a new state; guards the state of the readers."""
        policy = policy or StreamPolicy()
        self.readers: Sequence[StreamReader] = [
            (LiveReader if stream.live else FileReader)(stream, policy, self.changed, open_capture)
            for stream in streams
        ]

    def health(self) -> list[StreamHealth]:
        """Return the current health of all streams."""
        return [reader.health() for reader in self.readers]

    def __enter__(self) -> Self:
        for reader in self.readers:
            reader.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.stop()
        deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
        for reader in self.readers:
            # A blocked call cannot be interrupted.
            reader.thread.join(max(0.0, deadline - time.monotonic()))

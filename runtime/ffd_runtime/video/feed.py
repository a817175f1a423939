"""Read several streams concurrently."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from threading import Condition
from typing import Self

from .frame_result import Frame, StreamHealth
from .remote_reader import open_capture
from .stream_address import Stream
from .stream_policy import StreamPolicy
from .stream_reader import FileReader, LiveReader, OpenCapture, StreamReader

# An empty round is yielded after this time without a frame.
TICK_SECONDS = 0.25
JOIN_TIMEOUT_SECONDS = 0.5


class Feed:
    """Read each stream in its own thread; a context manager.

    A stream that does not respond does not delay the others.

    Args:
        streams: what to read.
        policy: timeouts, retries and sampling.
        open_capture: opens a stream.

    Example:
        >>> from ffd_runtime.video.stream_address import to_streams
        >>> with Feed(to_streams(["rtsp://127.0.0.1:9/door"]), StreamPolicy(retries=0)) as feed:
        ...     print(sum(map(len, feed)), feed.readers[0].health().state)
        0 failed
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

    def __iter__(self) -> Iterator[list[tuple[StreamReader, Frame]]]:
        """Yield rounds of at most one frame per stream; an empty round after `TICK_SECONDS`.

        Raises:
            FfdError: this machine cannot read such streams.
        """
        while True:
            taken = [(reader, reader.take()) for reader in self.readers]
            found = [(reader, frame) for reader, frame in taken if frame is not None]
            if not found:
                with self.changed:
                    for reader in self.readers:
                        reader.raise_fatal()
                    if all(reader.done() for reader in self.readers):
                        return
                    if not any(reader.has_frame() for reader in self.readers):
                        self.changed.wait(TICK_SECONDS)
                    if any(reader.has_frame() for reader in self.readers):
                        continue
            yield found

    def health(self) -> list[StreamHealth]:
        """Return the current health of all streams."""
        return [reader.health() for reader in self.readers]

    def __enter__(self) -> Self:
        for reader in self.readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.stop()
        deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
        for reader in self.readers:
            reader.join(max(0.0, deadline - time.monotonic()))

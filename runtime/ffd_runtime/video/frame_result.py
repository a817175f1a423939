"""Frames, their results, and the health of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..core.results import Result, RowError
from ..image.decode import Image

# connecting: being opened, or open without a frame yet; playing: frames arrive; waiting: it failed
# and will be retried; failed: retries exhausted; ended: end of the file or of the run.
State = Literal["connecting", "playing", "waiting", "failed", "ended"]


@dataclass(frozen=True)
class Frame:
    """One image of a stream.

    Attributes:
        source: the stream's name, without credentials.
        number: from 0; dropped and skipped frames are counted.
        image: uint8 [height, width, 3], BGR; read only.
        captured: time of decoding, in seconds of `time.monotonic`.
        time: seconds since the start of a video file; of a live source, since 1970 (UTC).
        lag: age in seconds when it was captured, because frames had queued up.
    """

    source: str
    number: int
    image: Image = field(repr=False)
    captured: float
    time: float
    lag: float = 0.0


@dataclass(frozen=True)
class StreamHealth:
    """The state of a source at one moment.

    Attributes:
        source: its name.
        live: True for a camera or server, False for a video file.
        state: see `State`.
        error: why it does not play, as text; None while it plays.
        code: the same as one of `InputError.CODES`.
        size: width and height of the last frame in pixels; None before the first.
        fps: recent frames per second.
        frames: number of frames received.
        undecoded: number of frames skipped because they were damaged or could not be decoded.
        analysed: number of frames classified.
        dropped: number of frames not classified because a newer one had arrived.
        breaks: number of times that it stopped playing.
        broken: reason of the last break; None before the first.
        outage: duration of the last outage in seconds; None before the first recovery.
        age: seconds from capture to result of the last classified frame, `lag` included; None
            before the first.
        last_frame: time of the last frame in seconds since 1970 (UTC); None before the first.
        next_try: seconds until the next retry, while waiting.
        note: an unexpected property, such as a second video stream; otherwise None.
    """

    source: str
    live: bool
    state: State
    error: str | None = None
    code: str | None = None
    size: tuple[int, int] | None = None
    fps: float = 0.0
    frames: int = 0
    undecoded: int = 0
    analysed: int = 0
    dropped: int = 0
    breaks: int = 0
    broken: RowError | None = None
    outage: float | None = None
    age: float | None = None
    last_frame: float | None = None
    next_try: float | None = None
    note: str | None = None

    @property
    def reconnects(self) -> int:
        """Number of times that it recovered from a break."""
        return self.breaks if self.outage is not None else max(0, self.breaks - 1)


@dataclass(frozen=True)
class FrameResult:
    """One frame with its results.

    Attributes:
        results: one per face, with `face`, `track` and `heatmap`; one without `face` if whole
            frames are classified.
        health: of its source, after this frame.
        inference: seconds in the face detector and the model.
    """

    frame: Frame
    results: Sequence[Result]
    health: StreamHealth
    inference: float = 0.0


class Quit(Exception):  # noqa: N818 (not an error)
    """The user asked to end the run: it ends as if all sources had ended."""


class FrameSink(AbstractContextManager["FrameSink", None], Protocol):
    """Show or store frame results. All methods are called from one thread."""

    def show(self, frame_result: FrameResult) -> None:
        """Take a frame with its results.

        Raises:
            OutputError: it cannot be shown or stored; the run ends.
            Quit: the user asked to end the run.
        """

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Take the health of all sources, about four times per second; raises as `show` does."""

"""What a stream gives: frames, what was found in them, and how its source is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol

from ..core.results import Result, RowError
from ..image.decode import Image

# connecting: being opened, or open without a frame yet; playing: frames come; waiting: it failed
# and is tried again; failed: given up; ended: a file's end, or the end of the run.
State = Literal["connecting", "playing", "waiting", "failed", "ended"]


@dataclass(frozen=True)
class Frame:
    """One picture of a stream.

    Attributes:
        source: the stream's name, safe to show: without credentials.
        number: from 0; frames that were dropped or left out are counted.
        image: uint8 [height, width, 3], BGR; read only.
        captured: when the decoder gave it, in seconds of `time.monotonic`.
        time: seconds since the start for a video file, since 1970 (UTC) for a live one.
        lag: seconds by which it was old when it was captured, because frames had piled up.
    """

    source: str
    number: int
    image: Image = field(repr=False)
    captured: float
    time: float
    lag: float = 0.0


@dataclass(frozen=True)
class StreamHealth:
    """How a source is, at one moment.

    Attributes:
        source: its name.
        live: a camera or server; False for a video file.
        state: see `State`.
        error: why it does not play, for a person; None while it does.
        code: the same as one of `InputError.CODES`.
        size: width and height of the last frame, in pixels; None before the first.
        fps: frames a second that came lately.
        frames: that came.
        undecoded: that were damaged or could not be decoded, and are left out.
        analysed: that were classified.
        dropped: that were not, because a newer one had come.
        breaks: times that it ceased to play.
        broken: why, the last time; None before the first.
        outage: seconds until it played again then; None before the first time.
        age: seconds from capture to verdict of the frame that was analysed last, `lag` included;
            None before the first.
        last_frame: when the last frame came, in seconds since 1970 (UTC); None before the first.
        next_try: seconds until it is tried again, where it is waiting.
        note: what a user may not expect of it, such as a second video stream; None for nothing.
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
        """Times that it played again after a break."""
        return self.breaks if self.outage is not None else max(0, self.breaks - 1)


@dataclass(frozen=True)
class FrameResult:
    """One frame with its verdicts.

    Attributes:
        frame: the picture.
        results: a result for each face in it, with `face`, `track` and `heatmap`; one without
            `face` where whole pictures are classified.
        health: of its source, right after.
        inference: seconds that the networks took, detector and classifier.
    """

    frame: Frame
    results: Sequence[Result]
    health: StreamHealth
    inference: float = 0.0


class Quit(Exception):  # noqa: N818 (nothing is wrong)
    """A person has seen enough: the run ends as if its sources had."""


class FrameSink(Protocol):
    """Show or store frame results; a context manager. All methods are called from one thread."""

    def show(self, frame_result: FrameResult) -> None:
        """Take a scene.

        Raises:
            OutputError: it cannot be shown or kept; the run ends.
            Quit: a person has asked for the end.
        """

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Take how all sources are: about four times a second, also when no frame comes.

        Raises:
            OutputError, Quit: as `show`.
        """

    def __enter__(self) -> FrameSink: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

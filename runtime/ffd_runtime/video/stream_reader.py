"""Read a stream in a thread, and reconnect when it fails."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Condition, Event, Thread

from ..core.errors import FfdError, InputError
from ..core.results import RowError
from ..image.decode import Image
from .capture import Capture
from .container import is_hls
from .frame_result import Frame, State, StreamHealth
from .lag_estimator import LagEstimator
from .remote_reader import START_MARGIN_SECONDS, TIMEOUT_MARGIN_SECONDS, open_capture
from .replay_filter import ReplayFilter
from .stream_address import Stream
from .stream_policy import Backoff, FrameSampler, StreamPolicy

# Frames of a file that are decoded ahead.
MAX_BUFFERED_FRAMES = 4
# The window over which the frame rate is measured.
FPS_WINDOW_SECONDS = 5.0
FPS_WINDOW_FRAMES = 600
# A connection with a larger lag is closed: a new one starts at the current frame.
MAX_LAG_SECONDS = 5.0
# A call that exceeds its timeout by this much is reported as hanging. It must be longer than the
# time in which a silent reader process is given up and killed, which would be a second error.
HANG_MARGIN_SECONDS = TIMEOUT_MARGIN_SECONDS + START_MARGIN_SECONDS + 4.0

OpenCapture = Callable[[Stream, float], Capture]


class StreamReader(ABC):
    """Base of the threads that read streams.

    Args:
        changed: notified when there is a frame or the state changes.
    """

    def __init__(
        self,
        stream: Stream,
        policy: StreamPolicy,
        changed: Condition,
        open_capture: OpenCapture = open_capture,
    ) -> None:
        self.stream = stream
        self._policy = policy
        self._changed = changed
        self._open_capture = open_capture
        self._sampler = FrameSampler(policy)
        # Seconds that a call may take.
        self._limit = policy.timeout
        self._stop = Event()
        # Written by the thread and read by others, guarded by `changed`.
        self._health = StreamHealth(stream.name, stream.live, "connecting")
        self._frames: deque[Frame] = deque()
        self._arrivals: deque[float] = deque(maxlen=FPS_WINDOW_FRAMES)
        self._blocked_since: float | None = None
        self._next_try: float | None = None
        self._fatal: FfdError | None = None
        # Total of the captures that are closed.
        self._undecoded = 0
        self.thread = Thread(target=self._run, name=f"ffd-stream {stream.name}", daemon=True)

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Return the next frame, or None."""
        with self._changed:
            if not self._frames:
                return None
            # There is room for another frame.
            self._changed.notify_all()
            return self._frames.popleft()

    def raise_fatal(self) -> None:
        """Raise the FfdError, if any, that shows that this machine cannot read such streams."""
        if self._fatal:
            raise self._fatal

    def done(self) -> bool:
        """Return True if there will be no more frames. The caller holds `changed`."""
        return self._health.state in ("failed", "ended") and not self._frames

    def health(self) -> StreamHealth:
        """Return the current health of the stream."""
        now = time.monotonic()
        with self._changed:
            self._forget_arrivals(now)
            span = now - self._arrivals[0] if self._arrivals else 0.0
            fps = (len(self._arrivals) - 1) / span if span else 0.0
            left = None if self._next_try is None else max(0.0, self._next_try - now)
            health = replace(self._health, fps=fps, next_try=left)
            since = self._blocked_since
        if since is not None and now - since > self._limit + HANG_MARGIN_SECONDS:
            # A driver or a name server that does not respond.
            error = "it hangs: the system does not respond"
            return replace(health, state="waiting", error=error, code="timeout")
        return health

    def count_analysed(self, age: float) -> StreamHealth:
        """Count a frame classified `age` seconds after its capture; return the health."""
        with self._changed:
            self._change(analysed=self._health.analysed + 1, age=age)
        return self.health()

    def _run(self) -> None:
        try:
            self._read()
        except FfdError as error:
            self._fatal = error
        except Exception as error:  # one stream must not end the others
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            self._end("failed", InputError("read_failed", reason))
        finally:
            with self._changed:
                self._changed.notify_all()

    @abstractmethod
    def _read(self) -> None:
        """Read until the end, or until `stop`."""

    @contextmanager
    def _opened(self) -> Iterator[Capture]:
        """Open the stream, and close it at the end."""
        self._limit = self._policy.timeout
        with self._blocked():
            capture = self._open_capture(self.stream, self._policy.timeout)
        self._limit = capture.timeout
        try:
            with self._changed:
                self._change(note=capture.note)
            yield capture
        finally:
            self._undecoded += capture.broken
            with self._blocked():
                capture.close()

    def _grab(self, capture: Capture) -> bool:
        with self._blocked():
            return capture.grab()

    @contextmanager
    def _blocked(self) -> Iterator[None]:
        """Record the start of a call that may never return."""
        self._blocked_since = time.monotonic()
        try:
            yield
        finally:
            self._blocked_since = None

    def _forget_arrivals(self, now: float) -> None:
        """Remove old arrivals. The caller holds `changed`."""
        # A slower stream keeps its last two.
        while len(self._arrivals) > 2 and now - self._arrivals[0] > FPS_WINDOW_SECONDS:
            self._arrivals.popleft()

    def _change(self, **values: object) -> None:
        """Update the health. The caller holds `changed`."""
        self._health = replace(self._health, **values)  # type: ignore[arg-type]

    def _count(self, image: Image | None, capture: Capture) -> None:
        """Count a received frame; `image` is None if it is skipped. The caller holds `changed`."""
        now = time.monotonic()
        self._forget_arrivals(now)
        self._arrivals.append(now)
        size = self._health.size if image is None else (image.shape[1], image.shape[0])
        self._change(
            state="playing",
            error=None,
            code=None,
            size=size,
            frames=self._health.frames + 1,
            undecoded=self._undecoded + capture.broken,
            last_frame=time.time(),
        )

    def _end(self, state: State, failure: InputError | None = None) -> None:
        with self._changed:
            error, code = (failure.message, failure.code) if failure else (None, None)
            self._change(state=state, error=error, code=code)
            self._changed.notify_all()


class FileReader(StreamReader):
    """Read a video file: every frame in order, a few ahead."""

    def _read(self) -> None:
        try:
            with self._opened() as capture:
                self._read_frames(capture)
        except InputError as error:
            self._end("failed", error)
        else:
            self._end("ended")

    def _read_frames(self, capture: Capture) -> None:
        """Read to the end; an InputError shows that it was truncated or frames were damaged."""
        number = 0
        while not self._stop.is_set() and self._grab(capture):
            at = capture.timestamp()
            image = capture.retrieve() if self._sampler.takes(number, at) else None
            with self._changed:
                self._count(image, capture)
            if image is not None:
                self._put(Frame(self.stream.name, number, image, capture.grabbed, at))
            number += 1

    def _put(self, frame: Frame) -> None:
        with self._changed:
            while len(self._frames) >= MAX_BUFFERED_FRAMES and not self._stop.is_set():
                self._changed.wait()
            self._frames.append(frame)
            self._changed.notify_all()


class LiveReader(StreamReader):
    """Read a camera or server: keep only the newest frame, and reconnect when it fails."""

    _number = 0
    _broken_at: float | None = None
    # When the first frame of the current connection came.
    _played_since: float | None = None
    _replays: ReplayFilter | None = None

    def _read(self) -> None:
        backoff = Backoff(self._policy.initial_backoff, self._policy.max_backoff)
        failures = 0
        if self.stream.kind == "server" and is_hls(str(self.stream.target)):
            self._replays = ReplayFilter()
        while not self._stop.is_set():
            self._played_since = None
            failure = self._play()
            if self._stop.is_set():
                break
            failures = 1 if self._played_since else failures + 1
            if self._policy.retries is not None and failures > self._policy.retries:
                self._end("failed", failure)
                return
            if self._played_since:
                # Without the time to open it, which a source that fails after a frame may take.
                backoff.record_success(time.monotonic() - self._played_since)
            self._wait(failure, backoff.next_delay())
        self._end("ended")

    def _play(self) -> InputError:
        """Read until the stream fails; return the reason."""
        if self._replays:
            self._replays.connect()
        try:
            with self._opened() as capture:
                lag = LagEstimator()
                while not self._stop.is_set():
                    self._read_frame(capture, lag)
        except InputError as error:
            if self._replays and self._replays.replaying:
                return InputError(error.code, "its playlist has no new video")
            return error
        except FfdError:
            raise
        except Exception as error:  # may be temporary, such as a process limit
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            return InputError("read_failed", reason)
        return InputError("fetch_failed", "stopped")

    def _read_frame(self, capture: Capture, lag_estimator: LagEstimator) -> None:
        """Read one frame; an InputError shows that none came, or too late."""
        if not self._grab(capture):
            raise InputError("fetch_failed", "the stream was interrupted")
        if self._replays and not self._replays.is_new(capture.timestamp()):
            return
        now = capture.grabbed
        lag = 0.0
        if self.stream.kind == "server":
            lag = lag_estimator.measure(capture.timestamp(), now, capture.waited)
        if lag > MAX_LAG_SECONDS:
            raise InputError("fetch_failed", f"its frames arrive {lag:.1f} s late")
        frame = None
        if self._sampler.takes(self._number, now):
            image = capture.retrieve()
            if image is None:
                raise InputError("fetch_failed", "a frame could not be decoded")
            frame = Frame(self.stream.name, self._number, image, now, time.time(), lag)
        self._put(frame, capture)
        self._number += 1

    def _put(self, frame: Frame | None, capture: Capture) -> None:
        with self._changed:
            self._played_since = self._played_since or time.monotonic()
            if self._broken_at is not None:
                self._change(outage=time.monotonic() - self._broken_at)
                self._broken_at = None
            self._count(frame.image if frame else None, capture)
            if frame is None:
                return
            if self._frames:
                self._frames.clear()
                self._change(dropped=self._health.dropped + 1)
            self._frames.append(frame)
            self._changed.notify_all()

    def _wait(self, failure: InputError, seconds: float) -> None:
        with self._changed:
            if self._health.state == "playing":
                self._broken_at = time.monotonic()
                broken = RowError.of(failure)
                self._change(breaks=self._health.breaks + 1, broken=broken, outage=None)
            self._next_try = time.monotonic() + seconds
            self._change(state="waiting", error=failure.message, code=failure.code)
            self._changed.notify_all()
        self._stop.wait(seconds)
        with self._changed:
            self._next_try = None

"""A thread for each stream, which reads it and brings it back when it breaks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from threading import Condition, Event, Thread

from ..decode import Image
from ..errors import FfdError, InputError
from .address import Stream
from .backoff import Backoff
from .capture import Capture, OpenCVCapture
from .lag import Lag
from .policy import Sampler, StreamPolicy
from .scene import Frame, Health, State

# Frames of a file that are decoded ahead.
AHEAD = 4
# Seconds over which the frame rate is counted.
RATE_OVER = 5.0
# Seconds of lag at which a connection is given up: a new one begins with what is now.
MOST_LAG = 5.0
# Seconds beyond its timeout at which a wait is called one that nothing can interrupt.
MARGIN = 2.0
# Share of a file's frames that may be missing: in some formats their number is an estimate.
MISSING = 0.1
# Of a file that does not say its rate.
USUAL_FPS = 25.0

OpenCapture = Callable[[Stream, float], Capture]


class Reader(ABC):
    """Base of the threads that read streams.

    Args:
        stream: what to read.
        policy: how.
        news: notified when there is a frame, and when none will come any more.
        open_capture: opens the stream.
    """

    def __init__(
        self,
        stream: Stream,
        policy: StreamPolicy,
        news: Condition,
        open_capture: OpenCapture = OpenCVCapture,
    ) -> None:
        self.stream = stream
        self.failure: InputError | None = None
        self._policy = policy
        self._news = news
        self._open_capture = open_capture
        self._sampler = Sampler(policy)
        self._stop = Event()
        # Below: written by the thread, read by others, under `news`.
        self._health = Health(stream.name, stream.live, "connecting")
        self._arrivals: deque[float] = deque()
        self._blocked_since: float | None = None
        self._next_try: float | None = None
        self._fatal: FfdError | None = None
        self._thread = Thread(target=self._run, name=f"ffd-stream {stream.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        with self._news:
            self._news.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread, which may be held by what nothing can interrupt."""
        self._thread.join(timeout)

    @abstractmethod
    def has_frame(self) -> bool:
        """Whether `take` would give one. Called under `news`."""

    @abstractmethod
    def take(self) -> Frame | None:
        """The frame whose turn it is, if there is one."""

    def require_fit(self) -> None:
        """Raise what shows that this machine cannot read such streams at all.

        Raises:
            FfdError: the reason.
        """
        if self._fatal:
            raise self._fatal

    def done(self) -> bool:
        """Whether no frame will come any more. Called under `news`."""
        return self._health.state in ("failed", "ended") and not self.has_frame()

    def health(self) -> Health:
        """How the stream is now."""
        now = time.monotonic()
        with self._news:
            while self._arrivals and now - self._arrivals[0] > RATE_OVER:
                self._arrivals.popleft()
            span = self._arrivals[-1] - self._arrivals[0] if self._arrivals else 0.0
            fps = (len(self._arrivals) - 1) / span if span else 0.0
            left = None if self._next_try is None else max(0.0, self._next_try - now)
            health = replace(self._health, fps=fps, next_try=left)
            since = self._blocked_since
        if since is not None and now - since > self._policy.timeout + MARGIN:
            # A driver or a name server that says neither yes nor no.
            return replace(health, state="waiting", error="it hangs: the system does not answer")
        return health

    def count_analysed(self, age: float) -> Health:
        """Count a frame that was classified.

        Args:
            age: seconds from its capture to its verdict.
        """
        with self._news:
            self._change(analysed=self._health.analysed + 1, age=age)
        return self.health()

    def _run(self) -> None:
        try:
            self._read()
        except FfdError as error:
            self._fatal = error
        except Exception as error:  # whatever one stream does, the others go on
            reason = f"it cannot be read ({type(error).__name__}: {error})"
            self._end("failed", InputError("read_failed", reason))
        finally:
            with self._news:
                self._news.notify_all()

    @abstractmethod
    def _read(self) -> None:
        """Read until the end, or until `stop`."""

    def _open(self) -> Capture:
        self._blocked_since = time.monotonic()
        try:
            return self._open_capture(self.stream, self._policy.timeout)
        finally:
            self._blocked_since = None

    def _grab(self, capture: Capture) -> bool:
        self._blocked_since = time.monotonic()
        try:
            return capture.grab()
        finally:
            self._blocked_since = None

    def _change(self, **values: object) -> None:
        """Under `news`."""
        self._health = replace(self._health, **values)  # type: ignore[arg-type]

    def _count(self, image: Image | None) -> None:
        """A frame has come, and was decoded if it is to be classified; under `news`."""
        self._arrivals.append(time.monotonic())
        size = self._health.size if image is None else (image.shape[1], image.shape[0])
        self._change(
            state="playing",
            error=None,
            size=size,
            frames=self._health.frames + 1,
            last_frame=time.time(),
        )

    def _end(self, state: State, failure: InputError | None = None) -> None:
        with self._news:
            self.failure = failure
            self._change(state=state, error=failure.message if failure else None)
            self._news.notify_all()


class FileReader(Reader):
    """Reads a video file: every frame in order, some ahead."""

    def __init__(
        self,
        stream: Stream,
        policy: StreamPolicy,
        news: Condition,
        open_capture: OpenCapture = OpenCVCapture,
    ) -> None:
        super().__init__(stream, policy, news, open_capture)
        self._frames: deque[Frame] = deque()

    def has_frame(self) -> bool:
        return bool(self._frames)

    def take(self) -> Frame | None:
        with self._news:
            if not self._frames:
                return None
            self._news.notify_all()
            return self._frames.popleft()

    def _read(self) -> None:
        try:
            with closing(self._open()) as capture:
                number = self._read_frames(capture)
        except InputError as error:
            self._end("failed", error)
            return
        if number == 0:
            self._end("failed", InputError("corrupt", "it holds no frame that can be decoded"))
        elif number < capture.count * (1 - MISSING) and not self._stop.is_set():
            message = f"it ends after {number} of about {capture.count} frames"
            self._end("failed", InputError("truncated", message))
        else:
            self._end("ended")

    def _read_frames(self, capture: Capture) -> int:
        number, at = 0, 0.0
        while not self._stop.is_set() and self._grab(capture):
            timestamp = capture.timestamp()
            # Some formats have no timestamps.
            step = 1 / (capture.fps or USUAL_FPS)
            at = timestamp if number == 0 or timestamp > at else at + step
            image = capture.retrieve() if self._sampler.takes(number, at) else None
            with self._news:
                self._count(image)
            if image is not None:
                self._give(Frame(self.stream.name, number, image, time.monotonic(), at))
            number += 1
        return number

    def _give(self, frame: Frame) -> None:
        with self._news:
            while len(self._frames) >= AHEAD and not self._stop.is_set():
                self._news.wait()
            self._frames.append(frame)
            self._news.notify_all()


class LiveReader(Reader):
    """Reads a camera or server: its newest frame wins, and it is brought back when it breaks."""

    def __init__(
        self,
        stream: Stream,
        policy: StreamPolicy,
        news: Condition,
        open_capture: OpenCapture = OpenCVCapture,
    ) -> None:
        super().__init__(stream, policy, news, open_capture)
        self._newest: Frame | None = None
        self._number = 0

    def has_frame(self) -> bool:
        return self._newest is not None

    def take(self) -> Frame | None:
        with self._news:
            frame, self._newest = self._newest, None
            return frame

    def _read(self) -> None:
        backoff = Backoff(self._policy.first_wait, self._policy.most_wait)
        tries = 0
        while not self._stop.is_set():
            first, begin = self._number, time.monotonic()
            failure = self._play()
            if self._stop.is_set():
                break
            tries = tries + 1 if self._number == first else 1
            if self._policy.retries is not None and tries > self._policy.retries:
                self._end("failed", failure)
                return
            backoff.played(time.monotonic() - begin if self._number > first else 0.0)
            self._wait(failure, backoff.wait())
        self._end("ended", self.failure)

    def _play(self) -> InputError:
        """Read until it breaks; the reason."""
        try:
            with closing(self._open()) as capture:
                lag = Lag()
                while not self._stop.is_set():
                    self._read_frame(capture, lag)
        except InputError as error:
            return error
        return InputError("fetch_failed", "stopped")

    def _read_frame(self, capture: Capture, lag: Lag) -> None:
        """Take one frame from the stream.

        Raises:
            InputError: there is none.
        """
        begin, busy, timeout = time.monotonic(), time.thread_time(), self._policy.timeout
        grabbed = self._grab(capture)
        now = time.monotonic()
        waited = now - begin - (time.thread_time() - busy)
        if now - begin >= timeout:
            # Even if there was one: interrupted, FFmpeg gives what it had kept back.
            raise InputError("timeout", f"no frame within {timeout:g} s")
        if not grabbed:
            raise InputError("fetch_failed", "the stream broke off")
        timed = self.stream.kind == "server"
        late = lag.measure(capture.timestamp(), now, waited) if timed else 0.0
        if late > MOST_LAG:
            raise InputError("fetch_failed", f"its frames came {late:.1f} s late")
        if not self._sampler.takes(self._number, now):
            self._give(None)
        elif (image := capture.retrieve()) is not None:
            name = self.stream.name
            self._give(Frame(name, self._number, image, time.monotonic(), time.time(), late))
        else:
            raise InputError("fetch_failed", "a frame could not be decoded")
        self._number += 1

    def _give(self, frame: Frame | None) -> None:
        with self._news:
            back = self._health.frames > 0 and self._health.state != "playing"
            self.failure = None
            self._count(frame.image if frame else None)
            self._change(reconnects=self._health.reconnects + back)
            if frame is None:
                return
            if self._newest is not None:
                self._change(dropped=self._health.dropped + 1)
            self._newest = frame
            self._news.notify_all()

    def _wait(self, failure: InputError, seconds: float) -> None:
        with self._news:
            self.failure = failure
            self._next_try = time.monotonic() + seconds
            self._change(state="waiting", error=failure.message)
        self._stop.wait(seconds)
        with self._news:
            self._next_try = None

"""Record annotated streams: one video file per source, in real time."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Semaphore, Thread
from typing import Self

from ..core.cores import count_cores
from ..core.errors import OutputError
from ..core.text import printable
from ..image.decode import Image
from ..outputs.target import require_file_name, require_folder
from .draw_frame import draw_frame
from .frame_result import FrameResult, State, StreamHealth
from .source_recording import DEFAULT_FPS, Interruption, SourceRecording, recording_paths

log = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".mkv")
# Kept free on the disk. To finish a file of one hour takes about two million bytes.
MIN_FREE_BYTES = 64 << 20
# Free on the disk when a recording resumes, so that it does not stop again at once.
RESUME_FREE_BYTES = 256 << 20
# Delay before a recording of live sources resumes; it doubles each time.
FIRST_PAUSE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 3600.0
CHECK_INTERVAL_SECONDS = 1.0
# Delay after the last frame of an ended source before its file is closed.
IDLE_CLOSE_SECONDS = 5.0
# Limit for the encoder after an interruption, so that SIGTERM is handled within two seconds.
CLOSE_TIMEOUT_SECONDS = 1.5
# Limit for closing the files at a normal end, after the last frame was encoded.
FINISH_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.1
# Of each source.
MAX_QUEUED_FRAMES = 4
WARNING_INTERVAL_SECONDS = 60.0


def check_recording_path(path: Path, live: bool = False) -> None:
    """Check a path before the models are loaded.

    Args:
        path: ends with .mp4 or .mkv.
        live: whether a source is live. Its run starts also on a full disk, as after a restart.

    Raises:
        OutputError: the extension is not .mp4 or .mkv, the path is a folder, or its folder is
            missing, not writable or full.
    """
    option = f"--record {printable(str(path))}"
    require_file_name("--record", path, EXTENSIONS)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # OpenCV would abort the process.
        raise OutputError(f"{option}: name and folder must be valid UTF-8") from None
    require_folder("--record", path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{option}: the folder is not writable: choose another")
    reason = _disk_failure(path.parent)
    if reason and not live:
        raise OutputError(f"{option}: {reason}")


class Recorder:
    """A frame sink that records annotated frames, each source encoded in its own thread.

    One source is recorded to NAME.mp4, several to NAME-SOURCE.mp4. Existing files are never
    overwritten: the next name is NAME-2.mp4, then NAME-3.mp4. A new file starts when the frame size
    changes and, for live sources, every hour. If the process is killed, an .mp4 cannot be played;
    an .mkv can, except for its last moments.

    Recordings of live sources play in real time: each image stays until the next. If the source
    breaks for longer than `source_recording.MAX_GAP_SECONDS`, the gap is replaced by a notice of
    one second. Live frames are dropped if the encoder cannot keep up, with a warning. Each frame of
    a video file is recorded once, at the file's rate.

    At a normal end, the exit waits until all queued frames are written. After an exception, it
    discards them and closes the files.

    If the disk is almost full, or a file cannot be opened or written, recording stops with a
    warning and the run continues. With live sources, it resumes with new files when the disk has
    room again, at most `MAX_PAUSE_SECONDS` later.

    Args:
        path: ends with .mp4 or .mkv.
        face_scale: the card's `preprocess.face_scale`.
        fps: frames per second for live sources.
        live: whether a source is live.

    Raises:
        OutputError: see `check_recording_path`.
    """

    def __init__(
        self,
        path: Path,
        sources: Sequence[str],
        *,
        face_scale: float,
        heatmap: bool = False,
        fps: float = DEFAULT_FPS,
        live: bool = False,
    ) -> None:
        check_recording_path(path, live)
        self._shared = _Shared(path.parent, heatmap, face_scale, live)
        self._encoders = {
            source: _Encoder(source, target, fps, self._shared)
            for source, target in recording_paths(path, sources).items()
        }
        self._warned = -math.inf

    def show(self, frame_result: FrameResult) -> None:
        """Queue a frame; for a video file, wait while the queue is full.

        Raises:
            OutputError: a file cannot be opened or written.
        """
        encoder = self._encoders[frame_result.frame.source]
        live, waits = frame_result.health.live, True
        while waits and not self._shared.stopped:
            self._raise_failure()
            try:
                encoder.queue.put(frame_result, block=not live, timeout=CHECK_INTERVAL_SECONDS)
                waits = False
            except Full:
                waits = not live
                if live:
                    encoder.dropped += 1
                    self._warn_of_drops(encoder)

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Record which sources have ended.

        Raises:
            OutputError: see `show`.
        """
        self._shared.states = {health.source: health.state for health in sources}
        self._raise_failure()

    def __enter__(self) -> Self:
        if reason := _disk_failure(self._shared.folder):
            self._shared.stop(reason)
        for encoder in self._encoders.values():
            encoder.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                self._interrupt()
        except BaseException:
            # Ctrl-C or SIGTERM: the first one discards the remaining frames, the second one also
            # ends the wait for the files.
            if not self._shared.interruption.started():
                self._interrupt()
            raise
        finally:
            self._report()
        if kind is None:
            self._raise_failure()

    def _finish(self) -> None:
        """Wait until all queued frames are written and the files are closed."""
        for encoder in self._encoders.values():
            encoder.finish()
        for encoder in self._encoders.values():
            # With a limit, because Windows cannot interrupt a wait without one.
            while encoder.thread.is_alive() and not encoder.encoded.is_set():
                encoder.encoded.wait(POLL_SECONDS)
        self._join(FINISH_TIMEOUT_SECONDS)

    def _interrupt(self) -> None:
        """Discard the queued frames, and wait for a short time until the files are closed."""
        self._shared.interruption.start()
        for encoder in self._encoders.values():
            encoder.discard()
        self._join(CLOSE_TIMEOUT_SECONDS)

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for encoder in self._encoders.values():
            encoder.thread.join(max(0.0, deadline - time.monotonic()))

    def _report(self) -> None:
        for encoder in self._encoders.values():
            if encoder.thread.is_alive():
                reason = "a frame is still being encoded"
                if encoder.encoded.is_set():
                    reason = "the disk does not respond"
                log.warning("the recording of %s was not closed: %s", encoder.source, reason)
        if dropped := sum(encoder.dropped for encoder in self._encoders.values()):
            log.info("%d frames were dropped from the recording", dropped)

    def _warn_of_drops(self, encoder: _Encoder) -> None:
        now = time.monotonic()
        if now - self._warned >= WARNING_INTERVAL_SECONDS:
            self._warned = now
            log.warning(
                "the recording of %s lacks frames, %d so far: encoding is too slow; a lower --fps, "
                "fewer sources or smaller images need less time",
                encoder.source,
                encoder.dropped,
            )

    def _raise_failure(self) -> None:
        for encoder in self._encoders.values():
            if encoder.failure:
                raise encoder.failure


class _Shared:
    """What the threads of a recording share.

    Attributes:
        states: of the sources.
        started: whether a frame was recorded.
        stopped: whether recording has stopped, for a reason that was logged.
        encoding: limits the threads that draw and encode.
    """

    def __init__(self, folder: Path, heatmap: bool, face_scale: float, live: bool) -> None:
        self.folder = folder
        self._live = live
        self._pause = FIRST_PAUSE_SECONDS
        self._resumes_at = 0.0
        self.interruption = Interruption()
        self.states: Mapping[str, State] = {}
        self.started = self.stopped = False
        self._heatmap = heatmap
        self._face_scale = face_scale
        self._lock = Lock()
        # More threads than cores would only take time from the run.
        self.encoding = Semaphore(max(2, count_cores() // 2))

    def draw(self, frame_result: FrameResult) -> Image:
        return draw_frame(frame_result, heatmap=self._heatmap, face_scale=self._face_scale)

    def stop(self, reason: str) -> None:
        """Stop all recordings; each thread closes its own."""
        with self._lock:
            if not self.stopped:
                self.stopped = True
                self._resumes_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
                log.warning("recording stopped, the run continues: %s", reason)

    def resume(self) -> None:
        """Resume the recordings of live sources after a pause, if the disk has room."""
        with self._lock:
            waits = not self._live or time.monotonic() < self._resumes_at
            if self.stopped and not waits and not _disk_failure(self.folder, RESUME_FREE_BYTES):
                self.stopped, self.started = False, True
                log.info("recording resumes")


class _Encoder:
    """The thread that records one source.

    Attributes:
        queue: frames to encode; None ends the thread.
        encoded: set when there is nothing left to encode.
        failure: raised by the thread.
        dropped: number of frames that found the queue full.
    """

    def __init__(self, source: str, path: Path, fps: float, shared: _Shared) -> None:
        self.source = source
        self.queue: Queue[FrameResult | None] = Queue(MAX_QUEUED_FRAMES)
        self.encoded = Event()
        self.failure: Exception | None = None
        self.dropped = 0
        self.thread = Thread(target=self._work, name=f"ffd-record {source}", daemon=True)
        self._shared = shared
        self._recording = SourceRecording(path, fps, shared.interruption, self._must_not_repeat)
        self._checked = self._probed = time.monotonic()

    def finish(self) -> None:
        """Let the thread end after the queued frames."""
        queued = False
        while self.thread.is_alive() and not queued:
            with suppress(Full):
                self.queue.put(None, timeout=POLL_SECONDS)
                queued = True

    def discard(self) -> None:
        """Let the thread end now."""
        with suppress(Empty):
            while True:
                self.queue.get_nowait()
        # Only the thread that calls this adds items, so the queue has room.
        self.queue.put_nowait(None)

    def _work(self) -> None:
        try:
            while not self._shared.interruption.started():
                with suppress(Empty):
                    item = self.queue.get(timeout=CHECK_INTERVAL_SECONDS)
                    if item is None:
                        break
                    self._record(item)
                if time.monotonic() - self._checked >= CHECK_INTERVAL_SECONDS:
                    self._check()
            self._recording.flush()
            self.encoded.set()
            self._recording.close()
        except Exception as error:  # raised again by the caller's thread
            self.encoded.set()
            if self._shared.started and isinstance(error, OutputError):
                self._shared.stop(str(error))
            else:
                self.failure = error
            self._close_quietly()

    def _record(self, frame_result: FrameResult) -> None:
        """Record a frame; stop all recordings if that fails after the first one."""
        if self._shared.stopped:
            return
        try:
            with self._shared.encoding:
                self._recording.add(self._shared.draw(frame_result), frame_result)
            self._shared.started = True
        except OutputError as error:
            if not self._shared.started:
                raise
            self._shared.stop(str(error))
            self._close_quietly()

    def _close_quietly(self) -> None:
        with suppress(OutputError):
            self._recording.close()

    def _must_not_repeat(self) -> bool:
        """Return True if the run was interrupted, or if the disk is almost full."""
        if self._shared.interruption.started():
            return True
        now = time.monotonic()
        if now - self._probed < CHECK_INTERVAL_SECONDS:
            return False
        self._probed = now
        return _disk_failure(self._shared.folder) is not None

    def _check(self) -> None:
        """Close the file of an ended source, and stop before the disk is full."""
        now = self._checked = time.monotonic()
        if not self._shared.stopped:
            idle = now - self._recording.last_frame > IDLE_CLOSE_SECONDS
            if idle and self._shared.states.get(self.source) in ("ended", "failed"):
                self._recording.close()
            reason = _disk_failure(self._shared.folder) or self._recording.failure(now)
            if reason:
                self._shared.stop(reason)
        if self._shared.stopped:
            self._close_quietly()
            self._shared.resume()


def _disk_failure(folder: Path, least: int | None = None) -> str | None:
    """Return the reason why the disk cannot take more, or None.

    Args:
        folder: of the recordings.
        least: bytes that must be free; None for `MIN_FREE_BYTES`.
    """
    least = MIN_FREE_BYTES if least is None else least
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{printable(str(folder))}: {error.strerror}"
    if free < least:
        return f"less than {least >> 20} MiB are free on the disk"
    return None

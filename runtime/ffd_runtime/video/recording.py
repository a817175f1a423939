"""Record annotated streams: one video file per source, in real time."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Self

from ..core.errors import OutputError
from ..core.text import printable
from ..outputs.target import require_file_name, require_folder
from .draw_frame import draw_frame
from .frame_result import FrameResult, State, StreamHealth
from .source_recording import DEFAULT_FPS, Interruption, SourceRecording

log = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".mkv")
# Kept free on the disk. To finish a file of one hour takes about two million bytes.
MIN_FREE_BYTES = 64 << 20
CHECK_INTERVAL_SECONDS = 1.0
# Delay after the last frame of an ended source before its file is closed.
IDLE_CLOSE_SECONDS = 5.0
# Limit for the encoder after an interruption, so that SIGTERM is handled within two seconds.
CLOSE_TIMEOUT_SECONDS = 1.5
# Limit for closing the files at a normal end, after the last frame was encoded.
FINISH_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.1
MAX_NAME_BYTES = 80


def check_recording_path(path: Path) -> None:
    """Check a path before the models are loaded.

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
    if reason:
        raise OutputError(f"{option}: {reason}")


class Recorder:
    """A frame sink that records annotated frames, encoded in a separate thread.

    One source is recorded to NAME.mp4, several to NAME-SOURCE.mp4. Existing files are never
    overwritten: the next name is NAME-2.mp4, then NAME-3.mp4. A new file starts when the frame size
    changes and, for live sources, every hour. If the process is killed, an .mp4 cannot be played;
    an .mkv can, except for its last moments.

    Recordings of live sources play in real time: each image stays until the next. If the source
    breaks for longer than `source_recording.MAX_GAP_SECONDS`, the gap is replaced by a notice of
    one second. Live frames are dropped if the encoder cannot keep up. Each frame of a video file is
    recorded once, at the file's rate.

    At a normal end, the exit waits until all queued frames are written. After an exception, it
    discards them and closes the files.

    If the disk is almost full, or a file cannot be opened or written, recording stops with a
    warning and the run continues.

    Args:
        path: ends with .mp4 or .mkv.
        face_scale: the card's `preprocess.face_scale`.
        fps: frames per second for live sources.

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
    ) -> None:
        check_recording_path(path)
        self._folder = path.parent
        self._face_scale = face_scale
        self._heatmap = heatmap
        self._interruption = Interruption()
        self._recordings = {
            source: SourceRecording(target, fps, self._interruption, self._must_not_repeat)
            for source, target in recording_paths(path, sources).items()
        }
        self._states: Mapping[str, State] = {}
        self._queue: Queue[FrameResult | None] = Queue(2 + 2 * len(sources))
        self._thread = Thread(target=self._work, name="ffd-record", daemon=True)
        # Set when there is nothing left to encode.
        self._encoded = Event()
        self._failure: Exception | None = None
        self._stopped = False
        self._started = False
        self._dropped = 0
        self._checked = self._probed = time.monotonic()

    def show(self, frame_result: FrameResult) -> None:
        """Queue a frame; for a video file, wait while the queue is full.

        Raises:
            OutputError: a file cannot be opened or written.
        """
        live, waits = frame_result.health.live, True
        while waits and not self._stopped:
            self._raise_failure()
            try:
                self._queue.put(frame_result, block=not live, timeout=CHECK_INTERVAL_SECONDS)
                waits = False
            except Full:
                self._dropped += live
                waits = not live

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Record which sources have ended.

        Raises:
            OutputError: see `show`.
        """
        self._states = {health.source: health.state for health in sources}
        self._raise_failure()

    def __enter__(self) -> Self:
        self._thread.start()
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
            if not self._interruption.started():
                self._interrupt()
            raise
        finally:
            self._report()
        if kind is None:
            self._raise_failure()

    def _finish(self) -> None:
        """Wait until all queued frames are written and the files are closed."""
        queued = False
        while self._thread.is_alive() and not queued:
            with suppress(Full):
                self._queue.put(None, timeout=POLL_SECONDS)
                queued = True
        # With a limit, because Windows cannot interrupt a wait without one.
        while self._thread.is_alive() and not self._encoded.is_set():
            self._encoded.wait(POLL_SECONDS)
        self._thread.join(FINISH_TIMEOUT_SECONDS)

    def _interrupt(self) -> None:
        """Discard the queued frames, and wait for a short time until the files are closed."""
        self._interruption.start()
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        # Only this thread adds items, so the queue has room.
        self._queue.put_nowait(None)
        self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def _report(self) -> None:
        if self._thread.is_alive():
            reason = "a frame is still being encoded"
            if self._encoded.is_set():
                reason = "the disk does not respond"
            log.warning("the recording was not closed: %s", reason)
        if self._dropped:
            log.info("%d frames were dropped from the recording", self._dropped)

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._interruption.started():
                with suppress(Empty):
                    item = self._queue.get(timeout=CHECK_INTERVAL_SECONDS)
                    if item is None:
                        break
                    self._record(item)
                if time.monotonic() - self._checked >= CHECK_INTERVAL_SECONDS:
                    self._check()
            for recording in self._recordings.values():
                recording.flush()
            self._encoded.set()
            for recording in self._recordings.values():
                recording.close()
        except Exception as error:  # raised again by the caller's thread
            self._encoded.set()
            if self._started and isinstance(error, OutputError):
                self._stop_recording(str(error))
            else:
                self._failure = error
                self._close_all()

    def _record(self, frame_result: FrameResult) -> None:
        if not self._stopped:
            image = draw_frame(frame_result, heatmap=self._heatmap, face_scale=self._face_scale)
            self._recordings[frame_result.frame.source].add(image, frame_result)
            self._started = True

    def _must_not_repeat(self) -> bool:
        """Return True if the run was interrupted, or if the disk is almost full."""
        if self._interruption.started():
            return True
        now = time.monotonic()
        if now - self._probed < CHECK_INTERVAL_SECONDS:
            return False
        self._probed = now
        return _disk_failure(self._folder) is not None

    def _check(self) -> None:
        """Close the files of ended sources, and stop before the disk is full."""
        now = self._checked = time.monotonic()
        if self._stopped:
            return
        reason = _disk_failure(self._folder)
        for source, recording in self._recordings.items():
            idle = now - recording.last_frame > IDLE_CLOSE_SECONDS
            if idle and self._states.get(source) in ("ended", "failed"):
                recording.close()
            reason = reason or recording.failure(now)
        if reason:
            self._stop_recording(reason)

    def _stop_recording(self, reason: str) -> None:
        self._stopped = True
        self._close_all()
        log.warning("recording stopped, the run continues: %s", reason)

    def _close_all(self) -> None:
        for recording in self._recordings.values():
            with suppress(OutputError):
                recording.close()


def recording_paths(path: Path, sources: Sequence[str]) -> dict[str, Path]:
    """Return the first file of the recording of each source; names are unique.

    Returns:
        The path itself for one source; for several, the path with a sanitised source name.

    Example:
        >>> recording_paths(Path("a.mkv"), ["0", "rtsp://door:554/live"])["rtsp://door:554/live"]
        PosixPath('a-door_554_live.mkv')
    """
    if len(sources) < 2:
        return dict.fromkeys(sources, path)
    paths: dict[str, Path] = {}
    for number, source in enumerate(sources, 1):
        name = source.partition("://")[2] or Path(source).stem
        plain = re.sub(r"[^\w.-]+", "_", printable(name)).strip("._")
        plain = plain.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        target = path.with_name(f"{path.stem}-{plain or number}{path.suffix}")
        if target in paths.values():
            target = path.with_name(f"{path.stem}-{plain}-source{number}{path.suffix}")
        paths[source] = target
    return paths


def _disk_failure(folder: Path) -> str | None:
    """Return the reason why the disk cannot take more, or None."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{printable(str(folder))}: {error.strerror}"
    if free < MIN_FREE_BYTES:
        return f"less than {MIN_FREE_BYTES >> 20} MiB are free on the disk"
    return None

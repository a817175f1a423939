"""Record one source: keep its timing, split it into files, replace long gaps by a notice."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.text import format_duration, printable
from ..image.decode import Image
from .draw_frame import draw_no_signal
from .frame_result import FrameResult, StreamHealth
from .video_file import VideoFile

log = logging.getLogger(__name__)

# A longer gap becomes a short notice, if a live source broke. The last frame fills other gaps: with
# `--fps` and `--every`, a healthy source may give a frame per minute, and so may a recorded screen.
MAX_GAP_SECONDS = 5.0
GAP_NOTICE_SECONDS = 1.0
# The process may be stopped for days: the encoder must not be busy for hours with one image.
MAX_REPEAT_SECONDS = 600.0
# A file's last frame is repeated only if the recording is this far behind its timestamps.
MAX_DRIFT_SECONDS = 0.5
# The most that a crash can destroy of a live source's recording.
MAX_FILE_SECONDS = 3600.0

# A file's frame rate is estimated from its first frames.
MAX_RATE_FRAMES = 32
MAX_RATE_BYTES = 1 << 27
DEFAULT_FPS = 25.0
# Limit of the part of a file name that names the source.
MAX_NAME_BYTES = 80
# Players show a video with a lower rate poorly.
MIN_LIVE_FPS = 2.0
# Limit for writing these first frames after an interruption.
MAX_FLUSH_SECONDS = 1.0
# The range that MPEG-4 part 2 can encode.
MIN_FPS, MAX_FPS = 0.05, 240.0
# Times of the median between frames, above which the time between two is a pause.
MAX_STEPS_OF_PAUSE = 5
# A smaller time between frames means that the file has no timestamps.
MIN_FRAME_SECONDS = 1e-5
# Relative difference below which the estimate is rounded to a standard rate. Over 20 frames with
# timestamps in milliseconds, as in Matroska, a least-squares slope is within 0.03 %.
STANDARD_RATE_TOLERANCE = 4e-4


class Interruption:
    """Tell the thread that encodes that the run was interrupted."""

    def __init__(self) -> None:
        self._since = math.inf

    def start(self) -> None:
        self._since = time.monotonic()

    def started(self) -> bool:
        """Return True if no frame should be repeated."""
        return self._since < math.inf

    def overdue(self) -> bool:
        """Return True if no frame at all should be written."""
        return time.monotonic() >= self._since + MAX_FLUSH_SECONDS


class SourceRecording:
    """The recording of one source, in one or more files; live sources have a fixed frame rate.

    Args:
        path: of the first file.
        fps: frames per second of a live source.
        interruption: limits what is still written.
        stop: called while a frame is repeated; True omits the remaining repetitions.

    Attributes:
        last_frame: time of the last frame, in seconds of `time.monotonic`.
    """

    def __init__(
        self, path: Path, fps: float, interruption: Interruption, stop: Callable[[], bool]
    ) -> None:
        self.last_frame = time.monotonic()
        self._path = path
        self._fps = fps
        self._interruption = interruption
        self._stop = stop
        self._number = 1
        self._video: VideoFile | None = None
        self._start = 0.0
        self._last: Image | None = None
        self._health: StreamHealth | None = None
        # Frames of a video file that arrive before its frame rate is known.
        self._pending: list[tuple[Image, FrameResult]] = []

    def add(self, image: Image, frame_result: FrameResult) -> None:
        """Write an annotated frame, uint8 [height, width, 3], BGR, repeated to keep real time."""
        self.last_frame = time.monotonic()
        if self._last is not None and self._last.shape != image.shape:
            self.close()
        if frame_result.health.live:
            if self._video and self._video.seconds >= MAX_FILE_SECONDS:
                self.close()
            self._write(image, frame_result, self._fps)
        elif self._video:
            self._write(image, frame_result, self._video.fps)
        else:
            self._last = image
            self._pending.append((image, frame_result))
            count = len(self._pending)
            if count >= MAX_RATE_FRAMES or count * image.nbytes >= MAX_RATE_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write the frames that were kept to estimate the frame rate."""
        pending, self._pending = self._pending, []
        fps = estimate_frame_rate([frame_result.frame.time for _, frame_result in pending])
        for image, frame_result in pending:
            self._write(image, frame_result, fps)
            if self._interruption.overdue():
                break

    def close(self) -> None:
        """Finish the file so that it can be played; the next frame starts a new one."""
        self.flush()
        if self._video:
            self._video.close()
        self._video = self._last = None

    def failure(self, now: float) -> str | None:
        """Return the reason why recording fails, or None; a removed file is replaced."""
        if self._video and self._video.is_removed():
            log.warning("%s was removed: starting a new recording", self._video.shown)
            self.close()
        return self._video.failure(now) if self._video else None

    def _write(self, image: Image, frame_result: FrameResult, fps: float) -> None:
        live, frame = frame_result.health.live, frame_result.frame
        at = frame.captured if live else frame.time
        notice = live and self._broke(frame_result.health)
        if not self._video:
            self._video, self._number = VideoFile.create(self._path, self._number, fps, image)
            self._start, self._last = at, image
        missing = round((at - self._start) * fps) - self._video.frames
        if live and missing < 0:
            return
        if notice and missing > max(MAX_GAP_SECONDS * fps, 3):
            self._write_notice(self._video, at, frame_result.health)
        elif missing > (0 if live else max(MAX_DRIFT_SECONDS * fps, 2)):
            assert self._last is not None
            repeated = min(missing, round(MAX_REPEAT_SECONDS * fps))
            self._video.write(self._last, repeated, self._stop)
            if repeated < missing:
                self._start = at - self._video.seconds
        self._video.write(image)
        self._last = image

    def _broke(self, health: StreamHealth) -> bool:
        """Return True if the source broke after the previous frame; store the health."""
        before, self._health = self._health, health
        # The health of a frame may be newer than the frame: it may already include the break.
        return before is not None and (before.breaks != health.breaks or before.state == "waiting")

    def _write_notice(self, video: VideoFile, at: float, health: StreamHealth) -> None:
        """Write a notice in place of the gap before the frame at `at`."""
        gap = format_duration(at - self._start - video.seconds)
        health = replace(health, state="waiting", error=f"no frame for {gap}", next_try=None)
        times = max(1, round(GAP_NOTICE_SECONDS * video.fps))
        video.write(draw_no_signal(video.size, health), times, self._stop)
        self._start = at - video.seconds


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


def choose_recording_rate(sampled: float | None) -> float:
    """Return frames per second for recordings of live sources.

    Args:
        sampled: the frames per second that are classified, at most; None without a limit. Twice as
            many keep their timing; more would only repeat them, which costs as much as new ones.
    """
    return min(DEFAULT_FPS, max(MIN_LIVE_FPS, 2 * sampled)) if sampled else DEFAULT_FPS


def estimate_frame_rate(times: Sequence[float]) -> float:
    """Estimate frames per second from ascending timestamps in seconds.

    Returns:
        The nearest standard rate (N or N / 1.001) if the estimate is close to one, otherwise the
        estimate; `DEFAULT_FPS` if there are fewer than two frames or no timestamps.
    """
    if len(times) < 2:
        return DEFAULT_FPS
    steps = np.diff(times)
    pauses = np.flatnonzero(steps > MAX_STEPS_OF_PAUSE * np.median(steps))
    numbers = np.arange(len(times))
    # Each pause, as in a recording of motions, shifts the frames after it by an unknown time.
    columns = [numbers, np.ones_like(numbers), *(numbers > pause for pause in pauses)]
    step = float(np.linalg.lstsq(np.stack(columns, 1).astype(float), times)[0][0])
    if step < MIN_FRAME_SECONDS:
        return DEFAULT_FPS
    rate = min(max(1 / step, MIN_FPS), MAX_FPS)
    for standard in (round(rate), round(rate * 1.001) / 1.001):
        if abs(rate - standard) < STANDARD_RATE_TOLERANCE * rate:
            return float(standard)
    return rate

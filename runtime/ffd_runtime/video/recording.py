"""Annotated recordings of streams: a video file for each source, which plays in real time."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread
from types import TracebackType
from typing import Literal, Self

import cv2
import numpy as np

from ..core.errors import OutputError
from ..core.text import printable
from ..image.decode import Image
from .draw_scene import draw_no_signal, draw_scene
from .scene import Health, Scene, State

log = logging.getLogger(__name__)

ENDINGS = (".mp4", ".mkv")
# MPEG-4 part 2: what OpenCV's wheels, which have no H.264 encoder, write into both.
_FOURCC = cv2.VideoWriter.fourcc(*"mp4v")

# Frames a second in the recording of a live source, and of a file that does not say.
FPS = 25.0
# Seconds without a frame that are filled with the last picture; a longer gap becomes STILL seconds
# of a picture that says how long it was.
GAP = 5.0
STILL = 1.0
# Seconds by which the frames of a file may lie beside their times before one is repeated.
DRIFT = 0.5
# Seconds of a live source in one file: what a crash can cost at most.
LONGEST = 3600.0

# Bytes that the recording leaves free; closing an hour's file needs some two million.
LEAST_FREE = 64 << 20
# Seconds between two looks at the disk, and until a file that does not grow is called stuck:
# FFmpeg hands on 256 KiB at a time, which a still and tiny picture needs half a minute for.
CHECK_EVERY = 1.0
STUCK = 120.0
# Seconds without a frame after which the recording of a source that has ended is closed.
QUIET = 5.0
# Seconds that the end of a run waits for the encoder: SIGTERM must not take two.
PATIENCE = 1.5

# Frames, and bytes of them, that the rate of a file is told from. Times in milliseconds, as a
# Matroska file has them, tell 29.97 from 30 over 20 frames (a least-squares slope, 0.03 %).
_RATE_FRAMES = 32
_RATE_BYTES = 1 << 27
_LIKE = 4e-4
# What the codec takes, with room.
_LEAST_RATE, _MOST_RATE = 0.05, 240.0
# Seconds between frames below which times are called missing.
_LEAST_STEP = 1e-5


def check_record(path: Path) -> None:
    """Refuse early what could only fail at the first frame.

    Raises:
        OutputError: it does not end with .mp4 or .mkv, its folder is missing, cannot be written or
            is full, or a folder has its name.
    """
    said = f"--record {printable(str(path))}"
    if path.suffix.lower() not in ENDINGS:
        raise OutputError(f"{said}: the name must end with {' or '.join(ENDINGS)}")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # OpenCV would end the process.
        raise OutputError(f"{said}: give a name and a folder that are valid UTF-8") from None
    if path.is_dir():
        raise OutputError(f"{said} is a folder: name a file")
    if not path.parent.is_dir():
        raise OutputError(f"{said}: there is no folder {printable(str(path.parent))}: make it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{said}: the folder must not be written to: name another")
    if shutil.disk_usage(path.parent).free < LEAST_FREE:
        raise OutputError(f"{said}: less than {LEAST_FREE >> 20} MiB are free: make room")


class Record:
    """A sink that records scenes as a person sees them, encoded in a thread of its own.

    One source goes to NAME.mp4; of several, each goes to NAME-SOURCE.mp4. No file is ever
    replaced: where there is one, NAME-2.mp4 is next, then NAME-3.mp4. A new file also begins when
    the size of the picture changes, and for live sources after each hour. An .mp4 that is not
    closed, since the process was killed, cannot be played; an .mkv can, but for its last moments.

    Recordings of live sources play in real time: the last picture stays until the next comes, and
    gaps above `GAP` are cut to a second of a picture that says so. Live frames are left out when
    the encoder does not keep up. Of a video file every frame is kept, once, at the file's rate.

    When the disk is almost full, or a file cannot grow or a new one be opened, the recording stops
    with a warning, and the run goes on.

    Args:
        path: ends with .mp4 or .mkv.
        sources: names of all sources.
        face_scale: the card's `preprocess.face_scale`.
        heatmap: draw the evidence too.
        fps: frames a second of a live source's recording.

    Raises:
        OutputError: as `check_record`.
    """

    def __init__(
        self,
        path: Path,
        sources: Sequence[str],
        *,
        face_scale: float,
        heatmap: bool = False,
        fps: float = FPS,
    ) -> None:
        check_record(path)
        self._folder = path.parent
        self._face_scale = face_scale
        self._heatmap = heatmap
        self._recordings = {
            source: _Recording(target, fps)
            for source, target in name_recordings(path, sources).items()
        }
        self._states: Mapping[str, State] = {}
        self._queue: Queue[Scene | None] = Queue(2 + 2 * len(sources))
        self._thread = Thread(target=self._work, name="ffd-record", daemon=True)
        self._failure: Exception | None = None
        self._stopped = False
        self._begun = False
        self._left_out = 0
        self._checked = time.monotonic()

    def show(self, scene: Scene) -> None:
        """Hand a scene to the encoder; of a file, wait until it has room.

        Raises:
            OutputError: a file cannot be opened or written.
        """
        live, waits = scene.health.live, True
        while waits and not self._stopped:
            self._require_well()
            try:
                self._queue.put(scene, block=not live, timeout=CHECK_EVERY)
                waits = False
            except Full:
                self._left_out += live
                waits = not live

    def tick(self, sources: Sequence[Health]) -> None:
        """Learn which sources have ended.

        Raises:
            OutputError: as `show`.
        """
        self._states = {health.source: health.state for health in sources}
        self._require_well()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                self._queue.put(None, timeout=0.1)
                self._thread.join(end - time.monotonic())
            except Full:
                continue
        if self._thread.is_alive():
            log.warning("the recording was left open: the disk does not answer")
        if self._left_out:
            log.info("%d frames were left out of the recording", self._left_out)
        if kind is None:
            self._require_well()

    def _require_well(self) -> None:
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        try:
            while (scene := self._next()) is not None:
                if isinstance(scene, Scene) and not self._stopped:
                    image = draw_scene(scene, heatmap=self._heatmap, face_scale=self._face_scale)
                    self._recordings[scene.frame.source].add(image, scene)
                    self._begun = True
                if time.monotonic() - self._checked >= CHECK_EVERY:
                    self._check()
            for recording in self._recordings.values():
                recording.close()
        except Exception as error:  # raised again where it can end the run
            if self._begun and isinstance(error, OutputError):
                self._give_up(str(error))
            else:
                self._failure = error
                self._save()

    def _next(self) -> Scene | Literal["nothing"] | None:
        try:
            return self._queue.get(timeout=CHECK_EVERY)
        except Empty:
            return "nothing"

    def _check(self) -> None:
        """Stop before the disk is full, and close what has ended."""
        now = self._checked = time.monotonic()
        if self._stopped:
            return
        reason = _shortage(self._folder)
        for source, recording in self._recordings.items():
            if self._states.get(source) in ("ended", "failed") and now - recording.heard > QUIET:
                recording.close()
            reason = reason or recording.trouble(now)
        if reason:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self._stopped = True
        self._save()
        log.warning("the recording has stopped, and the run goes on: %s", reason)

    def _save(self) -> None:
        """Close what can still be closed."""
        for recording in self._recordings.values():
            with suppress(OutputError):
                recording.close()


def name_recordings(path: Path, sources: Sequence[str]) -> dict[str, Path]:
    """The file that each source's recording begins with.

    Args:
        path: as it was asked for.
        sources: names of all sources, each different.

    Returns:
        The path itself for one source; for several, with what is plain in each name.

    Example:
        >>> name_recordings(Path("a.mkv"), ["0", "rtsp://door:554/live"])["rtsp://door:554/live"]
        PosixPath('a-door_554_live.mkv')
    """
    if len(sources) < 2:
        return dict.fromkeys(sources, path)
    names: dict[str, Path] = {}
    for number, source in enumerate(sources, 1):
        name = source.partition("://")[2] or Path(source).stem
        plain = re.sub(r"[^\w.-]+", "_", printable(name)).strip("._")
        plain = plain.encode()[:80].decode(errors="ignore")
        target = path.with_name(f"{path.stem}-{plain or number}{path.suffix}")
        if target in names.values():
            target = path.with_name(f"{path.stem}-{plain}-source{number}{path.suffix}")
        names[source] = target
    return names


class _Recording:
    """The recording of one source, in as many files as it takes.

    Args:
        path: of the first file.
        fps: frames a second of a live source's files.

    Attributes:
        heard: when a frame came last, in seconds of `time.monotonic`.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.heard = time.monotonic()
        self._path = path
        self._fps = fps
        self._number = 1
        self._video: _Video | None = None
        self._start = 0.0
        self._last: Image | None = None
        # Of a file: frames that come before its rate is known.
        self._waiting: list[tuple[Image, Scene]] = []

    def add(self, image: Image, scene: Scene) -> None:
        """Write a picture as often as its time asks for."""
        self.heard = time.monotonic()
        if self._last is not None and self._last.shape != image.shape:
            self.close()
        if scene.health.live:
            if self._video and self._video.seconds >= LONGEST:
                self.close()
            self._write(image, scene, self._fps)
        elif self._video:
            self._write(image, scene, self._video.fps)
        else:
            self._last = image
            self._waiting.append((image, scene))
            count = len(self._waiting)
            if count >= _RATE_FRAMES or count * image.nbytes >= _RATE_BYTES:
                self._write_waiting()

    def close(self) -> None:
        """End the file, so that it can be played; a later picture begins another."""
        self._write_waiting()
        if self._video:
            self._video.close()
        self._video = self._last = None

    def trouble(self, now: float) -> str | None:
        """Why the file cannot go on; None while it can."""
        if self._video and self._video.is_gone():
            log.warning("%s was removed: a new recording begins", self._video.shown)
            self.close()
        return self._video.trouble(now) if self._video else None

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        fps = tell_rate([scene.frame.time for _, scene in waiting])
        for image, scene in waiting:
            self._write(image, scene, fps)

    def _write(self, image: Image, scene: Scene, fps: float) -> None:
        live, frame = scene.health.live, scene.frame
        at = frame.captured if live else frame.time
        if not self._video:
            self._video, self._number = _Video.create(self._path, self._number, fps, image)
            self._start, self._last = at, image
        missing = round((at - self._start) * fps) - self._video.frames
        if live and missing < 0:
            return
        if missing > max(GAP * fps, 3):
            self._write_gap(self._video, at, scene.health)
        elif missing > (0 if live else max(DRIFT * fps, 2)):
            assert self._last is not None
            self._video.write(self._last, missing)
        self._video.write(image)
        self._last = image

    def _write_gap(self, video: _Video, at: float, health: Health) -> None:
        error = f"no picture came for {_duration(at - self._start - video.seconds)}"
        gone = replace(health, state="waiting", error=error, next_try=None)
        video.write(draw_no_signal(video.size, gone), max(1, round(STILL * video.fps)))
        self._start = at - video.seconds


class _Video:
    """One file that is being written.

    Args:
        path: an empty file of ours.
        fps: frames a second.
        size: width and height, in pixels; even, as the codec wants them.

    Attributes:
        frames: that were written.
        shown: the path, safe to show.

    Raises:
        OutputError: OpenCV does not write such a video.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.fps = fps
        self.size = size
        self.frames = 0
        self.shown = printable(str(path))
        self._path = path
        self._file = _identity(path)
        self._size = self._seen = 0
        self._grown = time.monotonic()
        # Absolute, or FFmpeg would take what stands before a colon for a protocol.
        self._writer = cv2.VideoWriter(os.path.abspath(path), cv2.CAP_FFMPEG, _FOURCC, fps, size)
        if not self._writer.isOpened():
            path.unlink(missing_ok=True)
            width, height = size
            raise OutputError(
                f"cannot record to {self.shown}: OpenCV's FFmpeg does not encode MPEG-4 at "
                f"{width}x{height}, {fps:.4g} fps: install opencv-python, or leave --record out"
            )

    @classmethod
    def create(cls, path: Path, number: int, fps: float, image: Image) -> tuple[Self, int]:
        """A file in the place of none.

        Args:
            path: NAME.mp4.
            number: the first to try, 1 for the name itself.
            fps: frames a second.
            image: the first picture.

        Returns:
            The video, and the number after its own.
        """
        for count in itertools.count(number):
            name = path if count == 1 else path.with_name(f"{path.stem}-{count}{path.suffix}")
            try:
                name.open("xb").close()
            except FileExistsError:
                continue
            except OSError as error:
                reason = error.strerror
                raise OutputError(f"cannot record to {printable(str(name))}: {reason}") from None
            height, width = image.shape[:2]
            video = cls(name, fps, (width + width % 2, height + height % 2))
            log.info("recording to %s", video.shown)
            return video, count + 1
        raise AssertionError

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.frames / self.fps

    def write(self, image: Image, times: int = 1) -> None:
        """Write a picture, one pixel larger than it is where a side is odd."""
        width, height = self.size
        right, below = width - image.shape[1], height - image.shape[0]
        if right or below:
            even = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
            image = np.asarray(even, np.uint8)
        for _ in range(times):
            self._writer.write(image)
        self.frames += times

    def close(self) -> None:
        """Write what the file needs to be played."""
        self._writer.release()

    def is_gone(self) -> bool:
        """Whether the name no longer stands for what is written."""
        return _identity(self._path) != self._file

    def trouble(self, now: float) -> str | None:
        """Why the file cannot go on: OpenCV does not say that a write failed, its size does.

        Args:
            now: in seconds of `time.monotonic`.
        """
        try:
            size = self._path.stat().st_size
        except OSError as error:
            return f"{self.shown}: {error.strerror}"
        # Nothing has to grow while nothing is written.
        if size > self._size or self.frames == self._seen:
            self._size, self._grown = size, now
        self._seen = self.frames
        return f"{self.shown} does not grow" if now - self._grown > STUCK else None


def tell_rate(times: Sequence[float]) -> float:
    """Frames a second, from the times of a file's first frames.

    Args:
        times: in seconds, rising.

    Returns:
        The usual rate (whole, or whole over 1.001) where it is near one; `FPS` where there are
        fewer than two times, or none at all.
    """
    if len(times) < 2:
        return FPS
    step = float(np.polynomial.polynomial.polyfit(np.arange(len(times)), times, 1)[1])
    if step < _LEAST_STEP:
        return FPS
    rate = min(max(1 / step, _LEAST_RATE), _MOST_RATE)
    for usual in (round(rate), round(rate * 1.001) / 1.001):
        if abs(rate - usual) < _LIKE * rate:
            return float(usual)
    return rate


def _shortage(folder: Path) -> str | None:
    """Why the disk takes no more; None while it does."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{printable(str(folder))}: {error.strerror}"
    return f"less than {LEAST_FREE >> 20} MiB are free" if free < LEAST_FREE else None


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that has its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count]
    return " ".join([*parts, f"{rest} s"])

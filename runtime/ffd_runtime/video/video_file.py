"""Write one video file with OpenCV, and detect that it can no longer be written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ..core.errors import OutputError
from ..core.text import printable
from ..image.decode import Image

log = logging.getLogger(__name__)

# MPEG-4 part 2: OpenCV's wheels have no H.264 encoder. Both .mp4 and .mkv can hold it.
_FOURCC = cv2.VideoWriter.fourcc(*"mp4v")
# FFmpeg writes 256 KiB at a time; a small image that does not change takes 30 s to fill that.
STALL_TIMEOUT_SECONDS = 120.0


def create_numbered(path: Path, number: int = 1) -> tuple[Path, int]:
    """Create an empty file, with a number in its name if the name exists; number 1 is omitted.

    Returns:
        The path of the file, and the next number to try.

    Raises:
        OSError: the file cannot be created; `filename` is its path.
    """
    while True:
        numbered = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
        with suppress(FileExistsError):
            numbered.open("xb").close()
            return numbered, number


class VideoFile:
    """A video file that is being written.

    Args:
        path: an empty file that the caller has created.
        fps: frames per second.
        size: width and height in pixels; the codec needs even numbers.

    Attributes:
        frames: number of frames written.
        shown: the path as printable text.

    Raises:
        OutputError: OpenCV cannot write such a video.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.fps = fps
        self.size = size
        self.frames = 0
        self.shown = printable(str(path))
        self._path = path
        self._status = path.stat()
        self._bytes = self._checked_frames = 0
        self._grew_at = time.monotonic()
        # An absolute path: FFmpeg takes text before a colon for a protocol.
        self._writer = cv2.VideoWriter(os.path.abspath(path), cv2.CAP_FFMPEG, _FOURCC, fps, size)
        if not self._writer.isOpened():
            path.unlink(missing_ok=True)
            width, height = size
            raise OutputError(
                f"cannot record to {self.shown}: OpenCV's FFmpeg cannot encode MPEG-4 at "
                f"{width}x{height}, {fps:.4g} fps: install opencv-python, or omit --record"
            )

    @classmethod
    def create(cls, path: Path, number: int, fps: float, image: Image) -> tuple[Self, int]:
        """Create a file, see `create_numbered`; the first frame sets the frame size.

        Raises:
            OutputError: it cannot be created.
        """
        try:
            name, number = create_numbered(path, number)
        except OSError as error:
            shown = printable(str(error.filename))
            raise OutputError(f"cannot record to {shown}: {error.strerror}") from None
        height, width = image.shape[:2]
        video = cls(name, fps, (width + width % 2, height + height % 2))
        log.info("recording to %s", video.shown)
        return video, number

    @property
    def seconds(self) -> float:
        """Duration so far."""
        return self.frames / self.fps

    def write(self, image: Image, times: int = 1, stop: Callable[[], bool] = lambda: False) -> None:
        """Write a frame, padded by one pixel where a side is odd.

        Args:
            image: uint8 [height, width, 3], BGR.
            times: number of times to write it.
            stop: called before each repetition; True omits the remaining ones.
        """
        width, height = self.size
        right, bottom = width - image.shape[1], height - image.shape[0]
        if right or bottom:
            even = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            image = np.asarray(even, np.uint8)
        for number in range(times):
            if number and stop():
                break
            self._writer.write(image)
            self.frames += 1

    def close(self) -> None:
        """Write the index, without which an .mp4 cannot be played."""
        self._writer.release()

    def is_removed(self) -> bool:
        """Return True if the path no longer names this file."""
        try:
            return not os.path.samestat(self._path.stat(), self._status)
        except OSError:
            return True

    def failure(self, now: float) -> str | None:
        """Return the reason why writing fails at `now` (of `time.monotonic`), or None.

        OpenCV does not report a failed write, so the size of the file is checked.
        """
        try:
            size = self._path.stat().st_size
        except OSError as error:
            return f"{self.shown}: {error.strerror}"
        # Without new frames, the file need not grow.
        if size > self._bytes or self.frames == self._checked_frames:
            self._bytes, self._grew_at = size, now
        self._checked_frames = self.frames
        return (
            f"{self.shown} does not grow" if now - self._grew_at > STALL_TIMEOUT_SECONDS else None
        )

"""One opened stream: OpenCV's capture, with limits on every wait."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol, Self

import cv2
import numpy as np

from ..decode import Image
from ..errors import BackendError, InputError
from .address import Stream
from .probe import explain

# What FFmpeg and OpenCV print names addresses, passwords included, and repeats itself for months.
# FFmpeg's level is read when the first capture is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
if "OPENCV_LOG_LEVEL" not in os.environ:
    # OpenCV 4 has it in two places, 5 in the second.
    _set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    _set_level(0)

# Pictures of a live stream, one after the other, that may be broken.
TRIES = 5
# Seconds that a look for the reason takes at most, after a server could not be opened.
LOOK = 2.0


class Capture(Protocol):
    """What a reader needs of an opened stream."""

    fps: float
    """Frames a second that it says to have; 0 where it does not say."""
    count: int
    """Frames that it says to have in all; 0 for live ones and where it does not say."""
    grabbed: float
    """When the last frame was, in seconds of `time.monotonic`."""
    waited: float
    """Seconds for which it was waited for and nothing was done; told of servers alone."""

    def grab(self) -> bool:
        """Go to the next frame; False at the end or where it broke.

        Raises:
            InputError: it broke, and it is known why.
        """

    def timestamp(self) -> float:
        """Of this frame, in seconds of the stream's own clock."""

    def retrieve(self) -> Image | None:
        """This frame, uint8 [height, width, 3], BGR; None if it cannot be decoded."""

    def close(self) -> None:
        """Let go of it."""


class OpenCVCapture:
    """A stream that OpenCV reads.

    Args:
        stream: what to open.
        timeout: seconds that opening it, and then each frame, may take.

    Raises:
        InputError: it cannot be opened.
        BackendError: OpenCV was built without what it takes.
    """

    def __init__(self, stream: Stream, timeout: float) -> None:
        begin = time.monotonic()
        self._timeout = timeout
        # A broken picture among good ones is left out; at a file's end there is no next one.
        self._tries = TRIES if stream.live else 1
        self._timed = stream.kind == "server"
        self.grabbed, self.waited = begin, 0.0
        self._capture = _open(stream, timeout)
        if not self._capture.isOpened():
            self._capture.release()
            raise _failure(stream, timeout, time.monotonic() - begin)
        self.fps = _positive(self._capture.get(cv2.CAP_PROP_FPS))
        self.count = (
            0 if stream.live else int(_positive(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        )

    def grab(self) -> bool:
        begin, busy = time.monotonic(), _busy() if self._timed else 0.0
        done = False
        for _ in range(self._tries):
            # When its limit interrupts FFmpeg, it gives what it had kept back.
            if done or time.monotonic() - begin >= self._timeout:
                break
            done = self._grab()
        self.grabbed = time.monotonic()
        if self._timed:
            self.waited = max(0.0, self.grabbed - begin - (_busy() - busy))
        if self.grabbed - begin >= self._timeout:
            raise InputError("timeout", f"no frame within {self._timeout:g} s")
        return done

    def _grab(self) -> bool:
        try:
            return self._capture.grab()
        except cv2.error:
            return False

    def timestamp(self) -> float:
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def retrieve(self) -> Image | None:
        try:
            done, image = self._capture.retrieve()
        except cv2.error:
            return None
        if not done or image is None or not image.size:
            return None
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return np.asarray(image, np.uint8)

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_gstreamer() -> None:
    """Check that OpenCV can run GStreamer's pipelines.

    Raises:
        BackendError: it cannot.
    """
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise BackendError(
            "--gst: this OpenCV was built without GStreamer, as PyPI's is: "
            "use the one of your Jetson or distribution, or give an address without --gst"
        )


def _open(stream: Stream, timeout: float) -> cv2.VideoCapture:
    try:
        str(stream.target).encode()
    except UnicodeEncodeError:
        # OpenCV 5 would end the process.
        reason = "OpenCV cannot open a name that is not UTF-8: rename it"
        raise InputError("read_failed", reason) from None
    milliseconds = max(1, round(timeout * 1000))
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    try:
        if stream.kind == "camera":
            # Read when a camera is opened; whole seconds.
            os.environ["OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"] = str(max(1, round(timeout)))
            system = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            return cv2.VideoCapture(stream.target, system)
        if stream.kind == "pipeline":
            require_gstreamer()
            capture = cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER, limits)
            if capture.isOpened():
                return capture
            # An older OpenCV, a Jetson's perhaps, refuses limits here, and waits 30 s at most.
            return cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER)
        if stream.kind == "server":
            # Each of FFmpeg's threads would hold a frame back.
            limits += [cv2.CAP_PROP_N_THREADS, 1]
        return cv2.VideoCapture(str(stream.target), cv2.CAP_FFMPEG, limits)
    except cv2.error as error:
        raise InputError("fetch_failed", f"OpenCV cannot open it ({error.code})") from None


def _failure(stream: Stream, timeout: float, took: float) -> InputError:
    """Why it could not be opened, of which OpenCV says nothing."""
    if stream.kind == "camera":
        return _camera_failure(stream.target)
    if stream.kind == "pipeline":
        return InputError("fetch_failed", "the pipeline does not start; try it with gst-launch-1.0")
    if stream.kind == "file" and "://" not in str(stream.target):
        return _file_failure(str(stream.target))
    if took >= timeout:
        return InputError("timeout", f"no video within {timeout:g} s")
    return explain(str(stream.target), min(timeout, LOOK))


def _camera_failure(target: str | int) -> InputError:
    if sys.platform != "linux":
        return InputError(
            "read_failed",
            f"camera {target} gives no picture: it is absent, another program has it, or the "
            "system does not let this one",
        )
    path = f"/dev/video{target}" if isinstance(target, int) else target
    if not os.path.exists(path):
        return InputError("not_found", f"there is no camera {path}")
    if not os.access(path, os.R_OK | os.W_OK):
        return InputError(
            "permission_denied", f"no permission for {path}: add this user to the group video"
        )
    return InputError("read_failed", f"{path} gives no picture: another program may have it open")


def _file_failure(path: str) -> InputError:
    from ..decode import os_error

    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return os_error(error, path)
    except ValueError:
        return InputError("not_found", "no file is called that")
    if empty:
        return InputError("empty", "the file is empty")
    return InputError("corrupt", "no video that can be decoded: it is damaged or something else")


def _busy() -> float:
    """Seconds for which this thread computed, or could have if there were a processor for it."""
    seconds = time.thread_time()
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return seconds + int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return seconds


def _positive(number: float) -> float:
    """A property, or 0 where the stream does not say: OpenCV gives -1, NaN or absurd numbers."""
    return number if 0 < number < 1e9 else 0.0

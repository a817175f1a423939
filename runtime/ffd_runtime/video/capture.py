"""One opened stream, and OpenCV's: webcams and GStreamer."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol, Self

import cv2
import numpy as np

from ..core.errors import BackendError, InputError
from ..image.decode import Image
from .stream_address import Stream

# What FFmpeg and OpenCV print names addresses, passwords included, and repeats itself for months.
# FFmpeg's level is read when the first capture is opened.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
if "OPENCV_LOG_LEVEL" not in os.environ:
    # OpenCV 4 has it in two places, 5 in the second.
    _set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    _set_level(0)

# Pictures in a row of a live stream that may be broken.
MAX_GRAB_ATTEMPTS = 5


class Capture(Protocol):
    """What a reader needs of an opened stream."""

    note: str | None
    """What a user may not expect of it, such as a second video stream."""
    broken: int
    """Frames so far that were damaged or could not be decoded."""
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
    """A camera of this machine or a GStreamer pipeline, which OpenCV reads.

    Args:
        stream: what to open.
        timeout: seconds that opening it, and then each frame, may take.

    Raises:
        InputError: it cannot be opened.
        BackendError: OpenCV was built without what it takes.
    """

    note: str | None = None

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._timeout = timeout
        self.grabbed, self.waited, self.broken = time.monotonic(), 0.0, 0
        self._capture = _open(stream, timeout)
        if not self._capture.isOpened():
            self._capture.release()
            raise _failure(stream)

    def grab(self) -> bool:
        begin = time.monotonic()
        done = False
        for _ in range(MAX_GRAB_ATTEMPTS):
            # When its limit interrupts OpenCV, it gives what it had kept back.
            if done or time.monotonic() - begin >= self._timeout:
                break
            done = self._grab()
            self.broken += not done
        self.grabbed = time.monotonic()
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
    milliseconds = max(1, round(timeout * 1000))
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds]
    limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    try:
        if stream.kind == "camera":
            # Read when a camera is opened; whole seconds.
            os.environ["OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"] = str(max(1, round(timeout)))
            system = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            return cv2.VideoCapture(stream.target, system)
        require_gstreamer()
        capture = cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER, limits)
        if capture.isOpened():
            return capture
        # An older OpenCV, a Jetson's perhaps, refuses limits here, and waits 30 s at most.
        return cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER)
    except cv2.error as error:
        raise InputError("fetch_failed", f"OpenCV cannot open it ({error.code})") from None


def _failure(stream: Stream) -> InputError:
    """Why it could not be opened, of which OpenCV says nothing."""
    if stream.kind == "pipeline":
        return InputError("fetch_failed", "the pipeline does not start; try it with gst-launch-1.0")
    target = stream.target
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

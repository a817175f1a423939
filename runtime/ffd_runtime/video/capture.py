"""The interface of an open stream, and its implementation by OpenCV: webcams and GStreamer."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import Protocol

import cv2
import numpy as np

from ..core.errors import BackendError, InputError
from ..image.decode import Image
from .stream_address import Stream

# Log lines of FFmpeg contain addresses with passwords, and repeat for months. The level is read
# when the first capture is opened. Importing `..image.decode` disables OpenCV's own log.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# Consecutive damaged frames that a live stream may have.
MAX_GRAB_ATTEMPTS = 5


class Capture(Protocol):
    """An open stream."""

    timeout: float
    """Limit in seconds for each frame; for HLS, longer than the one that was asked for."""
    note: str | None
    """An unexpected property, such as a second video stream; otherwise None."""
    broken: int
    """Number of frames so far that were damaged or could not be decoded."""
    grabbed: float
    """Time of the last frame, in seconds of `time.monotonic`."""
    waited: float
    """Idle seconds before the last frame; measured only for network streams."""

    def grab(self) -> bool:
        """Advance to the next frame; return False at the end of the stream.

        Raises:
            InputError: the stream failed for a known reason.
        """

    def timestamp(self) -> float:
        """Return this frame's timestamp in seconds of the stream's clock."""

    def retrieve(self) -> Image | None:
        """Return this frame, uint8 [height, width, 3], BGR; None if it cannot be decoded."""

    def close(self) -> None:
        """Release the stream."""


class OpenCVCapture:
    """A local camera or a GStreamer pipeline, read by OpenCV.

    Args:
        timeout: limit in seconds for opening, and for each frame.

    Raises:
        InputError: it cannot be opened.
        BackendError: OpenCV was built without GStreamer.
    """

    note: str | None = None

    def __init__(self, stream: Stream, timeout: float) -> None:
        self.timeout = timeout
        self.grabbed, self.waited, self.broken = time.monotonic(), 0.0, 0
        self._capture = _open(stream, timeout)
        if not self._capture.isOpened():
            self._capture.release()
            raise _open_failure(stream)

    def grab(self) -> bool:
        begin = time.monotonic()
        done = False
        for _ in range(MAX_GRAB_ATTEMPTS):
            # After a timeout, OpenCV returns frames that it had buffered.
            if done or time.monotonic() - begin >= self.timeout:
                break
            with suppress(cv2.error):
                done = self._capture.grab()
            self.broken += not done
        self.grabbed = time.monotonic()
        if self.grabbed - begin >= self.timeout:
            raise InputError("timeout", f"no frame within {self.timeout:g} s")
        return done

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


def require_gstreamer() -> None:
    """Raise a BackendError if OpenCV does not support GStreamer."""
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise BackendError(
            "--gst: this OpenCV was built without GStreamer, like all wheels on PyPI: "
            "use the OpenCV of JetPack or of your distribution, or omit --gst"
        )


def _open(stream: Stream, timeout: float) -> cv2.VideoCapture:
    milliseconds = max(1, round(timeout * 1000))
    properties = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
    limits = [value for name in properties for value in (name, milliseconds)]
    try:
        if stream.kind == "camera":
            # Whole seconds; read when a camera is opened.
            os.environ["OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"] = str(max(1, round(timeout)))
            system = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            return cv2.VideoCapture(stream.target, system)
        require_gstreamer()
        capture = cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER, limits)
        if capture.isOpened():
            return capture
        # Older versions, such as JetPack's, reject these limits; theirs is 30 s.
        return cv2.VideoCapture(str(stream.target), cv2.CAP_GSTREAMER)
    except cv2.error as error:
        raise InputError("fetch_failed", f"OpenCV cannot open it ({error.code})") from None


def _open_failure(stream: Stream) -> InputError:
    """Find out why a stream cannot be opened: OpenCV does not report it."""
    if stream.kind == "pipeline":
        return InputError(
            "fetch_failed", "the pipeline does not start: test it with gst-launch-1.0"
        )
    target = stream.target
    if sys.platform != "linux":
        return InputError(
            "read_failed",
            f"camera {target} cannot be opened: it does not exist, another program uses it, or "
            "access is denied",
        )
    path = f"/dev/video{target}" if isinstance(target, int) else target
    if not os.path.exists(path):
        return InputError("not_found", f"camera {path} does not exist")
    if not os.access(path, os.R_OK | os.W_OK):
        return InputError(
            "permission_denied", f"no permission for {path}: add this user to the group video"
        )
    return InputError("read_failed", f"{path} returns no frame: another program may be using it")

"""A process that opens one server and sends what it gives to the one that started it.

What a stranger's stream does to a decoder must not end the run.

The stream and its time limit come as JSON on standard input, which stays open as long as the frames
are wanted; frames go to standard output, each as a `MESSAGE_HEADER` and its pixels.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from threading import Thread
from typing import BinaryIO, NoReturn

from ..core.errors import FfdError, InputError
from .ffmpeg import FFmpegCapture
from .stream_address import Stream

# Kind, height and width (or length of a message), frames that could not be decoded, and three
# numbers, in the machine's byte order.
MESSAGE_HEADER = struct.Struct("=c3I3d")
OPENED, FRAME, FAILED = b"O", b"F", b"E"


def main() -> None:
    """Send frames until the stream breaks or nobody wants them any more."""
    # A service manager ends all processes at once; the one that wants our frames goes first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What FFmpeg or a library prints must not come between frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        _send_frames(order, out)
    except FfdError as error:
        code = error.code if isinstance(error, InputError) else None
        message = json.dumps([code, str(error)]).encode()
        out.write(MESSAGE_HEADER.pack(FAILED, len(message), 0, 0, 0, 0, 0) + message)
        out.flush()


def _send_frames(order: dict[str, float | str], out: BinaryIO) -> NoReturn:
    stream = Stream("", str(order["target"]), "server")
    with FFmpegCapture(stream, float(order["timeout"])) as capture:
        note = (capture.note or "").encode()
        out.write(MESSAGE_HEADER.pack(OPENED, len(note), 0, 0, 0, 0, 0) + note)
        out.flush()
        while capture.grab():
            image = capture.retrieve()
            if image is None:
                raise InputError("unsupported", "FFmpeg cannot convert its frames to BGR")
            height, width = image.shape[:2]
            times = capture.timestamp(), capture.grabbed, capture.waited
            out.write(MESSAGE_HEADER.pack(FRAME, height, width, capture.broken, *times))
            out.write(memoryview(image.data).cast("B"))
            out.flush()
    raise InputError("fetch_failed", "the stream broke off")


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end, whatever FFmpeg waits for."""
    sys.stdin.read()
    os._exit(0)

"""A process that reads one server and sends its frames to the parent process.

A stream that crashes the decoder must not end the run.

The target and the timeout are read from standard input as JSON. Standard input stays open while
frames are wanted. Each frame is written to standard output as a `MESSAGE_HEADER` and its pixels.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from contextlib import closing
from threading import Thread
from typing import BinaryIO, NoReturn

from ..core.errors import FfdError, InputError
from .ffmpeg import FFmpegCapture
from .stream_address import Stream

# In the machine's byte order: kind; height and width, or length and 0; number of undecoded frames;
# timestamp, time of capture, and idle time in seconds. `OPENED` has the limit for a frame instead.
MESSAGE_HEADER = struct.Struct("=c3I3d")
OPENED, FRAME, FAILED = b"O", b"F", b"E"


def main() -> None:
    """Send frames until the stream fails or the parent process ends."""
    # A service manager signals all processes at once; the parent must end first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Output that FFmpeg or a library prints must not get between frames.
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
    with closing(FFmpegCapture(stream, float(order["timeout"]))) as capture:
        note = (capture.note or "").encode()
        out.write(MESSAGE_HEADER.pack(OPENED, len(note), 0, 0, capture.timeout, 0, 0) + note)
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
    raise InputError("fetch_failed", "the stream was interrupted")


def _end_with_parent() -> None:
    """Wait for the end of standard input, then exit, even if FFmpeg is blocked."""
    sys.stdin.read()
    os._exit(0)

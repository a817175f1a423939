"""A process that opens one server and sends what it gives to the one that started it.

OpenCV opens one stream of a process at a time, so one server that is silent would keep all others
from being opened; and what a stranger's stream does to a decoder must not end the run.

The stream and its time limit come as JSON on standard input, which stays open as long as the frames
are wanted; frames go to standard output, each as a `HEAD` and its pixels.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from threading import Thread
from typing import BinaryIO, NoReturn

import numpy as np

from ..errors import FfdError, InputError
from .address import Stream
from .capture import OpenCVCapture

# Kind, height and width (or length of a message), and three numbers, in the machine's byte order.
HEAD = struct.Struct("=cII3d")
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
        code = error.code if isinstance(error, InputError) else "fetch_failed"
        message = json.dumps([code, str(error)]).encode()
        out.write(HEAD.pack(FAILED, len(message), 0, 0, 0, 0) + message)
        out.flush()


def _send_frames(order: dict[str, float | str], out: BinaryIO) -> NoReturn:
    stream = Stream("", str(order["target"]), "server")
    with OpenCVCapture(stream, float(order["timeout"])) as capture:
        out.write(HEAD.pack(OPENED, 0, 0, capture.fps, 0, 0))
        out.flush()
        while capture.grab():
            image = capture.retrieve()
            if image is None:
                continue
            height, width = image.shape[:2]
            times = capture.timestamp(), capture.grabbed, capture.waited
            out.write(HEAD.pack(FRAME, height, width, *times))
            out.write(memoryview(np.ascontiguousarray(image).data).cast("B"))
            out.flush()
    raise InputError("fetch_failed", "the stream broke off")


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end, whatever FFmpeg waits for."""
    sys.stdin.read()
    os._exit(0)

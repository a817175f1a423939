"""A server's stream, read by a process of its own; see `worker`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np

from ..core.errors import BackendError, InputError
from ..image.decode import Image
from . import reader_process as worker
from .capture import Capture, OpenCVCapture
from .ffmpeg import FFmpegCapture
from .reader_process import FAILED, FRAME, MESSAGE_HEADER, OPENED
from .stream_address import Stream

# Seconds that the process may take beyond the limit of what it does.
TIMEOUT_MARGIN_SECONDS = 2.0
# How a process ends by its own fault; Windows has fewer of them.
CRASH_SIGNALS = {
    number
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if (number := getattr(signal, name, None)) is not None
}
# What the process runs: it finds modules where we do.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {worker.__name__} import main; main()"
)
# Bytes in the pipe on their way, where the system lets us say so: a frame takes fewer turns.
PIPE_BYTES = 1 << 20


def open_capture(stream: Stream, timeout: float) -> Capture:
    """Open a stream: files and servers by PyAV, each server in a process of its own."""
    if stream.kind == "server":
        return RemoteCapture(stream, timeout)
    if stream.kind == "file":
        return FFmpegCapture(stream, timeout)
    return OpenCVCapture(stream, timeout)


class RemoteCapture:
    """What a `worker` reads. One that crashes, or hangs for good, is an error like any other.

    Args:
        stream: a server.
        timeout: seconds that opening it, and then each frame, may take.

    Raises:
        InputError: it cannot be opened.
        BackendError: PyAV is not installed.
    """

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._timeout = timeout
        self._process = _start()
        try:
            assert self._process.stdin
            order = {"target": stream.target, "timeout": timeout}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            # Beside its own limit, the process has to start.
            length = self._receive(OPENED, 2 * TIMEOUT_MARGIN_SECONDS)[0]
            note = bytearray(length)
            self._fill(memoryview(note), timeout)
            self.note = note.decode() or None
        except OSError:
            self.close()
            raise InputError("fetch_failed", "its process ended") from None
        except BaseException:
            self.close()
            raise
        self.grabbed, self.waited, self.broken = time.monotonic(), 0.0, 0
        self._timestamp = 0.0
        self._image: Image | None = None

    @property
    def process(self) -> int:
        """The number of the process that reads."""
        return self._process.pid

    def grab(self) -> bool:
        height, width, self.broken, *times = self._receive(FRAME)
        self._timestamp, self.grabbed, self.waited = times
        self._image = np.empty((height, width, 3), np.uint8)
        self._fill(memoryview(self._image.data).cast("B"), self._timeout)
        return True

    def timestamp(self) -> float:
        return self._timestamp

    def retrieve(self) -> Image | None:
        return self._image

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(OSError):
                pipe.close()
        self._process.wait()

    def _receive(
        self, expected: bytes, more: float = 0.0
    ) -> tuple[int, int, int, float, float, float]:
        """The next message's head.

        Raises:
            InputError: it is the last one, or there is none.
            BackendError: the process cannot work.
        """
        head = bytearray(MESSAGE_HEADER.size)
        self._fill(memoryview(head), self._timeout + TIMEOUT_MARGIN_SECONDS + more)
        kind, length, *numbers = MESSAGE_HEADER.unpack(head)
        if kind == FAILED:
            text = bytearray(length)
            self._fill(memoryview(text), self._timeout)
            code, message = json.loads(text)
            raise InputError(code, message) if code else BackendError(message)
        if kind != expected:
            raise InputError("fetch_failed", "its process sent what is no frame")
        return length, *numbers

    def _fill(self, into: memoryview, seconds: float) -> None:
        """Read as many bytes as there is room for.

        Raises:
            InputError: they do not come.
        """
        assert self._process.stdout
        source, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while into:
            if not _readable(source, deadline - time.monotonic()):
                raise InputError("timeout", f"nothing within {self._timeout:g} s")
            count = os.readv(source, [into]) if hasattr(os, "readv") else _read(source, into)
            if not count:
                raise InputError("fetch_failed", self._how_it_ended())
            into = into[count:]

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(TIMEOUT_MARGIN_SECONDS)
            if -code in CRASH_SIGNALS:
                return f"its decoder crashed (signal {-code})"
            if code < 0:
                return f"its process was ended (signal {-code}): out of memory?"
        return "its process ended"


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        # A decoder that a stranger's stream has taken over need not know it.
        env={name: value for name, value in os.environ.items() if name != "FFD_TOKEN"},
        # Ctrl-C is for us: the process ends with its input.
        start_new_session=True,
    )
    if sys.platform == "linux":
        import fcntl

        assert process.stdout
        with suppress(OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def _readable(source: int, seconds: float) -> bool:
    if not hasattr(select, "poll"):
        # Windows cannot wait for a pipe: the process's own limits have to do.
        return True
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _read(source: int, into: memoryview) -> int:
    data = os.read(source, min(len(into), PIPE_BYTES))
    into[: len(data)] = data
    return len(data)

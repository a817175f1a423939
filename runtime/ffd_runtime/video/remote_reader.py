"""Read a server in a separate process; see `reader_process`."""

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
from . import reader_process
from .capture import Capture, OpenCVCapture
from .ffmpeg import MAX_LIVE_PIXELS, FFmpegCapture
from .reader_process import FAILED, FRAME, MESSAGE_HEADER, OPENED
from .stream_address import Stream

# Extra time for the process to report its own timeout, and at first to start.
TIMEOUT_MARGIN_SECONDS = 2.0
START_MARGIN_SECONDS = 4.0
# Signals of a crash; Windows has fewer of them.
CRASH_SIGNALS = {
    number
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
    if (number := getattr(signal, name, None)) is not None
}
# The program of the process; it uses the same module search path.
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {reader_process.__name__} import main; main()"
)
# Size of the pipe, if the system allows it: a frame then needs fewer reads.
PIPE_BYTES = 1 << 20


def open_capture(stream: Stream, timeout: float) -> Capture:
    """Open a stream: files and servers with PyAV, each server in a separate process."""
    if stream.kind == "server":
        return RemoteCapture(stream, timeout)
    if stream.kind == "file":
        return FFmpegCapture(stream, timeout)
    return OpenCVCapture(stream, timeout)


class RemoteCapture:
    """A server that a `reader_process` reads. If the process crashes or hangs, the stream fails.

    Args:
        timeout: limit in seconds for opening, and for each frame.

    Attributes:
        timeout: limit in seconds for each frame; see `FFmpegCapture`.

    Raises:
        InputError: it cannot be opened.
        BackendError: PyAV is not installed.
    """

    def __init__(self, stream: Stream, timeout: float) -> None:
        self.timeout = timeout
        # Limit for the current message, in seconds of `time.monotonic`.
        self._deadline = 0.0
        self._process = _start()
        try:
            assert self._process.stdin
            order = {"target": stream.target, "timeout": timeout}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            length, _, _, limit, *_ = self._receive(OPENED, START_MARGIN_SECONDS)
            self.timeout = max(timeout, limit)
            note = bytearray(length)
            self._fill(memoryview(note))
            self.note = note.decode() or None
        except OSError:
            self.close()
            raise InputError("fetch_failed", "the reader process ended") from None
        except BaseException:
            self.close()
            raise
        self.grabbed, self.waited, self.broken = time.monotonic(), 0.0, 0
        self._timestamp = 0.0
        self._image: Image | None = None

    @property
    def process(self) -> int:
        """The ID of the reader process."""
        return self._process.pid

    def grab(self) -> bool:
        height, width, self.broken, *times = self._receive(FRAME)
        if height * width > MAX_LIVE_PIXELS:
            raise InputError("fetch_failed", "the reader process sent an invalid size")
        self._timestamp, self.grabbed, self.waited = times
        self._image = np.empty((height, width, 3), np.uint8)
        self._fill(memoryview(self._image.data).cast("B"))
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
        """Receive a header; return the fields of `MESSAGE_HEADER` after the kind.

        The limit also applies to what follows the header, so that a stalled process has one error:
        `StreamReader` reports a later end as another one.

        An InputError shows that the stream failed, a BackendError that it cannot be read at all.
        """
        head = bytearray(MESSAGE_HEADER.size)
        self._deadline = time.monotonic() + self.timeout + TIMEOUT_MARGIN_SECONDS + more
        self._fill(memoryview(head))
        kind, length, *numbers = MESSAGE_HEADER.unpack(head)
        if kind == FAILED:
            text = bytearray(length)
            self._fill(memoryview(text))
            code, message = json.loads(text)
            raise InputError(code, message) if code else BackendError(message)
        if kind != expected:
            raise InputError("fetch_failed", "the reader process sent an invalid message")
        return length, *numbers

    def _fill(self, into: memoryview) -> None:
        """Fill a buffer; raise an InputError if the bytes do not arrive in time."""
        assert self._process.stdout
        source = self._process.stdout.fileno()
        while into:
            if not _readable(source, self._deadline - time.monotonic()):
                raise InputError("timeout", f"no data within {self.timeout:g} s")
            count = os.readv(source, [into]) if hasattr(os, "readv") else _read(source, into)
            if not count:
                raise InputError("fetch_failed", self._exit_reason())
            into = into[count:]

    def _exit_reason(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(TIMEOUT_MARGIN_SECONDS)
            if -code in CRASH_SIGNALS:
                return f"the decoder crashed (signal {-code})"
            if code < 0:
                return f"the reader process was killed (signal {-code}): out of memory?"
        return "the reader process ended"


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(  # noqa: S603 (this package's module)
        [sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        # A malicious stream could exploit the decoder and read the token.
        env={name: value for name, value in os.environ.items() if name != "FFD_TOKEN"},
        # Ctrl-C must reach only the parent: the process ends with its standard input.
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
        # Windows cannot wait for a pipe: only the process's own timeouts apply.
        return True
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _read(source: int, into: memoryview) -> int:
    data = os.read(source, min(len(into), PIPE_BYTES))
    into[: len(data)] = data
    return len(data)

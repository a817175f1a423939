"""Servers on loopback for tests of streams: a real one and faulty ones."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

# The interpreter that uses Debian's packages.
PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("rtsp_server.py")


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """GStreamer's RTSP server in a separate process, which can be killed and restarted."""

    def __init__(self) -> None:
        look = "import gi; gi.require_version('GstRtspServer', '1.0')"
        try:
            subprocess.run([PYTHON, "-c", look], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("GStreamer's RTSP server is not installed (tools/test-packages.txt)")
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/door"

    def start(self, width: int = 160, height: int = 120, fps: int = 100, udp: bool = False) -> None:
        numbers = map(str, (self.port, width, height, fps))
        command = [PYTHON, str(SCRIPT), *numbers, *(["udp"] if udp else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "listening\n"

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    server = RtspServer()
    yield server
    server.kill()


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield a port whose connections are passed to `answer`, each in its own thread."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with suppress(OSError):
            answer(connection)
        connection.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(server.getsockname()[1])
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def say_nothing(connection: socket.socket) -> None:
    """Read requests and never answer."""
    while connection.recv(1024):
        pass


def answer_options_alone(connection: socket.socket) -> None:
    """Answer the first RTSP request, and never the second."""
    connection.recv(1024)
    connection.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n")
    say_nothing(connection)


def send_garbage(connection: socket.socket) -> None:
    """Answer with random bytes."""
    connection.recv(1024)
    for _ in range(64):
        connection.sendall(os.urandom(1 << 12))


def send_pictures(
    connection: socket.socket, stop_after: int | None = None, broken: int | None = None
) -> None:
    """Send MJPEG over HTTP, 50 images a second.

    Args:
        connection: of the client.
        stop_after: send this number of images, then half of one, then nothing.
        broken: n, if every n-th image is invalid.
    """
    connection.recv(1024)
    connection.sendall(
        b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n"
    )
    for number in range(1_000_000):
        picture = np.full((120, 160, 3), number % 200, np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        if broken and number % broken == broken - 1:
            jpeg = os.urandom(len(jpeg))
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
        if number == stop_after:
            connection.sendall(head + jpeg[: len(jpeg) // 2])
            say_nothing(connection)
            return
        connection.sendall(head + jpeg + b"\r\n")
        time.sleep(0.02)


def stop_in_mid_frame(connection: socket.socket) -> None:
    """Send MJPEG, and stop in the middle of an image."""
    send_pictures(connection, stop_after=20)

"""Notify systemd that the run is ready and alive, in a service of `Type=notify`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from .frame_result import FrameResult, FrameSink, StreamHealth


class SystemdNotifier(FrameSink):
    """A frame sink that notifies systemd; it does nothing outside such a service.

    The first tick sends `READY=1`, each tick `WATCHDOG=1`, so that `WatchdogSec=` detects a loop
    that hangs. Protocol: sd_notify(3).
    """

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._status = ""
        if address[:1] in ("/", "@") and hasattr(socket, "AF_UNIX"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # In an abstract name, @ stands for NUL.
            self._address = address.replace("@", "\0", 1) if address[0] == "@" else address

    def show(self, frame_result: FrameResult) -> None:
        """Do nothing: a tick follows soon."""

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Send the watchdog signal, and the number of playing sources if it changed."""
        if self._socket is None:
            return
        playing = sum(health.state == "playing" for health in sources)
        status = f"STATUS={playing} of {len(sources)} streams play"
        lines = ["WATCHDOG=1"] if status == self._status else ["READY=1", "WATCHDOG=1", status]
        self._status = status
        self._send("\n".join(lines))

    def _send(self, text: str) -> None:
        assert self._socket is not None
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            # systemd did not receive it; the next tick sends it again.
            return

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._send("STOPPING=1")
            self._socket.close()

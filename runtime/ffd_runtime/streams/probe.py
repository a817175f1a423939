"""Why a server gives no video: asked only after OpenCV has failed, which does not say."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from ..errors import InputError

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_STATUS = re.compile(rb"(?:RTSP|HTTP)/\d\.\d (\d{3})")


@dataclass(frozen=True)
class _Server:
    """Where an address leads; `scheme` has a known port, everything else is empty."""

    scheme: str
    host: str
    port: int
    path: str
    known: bool

    @classmethod
    def of(cls, address: str) -> Self | None:
        """None for what is not reached by TCP.

        Raises:
            InputError: the address is malformed.
        """
        try:
            parts = urlsplit(address)
            scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
        except ValueError:
            raise InputError("fetch_failed", "the address is malformed") from None
        if scheme not in PORTS:
            return None
        if not host:
            raise InputError("fetch_failed", "the address names no server")
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        return cls(scheme, host, port or PORTS[scheme], path, bool(parts.username))

    def ask(self, timeout: float) -> int | None:
        """The status of a request without credentials; None where it is encrypted or has none.

        Raises:
            InputError: no connection, or no answer.
        """
        try:
            with socket.create_connection((self.host, self.port), timeout) as connection:
                connection.settimeout(timeout)
                return self._ask(connection)
        except TimeoutError:
            raise InputError("timeout", f"{self} does not answer") from None
        except socket.gaierror:
            raise InputError("fetch_failed", f"the name {self.host} is not known") from None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no connection"
            raise InputError("fetch_failed", f"{self}: {reason.lower()}") from None

    def _ask(self, connection: socket.socket) -> int | None:
        if self.scheme == "rtsp":
            text = f"DESCRIBE rtsp://{self}{self.path} RTSP/1.0\r\nCSeq: 1\r\n\r\n"
        elif self.scheme == "http":
            # Not HEAD, which some cameras leave unanswered.
            text = f"GET {self.path or '/'} HTTP/1.1\r\nHost: {self}\r\nConnection: close\r\n\r\n"
        else:
            return None
        connection.sendall(text.encode("utf-8", "replace"))
        answer = b""
        with suppress(ConnectionError):
            while len(answer) < 12 and (part := connection.recv(64)):
                answer += part
        found = _STATUS.match(answer)
        return int(found[1]) if found else 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def explain(address: str, timeout: float) -> InputError:
    """The error of a server that could not be opened, as far as a short look tells.

    Args:
        address: the stream's; nothing of its credentials is in the error.
        timeout: seconds for the look.
    """
    try:
        server = _Server.of(address)
        status = server.ask(timeout) if server else None
    except InputError as error:
        return error
    where = f"{server} " if server else "it "
    return InputError("fetch_failed", where + _meaning(status, bool(server and server.known)))


def _meaning(status: int | None, known: bool) -> str:
    if status == 0:
        return "answers something else than was asked"
    if status == 401:
        return "does not accept this user and password" if known else "wants a user and password"
    if status is not None and status >= 400:
        return f"refuses it with status {status}" + (" (wrong path?)" if status == 404 else "")
    return "gives no video that can be decoded"

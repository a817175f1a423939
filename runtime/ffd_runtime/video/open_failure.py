"""Turn FFmpeg's error for a file or server into a message."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit

from ..core.errors import InputError

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


def open_failure(error: Exception, target: str, timeout: float, took: float) -> InputError:
    """Return the error for a file or server that could not be opened, without credentials.

    Args:
        error: FFmpeg's error.
        target: a path, or an address with a scheme.
        timeout: limit for opening in seconds.
        took: seconds until the error.
    """
    from av.error import ExitError, TimeoutError

    # RTSP reports its own interruption as invalid data.
    if took >= timeout or isinstance(error, ExitError | TimeoutError):
        return InputError("timeout", f"no video within {timeout:g} s")
    if "://" not in target:
        return _file_failure(target)
    return InputError("fetch_failed", _server_failure(error, target))


def _file_failure(path: str) -> InputError:
    from ..image.decode import os_error

    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return os_error(error, path)
    if empty:
        return InputError("empty", "the file is empty")
    return InputError("corrupt", "no decodable video: it is damaged or not a video")


def _server_failure(error: Exception, address: str) -> str:
    from av import error as reasons

    try:
        parts = urlsplit(address)
        where = _host_and_port(parts)
    except ValueError:
        return "the address is invalid"
    if not parts.hostname:
        return "the address has no host"
    if isinstance(error, reasons.HTTPUnauthorizedError):
        if parts.username:
            return f"{where} rejected the user and password"
        return f"{where} requires a user and password"
    if isinstance(error, reasons.ProtocolNotFoundError):
        return f"this FFmpeg does not support {parts.scheme}:// addresses"
    reason = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, reasons.HTTPClientError | reasons.HTTPServerError):
        path = " (wrong path?)" if isinstance(error, reasons.HTTPNotFoundError) else ""
        return f"{where}: {reason}{path}"
    if isinstance(error, reasons.InvalidDataError):
        return f"{where} sends no decodable video"
    if not _resolves(parts.hostname):
        return f"the host name {parts.hostname} cannot be resolved"
    return f"{where} sends no video ({reason[:1].lower()}{reason[1:]})"


def _host_and_port(parts: SplitResult) -> str:
    """Return host and port, without credentials.

    Raises:
        ValueError: the port is not a number.
    """
    host = parts.hostname or ""
    port = parts.port or PORTS.get(parts.scheme.lower())
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _resolves(host: str) -> bool:
    """Return True if a host name can be resolved: FFmpeg only reports an I/O error."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True

"""Why a file or server could not be opened: FFmpeg's reason, in words for a person."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit

from ..core.errors import InputError

PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


def explain(error: Exception, target: str, timeout: float, took: float) -> InputError:
    """The error of what could not be opened; nothing of its credentials is in it.

    Args:
        error: FFmpeg's.
        target: a path, or an address with a scheme.
        timeout: seconds that opening could take.
        took: seconds that it took.
    """
    from av.error import ExitError, TimeoutError

    # RTSP reports its own interruption as invalid data.
    if took >= timeout or isinstance(error, ExitError | TimeoutError):
        return InputError("timeout", f"no video within {timeout:g} s")
    if "://" not in target:
        return _of_file(target)
    return InputError("fetch_failed", _of_server(error, target))


def _of_file(path: str) -> InputError:
    from ..image.decode import os_error

    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return os_error(error, path)
    if empty:
        return InputError("empty", "the file is empty")
    return InputError("corrupt", "no video that can be decoded: it is damaged or something else")


def _of_server(error: Exception, address: str) -> str:
    from av import error as reasons

    try:
        parts = urlsplit(address)
        where = _name(parts)
    except ValueError:
        return "the address is malformed"
    if not parts.hostname:
        return "the address names no server"
    if isinstance(error, reasons.HTTPUnauthorizedError):
        if parts.username:
            return f"{where} does not accept this user and password"
        return f"{where} wants a user and password"
    if isinstance(error, reasons.ProtocolNotFoundError):
        return f"this FFmpeg cannot open {parts.scheme}:// addresses"
    reason = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, reasons.HTTPClientError | reasons.HTTPServerError):
        path = " (wrong path?)" if isinstance(error, reasons.HTTPNotFoundError) else ""
        return f"{where}: {reason}{path}"
    if isinstance(error, reasons.InvalidDataError):
        return f"{where} gives no video that can be decoded"
    if not _is_known(parts.hostname):
        return f"the name {parts.hostname} is not known"
    return f"{where} gives no video ({reason[:1].lower()}{reason[1:]})"


def _name(parts: SplitResult) -> str:
    """Host and port, without credentials.

    Raises:
        ValueError: the port is no number.
    """
    host = parts.hostname or ""
    port = parts.port or PORTS.get(parts.scheme.lower())
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _is_known(host: str) -> bool:
    """Whether a name leads to an address: FFmpeg reports one that does not as an I/O error."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True

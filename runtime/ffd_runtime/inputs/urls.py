"""Fetch images from http and https addresses, which are not trusted.

Addresses and servers may be malicious. A fetch therefore has one deadline for all its steps and a
size limit, and reaches only public addresses. Each name is resolved once for a connection, which
goes to the address that was checked, so that a second answer of a name server has no effect.
Proxies of the environment are not used, because they choose the address to connect to.

urllib3 keeps connections open for more images of the same server. For 20 images of 100 kB, it opens
1 connection where http.client opened 20, and needs 12 ms instead of 58 (TLS on the loopback).
"""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache, partial
from http.client import HTTPException, IncompleteRead, RemoteDisconnected, responses
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from .. import __version__
from ..core.errors import InputError
from ..core.redact import redact
from .fetch_policy import FetchPolicy
from .items import Item
from .members import CHUNK_BYTES
from .web_address import WebAddress, is_public, parse_address

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


def find_inputs(address: str, policy: FetchPolicy) -> Iterator[Item]:
    """Yield the input for an address, which is fetched in a worker thread."""
    yield Item(redact(address), fetch=partial(fetch, address, policy))


def fetch(url: str, policy: FetchPolicy) -> bytes:
    """Fetch the body of an http or https address.

    Messages never contain the password of the address.

    Raises:
        InputError: `refused` (malformed, another scheme, or an address that is not public),
            `fetch_failed` (no connection, a bad certificate, not HTTP, a status other than 200),
            `timeout`, `too_large`, or `truncated` (the body ends early).
    """
    token = _TRANSFER.set(_Transfer(policy))
    try:
        return _follow(url, policy)
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        raise _explain(error, policy) from None
    finally:
        _TRANSFER.reset(token)


def _explain(error: Exception, policy: FetchPolicy) -> InputError:
    """Return the input error for an error of urllib3, http.client or the system."""
    # urllib3 passes the original error as the last argument of its own.
    cause = error.args[-1] if error.args and isinstance(error.args[-1], Exception) else error
    if isinstance(cause, (TimeoutError, ReadTimeoutError)):
        return InputError(
            "timeout", f"no complete response within {policy.timeout:g} s (--timeout)"
        )
    # urllib3 raises ProtocolError without a cause if the body ends between two chunks.
    if isinstance(cause, (IncompleteRead, ProtocolError)):
        return InputError("truncated", "the connection ended before the end of the image")
    if isinstance(cause, RemoteDisconnected):
        reason = "the server closed the connection without a response"
    elif isinstance(cause, OSError):
        reason = f"the connection broke: {cause.strerror or cause}"
    else:
        # http.client raises ValueError for some chunk sizes.
        reason = "the response of the server is not HTTP"
    return InputError("fetch_failed", reason)


class _Transfer:
    """The limits of a fetch, which its sockets enforce, and the state of its current request.

    Attributes:
        allow_private: see `FetchPolicy`.
        bytes_left: limit of the response.
        may_retry: whether the request has an open connection and no part of its response.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self.allow_private = policy.allow_private
        # More than the body: headers and the framing of chunks count, too.
        self._max_bytes = 2 * policy.max_bytes + (1 << 20)
        self._end = time.monotonic() + policy.timeout
        self.start_request()

    def start_request(self) -> None:
        """Reset what concerns a single request."""
        self.bytes_left = self._max_bytes
        self.may_retry = True

    def seconds_left(self) -> float:
        """Return the remaining seconds, or raise `TimeoutError`."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


# urllib3 does not pass data of a request to its sockets.
_TRANSFER: ContextVar[_Transfer] = ContextVar("transfer")


def _follow(url: str, policy: FetchPolicy) -> bytes:
    """Fetch an address, and follow redirects."""
    start = address = parse_address(url)
    for _ in range(policy.max_redirects + 1):
        # Send a login only to the server of the original address.
        login = start.login if address.origin == start.origin else None
        with _request(address, login) as response:
            if response.status == 200:
                return _read_body(response, policy.max_bytes)
            length = response.length_remaining
            if length is not None and length <= CHUNK_BYTES:
                # A connection can be used again only if the whole response was read.
                response.drain_conn()
            location = response.get_redirect_location()
            if not location:
                status = f"{response.status} {responses.get(response.status, '')}".strip()
                raise InputError("fetch_failed", f"the server answered {status}")
        url = _join(url, location)
        address = parse_address(url)
    raise InputError("fetch_failed", f"more than {policy.max_redirects} redirects")


def _join(url: str, location: str) -> str:
    # Headers are decoded as Latin-1, but the bytes of an address are usually UTF-8.
    text = location.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    try:
        return urljoin(url, text.strip())
    except ValueError:
        raise InputError("refused", "it redirects to an invalid web address") from None


def _request(address: WebAddress, login: str | None) -> BaseHTTPResponse:
    """Send a request on an open connection to the server, or on a new one."""
    headers = {
        "User-Agent": f"ffd-edge/{__version__}",
        # With image types in Accept, some servers convert the file, which removes evidence.
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    if login:
        headers["Authorization"] = f"Basic {login}"
    transfer = _TRANSFER.get()
    with _POOLS_LOCK:
        pools = _pools(transfer.allow_private)
    pool = pools.connection_from_host(address.host, address.port, address.scheme)
    while True:
        transfer.start_request()
        try:
            return pool.urlopen(
                "GET",
                address.target,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError:
            # The server may have closed an idle connection.
            if not transfer.may_retry:
                raise


def _read_body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    """Read the body of a successful response, within the limit."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "multipart/x-mixed-replace" or kind.startswith("video/"):
        raise InputError("fetch_failed", "it is a video stream: run it with --stream")
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        value = response.headers.get(header, plain)
        if value.strip().lower() != plain:
            raise InputError("fetch_failed", f"the server sent a {header} that was not requested")
    too_large = InputError("too_large", f"over the limit of {max_bytes / 2**20:g} MiB for the web")
    if (response.length_remaining or 0) > max_bytes:
        raise too_large
    body = io.BytesIO()
    for piece in response.stream(CHUNK_BYTES):
        body.write(piece)
        if body.tell() > max_bytes:
            raise too_large
    return body.getvalue()


class _Socket(socket.socket):
    """A connection that enforces the limits of the current fetch.

    http.client reads headers, and chunks of size -1, without a limit.
    """

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.settimeout(_TRANSFER.get().seconds_left())
        super().sendall(data, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        transfer = _TRANSFER.get()
        self.settimeout(transfer.seconds_left())
        count = super().recv_into(buffer, nbytes or 0, flags)
        transfer.may_retry &= not count
        transfer.bytes_left -= count
        if transfer.bytes_left < 0:
            raise InputError("too_large", "the response is larger than any supported image")
        return count


class _TlsSocket(_Socket, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self._dns_host, self.port)


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self._dns_host, self.port)

    def connect(self) -> None:
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate of {self.host} is not valid: {error.verify_message}"
            raise InputError("fetch_failed", reason) from None
        except ssl.SSLError as error:
            reason = f"no TLS connection to {self.host}: {error.reason or error}"
            raise InputError("fetch_failed", reason) from None


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


# `cache` may call a function twice if two threads need the result.
_POOLS_LOCK = Lock()


@cache
def _pools(allow_private: bool) -> PoolManager:
    """Return the open connections of all fetches with the same policy on addresses."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TlsSocket
    pools = PoolManager(num_pools=16, maxsize=256, ssl_context=context)
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pools


def _after_fork() -> None:
    """Forget connections, which two processes must not share, and a lock without an owner."""
    global _POOLS_LOCK
    _POOLS_LOCK = Lock()
    _pools.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _is_quotable(_: logging.LogRecord) -> bool:
    return _TRANSFER.get(None) is None


for _name in ("urllib3.connection", "urllib3.connectionpool"):
    # They quote addresses, which may contain a password or a signature.
    logging.getLogger(_name).addFilter(_is_quotable)


def _connect(host: str, port: int) -> socket.socket:
    """Connect to a permitted address of a host."""
    transfer = _TRANSFER.get()
    transfer.may_retry = False
    found = _resolve(host, port)
    places = [p for p in found if transfer.allow_private or is_public(p[1][0])]
    if not places:
        reason = f"{host} resolves to {found[0][1][0]}, which is not a public address"
        raise InputError("refused", f"{reason} (--allow-private permits it)")
    failure = OSError("no address")
    for number, (family, place) in enumerate(places):
        connection = _Socket(family, socket.SOCK_STREAM)
        # Without it, a request on an open connection may wait for an acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            # An address that does not respond must leave time for the others.
            connection.settimeout(transfer.seconds_left() / (len(places) - number))
            connection.connect(place)
            # For the TLS handshake.
            connection.settimeout(transfer.seconds_left())
        except OSError as error:
            connection.close()
            # Its traceback would keep the frames of this fetch in memory.
            failure = error.with_traceback(None)
        else:
            return connection
    if isinstance(failure, TimeoutError):
        raise failure
    raise InputError("fetch_failed", f"no connection to {host}: {failure.strerror or failure}")


def _resolve(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Resolve a host in a thread, because the system's resolver has no deadline."""
    answer: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answer.put(error)

    Thread(target=ask, name="ffd-resolve", daemon=True).start()
    try:
        found = answer.get(timeout=_TRANSFER.get().seconds_left())
    except Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        reason = getattr(found, "strerror", None) or "no such name"
        raise InputError("fetch_failed", f"{host} has no address: {reason}")
    return [(family, place) for family, _, _, _, place in found]

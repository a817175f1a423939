"""Fetch images from http and https addresses, which are not trusted.

Addresses and servers may be malicious. A fetch therefore has one deadline for all its steps and a
size limit, and reaches only public addresses. Each name is resolved once, and the connection goes
to the address that was checked, so that a second answer of a name server has no effect. Proxies of
the environment are not used, because they choose the address to connect to.
"""

from __future__ import annotations

import base64
import io
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from functools import cache, partial
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected, responses
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from .. import __version__
from ..core.errors import InputError
from ..core.redact import is_ambiguous, redact
from .fetch_policy import FetchPolicy
from .items import Item

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def is_url(text: str) -> bool:
    """Return whether a source is an http or https address."""
    return text[:8].lower().startswith(("http://", "https://"))


def url_item(url: str, policy: FetchPolicy) -> Item:
    """Return the input for an address, which is fetched in a worker thread."""
    return Item(redact(url), fetch=partial(fetch, url, policy))


def fetch(url: str, policy: FetchPolicy) -> bytes:
    """Fetch the body of an http or https address.

    Messages never contain the password of the address.

    Raises:
        InputError: `refused` (malformed, another scheme, or an address that is not public),
            `fetch_failed` (no connection, a bad certificate, not HTTP, a status other than 200),
            `timeout`, `too_large`, or `truncated` (the body ends early).
    """
    deadline = _Deadline(policy.timeout)
    try:
        return _follow(url, policy, deadline)
    except TimeoutError:
        reason = f"no complete response within {policy.timeout:g} s (--timeout)"
        raise InputError("timeout", reason) from None
    except IncompleteRead:
        raise InputError("truncated", "the connection ended before the end of the image") from None
    except RemoteDisconnected:
        reason = "the server closed the connection without a response"
        raise InputError("fetch_failed", reason) from None
    except (HTTPException, ValueError):
        # http.client raises ValueError for some chunk sizes.
        raise InputError("fetch_failed", "the response of the server is not HTTP") from None
    except OSError as error:
        reason = f"the connection broke: {error.strerror or error}"
        raise InputError("fetch_failed", reason) from None


class _Deadline:
    """The time at which a fetch fails if it has not finished."""

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Return the remaining seconds.

        Raises:
            TimeoutError: none remain.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


@dataclass(frozen=True)
class _Address:
    """A well-formed address.

    Attributes:
        scheme: `http` or `https`.
        host: a name in ASCII or a numeric address, IPv6 without its brackets.
        port: 0 to 65535.
        target: path and query for the request.
        login: user name and password in the form of Basic authentication, or None.
    """

    scheme: str
    host: str
    port: int
    target: str
    login: str | None = field(repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port, to which a login is limited."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
# Characters to keep in paths and queries; the percent sign, because text may be quoted already.
_SAFE = "/?%:@!$&'()*+,;=~[]"


def _parse(url: str) -> _Address:
    """Parse an address.

    Raises:
        InputError: `refused`; the message never quotes the address, which may contain a password.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in _PORTS:
        shown = f"{scheme}: addresses" if re.fullmatch(r"[a-z0-9+.-]{1,20}", scheme) else "this"
        raise InputError("refused", f"{shown}: only http:// and https:// are fetched")
    try:
        if _CONTROL.search(url):
            raise ValueError
        if is_ambiguous(url):
            reason = "the end of its password is ambiguous: write %40 for @ and %2F for /"
            raise InputError("refused", reason)
        parts = urlsplit(url)
        userinfo = parts.netloc.rpartition("@")[0]
        if "\\" in parts.netloc:
            raise ValueError
        port = _PORTS[scheme] if parts.port is None else parts.port
        target = quote(parts.path or "/", _SAFE, errors="surrogateescape")
        if parts.query:
            target += "?" + quote(parts.query, _SAFE, errors="surrogateescape")
        return _Address(scheme, _host(parts.hostname or ""), port, target, _login(userinfo))
    except ValueError:
        raise InputError("refused", "not a valid web address") from None


def _host(host: str) -> str:
    """Return a host in ASCII.

    Raises:
        ValueError: the host is not valid.
    """
    if ":" in host:
        if IPv6Address(host).scope_id:
            raise ValueError(host)
        return host
    # The idna codec is slow for long text, and a name has at most 253 ASCII characters.
    name = host[:254].encode("idna").decode("ascii")
    if not _HOST.fullmatch(name):
        raise ValueError(name)
    return name


def _login(userinfo: str) -> str | None:
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    return base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()


def _follow(url: str, policy: FetchPolicy, deadline: _Deadline) -> bytes:
    """Fetch an address, and follow redirects."""
    start = address = _parse(url)
    for _ in range(policy.max_redirects + 1):
        with _connect(address, policy, deadline) as connection:
            # Send a login only to the server of the original address.
            login = start.login if address.origin == start.origin else None
            # More than the body: headers and the framing of chunks count, too.
            wire = _Wire(connection, deadline, 2 * policy.max_bytes + (1 << 20))
            wire.send(_request(address, login))
            with HTTPResponse(cast(socket.socket, wire), method="GET") as response:
                response.begin()
                location = response.headers.get("Location")
                if location is None or response.status not in (301, 302, 303, 307, 308):
                    return _body(response, policy.max_bytes)
        url = _join(url, location)
        address = _parse(url)
    raise InputError("fetch_failed", f"more than {policy.max_redirects} redirects")


def _join(url: str, location: str) -> str:
    # Headers are decoded as Latin-1, but the bytes of an address are usually UTF-8.
    text = location.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    try:
        return urljoin(url, text.strip())
    except ValueError:
        raise InputError("refused", "it redirects to an invalid web address") from None


def _request(address: _Address, login: str | None) -> bytes:
    lines = [
        f"GET {address.target} HTTP/1.1",
        f"Host: {address.host_header}",
        f"User-Agent: ffd-edge/{__version__}",
        # With image types in Accept, some servers convert the file, which removes evidence.
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if login:
        lines.append(f"Authorization: Basic {login}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _body(response: HTTPResponse, max_bytes: int) -> bytes:
    """Read the body of a successful response, within the limit."""
    if response.status != 200:
        phrase = responses.get(response.status, "")
        status = f"{response.status} {phrase}".strip()
        raise InputError("fetch_failed", f"the server answered {status}")
    kind = response.headers.get_content_type()
    if kind == "multipart/x-mixed-replace" or kind.startswith("video/"):
        raise InputError("fetch_failed", "it is a video stream: run it with --stream")
    for header, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        value = response.headers.get(header, plain)
        if value.strip().lower() != plain:
            raise InputError("fetch_failed", f"the server sent a {header} that was not requested")
    too_large = InputError("too_large", f"over the limit of {max_bytes / 2**20:g} MiB for the web")
    if response.length is not None and response.length > max_bytes:
        raise too_large
    body = io.BytesIO()
    while piece := response.read(1 << 16):
        body.write(piece)
        if body.tell() > max_bytes:
            raise too_large
    if response.length:
        raise IncompleteRead(b"", response.length)
    return body.getvalue()


class _Wire(io.RawIOBase):
    """A connection for `HTTPResponse` that enforces the deadline and a size limit.

    Args:
        connection: connected; the caller closes it.
        deadline: of the whole fetch, so that a slow server cannot extend it.
        limit: bytes of the whole response. `HTTPResponse` reads headers, and chunks of size -1,
            without a limit.
    """

    def __init__(self, connection: socket.socket, deadline: _Deadline, limit: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left = limit

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a reader, as `HTTPResponse` expects from a socket."""
        return io.BufferedReader(self, 1 << 16)

    def send(self, data: bytes) -> None:
        """Send a request."""
        self._connection.settimeout(self._deadline.left())
        self._connection.sendall(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._connection.settimeout(self._deadline.left())
        count = self._connection.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise InputError("too_large", "the server sends more than an image needs")
        return count


def _connect(address: _Address, policy: FetchPolicy, deadline: _Deadline) -> socket.socket:
    """Connect to a permitted address of the host, with TLS for https."""
    found = _resolve(address, deadline)
    places = [p for p in found if policy.allow_private or is_public(p[1][0])]
    if not places:
        reason = f"{address.host} resolves to {found[0][1][0]}, which is not a public address"
        raise InputError("refused", f"{reason} (--allow-private permits it)")
    connection = _connect_any(address, places, deadline)
    if address.scheme == "http":
        return connection
    try:
        connection.settimeout(deadline.left())
        return _tls().wrap_socket(connection, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        reason = f"the certificate of {address.host} is not valid: {error.verify_message}"
        raise InputError("fetch_failed", reason) from None
    except ssl.SSLError as error:
        reason = f"no TLS connection to {address.host}: {error.reason or error}"
        raise InputError("fetch_failed", reason) from None
    finally:
        # After wrapping, this socket is detached, and closing it has no effect.
        connection.close()


def _connect_any(
    address: _Address, places: list[tuple[int, tuple[Any, ...]]], deadline: _Deadline
) -> socket.socket:
    """Connect to the first address that responds."""
    failure = OSError("no address")
    for number, (family, place) in enumerate(places):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            # An address that does not respond must leave time for the others.
            connection.settimeout(deadline.left() / (len(places) - number))
            connection.connect(place)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    if isinstance(failure, TimeoutError):
        raise failure
    reason = f"no connection to {address.host}: {failure.strerror or failure}"
    raise InputError("fetch_failed", reason)


def _resolve(address: _Address, deadline: _Deadline) -> list[tuple[int, tuple[Any, ...]]]:
    """Resolve a host in a thread, because the system's resolver has no deadline."""
    answer: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except Exception as error:
            answer.put(error)

    Thread(target=ask, name="ffd-resolve", daemon=True).start()
    try:
        found = answer.get(timeout=deadline.left())
    except Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        reason = getattr(found, "strerror", None) or "no such name"
        raise InputError("fetch_failed", f"{address.host} has no address: {reason}")
    return [(family, place) for family, _, _, _, place in found]


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
# Python 3.11 reports parts of it as global.
_PROTOCOL_ASSIGNMENTS = ip_network("192.0.0.0/24")


def is_public(text: str) -> bool:
    """Return whether a numeric address is public.

    Private, loopback, link-local, shared (CGNAT), multicast, reserved and unspecified addresses are
    not, nor are IPv6 addresses that represent such an IPv4 address (mapped, NAT64, 6to4).

    Example:
        >>> is_public("1.1.1.1"), is_public("::ffff:10.0.0.1")
        (True, False)

    Raises:
        ValueError: not a numeric address.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        return address in _GLOBAL_UNICAST and address.is_global
    reserved = address.is_multicast or address.is_reserved or address in _PROTOCOL_ASSIGNMENTS
    return address.is_global and not reserved

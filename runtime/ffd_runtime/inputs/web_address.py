"""Parse web addresses, and recognise those that are not public."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ..core.errors import InputError
from ..core.redact import is_ambiguous

_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
# Characters to keep in paths and queries; the percent sign, because text may be quoted already.
_SAFE = "/?%:@!$&'()*+,;=~"
_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
# Python reports them, or parts of them, as global: protocol assignments, 6to4 relays, the address
# at which Azure's machines reach the platform itself, and documentation.
_NOT_PUBLIC = tuple(
    map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20"))
)


@dataclass(frozen=True)
class WebAddress:
    """A well-formed address.

    Attributes:
        scheme: `http` or `https`.
        host: a name in ASCII or a numeric address, IPv6 without its brackets.
        port: 1 to 65535.
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


def parse_address(url: str) -> WebAddress:
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
        if "\\" in parts.netloc or parts.port == 0:
            raise ValueError
        port = _PORTS[scheme] if parts.port is None else parts.port
        target = quote(parts.path or "/", _SAFE, errors="surrogateescape")
        if parts.query:
            target += "?" + quote(parts.query, _SAFE, errors="surrogateescape")
        return WebAddress(scheme, _host(parts.hostname or ""), port, target, _login(userinfo))
    except ValueError:
        raise InputError("refused", "not a valid web address") from None


def _host(host: str) -> str:
    """Return a host in ASCII, or raise `ValueError`."""
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
        if address not in _GLOBAL_UNICAST:
            return False
    elif address.is_multicast or address.is_reserved:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)

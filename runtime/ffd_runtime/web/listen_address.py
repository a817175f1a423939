"""Parse the address to listen on: `HOST:PORT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"

_PARTS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^\[\]:]*):)?(?P<port>[^:]*)")


@dataclass(frozen=True)
class ListenAddress:
    """A host and a port to listen on.

    Attributes:
        host: name or IP address, IPv6 without brackets.
        port: 0 for any free port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen_address(text: str) -> ListenAddress:
    """Parse `HOST:PORT`, `[IPv6]:PORT`, or `:PORT` and `PORT` for the loopback address.

    Raises:
        ValueError: the text is invalid; the message says why.

    Example:
        >>> [str(parse_listen_address(text)) for text in ("8080", "0.0.0.0:80", "[::1]:8080")]
        ['127.0.0.1:8080', '0.0.0.0:80', '[::1]:8080']
    """
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not HOST:PORT: an IPv6 address needs brackets, [::1]:8080")
    host, port = found["host"] or LOOPBACK, found["port"]
    if found["host"] is None and not port.isdecimal():
        raise ValueError(f"{text!r} has no port: write HOST:PORT, for example {LOOPBACK}:8080")
    if any(character.isspace() or character in "/@?#" for character in host):
        raise ValueError(f"{text!r} is not HOST:PORT: write for example {LOOPBACK}:8080")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{text!r}: the port must be a number from 0 to 65535")
    return ListenAddress(host.strip("[]"), int(port))

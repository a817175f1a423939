"""Addresses of objects, and paths."""

from __future__ import annotations

import os

SCHEMES = ("s3", "gs")


def is_object(address: str) -> bool:
    """Whether a source or output lies in an object store."""
    return address.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def place_of(address: str) -> str:
    """What of an address says which storage it is in, such as `s3://bucket`; empty for a path."""
    if not is_object(address):
        return ""
    scheme, _, rest = address.partition("://")
    return f"{scheme.lower()}://{rest.partition('/')[0]}"


def join(folder: str, name: str) -> str:
    """Address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_object(folder) else os.path.join(folder, name)

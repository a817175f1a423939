"""Addresses of objects in a store, and paths of files."""

from __future__ import annotations

import os

from ffd_runtime.core.errors import StorageError
from ffd_runtime.core.redact import redact

SCHEMES = ("s3", "gs")


def is_object(address: str) -> bool:
    """Return whether an address is in an object store."""
    return address.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def bucket_of(address: str) -> str:
    """Return the scheme and bucket of an address, such as `s3://bucket`; empty for a path."""
    if not is_object(address):
        return ""
    scheme, _, rest = address.partition("://")
    return f"{scheme.lower()}://{rest.partition('/')[0]}"


def join(folder: str, name: str) -> str:
    """Return the address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_object(folder) else os.path.join(folder, name)


def require_no_credentials(address: str) -> None:
    """Refuse a pre-signed address of an object: the rows would show its signature.

    Raises:
        StorageError: a query parameter of the address grants access.
    """
    query = "?" + address.partition("?")[2]
    if is_object(address) and redact(query) != query:
        raise StorageError(
            f"{redact(address)}: an address must not contain credentials; give a pre-signed one as "
            "https://, without --ray"
        )

"""Translate the errors of pyarrow's file systems into errors of ffd, and retry after them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ffd_runtime.core.errors import OutputError, StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_PAUSES_S = (5.0, 10.0, 20.0, 40.0, 80.0)
NO_BUCKET = "there is no such bucket"
# Errors that affect every object of the store.
FATAL_CODES = {
    "NO_SUCH_BUCKET": NO_BUCKET,
    "INVALID_ACCESS_KEY_ID": "the store does not know the access key",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not match the access key",
    "EXPIRED_TOKEN": "the credentials have expired",
    "INVALID_CLIENT_TOKEN_ID": "the store does not know the access key",
    "UNRECOGNIZED_CLIENT": "the store does not know the access key",
    "MISSING_AUTHENTICATION_TOKEN": "the store requires credentials, and none were found",
    "UNAUTHENTICATED": "the store refuses the credentials",
}
# Errors after which a later attempt may succeed.
TRANSIENT_CODES = frozenset(
    "NETWORK_CONNECTION SLOW_DOWN THROTTLING INTERNAL_FAILURE SERVICE_UNAVAILABLE REQUEST_TIMEOUT "
    "UNAVAILABLE DEADLINE_EXCEEDED RESOURCE_EXHAUSTED INTERNAL ABORTED".split()
)
# The error code of S3 with its HTTP status, or the status of Google's client.
ERROR_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?|google::cloud::Status\((\w+)")
UNREACHABLE = "unreachable"
CREDENTIALS_HINTS = {
    "s3": "check the bucket's name, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the profile",
    "gs": "check the bucket's name, and Google's application default credentials",
}


@contextmanager
def translate_read_errors(address: str, single: bool = False) -> Iterator[None]:
    """Raise an `OSError` of the block as a `StorageError` with a one-line message.

    Args:
        address: the file or folder that is read.
        single: the error may affect only this file; others may be readable.
    """
    try:
        yield
    except OSError as error:
        raise _translate(error, address, single) from None


@contextmanager
def translate_write_errors(address: str) -> Iterator[None]:
    """Raise an `OSError` of the block as an `OutputError`.

    Raises:
        StorageError: the store is unreachable; a later attempt may succeed.
    """
    try:
        with translate_read_errors(address):
            yield
    except StorageError as error:
        reason = str(error).removeprefix(f"{address}: ")
        message = f"cannot write {address}: {reason}"
        if error.code == UNREACHABLE:
            raise StorageError(message, UNREACHABLE) from None
        raise OutputError(message) from None


def retry_unreachable(call: Callable[[], T]) -> T:
    """Call a function, and call it again after a pause while the store is unreachable.

    Raises:
        StorageError: the store was unreachable for minutes, or refuses.
    """
    for pause in RETRY_PAUSES_S:
        try:
            return call()
        except StorageError as error:
            if error.code != UNREACHABLE:
                raise
            log.warning("%s; retrying in %.0f s", error, pause)
            time.sleep(pause)
    return call()


def missing_bucket(address: str) -> StorageError:
    """Return the error for an address whose bucket does not exist."""
    hint = CREDENTIALS_HINTS[address.partition("://")[0].lower()]
    return StorageError(f"{address}: {NO_BUCKET}; {hint}")


def _translate(error: OSError, address: str, single: bool) -> StorageError:
    text = str(error)
    match = ERROR_CODE.search(text)
    code, status = (match[1] or match[3], match[2] or "") if match else ("", "")
    hint = CREDENTIALS_HINTS.get(address.partition("://")[0].lower(), "")
    if code in FATAL_CODES:
        return StorageError(f"{address}: {FATAL_CODES[code]}; {hint}")
    denied = ("ACCESS_DENIED", "PERMISSION_DENIED")
    if isinstance(error, PermissionError) or code in denied or status == "403":
        if single:
            return StorageError("no permission to read it", "permission_denied", everywhere=False)
        return StorageError(f"{address}: access is denied" + (hint and f"; {hint}"))
    if isinstance(error, FileNotFoundError) or code in ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND"):
        return StorageError("no such file or folder", "not_found", everywhere=False)
    store_text = text.partition(": AWS Error ")[2] or text.partition("google::cloud::Status(")[2]
    detail = (error.strerror or store_text or text).splitlines()[0][:200]
    if code in TRANSIENT_CODES or status.startswith("5"):
        message = f"{address}: the store does not respond ({detail}); try again later"
        return StorageError(message, UNREACHABLE)
    if single:
        return StorageError(f"reading failed: {detail}", everywhere=False)
    return StorageError(f"{address}: {detail}")

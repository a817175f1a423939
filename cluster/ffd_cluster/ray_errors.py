"""Translate Ray's errors into errors of ffd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ffd_runtime.core.errors import BackendError, FfdError, InputError, StorageError
from ffd_runtime.core.text import first_line, printable

from .store_errors import UNREACHABLE

# Ray's exceptions after which a retry with the remaining machines may succeed.
LOSSES = (
    "WorkerCrashedError RayActorError NodeDiedError ObjectLostError OutOfMemoryError "
    "ObjectStoreFullError OutOfDiskError LocalRayletDiedError RaySystemError RpcError "
    "ObjectRefStreamEndOfStreamError"
).split()


class RetryableError(Exception):
    """The cluster lost machines, processes, objects or the store; a retry may succeed."""


@contextmanager
def translate_ray_errors(ray: Any) -> Iterator[None]:
    """Raise an error of Ray, or of a task, as an error of ffd.

    Raises:
        RetryableError: a retry with the remaining machines may succeed.
        FfdError: a retry would fail again.
    """
    lost = tuple(getattr(ray.exceptions, name) for name in LOSSES)
    try:
        yield
    except Exception as error:  # Ray wraps errors of tasks in classes that it creates
        cause: BaseException = error
        # Python's own chain (`__cause__`) leads to errors that Ray has handled.
        while isinstance(inner := getattr(cause, "cause", None), BaseException):
            cause = inner
        message = f"{type(cause).__name__}: {printable(first_line(cause))}"
        if isinstance(cause, StorageError) and cause.code == UNREACHABLE:
            raise RetryableError(first_line(cause)) from None
        if isinstance(cause, StorageError):
            raise StorageError(first_line(cause), cause.code) from None
        if isinstance(cause, FfdError) and not isinstance(cause, InputError):
            # Ray appends lines to our message.
            raise type(cause)(first_line(cause)) from None
        if isinstance(cause, ModuleNotFoundError):
            raise BackendError(
                f"a machine of the cluster lacks a package ({message}): "
                "install ffd with the extra ray there, as here"
            ) from None
        if isinstance(cause, (*lost, ray.data.exceptions.ExecutionTimeoutError)):
            raise RetryableError(message) from None
        raise BackendError(f"Ray failed: {message}") from error

"""The tree of exceptions. Each message states what failed and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FfdError(Exception):
    """Base class of the errors of ffd. A command prints the message and exits with `exit_code`."""

    exit_code = 1


class ModelError(FfdError):
    """A model file is missing, unreadable, or not written by ffd-export."""


class CardError(ModelError):
    """A model card is absent or invalid; the message names the field."""


class EngineError(ModelError):
    """A TensorRT engine or its manifest cannot be used on this machine."""


class BackendError(FfdError):
    """An inference backend is not installed, did not start, or failed while running."""


class DeviceError(BackendError):
    """The requested device is absent or cannot be used."""


class DeviceMemoryError(BackendError):
    """A batch does not fit the device's memory; a smaller one may."""


class OutputError(FfdError):
    """Results cannot be written."""


class StorageError(FfdError):
    """An object store or a shared folder refuses a request.

    Args:
        message: what was refused, and what to do.
        code: of the `InputError` when only one file is affected.
        everywhere: whether every other file would be refused, too.
    """

    def __init__(self, message: str, code: str = "read_failed", everywhere: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.everywhere = everywhere

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, bool]]:
        return type(self), (str(self), self.code, self.everywhere)


class DataError(FfdError):
    """A data set for training, evaluation or calibration is invalid."""


class InputError(FfdError):
    """One input cannot be classified; the run continues with the others.

    Args:
        code: the reason, one of `InputError.CODES`.
        message: the reason as a sentence.
    """

    CODES = tuple(
        "not_found permission_denied not_a_file link_loop read_failed fetch_failed timeout refused "
        "empty not_an_image unsupported truncated corrupt too_large no_face bad_output".split()
    )

    def __init__(self, code: str, message: str) -> None:
        assert code in self.CODES, code
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return type(self), (self.code, self.message)


@contextmanager
def os_errors_as(kind: type[FfdError], task: str) -> Iterator[None]:
    """Turn an OSError into an error of ffd whose message starts with the task that failed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"{task}: {error.strerror or error}") from None

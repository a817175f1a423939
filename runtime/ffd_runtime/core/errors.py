"""One tree of exceptions; every message says what is wrong and what to do about it."""

from __future__ import annotations


class FfdError(Exception):
    """Base of every error that ffd raises on purpose.

    A command prints the message on one line and exits with `exit_code`.
    """

    exit_code = 1


class ModelError(FfdError):
    """A model file is missing, unreadable, or not one of ours."""


class CardError(ModelError):
    """A model card is absent or breaks its schema; the message names the field."""


class EngineError(ModelError):
    """A TensorRT engine, or its manifest, is not fit to run here."""


class BackendError(FfdError):
    """An inference backend is not installed, did not start, or failed while running."""


class DeviceError(BackendError):
    """The device that was asked for is absent or cannot be used."""


class DeviceMemoryError(BackendError):
    """A batch did not fit the device's memory; a smaller one may."""


class OutputError(FfdError):
    """Results cannot be written."""


class StorageError(FfdError):
    """An object store or shared folder refuses.

    Args:
        message: what it refuses, and what to do.
        code: of the `InputError` where it is about a single file.
        everywhere: it would refuse every other file, too.
    """

    def __init__(self, message: str, code: str = "read_failed", everywhere: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.everywhere = everywhere

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, bool]]:
        return type(self), (str(self), self.code, self.everywhere)


class DataError(FfdError):
    """A training, evaluation or calibration data set cannot be used as it is."""


class InputError(FfdError):
    """One input cannot be classified; the others go on.

    Args:
        code: machine-readable reason, one of `InputError.CODES`.
        message: what is wrong, for a person.
    """

    CODES = (
        "not_found",
        "permission_denied",
        "not_a_file",
        "link_loop",
        "read_failed",
        "fetch_failed",
        "timeout",
        "refused",
        "empty",
        "not_an_image",
        "unsupported",
        "truncated",
        "corrupt",
        "too_large",
        "no_face",
        "bad_output",
    )

    def __init__(self, code: str, message: str) -> None:
        assert code in self.CODES, code
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return type(self), (self.code, self.message)

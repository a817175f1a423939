"""Batches that a backend infers while the host prepares the next.

A backend that can do so has `submit` and `lanes`, see `Asynchronous`. One that cannot needs
neither: `submit` below runs it at once.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from . import Backend, Outputs


class Pending(Protocol):
    """A batch that was submitted."""

    def done(self) -> bool:
        """Whether `collect` returns or raises without waiting."""

    def collect(self) -> Outputs:
        """Wait for the batch and return its outputs, as `Backend.infer` does.

        Raises:
            BackendError: inference failed, or the model was closed. Memory is allocated by
                `submit`, so this is no `DeviceMemoryError`.
        """


@runtime_checkable
class Asynchronous(Protocol):
    """What a backend has beside `infer` if it infers while the host does something else.

    Attributes:
        lanes: batches to keep submitted so that the device never waits for the host. `submit`
            accepts more, and then waits for the oldest first.
    """

    lanes: int

    def submit(self, images: npt.NDArray[np.uint8]) -> Pending:
        """Start one batch; return as soon as its images are copied.

        Args:
            images: as for `Backend.infer`; may be overwritten after the call.

        Raises:
            DeviceMemoryError, BackendError: as for `Backend.infer`; batches that were submitted
                before can still be collected.
        """


class Finished:
    """The outputs of a backend that infers at once."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        """True."""
        return True

    def collect(self) -> Outputs:
        """The outputs."""
        return self._outputs


def count_lanes(backend: Backend) -> int:
    """Batches to keep submitted to a backend: 1 for one that infers at once."""
    return backend.lanes if isinstance(backend, Asynchronous) else 1


def submit(backend: Backend, images: npt.NDArray[np.uint8]) -> Pending:
    """Start one batch on any backend; see `Asynchronous.submit`.

    A backend that is not asynchronous has finished the batch when this returns.
    """
    if isinstance(backend, Asynchronous):
        return backend.submit(images)
    return Finished(backend.infer(images))

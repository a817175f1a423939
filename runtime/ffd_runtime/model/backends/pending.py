"""Batches that a backend infers while the host prepares the next ones; see `Asynchronous`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from . import Outputs


class Pending(Protocol):
    """A submitted batch."""

    def done(self) -> bool:
        """Return whether `collect` returns or raises without waiting."""

    def collect(self) -> Outputs:
        """Wait for the batch and return its outputs, as `Backend.infer` does.

        Raises:
            BackendError: inference failed, or the model was closed. It is no `DeviceMemoryError`,
                because `submit` allocates the memory.
        """


@runtime_checkable
class Asynchronous(Protocol):
    """The methods of a backend that infers while the host does other work.

    Attributes:
        lanes: batches to keep submitted, so that the device never waits for the host. When more are
            submitted, `submit` first waits for the oldest.
    """

    lanes: int

    def submit(self, images: npt.NDArray[np.uint8]) -> Pending:
        """Start one batch, and return when its images are copied.

        Args:
            images: see `Backend.infer`; may be overwritten after the call.

        Raises:
            DeviceMemoryError, BackendError: see `Backend.infer`. Earlier batches can still be
                collected.
        """


class Finished:
    """The outputs of a synchronous backend."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        """Return True."""
        return True

    def collect(self) -> Outputs:
        """Return the outputs."""
        return self._outputs

"""Batches that fit the device's memory."""

from __future__ import annotations

import logging
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..core.errors import DeviceMemoryError
from .backends import Backend, Outputs, infer_in_parts
from .backends.pending import Finished, Pending, count_lanes, submit

log = logging.getLogger(__name__)


class WithinMemory:
    """A backend that halves its batches when the device runs out of memory, and keeps them halved.

    The limit lasts as long as the object: make one for each model, and use it for all batches.
    Several threads may call it.

    Args:
        backend: the model.

    Attributes:
        card: see `Backend`.
        description: see `Backend`.
        lanes: see `Asynchronous`; 1 where the backend infers at once.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.card = backend.card
        self.description = backend.description
        self.lanes = count_lanes(backend)
        self._lock = Lock()
        self._most: int | None = None

    @classmethod
    def of(cls, backend: Backend) -> WithinMemory:
        """Wrap a backend; one that is wrapped already keeps its limit."""
        return backend if isinstance(backend, cls) else cls(backend)

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch, in parts where it is larger than what fits.

        Args:
            images: see `Backend.infer`; at least one.

        Raises:
            DeviceMemoryError: not even one image fits.
            BackendError: inference failed.
        """
        while True:
            most = min(len(images), self._most or len(images))
            try:
                return infer_in_parts(self._backend.infer, images, most)
            except DeviceMemoryError as error:
                if most == 1:
                    raise
                self._limit(most // 2, error)

    def submit(self, images: npt.NDArray[np.uint8]) -> Pending:
        """Start one batch; see `Asynchronous.submit`.

        Args:
            images: see `infer`.

        Raises:
            DeviceMemoryError: it does not fit beside the batches under way, if the backend is
                asynchronous. `infer` runs it once they are collected, in parts if it must.
            BackendError: inference failed.
        """
        if self.lanes == 1 or len(images) > (self._most or len(images)):
            return Finished(self.infer(images))
        return submit(self._backend, images)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def _limit(self, most: int, error: DeviceMemoryError) -> None:
        with self._lock:
            # Threads that fail together halve once and warn once.
            if self._most is None or most < self._most:
                self._most = most
                log.warning("%s; continuing with batches of at most %d", error, most)

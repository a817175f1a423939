"""A backend whose batches fit the device's memory."""

from __future__ import annotations

import logging
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..core.errors import DeviceMemoryError
from .backends import (
    Asynchronous,
    Backend,
    Finished,
    Outputs,
    Pending,
    infer_in_parts,
    require_images,
)

log = logging.getLogger(__name__)


class WithinMemory:
    """Halves the batches of a backend when the device runs out of memory.

    The limit lasts as long as the object, so create one for each model. Several threads may call
    it. It has the attributes of `Backend`, and those of `Asynchronous` with one lane for a
    synchronous backend.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.card = backend.card
        self.description = backend.description
        self.lanes = backend.lanes if isinstance(backend, Asynchronous) else 1
        self._lock = Lock()
        self._most: int | None = None

    @classmethod
    def of(cls, backend: Backend) -> WithinMemory:
        """Wrap a backend, unless it is already wrapped."""
        return backend if isinstance(backend, cls) else cls(backend)

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch of at least one image, in parts if it exceeds the limit.

        Raises:
            DeviceMemoryError: a single image does not fit.
            BackendError: inference failed, or these are not images of the model's size.
        """
        require_images(images, self.card.preprocess.size)
        while True:
            most = min(len(images), self._most or len(images))
            try:
                return infer_in_parts(self._backend.infer, images, most)
            except DeviceMemoryError as error:
                if most == 1:
                    raise
                with self._lock:
                    # Several threads may fail at once; halve and warn once.
                    if self._most is None or most // 2 < self._most:
                        self._most = most // 2
                        text = "%s; continuing with batches of at most %d"
                        log.warning(text, error, self._most)

    def submit(self, images: npt.NDArray[np.uint8]) -> Pending:
        """Start one batch; see `Asynchronous.submit`.

        Raises:
            DeviceMemoryError: the batch does not fit beside those that run. After they are
                collected, `infer` runs it, in parts if necessary.
            BackendError: inference failed.
        """
        fits = len(images) <= (self._most or len(images))
        if fits and self.lanes > 1 and isinstance(self._backend, Asynchronous):
            return self._backend.submit(images)
        return Finished(self.infer(images))

    def close(self) -> None:
        self._backend.close()

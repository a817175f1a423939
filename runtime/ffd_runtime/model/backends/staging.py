"""Page-locked buffers between the host and a session of onnxruntime on CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from . import OUTPUTS, Outputs
from .buckets import SteadyBucket, find_buckets

# A larger batch does not use a GPU better, and padding costs memory.
MAX_CUDA_BATCH = 256
# Consecutive batches after which a smaller size is used. Estimated, not measured: the padding of 16
# batches costs about as much as preparing a network's convolutions once.
SHRINK_AFTER_BATCHES = 16


class Staging:
    """Page-locked buffers for a session on CUDA, as large as the largest batch so far.

    onnxruntime's Python module allocates no page-locked memory, but copies to and from any address
    that is bound to it.

    The CUDA provider prepares each convolution for one shape, and again for any other shape
    (`UpdateState` in onnxruntime's core/providers/cuda/nn/conv.cc). Batches are therefore padded to
    one of a few sizes, and the outputs of the padding are dropped.

    Args:
        outputs: of one image, for the shapes.
        allocate: returns page-locked memory of a size in bytes, such as `PinnedMemory`.
    """

    def __init__(self, outputs: Outputs, allocate: Callable[[int], Any]) -> None:
        self._lock = Lock()
        self._allocate = allocate
        self._shapes = [outputs.probability.shape[1:], outputs.heatmap.shape[1:]]
        self._sizes = SteadyBucket(find_buckets(1, MAX_CUDA_BATCH), SHRINK_AFTER_BATCHES)
        self._memories: list[Any] = []
        self._image: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._outputs: list[npt.NDArray[np.float32]] = []

    def run(self, session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch of at most `MAX_CUDA_BATCH` images; one thread at a time."""
        with self._lock:
            try:
                return self._run(session, images)
            except BaseException:
                # Memory may not suffice for this size, so a smaller batch must not be padded to it.
                self._sizes.settle(0)
                raise

    def _run(self, session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
        count = len(images)
        shape = (self._sizes.choose(count), *images.shape[1:])
        if shape[0] > len(self._image) or shape[1:] != self._image.shape[1:]:
            self._grow(shape)
        # Padding rows keep their old pixels: rows do not affect each other.
        np.copyto(self._image[:count], images, casting="no")
        binding = session.io_binding()
        binding.bind_input("image", "cpu", 0, np.uint8, shape, self._image.ctypes.data)
        for name, buffer in zip(OUTPUTS, self._outputs, strict=True):
            bound = (shape[0], *buffer.shape[1:])
            binding.bind_output(name, "cpu", 0, np.float32, bound, buffer.ctypes.data)
        # Binding copies the images to the GPU on another stream.
        binding.synchronize_inputs()
        session.run_with_iobinding(binding, quiet_options())
        binding.synchronize_outputs()
        # Copies: the next batch overwrites the buffers.
        return Outputs(*(buffer[:count].copy() for buffer in self._outputs))

    def settle(self, count: int) -> None:
        with self._lock:
            self._sizes.settle(count)

    def _grow(self, shape: tuple[int, ...]) -> None:
        """Replace the buffers by larger ones."""
        self._free()
        try:
            outputs = [self._take((shape[0], *rest), np.float32) for rest in self._shapes]
            self._image, self._outputs = self._take(shape, np.uint8), outputs
        except BaseException:
            self._free()
            raise

    def _take(self, shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        memory = self._allocate(size)
        self._memories.append(memory)
        block = (ctypes.c_uint8 * size).from_address(memory.address)
        return np.frombuffer(memoryview(block), kind).reshape(shape)

    def _free(self) -> None:
        # Empty arrays make the next batch allocate before it writes.
        self._image = np.empty(0, np.uint8)
        self._outputs = []
        while self._memories:
            self._memories.pop().close()

    def close(self) -> None:
        """Free the buffers when no thread uses them."""
        with self._lock:
            self._free()


def quiet_options() -> Any:
    """Return options of a run that prints nothing when it fails: the exception has the text."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4
    return options

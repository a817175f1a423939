"""Page-locked buffers between the host and a session of onnxruntime on CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import OUTPUTS, Outputs
from .buckets import SteadyBucket, find_buckets

# Images of the largest batch on CUDA: beyond it a GPU is busy, and padding costs memory.
MOST_ON_CUDA = 256
# Batches in a row after which a smaller batch size is taken. Not measured: on paper, 16 batches
# computed too large cost about as much as preparing a network's convolutions once.
PATIENCE = 16


class Memory(Protocol):
    """Memory of the host at an address, until it is closed."""

    address: int

    def close(self) -> None:
        """Free it."""


class Staging:
    """Page-locked buffers that a session on CUDA copies from and to, for the largest batch so far.

    onnxruntime's Python module hands out no page-locked memory itself, but copies to and from any
    address that is bound to it.

    The CUDA provider remembers one shape for each convolution and prepares it again for any other
    (`UpdateState` in onnxruntime's core/providers/cuda/nn/conv.cc). Batches are therefore padded to
    one of a few sizes, and the outputs of the padding are dropped.

    Args:
        outputs: of one image; their shapes but for the batch hold for every batch.
        allocate: gives memory of that many bytes; on CUDA, page-locked.
    """

    def __init__(self, outputs: Outputs, allocate: Callable[[int], Memory]) -> None:
        self._lock = Lock()
        self._allocate = allocate
        self._shapes = [outputs.probability.shape[1:], outputs.heatmap.shape[1:]]
        self._sizes = SteadyBucket(find_buckets(1, MOST_ON_CUDA), PATIENCE)
        self._memories: list[Memory] = []
        self._image: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._outputs: list[npt.NDArray[np.float32]] = []

    def run(self, session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch of at most `MOST_ON_CUDA` images; threads take turns."""
        with self._lock:
            try:
                return self._run(session, images)
            except BaseException:
                # Perhaps memory for this size: a smaller batch must not be padded to it.
                self._sizes.settle(0)
                raise

    def _run(self, session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
        count = len(images)
        shape = (self._sizes.choose(count), *images.shape[1:])
        if shape[0] > len(self._image) or shape[1:] != self._image.shape[1:]:
            self._grow(shape)
        # Rows beyond the images keep what they hold: any byte is a pixel, and no row of the
        # network's outputs depends on another.
        np.copyto(self._image[:count], images, casting="no")
        binding = session.io_binding()
        binding.bind_input("image", "cpu", 0, np.uint8, shape, self._image.ctypes.data)
        for name, buffer in zip(OUTPUTS, self._outputs, strict=True):
            bound = (shape[0], *buffer.shape[1:])
            binding.bind_output(name, "cpu", 0, np.float32, bound, buffer.ctypes.data)
        # Binding has copied the images to the GPU, on a stream of its own.
        binding.synchronize_inputs()
        session.run_with_iobinding(binding, quiet_options())
        binding.synchronize_outputs()
        # Copies: the next batch overwrites the buffers.
        return Outputs(*(buffer[:count].copy() for buffer in self._outputs))

    def settle(self, count: int) -> None:
        """See `OnnxRuntime.settle`."""
        with self._lock:
            self._sizes.settle(count)

    def _grow(self, shape: tuple[int, ...]) -> None:
        """Take buffers for a larger batch, once the smaller ones are given back."""
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
        # What has no memory any more must not be written to: the next batch takes some first.
        self._image = np.empty(0, np.uint8)
        self._outputs = []
        while self._memories:
            self._memories.pop().close()

    def close(self) -> None:
        """Free the buffers, once no thread uses them."""
        with self._lock:
            self._free()


def quiet_options() -> Any:
    """Options of a run that prints nothing where it fails: the exception says it all."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4
    return options

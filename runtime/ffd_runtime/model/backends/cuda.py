"""CUDA for a backend: one GPU, its streams, memory, events and graphs, by cuda-bindings.

cuda-bindings returns a tuple from every call, frees included: an error code, then values. Streams,
events and graphs are objects; addresses of memory are integers.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError, DeviceMemoryError
from ..devices import INSTALL_BINDINGS

log = logging.getLogger(__name__)

Handle = Any


class Cuda:
    """One GPU, two streams on it, and everything that is allocated on it.

    Attributes:
        stream: inference, and the copies of its outputs.
        copies: copies of images to the device.

    Raises:
        BackendError: cuda-bindings is absent or too old, or CUDA does not start.
        DeviceMemoryError: the GPU's memory is exhausted.
    """

    def __init__(self, index: int) -> None:
        try:
            from cuda.bindings import runtime
            from cuda.bindings.utils import get_cuda_native_handle
        except ImportError as error:
            raise BackendError(
                f"cuda-bindings cannot be imported ({error}): {INSTALL_BINDINGS}"
            ) from None
        self.api = runtime
        self._address_of = get_cuda_native_handle
        self._index = index
        self._frees: list[tuple[Callable[[Any], tuple[Any, ...]], Any]] = []
        self._graphs: list[Handle] = []
        self.use()
        try:
            self.stream, self.copies = (
                self._own(
                    runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking),
                    runtime.cudaStreamDestroy,
                )
                for _ in range(2)
            )
        except BaseException:
            self.close()
            raise

    @property
    def stream_address(self) -> int:
        """The handle of `stream` as an integer, for TensorRT."""
        return int(self._address_of(self.stream))

    def use(self) -> None:
        """Make the GPU the current device of this thread."""
        self.call(self.api.cudaSetDevice(self._index))

    def call(self, answer: tuple[Any, ...]) -> Any:
        """Return the value of a call from its error code and value.

        Raises:
            DeviceMemoryError: the memory is exhausted.
            BackendError: any other error; the message has CUDA's text.
        """
        error, *values = answer
        if error != self.api.cudaError_t.cudaSuccess:
            raise self._failure(error)
        return values[0] if values else None

    def _failure(self, error: Any) -> BackendError:
        _, text = self.api.cudaGetErrorString(error)
        message = f"CUDA failed: {text.decode(errors='replace')}"
        # CUDA keeps the error for the next caller, and TensorRT would report it as its own.
        self.api.cudaGetLastError()
        if self.api.cudaPeekAtLastError()[0] != self.api.cudaError_t.cudaSuccess:
            # Errors such as an illegal address destroy the context: no call clears them.
            return BackendError(f"{message}; this process cannot use the GPU again: restart it")
        if error == self.api.cudaError_t.cudaErrorMemoryAllocation:
            return DeviceMemoryError(message)
        return BackendError(message)

    def _own(self, answer: tuple[Any, ...], free: Callable[[Any], tuple[Any, ...]]) -> Any:
        """Return the value of a call, and free it in `close`."""
        value = self.call(answer)
        self._frees.append((free, value))
        return value

    def take_host(self, size: int) -> int:
        """Allocate `size` bytes of page-locked host memory."""
        return int(self._own(self.api.cudaMallocHost(size), self.api.cudaFreeHost))

    def take_device(self, size: int) -> int:
        """Allocate `size` bytes of device memory, aligned to 256 bytes."""
        return int(self._own(self.api.cudaMalloc(size), self.api.cudaFree))

    def make_event(self) -> Handle:
        """Create an event; a thread that waits for it sleeps and leaves its core to decoders."""
        flags = self.api.cudaEventDisableTiming | self.api.cudaEventBlockingSync
        return self._own(self.api.cudaEventCreateWithFlags(flags), self.api.cudaEventDestroy)

    def is_reached(self, event: Handle) -> bool:
        """Return whether an event is reached; True also if waiting for it would raise."""
        (error,) = self.api.cudaEventQuery(event)
        if error != self.api.cudaError_t.cudaErrorNotReady:
            return True
        # CUDA also keeps this code as the last error, although it is not an error.
        self.api.cudaGetLastError()
        return False

    def capture(self, enqueue: Callable[[], bool]) -> Handle:
        """Capture the work that `enqueue` adds to `stream` as a graph, without running it.

        Raises:
            BackendError: the work cannot be captured; the stream works as before.
        """
        api = self.api
        self.call(api.cudaStreamSynchronize(self.stream))
        # Other threads may use CUDA at the same time, such as for other models.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(api.cudaStreamBeginCapture(self.stream, mode))
        try:
            enqueued = enqueue()
        finally:
            ended = api.cudaStreamEndCapture(self.stream)
        graph = self.call(ended)
        try:
            if not enqueued:
                raise BackendError("the work of TensorRT cannot be captured as a CUDA graph")
            launchable = self.call(api.cudaGraphInstantiate(graph, 0))
        finally:
            self._release(api.cudaGraphDestroy, graph)
        self._graphs.append(launchable)
        return launchable

    def launch(self, graph: Handle) -> None:
        """Run a captured graph on `stream`."""
        self.call(self.api.cudaGraphLaunch(graph, self.stream))

    def destroy_graphs(self) -> None:
        """Free every captured graph; a second call does nothing."""
        while self._graphs:
            self._release(self.api.cudaGraphExecDestroy, self._graphs.pop())

    def _release(self, free: Callable[[Any], tuple[Any, ...]], value: Any) -> None:
        """Free a value. A failure is only logged, because nothing can be done about it."""
        error, *_ = free(value)
        if error != self.api.cudaError_t.cudaSuccess:
            log.debug("freeing GPU resources failed: %s", self._failure(error))

    def settle(self) -> None:
        """Block until the GPU has finished all its work, successfully or not."""
        for stream in (self.copies, self.stream):
            self.api.cudaStreamSynchronize(stream)
        self.api.cudaGetLastError()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if not self._frees and not self._graphs:
            return
        self.api.cudaSetDevice(self._index)
        self.destroy_graphs()
        while self._frees:
            self._release(*self._frees.pop())


class Buffer:
    """A tensor for the largest batch: a page-locked array `host`, and an address on the device."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], kind: type[np.generic]) -> None:
        self._cuda = cuda
        self._row = int(np.prod(shape[1:])) * np.dtype(kind).itemsize
        self._address = cuda.take_host(self._row * shape[0])
        self.device = cuda.take_device(self._row * shape[0])
        memory = (ctypes.c_uint8 * (self._row * shape[0])).from_address(self._address)
        self.host: npt.NDArray[Any] = np.frombuffer(memoryview(memory), kind).reshape(shape)

    def to_device(self, count: int, stream: Handle) -> None:
        """Enqueue the copy of the first `count` rows to the device."""
        self._copy(self.device, self._address, count, "cudaMemcpyHostToDevice", stream)

    def to_host(self, count: int, stream: Handle) -> None:
        """Enqueue the copy of the first `count` rows to the host."""
        self._copy(self._address, self.device, count, "cudaMemcpyDeviceToHost", stream)

    def _copy(self, target: int, source: int, count: int, kind: str, stream: Handle) -> None:
        api = self._cuda.api
        direction = getattr(api.cudaMemcpyKind, kind)
        size = count * self._row
        self._cuda.call(api.cudaMemcpyAsync(target, source, size, direction, stream))

"""A fake of cuda.bindings that uses host memory, for machines without a GPU.

Streams run their work as early or as late as a GPU might. Calls return the errors that CUDA would
return. An error that only a defect of ffd can cause is also added to `faults`.
tests/runtime/test_fakes.py compares the fake with the installed cuda-bindings.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

HOST_ALIGNMENT = 4096
DEVICE_ALIGNMENT = 256


class Handle:
    """A stream, event or graph; handles with the same number are equal."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.number == self.number

    def __hash__(self) -> int:
        return hash((type(self), self.number))

    def __int__(self) -> int:
        raise TypeError("int() of a CUDA object is deprecated: use get_cuda_native_handle")

    __index__ = __int__


class cudaStream_t(Handle): ...


class cudaEvent_t(Handle): ...


class cudaGraph_t(Handle): ...


class cudaGraphExec_t(Handle): ...


def get_cuda_native_handle(obj: Any) -> int:
    """Return the number of a handle; raise TypeError for an integer."""
    if not isinstance(obj, Handle):
        raise TypeError(f"Unknown type: {type(obj)}")
    return obj.number


class Token:
    """A position in a stream that another stream can wait for."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reached = False


class Stream:
    """A queue of work, run in order; a token of another stream must be reached first."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.queue: deque[Callable[[], None] | Token] = deque()
        self.captured: list[Callable[[], None]] | None = None
        self.capturing_thread = 0

    def run(self, until: Token | None, force: bool) -> None:
        """Run up to a token, or to the end; `force` also runs streams that this one waits for."""
        while self.queue and not (until and until.reached):
            step = self.queue[0]
            if isinstance(step, Token):
                if step.stream is self:
                    step.reached = True
                elif not step.reached:
                    if not force:
                        return
                    step.stream.run(step, force)
            self.queue.popleft()
            if callable(step):
                step()


class Event:
    """An event of a device; its token is None until it is recorded."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.token: Token | None = None


class Block:
    """Aligned host memory that stands for host or device memory."""

    def __init__(self, size: int, alignment: int) -> None:
        self.size = size
        self._memory = ctypes.create_string_buffer(size + alignment)
        start = ctypes.addressof(self._memory)
        self.address = start + -start % alignment


def cuda_call(values: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a call to return its error code and `values` values, each None after an error."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
            errors = self.cudaError_t
            value = self.broken or function(self, *arguments)
            # The call itself may have broken the context.
            value = self.broken or value
            if isinstance(value, errors) and value is not errors.cudaSuccess:
                self.thread.error = value
                return (value, *[None] * values)
            return (errors.cudaSuccess, value) if values else (errors.cudaSuccess,)

        return call

    return decorate


class FakeCuda:
    """A fake of cuda.bindings.runtime.

    Attributes:
        faults: mistakes of the caller.
        broken: the sticky error that every later call returns.
        eager: indices of the streams, in order of creation, that run work immediately; the others
            run when a thread waits for them.
        fails_in: number of allocations before one fails for lack of memory.
    """

    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2
    cudaStream_t = cudaStream_t
    cudaEvent_t = cudaEvent_t
    cudaGraph_t = cudaGraph_t
    cudaGraphExec_t = cudaGraphExec_t

    class cudaError_t(enum.IntEnum):
        cudaSuccess = 0
        cudaErrorInvalidValue = 1
        cudaErrorMemoryAllocation = 2
        cudaErrorInvalidDevice = 101
        cudaErrorInvalidResourceHandle = 400
        cudaErrorNotReady = 600
        cudaErrorIllegalAddress = 700
        cudaErrorStreamCaptureUnsupported = 900
        cudaErrorStreamCaptureInvalidated = 901
        cudaErrorStreamCaptureWrongThread = 908

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        # For each thread: its current device, and the error that no call has fetched.
        self.thread = threading.local()
        self.broken: Any = None
        self.faults: list[str] = []
        self.host: dict[int, Block] = {}
        self.device: dict[int, Block] = {}
        self.streams: dict[Any, Stream] = {}
        self.events: dict[Any, Event] = {}
        self.graphs: dict[Any, list[Callable[[], None]]] = {}
        self.launchable: dict[Any, list[Callable[[], None]]] = {}
        self.left = 1 << 40
        self.fails_in = 1 << 40
        self.copied: list[int] = []
        self.launches = 0
        self.eager: set[int] = {0, 1}
        self.spoils_capture = False
        self.made = 0
        self.on_wait: Callable[[], None] = lambda: None

    # Methods for tests.

    def taken(self) -> list[Any]:
        """Return everything that has not been freed."""
        return [
            *self.host, *self.device, *self.streams, *self.events, *self.graphs, *self.launchable
        ]  # fmt: skip

    def current_device(self) -> int:
        """Return the current device of this thread."""
        return getattr(self.thread, "device", 0)

    def has_error(self) -> bool:
        """Return whether this thread has an error that no call has fetched."""
        return bool(self.broken or getattr(self.thread, "error", None))

    def waiting_inferences(self) -> int:
        """Return the number of inferences that are queued and have not run."""
        steps = (step for stream in self.streams.values() for step in stream.queue)
        return sum(getattr(step, "__name__", "") == "infer" for step in steps)

    def stream_of(self, number: int) -> Stream:
        """Return the stream with a native handle."""
        return self.streams[cudaStream_t(number)]

    # Shared by the calls.

    def _fault(self, text: str, error: Any) -> Any:
        self.faults.append(text)
        return error

    def _capturing(self) -> Stream | None:
        mine = threading.get_ident()
        for stream in self.streams.values():
            if stream.captured is not None and stream.capturing_thread == mine:
                return stream
        return None

    def _make(self, pool: dict[Any, Any], value: Any, key: Callable[[int], Any]) -> Any:
        if self._capturing():
            return self._fault("made during capture", self.cudaError_t(900))
        self.fails_in -= 1
        if self.fails_in < 0:
            return self.cudaError_t.cudaErrorMemoryAllocation
        self.made += 1
        handle = key(self.made)
        pool[handle] = value
        return handle

    def _take(self, pool: dict[int, Block], size: int, alignment: int) -> Any:
        if size > self.left:
            return self.cudaError_t.cudaErrorMemoryAllocation
        block = Block(size, alignment)
        answer = self._make(pool, block, lambda _: block.address)
        self.left -= size
        return answer

    def _drop(self, pool: dict[Any, Any], handle: Any, error: str) -> Any:
        if handle not in pool:
            return self._fault(f"freed twice or never made: {handle}", self.cudaError_t[error])
        del pool[handle]
        return None

    def give(self, stream: Stream, step: Callable[[], None] | Token) -> None:
        """Add work to a stream, or to the graph that is being captured from it."""
        if stream.captured is not None:
            assert callable(step)
            stream.captured.append(step)
        else:
            stream.queue.append(step)
            self._go()

    def _go(self) -> None:
        for _ in range(2):  # the work of one stream may let the other continue
            for number, stream in enumerate(self.streams.values()):
                if number in self.eager:
                    stream.run(None, force=False)

    # The calls of cuda.bindings.runtime.

    @cuda_call()
    def cudaSetDevice(self, device: int) -> Any:
        if not 0 <= device < self.devices:
            return self.cudaError_t.cudaErrorInvalidDevice
        self.thread.device = device
        return None

    def cudaGetLastError(self) -> tuple[Any, ...]:
        error = self.cudaPeekAtLastError()
        self.thread.error = self.cudaError_t.cudaSuccess
        return error

    def cudaPeekAtLastError(self) -> tuple[Any, ...]:
        return (self.broken or getattr(self.thread, "error", self.cudaError_t.cudaSuccess),)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        texts = {
            0: b"no error",
            1: b"invalid argument",
            2: b"out of memory",
            101: b"invalid device ordinal",
            400: b"invalid resource handle",
            600: b"device not ready",
            700: b"an illegal memory access was encountered",
            900: b"operation not permitted when stream is capturing",
            901: b"operation failed due to a previous error during capture",
            908: b"attempt to terminate a thread-local capture sequence from another thread",
        }
        return self.cudaError_t.cudaSuccess, texts[int(error)]

    @cuda_call(1)
    def cudaMallocHost(self, size: int) -> Any:
        return self._take(self.host, size, HOST_ALIGNMENT)

    @cuda_call(1)
    def cudaMalloc(self, size: int) -> Any:
        return self._take(self.device, size, DEVICE_ALIGNMENT)

    @cuda_call()
    def cudaFreeHost(self, ptr: int) -> Any:
        return self._drop(self.host, ptr, "cudaErrorInvalidValue")

    @cuda_call()
    def cudaFree(self, devPtr: int) -> Any:
        return self._drop(self.device, devPtr, "cudaErrorInvalidValue")

    @cuda_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaStreamNonBlocking
        return self._make(self.streams, Stream(self.current_device()), cudaStream_t)

    @cuda_call()
    def cudaStreamDestroy(self, stream: Any) -> Any:
        if stream in self.streams and self.streams[stream].queue:
            self.faults.append("a stream was destroyed with work in it")
        return self._drop(self.streams, stream, "cudaErrorInvalidResourceHandle")

    @cuda_call()
    def cudaStreamSynchronize(self, stream: Any) -> Any:
        if self.streams[stream].captured is not None:
            return self._fault("waited for a capturing stream", self.cudaError_t(900))
        self.streams[stream].run(None, force=True)
        self._go()
        return None

    @cuda_call()
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Any:
        token = self.events[event].token
        # As in CUDA, waiting for an event that was never recorded returns immediately.
        return self.give(self.streams[stream], token) if token else None

    @cuda_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        assert flags == self.cudaEventDisableTiming | self.cudaEventBlockingSync
        return self._make(self.events, Event(self.current_device()), cudaEvent_t)

    @cuda_call()
    def cudaEventDestroy(self, event: Any) -> Any:
        return self._drop(self.events, event, "cudaErrorInvalidResourceHandle")

    @cuda_call()
    def cudaEventRecord(self, event: Any, stream: Any) -> Any:
        made, given = self.events[event], self.streams[stream]
        if made.device != given.device:
            return self._fault("event of another device", self.cudaError_t(400))
        made.token = Token(given)
        return self.give(given, made.token)

    @cuda_call()
    def cudaEventSynchronize(self, event: Any) -> Any:
        token = self.events[event].token
        if token:
            self.on_wait()
            token.stream.run(token, force=True)
            self._go()
        return None

    @cuda_call()
    def cudaEventQuery(self, event: Any) -> Any:
        token = self.events[event].token
        return None if token is None or token.reached else self.cudaError_t.cudaErrorNotReady

    @cuda_call()
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:
        assert mode is self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        found = self.streams[stream]
        assert found.captured is None
        found.captured, found.capturing_thread = [], threading.get_ident()
        return None

    @cuda_call(1)
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        found = self.streams[stream]
        if found.capturing_thread != threading.get_ident():
            return self._fault("capture ended by another thread", self.cudaError_t(908))
        captured, found.captured = found.captured, None
        if self.spoils_capture:
            return self.cudaError_t.cudaErrorStreamCaptureInvalidated
        return self._make(self.graphs, captured, cudaGraph_t)

    @cuda_call(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return self._make(self.launchable, self.graphs[graph], cudaGraphExec_t)

    @cuda_call()
    def cudaGraphDestroy(self, graph: Any) -> Any:
        return self._drop(self.graphs, graph, "cudaErrorInvalidValue")

    @cuda_call()
    def cudaGraphExecDestroy(self, graphExec: Any) -> Any:
        return self._drop(self.launchable, graphExec, "cudaErrorInvalidValue")

    @cuda_call()
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> Any:
        # A launch fails if the stream belongs to a device other than the current one.
        if self.streams[stream].device != self.current_device():
            return self._fault("launched with another device current", self.cudaError_t(400))
        self.launches += 1
        for step in self.launchable[graphExec]:
            self.give(self.streams[stream], step)
        return None

    @cuda_call()
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> Any:
        down = kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice
        targets, sources = (self.device, self.host) if down else (self.host, self.device)
        if dst not in targets or src not in sources:
            return self._fault("copied where no memory is", self.cudaError_t(1))
        if count > min(targets[dst].size, sources[src].size):
            return self._fault("copied beyond the memory", self.cudaError_t(1))

        def copy() -> None:
            if dst not in targets or src not in sources:
                self.faults.append("memory was freed before its copy")
                return
            ctypes.memmove(dst, src, count)
            self.copied.append(count)

        return self.give(self.streams[stream], copy)


def view(block: Block, shape: tuple[int, ...], kind: Any) -> Any:
    """Return an array over the beginning of a block."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    assert size <= block.size
    memory = (ctypes.c_uint8 * size).from_address(block.address)
    return np.frombuffer(memoryview(memory), kind).reshape(shape)

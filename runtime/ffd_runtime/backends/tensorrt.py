"""TensorRT: engines of `ffd-export --engine`, by tensorrt, tensorrt_lean or tensorrt_rtx.

A batch is padded up to one of a few sizes, its bucket, so that one CUDA graph for each can be
captured when it is first used and launched from then on. What exceeds the engine's largest batch is
run in parts on two lanes: while one lane's part is inferred, the next is copied in on the other.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..devices import Gpu, count_gpus, describe_gpu, parse_device
from ..engine import EngineManifest, Here, read_manifest, require_runnable
from ..errors import BackendError, DeviceError, DeviceMemoryError, EngineError
from ..tensorrt_log import remembering_logger
from . import Outputs, failure
from .buckets import choose_bucket, find_buckets

log = logging.getLogger(__name__)

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_lean": "tensorrt-lean", "tensorrt_rtx": "rtx"}
OUTPUTS = ("probability", "heatmap")
LANES = 2


class TensorRt:
    """An engine on a GPU; made by `open_model`."""

    def __init__(self, trt: Any, engine: Any, logger: Any, manifest: EngineManifest, index: int):
        self.card = manifest.card
        gpu = describe_gpu(index)
        self.description = f"{trt.__name__} {trt.__version__}, {gpu.name} (CUDA device {index})"
        self._logger = logger
        self._buckets = find_buckets(manifest.batch[0], manifest.batch[2])
        self._most = manifest.batch[2]
        self._lock = Lock()
        self._lanes: list[_Lane] = []
        self._contexts: _Contexts | None = None
        self._cuda = _Cuda(index)
        # TensorRT for RTX captures graphs itself: which of its kernels are final, only it knows.
        self._captures = trt.__name__ != "tensorrt_rtx"
        # Whatever fails from here on, what has been allocated is freed.
        try:
            self._contexts = _Contexts(trt, engine, logger, self._cuda)
            size = self.card.preprocess.size
            shapes: dict[str, tuple[int, ...]] = {"image": (self._most, size, size, 3)}
            for name in OUTPUTS:
                shapes[name] = (self._most, *_fixed_sides(engine, name))
            self._lanes = [_Lane(self._cuda, shapes) for _ in range(LANES)]
            # The largest batch shows now whether the model fits the GPU.
            self._execution(self._lanes[0], self._most)
        except BaseException:
            self.close()
            raise

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch, in parts where the engine's largest is smaller; see `Backend.infer`."""
        size = self.card.preprocess.size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise BackendError(
                f"images must be uint8 [N, {size}, {size}, 3], not {images.dtype} "
                f"{list(images.shape)}"
            )
        with self._lock:
            if self._contexts is None:
                raise BackendError("the model was closed")
            self._cuda.use()
            try:
                return self._infer(images)
            except BaseException:
                # The GPU may still read and write the buffers that the next batch would use.
                self._cuda.settle()
                raise

    def _infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        first = self._lanes[0]
        probability, heatmap = (
            np.empty((len(images), *buffer.host.shape[1:]), np.float32) for buffer in first.outputs
        )
        outputs = Outputs(probability, heatmap)
        under_way: deque[tuple[_Lane, slice]] = deque()
        for number, start in enumerate(range(0, len(images), self._most)):
            if len(under_way) == LANES:
                _collect(*under_way.popleft(), outputs)
            lane = self._lanes[number % LANES]
            rows = slice(start, min(start + self._most, len(images)))
            self._start(lane, images[rows])
            under_way.append((lane, rows))
        for lane, rows in under_way:
            _collect(lane, rows, outputs)
        return outputs

    def _start(self, lane: _Lane, images: npt.NDArray[np.uint8]) -> None:
        """Give the GPU all that one part needs, without waiting for it."""
        bucket = choose_bucket(self._buckets, len(images))
        execution = self._execution(lane, bucket)
        # Rows beyond the images keep what an earlier batch left: any byte is a pixel, no row of
        # the network's output depends on another, and theirs is never copied back.
        lane.copy_in(images)
        self._enqueue(execution)
        lane.copy_out(len(images))

    def _enqueue(self, execution: _Execution) -> None:
        if execution.graph:
            self._cuda.launch(execution.graph)
            return
        if not execution.enqueue():
            raise failure(f"TensorRT failed{self._logger.quote()}")
        if self._captures:
            # Only now: the first run at a size also brings the context's state up to date, which
            # must not become part of the graph.
            try:
                execution.graph = self._cuda.capture(execution.enqueue)
            except BackendError as error:
                self._captures = False
                log.warning(
                    "this engine runs without CUDA graphs, each launch slower: %s%s",
                    error,
                    self._logger.quote(),
                )

    def _execution(self, lane: _Lane, bucket: int) -> _Execution:
        assert self._contexts is not None
        if bucket not in lane.executions:
            size = self.card.preprocess.size
            context = self._contexts.make((bucket, size, size, 3), lane.addresses)
            lane.executions[bucket] = _Execution(context, self._cuda.stream)
        return lane.executions[bucket]

    def close(self) -> None:
        """Free graphs, contexts, engine and every buffer."""
        with self._lock:
            # Graphs hold kernels of the contexts, contexts work in the memory that goes last.
            self._cuda.destroy_graphs()
            self._lanes = []
            self._contexts = None
            self._cuda.close()


def open_model(path: Path, device: str = "auto") -> TensorRt:
    """Load an engine, once it is known that it can run here.

    Args:
        path: the engine; its manifest stands beside it.
        device: `auto`, `cuda` or `cuda:N`.

    Raises:
        EngineError: the engine does not fit its manifest, this GPU or this TensorRT.
        DeviceError: there is no such GPU.
        DeviceMemoryError: the GPU's memory is too small for the engine's largest batch.
        BackendError: TensorRT is not installed, or fails; the message quotes it.
    """
    manifest = read_manifest(path)
    kind, index = parse_device(device)
    if kind == "cpu":
        raise DeviceError(f"--device cpu: {path.name} is a TensorRT engine, which needs a GPU")
    trt = _import(manifest)
    if index >= count_gpus():
        raise DeviceError(
            f"{path.name} is a TensorRT engine, and NVIDIA's driver offers no GPU {index} here: "
            "run its ONNX on the CPU instead"
        )
    gpu: Gpu = describe_gpu(index)
    here = Here(trt.__name__, trt.__version__, gpu.name, gpu.compute_capability)
    require_runnable(manifest, here)
    _Cuda(index).close()  # The engine is loaded onto the current device.
    logger = remembering_logger(trt)
    runtime = trt.Runtime(logger)
    # The lean runtime inside an engine is code. It is run only where the manifest says that
    # ffd-export put it there; the hash tells damage, not malice, so docs/engines.md warns.
    runtime.engine_host_code_allowed = manifest.version_compatible and manifest.lean_runtime
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT cannot load {path}{logger.quote()}; {manifest.how_to_rebuild}")
    sizes = tuple(int(shape[0]) for shape in engine.get_tensor_profile_shape("image", 0))
    if sizes != manifest.batch:
        raise EngineError(
            f"engine {path} takes batches of {sizes}, its manifest says {manifest.batch}; "
            f"{manifest.how_to_rebuild}"
        )
    return TensorRt(trt, engine, logger, manifest, index)


def _import(manifest: EngineManifest) -> Any:
    """The module that can run the engine; the lean one where the full one is not installed."""
    names = [manifest.builder]
    if manifest.builder == "tensorrt" and manifest.version_compatible:
        names.append("tensorrt_lean")
    reasons = []
    for name in names:
        try:
            return import_module(name)
        except Exception as error:  # its own __init__ raises what the loader said, or worse
            reasons.append(f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}")
    raise BackendError(
        f"the engine needs {' or '.join(names)} ({'; '.join(reasons)}): "
        f"pip install 'ffd-edge[{EXTRAS[names[0]]}]'"
    )


def _fixed_sides(engine: Any, name: str) -> tuple[int, ...]:
    """An output's shape but for the batch."""
    sides = tuple(int(side) for side in engine.get_tensor_shape(name))[1:]
    if not sides or min(sides) < 1:
        raise EngineError(
            f"the engine's {name} has no fixed size {list(sides)}: export the model and build the "
            "engine again with ffd-export"
        )
    return sides


class _Contexts:
    """Makes an engine's execution contexts, which all work in the same memory.

    A CUDA graph is bound to the state of the context that it was captured from, so each bucket
    needs its own; they run one after the other, so one block of memory is enough.
    """

    def __init__(self, trt: Any, engine: Any, logger: Any, cuda: _Cuda) -> None:
        self._trt = trt
        self._engine = engine
        self._logger = logger
        self._size = max(int(engine.device_memory_size_v2), 1)
        self._memory = cuda.take_device(self._size)
        self._kernels: Any = None

    def make(self, shape: tuple[int, ...], addresses: dict[str, int]) -> Any:
        """A context for one shape of the input.

        Args:
            shape: of `image`.
            addresses: of every tensor, on the device.
        """
        try:
            context = self._create()
        except Exception as error:  # what the module raises beside giving None
            raise failure(f"TensorRT gave no execution context: {error}") from error
        if context is None:
            raise failure(f"TensorRT gave no execution context{self._logger.quote()}")
        context.set_device_memory(self._memory, self._size)
        if not context.set_input_shape("image", shape):
            raise BackendError(f"TensorRT refuses a batch of {shape[0]}{self._logger.quote()}")
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        return context

    def _create(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._trt.__name__ != "tensorrt_rtx":
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels are compiled here, for each context anew if they shared none.
        self._kernels = self._kernels or config.create_runtime_cache()
        config.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(config)


class _Execution:
    """A context on a lane, for one bucket.

    Attributes:
        graph: what was captured of it, 0 for nothing yet.
    """

    def __init__(self, context: Any, stream: int) -> None:
        self._context = context
        self._stream = stream
        self.graph = 0

    def enqueue(self) -> bool:
        """Let TensorRT enqueue the inference; whether it did."""
        return bool(self._context.execute_async_v3(self._stream))


class _Lane:
    """The tensors of one part of a batch, and what runs over them.

    Args:
        cuda: where memory and events come from.
        shapes: by tensor, for the largest batch.
    """

    def __init__(self, cuda: _Cuda, shapes: dict[str, tuple[int, ...]]) -> None:
        self._cuda = cuda
        self.image = _Buffer(cuda, shapes["image"], np.uint8)
        self.outputs = [_Buffer(cuda, shapes[name], np.float32) for name in OUTPUTS]
        self.executions: dict[int, _Execution] = {}
        self._arrived = cuda.make_event()
        self._done = cuda.make_event()

    @property
    def addresses(self) -> dict[str, int]:
        """Of every tensor, on the device."""
        buffers = zip(OUTPUTS, self.outputs, strict=True)
        return {"image": self.image.device, **{name: buffer.device for name, buffer in buffers}}

    def copy_in(self, images: npt.NDArray[np.uint8]) -> None:
        """Copy images to the device beside what is being inferred, and have inference wait."""
        self.image.host[: len(images)] = images
        self.image.to_device(len(images), self._cuda.copies)
        self._cuda.record(self._arrived, self._cuda.copies)
        self._cuda.make_wait(self._cuda.stream, self._arrived)

    def copy_out(self, count: int) -> None:
        """Copy outputs to the host, once they are inferred."""
        for buffer in self.outputs:
            buffer.to_host(count, self._cuda.stream)
        self._cuda.record(self._done, self._cuda.stream)

    def wait(self) -> None:
        """Until the outputs are on the host; the lane is free then."""
        self._cuda.wait(self._done)


def _collect(lane: _Lane, rows: slice, outputs: Outputs) -> None:
    """Wait for a lane's part and copy it to its rows."""
    lane.wait()
    for target, buffer in zip((outputs.probability, outputs.heatmap), lane.outputs, strict=True):
        target[rows] = buffer.host[: rows.stop - rows.start]


class _Cuda:
    """One GPU, two streams on it, and all that was taken from it.

    Attributes:
        stream: inference, and the copies of its outputs.
        copies: copies of images to the device.
    """

    def __init__(self, index: int) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise BackendError(
                f"cuda-bindings cannot be imported ({error}): pip install cuda-bindings, of the "
                "major version of the CUDA here"
            ) from None
        self.api = runtime
        self._index = index
        self._frees: list[tuple[Any, int]] = []
        self._graphs: list[int] = []
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

    def use(self) -> None:
        """Make the GPU the current one of this thread."""
        self.call(self.api.cudaSetDevice(self._index))

    def call(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call's answer, once its error is none."""
        error, *values = answer
        if error != self.api.cudaError_t.cudaSuccess:
            # CUDA remembers it, and TensorRT would take it for its own.
            self.api.cudaGetLastError()
            _, text = self.api.cudaGetErrorString(error)
            memory = error == self.api.cudaError_t.cudaErrorMemoryAllocation
            kind = DeviceMemoryError if memory else BackendError
            raise kind(f"CUDA failed: {text.decode(errors='replace')}")
        return values[0] if values else None

    def _own(self, answer: tuple[Any, ...], free: Any) -> int:
        """What a call gave, to be freed when all of it is."""
        value = int(self.call(answer))
        self._frees.append((free, value))
        return value

    def take_host(self, size: int) -> int:
        """Page-locked memory of the host, `size` bytes."""
        return self._own(self.api.cudaMallocHost(size), self.api.cudaFreeHost)

    def take_device(self, size: int) -> int:
        """Memory of the device, `size` bytes."""
        return self._own(self.api.cudaMalloc(size), self.api.cudaFree)

    def make_event(self) -> int:
        """An event; who waits for it leaves the processor to the threads that decode."""
        flags = self.api.cudaEventDisableTiming | self.api.cudaEventBlockingSync
        return self._own(self.api.cudaEventCreateWithFlags(flags), self.api.cudaEventDestroy)

    def copy(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:
        """Copy, on a stream."""
        self.call(self.api.cudaMemcpyAsync(target, source, size, kind, stream))

    def record(self, event: int, stream: int) -> None:
        """Let an event stand for all that a stream was given so far."""
        self.call(self.api.cudaEventRecord(event, stream))

    def make_wait(self, stream: int, event: int) -> None:
        """Let a stream go on only after an event."""
        self.call(self.api.cudaStreamWaitEvent(stream, event, 0))

    def wait(self, event: int) -> None:
        """Until an event has come."""
        self.call(self.api.cudaEventSynchronize(event))

    def capture(self, enqueue: Callable[[], bool]) -> int:
        """What `enqueue` gives to `stream`, as a graph to launch; nothing of it runs now.

        Raises:
            BackendError: it cannot be captured; the stream goes on as before.
        """
        api = self.api
        self.call(api.cudaStreamSynchronize(self.stream))
        # Other threads may use CUDA meanwhile, for other models say.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(api.cudaStreamBeginCapture(self.stream, mode))
        try:
            enqueued = enqueue()
        finally:
            ended = api.cudaStreamEndCapture(self.stream)
        graph = int(self.call(ended))
        try:
            if not enqueued:
                raise BackendError("TensorRT cannot be captured")
            launchable = int(self.call(api.cudaGraphInstantiate(graph, 0)))
        finally:
            api.cudaGraphDestroy(graph)
        self._graphs.append(launchable)
        return launchable

    def launch(self, graph: int) -> None:
        """Run a captured graph on `stream`."""
        self.call(self.api.cudaGraphLaunch(graph, self.stream))

    def destroy_graphs(self) -> None:
        """Free every captured graph; a second time does nothing."""
        while self._graphs:
            self.api.cudaGraphExecDestroy(self._graphs.pop())

    def settle(self) -> None:
        """Until the GPU has done all it was given, be it failed or not."""
        for stream in (self.copies, self.stream):
            self.api.cudaStreamSynchronize(stream)
        self.api.cudaGetLastError()

    def close(self) -> None:
        """Free everything; a second time does nothing."""
        self.destroy_graphs()
        while self._frees:
            free, address = self._frees.pop()
            free(address)


class _Buffer:
    """A tensor on host and device, for the largest batch.

    Args:
        cuda: where the memory comes from.
        shape: the largest.
        kind: dtype of the elements.
    """

    def __init__(self, cuda: _Cuda, shape: tuple[int, ...], kind: type[np.generic]) -> None:
        self._cuda = cuda
        self._row = int(np.prod(shape[1:])) * np.dtype(kind).itemsize
        self._address = cuda.take_host(self._row * shape[0])
        self.device = cuda.take_device(self._row * shape[0])
        memory = (ctypes.c_uint8 * (self._row * shape[0])).from_address(self._address)
        self.host: npt.NDArray[Any] = np.frombuffer(memoryview(memory), kind).reshape(shape)

    def to_device(self, count: int, stream: int) -> None:
        """Copy the first rows, on a stream."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.copy(self.device, self._address, count * self._row, kind, stream)

    def to_host(self, count: int, stream: int) -> None:
        """Copy the first rows, on a stream."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.copy(self._address, self.device, count * self._row, kind, stream)

"""TensorRT: engines of `ffd-export --engine`, by tensorrt, tensorrt_lean or tensorrt_rtx."""

from __future__ import annotations

import ctypes
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ..devices import Gpu, count_gpus, describe_gpu, parse_device
from ..engine import EngineManifest, Here, read_manifest, require_runnable
from ..errors import BackendError, DeviceError, EngineError
from ..tensorrt_log import remembering_logger
from . import Outputs

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_lean": "tensorrt-lean", "tensorrt_rtx": "rtx"}


class TensorRt:
    """An engine on a GPU; made by `open_model`."""

    def __init__(self, trt: Any, engine: Any, logger: Any, manifest: EngineManifest, index: int):
        self.card = manifest.card
        gpu = describe_gpu(index)
        self.description = f"{trt.__name__} {trt.__version__}, {gpu.name} (CUDA device {index})"
        self._logger = logger
        self._most = manifest.batch[2]
        self._lock = Lock()
        self._cuda = _Cuda(index)
        # Whatever fails from here on, what has been allocated is freed.
        try:
            self._engine = engine
            self._context = engine.create_execution_context()
            if self._context is None:
                raise BackendError(f"TensorRT gave no execution context{logger.quote()}")
            size = self.card.preprocess.size
            self._shapes = {"image": (self._most, size, size, 3)}
            if not self._context.set_input_shape("image", self._shapes["image"]):
                raise BackendError(f"TensorRT refuses a batch of {self._most}{logger.quote()}")
            for name in ("probability", "heatmap"):
                self._shapes[name] = tuple(self._context.get_tensor_shape(name))
            self._buffers = {
                name: _Buffer(self._cuda, shape, np.uint8 if name == "image" else np.float32)
                for name, shape in self._shapes.items()
            }
            for name, buffer in self._buffers.items():
                self._context.set_tensor_address(name, buffer.device)
        except BaseException:
            self.close()
            raise

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch, in parts where the engine's largest is smaller; see `Backend.infer`."""
        with self._lock:
            if self._context is None:
                raise BackendError("the model was closed")
            parts = [
                self._run(images[i : i + self._most]) for i in range(0, len(images), self._most)
            ]
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _run(self, images: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        count = len(images)
        self._cuda.use()
        image = self._buffers["image"]
        image.host[:count] = images
        image.to_device(count)
        if not self._context.set_input_shape("image", images.shape):
            raise BackendError(f"TensorRT refuses a batch of {count}{self._logger.quote()}")
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BackendError(f"TensorRT failed{self._logger.quote()}")
        outputs = [self._buffers[name] for name in ("probability", "heatmap")]
        for buffer in outputs:
            buffer.to_host(count)
        self._cuda.wait()
        probability, heatmap = (buffer.host[:count].copy() for buffer in outputs)
        return probability, heatmap

    def close(self) -> None:
        """Free context, engine and every buffer."""
        with self._lock:
            self._context = None
            self._engine = None
            self._cuda.close()


def open_model(path: Path, device: str = "auto") -> TensorRt:
    """Load an engine, once it is known that it can run here.

    Args:
        path: the engine; its manifest stands beside it.
        device: `auto`, `cuda` or `cuda:N`.

    Raises:
        EngineError: the engine does not fit its manifest, this GPU or this TensorRT.
        DeviceError: there is no such GPU.
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


class _Cuda:
    """One GPU, a stream on it, and the memory taken from it."""

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
        self.use()
        self.stream = int(self.call(runtime.cudaStreamCreate()))

    def use(self) -> None:
        """Make the GPU the current one of this thread."""
        self.call(self.api.cudaSetDevice(self._index))

    def call(self, answer: tuple[Any, ...]) -> Any:
        """The value of a call's answer, once its error is none."""
        error, *values = answer
        if error != self.api.cudaError_t.cudaSuccess:
            _, text = self.api.cudaGetErrorString(error)
            raise BackendError(f"CUDA failed: {text.decode(errors='replace')}")
        return values[0] if values else None

    def take(self, size: int) -> tuple[int, int]:
        """Pinned memory of the host and memory of the device, `size` bytes each."""
        host = int(self.call(self.api.cudaMallocHost(size)))
        self._frees.append((self.api.cudaFreeHost, host))
        device = int(self.call(self.api.cudaMalloc(size)))
        self._frees.append((self.api.cudaFree, device))
        return host, device

    def wait(self) -> None:
        """Until the stream has done all it was given."""
        self.call(self.api.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        """Free everything; a second time does nothing."""
        while self._frees:
            free, address = self._frees.pop()
            free(address)
        if self.stream:
            self.api.cudaStreamDestroy(self.stream)
            self.stream = 0


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
        address, self.device = cuda.take(self._row * shape[0])
        memory = (ctypes.c_uint8 * (self._row * shape[0])).from_address(address)
        self.host: npt.NDArray[Any] = np.frombuffer(memoryview(memory), np.dtype(kind)).reshape(
            shape
        )
        self._address = address

    def to_device(self, count: int) -> None:
        """Copy the first rows, on the stream."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self.device, self._address, count, kind)

    def to_host(self, count: int) -> None:
        """Copy the first rows, on the stream."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(self._address, self.device, count, kind)

    def _copy(self, target: int, source: int, count: int, kind: Any) -> None:
        cuda = self._cuda
        size = count * self._row
        cuda.call(cuda.api.cudaMemcpyAsync(target, source, size, kind, cuda.stream))

"""The TensorRT backend's own work: what it copies, splits and frees.

There is no GPU where these tests run, so CUDA's calls work on host memory here, and an engine
computes means of its input. What TensorRT and CUDA do with a GPU, these tests cannot tell.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import hashlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ffd_runtime.backends.tensorrt as backend
from ffd_runtime.backends import open_backend
from ffd_runtime.devices import Gpu
from ffd_runtime.engine import manifest_path
from ffd_runtime.errors import BackendError, EngineError

from ..models import CARD
from .test_engine import MANIFEST

SIZE = CARD.preprocess.size


class Memory:
    """cuda.bindings.runtime over host memory; refuses what was not taken or is gone."""

    class cudaError_t(enum.Enum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2

    class cudaMemcpyKind(enum.Enum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    def __init__(self) -> None:
        self.host: dict[int, Any] = {}
        self.device: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.left = 1 << 40
        self.copied: list[int] = []

    def _take(self, pool: dict[int, Any], size: int) -> tuple[Any, ...]:
        if size > self.left:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        self.left -= size
        block = ctypes.create_string_buffer(size)
        pool[ctypes.addressof(block)] = block
        return self.cudaError_t.cudaSuccess, ctypes.addressof(block)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._take(self.host, size)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._take(self.device, size)

    def cudaFreeHost(self, address: int) -> None:
        del self.host[address]

    def cudaFree(self, address: int) -> None:
        del self.device[address]

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        self.streams.add(7 + len(self.streams))
        return self.cudaError_t.cudaSuccess, max(self.streams)

    def cudaStreamDestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        return (self.cudaError_t.cudaSuccess,)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return self.cudaError_t.cudaSuccess, b"out of memory"

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: Any, stream: int
    ) -> tuple[Any, ...]:
        down = kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice
        targets, sources = (self.device, self.host) if down else (self.host, self.device)
        assert size <= len(targets[target])
        assert size <= len(sources[source])
        assert stream in self.streams
        ctypes.memmove(target, source, size)
        self.copied.append(size)
        return (self.cudaError_t.cudaSuccess,)


class Context:
    """P(generated) is the mean of an image's first row of red; the heatmap is its blue corner."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.works = True
        self.batches: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 2) if name == "probability" else (self.shape[0], 3, 3)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count = self.shape[0]
        self.batches.append(count)

        def view(name: str, shape: tuple[int, ...], kind: Any) -> Any:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            block = (ctypes.c_uint8 * size).from_address(self.addresses[name])
            return np.frombuffer(memoryview(block), kind).reshape(shape)

        image = view("image", self.shape, np.uint8)
        score = image[:, 0, :, 0].mean(1) / 255
        view("probability", (count, 2), np.float32)[:] = np.stack([score, 1 - score], 1)
        view("heatmap", (count, 3, 3), np.float32)[:] = image[:, :3, :3, 2]
        return self.works


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    package = ModuleType("cuda.bindings")
    package.runtime = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("NVIDIA RTX A2000", "8.6"))
    return made


class Runtime:
    context: Context | None
    batch = (1, 2, 4)

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        if content != b"an engine":
            self.logger.log(Logger.Severity.ERROR, "magic tag  differs")
            return None
        return SimpleNamespace(
            get_tensor_profile_shape=lambda name, index: [
                (n, SIZE, SIZE, 3) for n in type(self).batch
            ],
            create_execution_context=lambda: type(self).context,
        )


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self) -> None:
        pass


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    module: Any = ModuleType("tensorrt")
    module.__version__ = MANIFEST.builder_version
    module.Runtime = Runtime
    module.ILogger = Logger
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    Runtime.context = Context()
    monkeypatch.setattr(Runtime, "batch", (1, 2, 4))
    return Runtime.context


def save(folder: Path, content: bytes = b"an engine") -> Path:
    path = folder / "m.fp16.engine"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = dataclasses.replace(MANIFEST, engine_sha256=digest, batch=(1, 2, 4))
    manifest_path(path).write_text(manifest.to_json())
    return path


def images(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_every_image_gets_its_own_outputs(
    tmp_path: Path, memory: Memory, context: Context, count: int
) -> None:
    opened = open_backend(save(tmp_path))
    assert opened.description.startswith("tensorrt 10.13.3.9, NVIDIA RTX A2000 (CUDA device 0)")
    given = images(count)
    outputs = opened.infer(given)
    expected = given[:, 0, :, 0].mean(1) / 255
    assert np.allclose(outputs.probability[:, 0], expected, atol=1e-6)
    assert np.array_equal(outputs.heatmap, given[:, :3, :3, 2])
    assert context.batches == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    # Only the rows that are there cross the bus.
    assert sum(memory.copied) == count * (SIZE * SIZE * 3 + 2 * 4 + 9 * 4)
    # Outputs are the caller's own: the next batch does not change them.
    before = outputs.probability.copy()
    opened.infer(images(4)[:, ::-1])
    assert np.array_equal(outputs.probability, before)
    opened.close()
    opened.close()
    assert (memory.host, memory.device, memory.streams) == ({}, {}, set())
    with pytest.raises(BackendError, match="was closed"):
        opened.infer(given)


def test_a_failure_is_an_error_and_the_next_batch_runs(
    tmp_path: Path, memory: Memory, context: Context
) -> None:
    opened = open_backend(save(tmp_path))
    context.works = False
    with pytest.raises(BackendError, match="TensorRT failed"):
        opened.infer(images(2))
    context.works = True
    assert len(opened.infer(images(2)).probability) == 2


def test_what_was_taken_is_freed_when_memory_ends(
    tmp_path: Path, memory: Memory, context: Context
) -> None:
    memory.left = 3 * SIZE * SIZE * 3 * 4 // 2
    with pytest.raises(BackendError, match="CUDA failed: out of memory"):
        open_backend(save(tmp_path))
    assert (memory.host, memory.device, memory.streams) == ({}, {}, set())


def test_no_context_is_an_error(tmp_path: Path, memory: Memory, context: Context) -> None:
    Runtime.context = None
    with pytest.raises(BackendError, match="no execution context"):
        open_backend(save(tmp_path))
    assert not memory.streams


def test_what_tensorrt_said_is_quoted(tmp_path: Path, memory: Memory, context: Context) -> None:
    with pytest.raises(EngineError, match="TensorRT said: magic tag differs; rebuild it here"):
        open_backend(save(tmp_path, b"another engine"))


def test_the_engines_profile_must_be_the_manifests(
    tmp_path: Path, memory: Memory, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "batch", (1, 2, 8))
    with pytest.raises(EngineError, match=r"batches of \(1, 2, 8\), its manifest says \(1, 2, 4\)"):
        open_backend(save(tmp_path))


def test_another_gpu_is_refused(
    tmp_path: Path, memory: Memory, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("RTX 4090", "8.9"))
    with pytest.raises(EngineError, match=r"here are tensorrt 10.13.3.9 and RTX 4090 \(8.9\)"):
        open_backend(save(tmp_path))

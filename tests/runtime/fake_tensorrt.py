"""Fakes of tensorrt and tensorrt_rtx on `fake_cuda`, with the members that the backend uses.

P(generated) of the fake engine is the mean of an image's first row of red; its heatmap is the blue
corner. tests/runtime/test_fakes.py compares what methods return with the published bindings.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from ffd_runtime.model.engine_manifest import manifest_path

from ..models import CARD
from .fake_cuda import DEVICE_ALIGNMENT, FakeCuda, view
from .test_engine import MANIFEST

SIZE = CARD.preprocess.size
TENSORS = ("image", "probability", "heatmap")


class IExecutionContext:
    """A context; a fault if it is used or freed while another device is current."""

    def __init__(self, engine: ICudaEngine, kernels: IRuntimeCache | None = None) -> None:
        self.fake = engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.up_to_date = False
        self.memory = 0
        self.kernels = kernels
        engine.require_device("a context was made")
        if kernels is not None:
            engine.compile(kernels, "fallback")

    def __del__(self) -> None:
        self.fake.require_device("a context was freed")

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.fake.device_memory_size_v2
        if memory % DEVICE_ALIGNMENT:
            self.fake.cuda.faults.append("the context's memory is not aligned")
        self.memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        self.shape = shape
        self.up_to_date = False
        return self.fake.least <= shape[0] <= self.fake.most

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if type(memory) is not int:
            raise TypeError("incompatible function arguments")
        if name not in TENSORS or memory % DEVICE_ALIGNMENT or name in self.fake.refused:
            self.fake.say("setTensorAddress: invalid argument")
            return False
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if type(stream_handle) is not int:
            raise TypeError("incompatible function arguments")
        engine, cuda = self.fake, self.fake.cuda
        engine.require_device("an inference was enqueued")
        if cuda.has_error():
            # TensorRT reports an error that no call has fetched as its own.
            engine.say("Cuda Runtime (an earlier error)")
            return False
        stream = cuda.stream_of(stream_handle)
        capturing = stream.captured is not None
        if not engine.works or (capturing and not engine.can_be_captured):
            return False
        if self.addresses.keys() != set(TENSORS):
            engine.say("address is not set")
            return False
        # The work that follows a change of shape must not be captured.
        assert self.up_to_date or not capturing
        self.up_to_date = True
        engine.enqueued.append((self.shape[0], capturing))
        if self.kernels is not None:
            engine.compile(self.kernels, str(self.shape[0]))
        shape, addresses = self.shape, dict(self.addresses)

        def infer() -> None:
            # A graph is bound to the state of the context that it was captured from.
            assert (shape, addresses) == (self.shape, self.addresses)
            assert self.memory in cuda.device
            if engine.crashes:
                cuda.broken = cuda.cudaError_t.cudaErrorIllegalAddress
            else:
                self.compute()

        cuda.give(stream, infer)
        return True

    def compute(self) -> None:
        """Compute the outputs."""
        count = self.shape[0]
        blocks = {name: self.fake.cuda.device[self.addresses[name]] for name in TENSORS}
        image = view(blocks["image"], self.shape, np.uint8)
        score = image[:, 0, :, 0].mean(1) / 255
        view(blocks["probability"], (count, 2), np.float32)[:] = np.stack([score, 1 - score], 1)
        view(blocks["heatmap"], (count, 3, 3), np.float32)[:] = image[:, :3, :3, 2]


class RtxContext(IExecutionContext):
    """A context of TensorRT for RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        """Return False: an application must not capture, as TensorRT for RTX does it itself."""
        return False


class ICudaEngine:
    """An engine that records its calls.

    Attributes:
        refused: tensors whose address is refused.
        crashes: whether inference accesses an illegal address.
        compiled: what TensorRT for RTX compiled, in order.
    """

    device_memory_size_v2 = 1000

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.device: int | None = None
        self.least, self.most = 1, 4
        self.works = True
        self.crashes = False
        self.can_be_captured = True
        self.contexts = 1 << 40
        self.heatmap: tuple[int, ...] = (-1, 3, 3)
        self.said = ""
        self.refused: set[str] = set()
        self.enqueued: list[tuple[int, bool]] = []
        self.compiled: list[str] = []
        self.logger: Any = None

    def require_device(self, what: str) -> None:
        """Record a fault if a device other than the engine's is current."""
        if self.device is not None and self.cuda.current_device() != self.device:
            self.cuda.faults.append(f"{what} with device {self.cuda.current_device()} current")

    def say(self, message: str) -> None:
        """Log an error."""
        self.logger.log(ILogger.Severity.ERROR, message)

    def compile(self, kernels: IRuntimeCache, what: str) -> None:
        """Compile a kernel that the cache does not contain."""
        if what not in kernels.held:
            kernels.held.append(what)
            self.compiled.append(what)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(n, SIZE, SIZE, 3) for n in (self.least, 2, self.most)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2) if name == "probability" else self.heatmap

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        self.contexts -= 1
        if self.contexts < 0:
            self.say(self.said)
            return None
        if isinstance(strategy, IRuntimeConfig):
            assert strategy.strategy == "user managed"
            assert strategy.cuda_graph_strategy == "whole"
            assert strategy.cache is not None
            return RtxContext(self, strategy.cache)
        assert strategy == "user managed"
        return IExecutionContext(self)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self)


class IRuntimeCache:
    """Compiled kernels; a blob belongs to one version of the driver."""

    driver = b"driver 1"

    def __init__(self, engine: ICudaEngine) -> None:
        self.fake = engine
        self.held: list[str] = []

    def serialize(self) -> memoryview | None:
        # It stores a fingerprint of the device, which must therefore be current.
        if self.fake.cuda.current_device() != self.fake.device:
            self.fake.cuda.faults.append("a runtime cache was saved with another device current")
            return None
        return memoryview(b"|".join([self.driver, *(what.encode() for what in self.held)]))

    def deserialize(self, blob: bytes) -> bool:
        driver, *held = bytes(blob).split(b"|")
        if driver != self.driver:
            return False
        self.held = [what.decode() for what in held]
        return True


class IRuntimeConfig:
    """The settings for creating a context of TensorRT for RTX."""

    cuda_graph_strategy = "disabled"

    def __init__(self, engine: ICudaEngine) -> None:
        self.fake = engine
        self.strategy = ""
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self.fake)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self) -> None:
        pass


def make_module(name: str, version: str, engine: ICudaEngine) -> ModuleType:
    """Return a fake `tensorrt` or `tensorrt_rtx` that loads one engine, from `an engine`."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            engine.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if content != b"an engine":
                engine.say("magic tag  differs")
                return None
            engine.device = engine.cuda.current_device()
            return engine

    module: Any = ModuleType(name)
    module.__version__ = version
    module.Runtime = Runtime
    module.ILogger = ILogger
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    if name == "tensorrt_rtx":
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
        module.ComputeCapability = SimpleNamespace(__members__=dict.fromkeys(names))
    made: ModuleType = module
    return made


def save_engine(folder: Path, content: bytes = b"an engine", **changes: Any) -> Path:
    """Write an engine for batches of up to 4, and its manifest."""
    path = folder / "m.fp16.engine"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = dataclasses.replace(
        MANIFEST, **{"engine_sha256": digest, "batch": (1, 2, 4), **changes}
    )
    manifest_path(path).write_text(manifest.to_json())
    return path


def images(count: int, seed: int = 0) -> Any:
    """Return images of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def assert_right(given: Any, outputs: Any) -> None:
    """Check that each image has its own outputs, in order."""
    expected = given[:, 0, :, 0].mean(1) / 255
    assert np.allclose(outputs.probability[:, 0], expected, atol=1e-6)
    assert np.array_equal(outputs.heatmap, given[:, :3, :3, 2])

"""Checks of the TensorRT backend on CUDA, with PyTorch instead of TensorRT.

The backend's own code is real: cuda-bindings, page-locked memory, streams, events, graphs and
threads. The engine is a small PyTorch network, enqueued on the backend's stream and memory. These
checks neither test TensorRT nor need it.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.devices import describe_gpu
from ffd_runtime.model.engine_manifest import EngineManifest, manifest_path

from .check_models import LITE, embedded_card, make_network, varied_images
from .claims import Setting, require
from .provider import mix, run_together

VERSION = "10.13.3.9"
BATCH = (1, 16, 32)
COUNTS = (1, 2, 3, 5, 16, 17, 31, 32, 33, 64, 100)
# Largest difference of a probability in FP16, whose kernels may differ between buckets.
MAX_DIFFERENCE = 5e-3


class DeviceArray:
    """Device memory at an address, in a form that PyTorch accepts."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "version": 3,
        }


class Context:
    """Replaces `IExecutionContext`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._views: dict[str, Any] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        """Require memory that is aligned to 256 bytes, as TensorRT does."""
        assert int(memory) % 256 == 0
        assert size >= self._engine.device_memory_size_v2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Accept shapes of the profile."""
        self._shape = shape
        return BATCH[0] <= shape[0] <= BATCH[2]

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the device address of a tensor."""
        self._addresses[name] = int(address)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Enqueue the network on a stream that is not PyTorch's."""
        import torch

        device = self._engine.device
        given: Any = torch.cuda.ExternalStream(int(stream), device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(given), torch.inference_mode():
            capturing = torch.cuda.is_current_stream_capturing()
            if not self._views:
                count, side = self._shape[0], self._engine.side
                shapes = {
                    "image": (self._shape, "|u1"),
                    "probability": ((count, 2), "<f4"),
                    "heatmap": ((count, *side), "<f4"),
                }
                self._views = {
                    name: torch.as_tensor(DeviceArray(self._addresses[name], *shape), device=device)
                    for name, shape in shapes.items()
                }
            probability, heatmap = self._engine.forward(self._views["image"])
            self._views["probability"].copy_(probability)
            self._views["heatmap"].copy_(heatmap)
        self._engine.enqueued.append((self._shape[0], capturing))
        return True


class Engine:
    """Replaces `ICudaEngine`: EfficientNet-Lite0 in FP16 with random weights.

    Attributes:
        device: of PyTorch.
        enqueued: batch sizes, and whether a graph was being captured.
    """

    device_memory_size_v2 = 1 << 20

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self.enqueued: list[tuple[int, bool]] = []
        self._net = make_network(LITE).to(device).half()
        self._net.mean, self._net.std = self._net.mean.float(), self._net.std.float()
        self.size = embedded_card().preprocess.size
        black = torch.zeros((1, self.size, self.size, 3), dtype=torch.uint8, device=device)
        with torch.inference_mode():
            self.side = tuple(self.forward(black)[1].shape[1:])

    def forward(self, image: Any) -> tuple[Any, Any]:
        """Return probabilities and heatmaps, as an exported engine does."""
        x = self._net.stem(self._net.scale(image).half())
        for layer in (self._net.layer1, self._net.layer2, self._net.layer3, self._net.layer4):
            x = layer(x)
        return self._net.head(x.mean((2, 3))).float().softmax(1), x.float().mean(1)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        """Return the smallest, optimal and largest shape."""
        return [(count, self.size, self.size, 3) for count in BATCH]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an output, with any batch size."""
        return (-1, 2) if name == "probability" else (-1, *self.side)

    def create_execution_context(self, strategy: object) -> Context:
        """Create a context for a bucket."""
        return Context(self)


def make_module(engine: Engine) -> ModuleType:
    """Return a replacement of the module `tensorrt`."""

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, content: bytes) -> Engine:
            return engine

    module: Any = ModuleType("tensorrt")
    module.__version__ = VERSION
    module.ILogger, module.Runtime = Logger, Runtime
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    assert isinstance(module, ModuleType)
    return module


@contextmanager
def opened(setting: Setting) -> Iterator[tuple[Backend, Engine]]:
    """Open the TensorRT backend with the replaced engine. Yield both."""
    content = b"stand-in for an engine"
    gpu = describe_gpu(setting.index)
    path = setting.folder / "stand-in.engine"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = EngineManifest(
        card=embedded_card(),
        engine_sha256=digest,
        onnx="stand-in.onnx",
        onnx_sha256=digest,
        builder="tensorrt",
        builder_version=VERSION,
        gpu=gpu.name,
        compute_capabilities=(gpu.compute_capability,),
        hardware_compatibility="none",
        version_compatible=False,
        lean_runtime=False,
        batch=BATCH,
        command="ffd-export",
    )
    manifest_path(path).write_text(manifest.to_json())
    engine = Engine(setting.device)
    with (
        patch.dict(sys.modules, {"tensorrt": make_module(engine)}),
        closing(open_backend(path, "tensorrt", setting.device)) as backend,
    ):
        yield backend, engine


def mix_batches(setting: Setting) -> str:
    """Infer from eight threads, with and without graphs; each image must get its own outputs."""
    with opened(setting) as (backend, _):
        return mix(backend, COUNTS * 3, MAX_DIFFERENCE, threads=8)


def capture(setting: Setting) -> str:
    """Capture a graph for each bucket and lane; afterwards, nothing may be enqueued."""
    with opened(setting) as (backend, engine):
        for _ in range(3):
            for count in COUNTS:
                backend.infer(varied_images(count))
        captured = sorted({size for size, capturing in engine.enqueued if capturing})
        before = len(engine.enqueued)
        for count in COUNTS:
            backend.infer(varied_images(count))
        more = len(engine.enqueued) - before
    observed = f"buckets captured: {captured}; enqueued again: {more}"
    return require(captured == [1, 2, 4, 8, 16, 32] and not more, observed)


def disturb(setting: Setting) -> str:
    """Allocate and free memory in another thread while graphs are captured."""
    from cuda.bindings import runtime

    calls = [0]

    def churn() -> None:
        runtime.cudaSetDevice(setting.index)
        while True:
            _, address = runtime.cudaMalloc(1 << 22)
            runtime.cudaFree(address)
            calls[0] += 1
            if ended.is_set():
                return

    ended = threading.Event()
    with opened(setting) as (backend, engine):
        with _beside(churn, ended):
            for count in COUNTS:
                backend.infer(varied_images(count))
        captured = {size for size, capturing in engine.enqueued if capturing}
        worst = mix(backend, COUNTS, MAX_DIFFERENCE)
    observed = f"{calls[0]} allocations meanwhile, buckets captured: {sorted(captured)}; {worst}"
    return require(len(captured) > 1, observed)


def wait(setting: Setting) -> str:
    """Run another Python thread while the GPU works."""
    ticks = [0]
    ended = threading.Event()

    def tick() -> None:
        while not ended.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    images = varied_images(BATCH[2])
    with opened(setting) as (backend, _):
        backend.infer(images)
        with _beside(tick, ended):
            end = time.perf_counter() + setting.seconds
            while time.perf_counter() < end:
                backend.infer(images)
    per_second = ticks[0] / setting.seconds
    return require(per_second > 300, f"{per_second:.0f} of at most 1000 wake-ups a second")


@contextmanager
def _beside(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    """Run a function in another thread until the block ends."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def close(setting: Setting) -> str:
    """Close the backend twice in other threads; all device memory must be freed."""
    import torch

    left = []
    for _ in range(3):
        with opened(setting) as (backend, _engine):
            backend.infer(varied_images(BATCH[2]))
            run_together([backend.close, backend.close])
        del backend, _engine
        gc.collect()
        torch.cuda.empty_cache()
        left.append(torch.cuda.mem_get_info(setting.index)[0])
    # The first round keeps memory for CUDA's kernels and libraries.
    lost = (left[1] - left[2]) / 1e6
    return require(lost < 8, f"{lost:.1f} MB lost by opening and closing once")

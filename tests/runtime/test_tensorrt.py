"""The TensorRT backend's own work: what it pads, copies, captures, splits and frees, and when.

There is no GPU where these tests run, so CUDA's calls work on host memory here, and an engine
computes means of its input. Streams do what they are given as early or as late as a GPU might. What
TensorRT and CUDA do with a GPU, these tests cannot tell.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import enum
import hashlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ffd_runtime.backends.tensorrt as backend
from ffd_runtime.backends import open_backend
from ffd_runtime.devices import Gpu
from ffd_runtime.engine import manifest_path
from ffd_runtime.errors import BackendError, DeviceMemoryError, EngineError

from ..models import CARD
from .test_engine import MANIFEST

SIZE = CARD.preprocess.size
# Streams in the order of their making: inference, then copies of images. What is not in the set
# does nothing before somebody waits for it.
PACES = {"both at once": {0, 1}, "late inference": {1}, "late copies": {0}, "both late": set[int]()}


class Token:
    """A moment in a stream that can be waited for."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reached = False


class Stream:
    """Work in order; a token in the queue is waited for if it is another stream's."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None] | Token] = deque()
        self.captured: list[Callable[[], None]] | None = None

    def run(self, until: Token | None, force: bool) -> None:
        """Work up to a token, or to the end; `force` makes other streams work too."""
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


class Memory:
    """cuda.bindings.runtime over host memory; refuses what was not taken or is gone."""

    cudaStreamNonBlocking = 1
    cudaEventBlockingSync = 1
    cudaEventDisableTiming = 2

    class cudaError_t(enum.Enum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorStreamCaptureInvalidated = 901

    class cudaMemcpyKind(enum.Enum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.Enum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self) -> None:
        self.host: dict[int, Any] = {}
        self.device: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Token | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launchable: dict[int, list[Callable[[], None]]] = {}
        self.left = 1 << 40
        self.fails_in = 1 << 40
        self.copied: list[int] = []
        self.launches = 0
        self.eager: set[int] = {0, 1}
        self.spoils_capture = False
        self.made = 0

    def taken(self) -> list[Any]:
        return [
            *self.host, *self.device, *self.streams, *self.events, *self.graphs, *self.launchable
        ]  # fmt: skip

    def _make(self, pool: dict[int, Any], value: Any, handle: int = 0) -> tuple[Any, ...]:
        self.fails_in -= 1
        if self.fails_in < 0:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        self.made += 1
        pool[handle or self.made] = value
        return self.cudaError_t.cudaSuccess, handle or self.made

    def _take(self, pool: dict[int, Any], size: int) -> tuple[Any, ...]:
        if size > self.left:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        answer = self._make(pool, block, ctypes.addressof(block))
        self.left -= size
        return answer

    def give(self, stream: int, step: Callable[[], None] | Token) -> tuple[Any, ...]:
        """Put work into a stream, or into the graph that is captured from it."""
        found = self.streams[stream]
        if found.captured is not None:
            assert callable(step)
            found.captured.append(step)
        else:
            found.queue.append(step)
            self._go()
        return (self.cudaError_t.cudaSuccess,)

    def _go(self) -> None:
        for _ in range(2):  # what one stream does may let the other go on
            for number, stream in enumerate(self.streams.values()):
                if number in self.eager:
                    stream.run(None, force=False)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._take(self.host, size)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._take(self.device, size)

    def cudaFreeHost(self, ptr: int) -> None:
        del self.host[ptr]

    def cudaFree(self, devPtr: int) -> None:
        del self.device[devPtr]

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        return self._make(self.streams, Stream())

    def cudaStreamDestroy(self, stream: int) -> None:
        assert not self.streams[stream].queue, "work was left behind"
        del self.streams[stream]

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self.streams[stream].run(None, force=True)
        self._go()
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        token = self.events[event]
        # As CUDA has it, an event that stands for nothing yet is waited for by nobody.
        return self.give(stream, token) if token else (self.cudaError_t.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaEventDisableTiming | self.cudaEventBlockingSync
        return self._make(self.events, None)

    def cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        token = self.events[event] = Token(self.streams[stream])
        return self.give(stream, token)

    def cudaEventSynchronize(self, event: int) -> tuple[Any, ...]:
        token = self.events[event]
        if token:
            token.stream.run(token, force=True)
            self._go()
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        assert mode is self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.streams[stream].captured is None
        self.streams[stream].captured = []
        return (self.cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured, self.streams[stream].captured = self.streams[stream].captured, None
        if self.spoils_capture:
            return self.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return self._make(self.graphs, captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._make(self.launchable, self.graphs[graph])

    def cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def cudaGraphExecDestroy(self, graphExec: int) -> None:
        del self.launchable[graphExec]

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for step in self.launchable[graphExec]:
            self.give(stream, step)
        return (self.cudaError_t.cudaSuccess,)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaSuccess,)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (self.cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        known = error is self.cudaError_t.cudaErrorMemoryAllocation
        return self.cudaError_t.cudaSuccess, b"out of memory" if known else b"capture invalidated"

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: Any, stream: int
    ) -> tuple[Any, ...]:
        down = kind is self.cudaMemcpyKind.cudaMemcpyHostToDevice
        targets, sources = (self.device, self.host) if down else (self.host, self.device)

        def copy() -> None:
            assert count <= len(targets[dst])
            assert count <= len(sources[src])
            ctypes.memmove(dst, src, count)
            self.copied.append(count)

        return self.give(stream, copy)


class Context:
    """P(generated) is the mean of an image's first row of red; the heatmap is its blue corner."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.up_to_date = False
        self.memory = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        self.shape = shape
        self.up_to_date = False
        return self.engine.least <= shape[0] <= self.engine.most

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, cuda = self.engine, self.engine.cuda
        capturing = cuda.streams[stream_handle].captured is not None
        if not engine.works or (capturing and not engine.can_be_captured):
            return False
        # What a change of shape entails must not be captured.
        assert self.up_to_date or not capturing
        self.up_to_date = True
        engine.enqueued.append((self.shape[0], capturing))
        shape, addresses = self.shape, dict(self.addresses)

        def infer() -> None:
            # A graph is bound to the state of the context that it was captured from.
            assert (shape, addresses) == (self.shape, self.addresses)
            assert self.memory in cuda.device
            self._compute()

        cuda.give(stream_handle, infer)
        return True

    def _compute(self) -> None:
        count = self.shape[0]

        def view(name: str, shape: tuple[int, ...], kind: Any) -> Any:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            assert size <= len(self.engine.cuda.device[self.addresses[name]])
            block = (ctypes.c_uint8 * size).from_address(self.addresses[name])
            return np.frombuffer(memoryview(block), kind).reshape(shape)

        image = view("image", self.shape, np.uint8)
        score = image[:, 0, :, 0].mean(1) / 255
        view("probability", (count, 2), np.float32)[:] = np.stack([score, 1 - score], 1)
        view("heatmap", (count, 3, 3), np.float32)[:] = image[:, :3, :3, 2]


class Engine:
    """Counts what is asked of it."""

    device_memory_size_v2 = 1000

    def __init__(self, cuda: Memory) -> None:
        self.cuda = cuda
        self.least, self.most = 1, 4
        self.works = True
        self.can_be_captured = True
        self.contexts = 1 << 40
        self.heatmap: tuple[int, ...] = (-1, 3, 3)
        self.said = ""
        self.enqueued: list[tuple[int, bool]] = []
        self.logger: Any = None

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [(n, SIZE, SIZE, 3) for n in (self.least, 2, self.most)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2) if name == "probability" else self.heatmap

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == "user managed"
        self.contexts -= 1
        if self.contexts < 0:
            self.logger.log(Logger.Severity.ERROR, self.said)
            return None
        return Context(self)


class Logger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self) -> None:
        pass


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


@pytest.fixture
def engine(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(memory)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            made.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if content != b"an engine":
                made.logger.log(Logger.Severity.ERROR, "magic tag  differs")
                return None
            return made

    module: Any = ModuleType("tensorrt")
    module.__version__ = MANIFEST.builder_version
    module.Runtime = Runtime
    module.ILogger = Logger
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return made


def save(folder: Path, content: bytes = b"an engine", **changes: Any) -> Path:
    path = folder / "m.fp16.engine"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = dataclasses.replace(
        MANIFEST, **{"engine_sha256": digest, "batch": (1, 2, 4), **changes}
    )
    manifest_path(path).write_text(manifest.to_json())
    return path


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def assert_right(given: Any, outputs: Any) -> None:
    expected = given[:, 0, :, 0].mean(1) / 255
    assert np.allclose(outputs.probability[:, 0], expected, atol=1e-6)
    assert np.array_equal(outputs.heatmap, given[:, :3, :3, 2])


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 19])
def test_every_image_gets_its_own_outputs(
    tmp_path: Path, memory: Memory, engine: Engine, count: int, pace: str
) -> None:
    memory.eager = PACES[pace]
    opened = open_backend(save(tmp_path))
    assert opened.description.startswith("tensorrt 10.13.3.9, NVIDIA RTX A2000 (CUDA device 0)")
    # Once as it comes, once captured, once again with what the others left in the buffers.
    for seed in range(3):
        given = images(count, seed)
        outputs = opened.infer(given)
        assert_right(given, outputs)
    # Only the rows that are there cross the bus.
    assert sum(memory.copied) == 3 * count * (SIZE * SIZE * 3 + 2 * 4 + 9 * 4)
    # Outputs are the caller's own: the next batch does not change them.
    before = outputs.probability.copy()
    opened.infer(images(4)[:, ::-1])
    assert np.array_equal(outputs.probability, before)
    opened.close()
    opened.close()
    assert not memory.taken()
    with pytest.raises(BackendError, match="was closed"):
        opened.infer(given)


def test_a_batch_is_padded_to_its_bucket_and_captured_once(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    opened = open_backend(save(tmp_path))
    for count in (3, 4, 3, 1, 2, 1, 4, 2):
        assert len(opened.infer(images(count)).heatmap) == count
    # Each bucket ran once as it is and was captured once; all else was launched.
    assert engine.enqueued == [(4, False), (4, True), (1, False), (1, True), (2, False), (2, True)]
    assert memory.launches == 5
    assert len(memory.launchable) == 3
    assert not memory.graphs


def test_the_smallest_batch_of_the_engine_is_kept(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    engine.least = 2
    given = images(9)
    outputs = open_backend(save(tmp_path, batch=(2, 2, 4))).infer(given)
    assert_right(given, outputs)
    assert {count for count, _ in engine.enqueued} == {2, 4}


def test_the_next_part_is_copied_in_while_one_is_inferred(
    tmp_path: Path, memory: Memory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.eager = {1}
    opened = open_backend(save(tmp_path))
    opened.infer(images(16))  # captures what is used from here on
    steps: list[str] = []
    compute, copy = Context._compute, ctypes.memmove

    def watched_compute(context: Context) -> None:
        steps.append("infer")
        compute(context)

    def watched_copy(target: int, source: int, size: int) -> None:
        steps.append("in" if target in memory.device else "out")
        copy(target, source, size)

    monkeypatch.setattr(Context, "_compute", watched_compute)
    monkeypatch.setattr(ctypes, "memmove", watched_copy)
    opened.infer(images(16, 1))
    # With an inference that starts as late as it may, there is always one part more on the GPU.
    part = ["infer", "out", "out"]
    assert steps == ["in", "in", *part, "in", *part, "in", *part, *part]


@pytest.mark.parametrize("reason", ["refused", "invalidated", "no memory"])
def test_without_a_graph_the_engine_runs_as_it_is(
    tmp_path: Path,
    memory: Memory,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    opened = open_backend(save(tmp_path))
    engine.can_be_captured = reason != "refused"
    memory.spoils_capture = reason == "invalidated"
    given = images(11)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            memory.fails_in = 0 if reason == "no memory" else 1 << 40
            assert_right(given, opened.infer(given))
    assert len(caplog.messages) == 1
    assert "runs without CUDA graphs" in caplog.text
    assert memory.launches == 0
    opened.close()
    assert not memory.taken()


def test_a_failure_is_an_error_and_the_next_batch_runs(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    memory.eager = set()
    opened = open_backend(save(tmp_path))
    engine.works = False
    with pytest.raises(BackendError, match="TensorRT failed"):
        opened.infer(images(2))
    engine.works = True
    given = images(3)
    assert_right(given, opened.infer(given))
    opened.close()
    assert not memory.taken()


def test_a_failure_between_parts_leaves_nothing_under_way(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    memory.eager = set()
    opened = open_backend(save(tmp_path))
    opened.infer(images(4))
    engine.contexts = 0  # the second lane, and any other bucket, has no context yet
    engine.said = "Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(DeviceMemoryError, match="no execution context; TensorRT said: .*Memory"):
        opened.infer(images(6))
    assert not any(stream.queue for stream in memory.streams.values())
    # Half of it is less than what failed.
    given = images(4, 1)
    assert_right(given, opened.infer(given))


def test_no_context_is_an_error(tmp_path: Path, memory: Memory, engine: Engine) -> None:
    engine.contexts = 0
    engine.said = "the engine is of no use"
    with pytest.raises(
        BackendError, match="no execution context; TensorRT said: the eng"
    ) as raised:
        open_backend(save(tmp_path))
    assert not isinstance(raised.value, DeviceMemoryError)
    assert not memory.taken()


def test_whatever_fails_on_the_way_is_freed(tmp_path: Path, memory: Memory, engine: Engine) -> None:
    path = save(tmp_path)
    open_backend(path).close()
    needed = memory.made
    assert needed > 15
    for number in range(needed):
        memory.fails_in = number
        with pytest.raises(DeviceMemoryError, match="CUDA failed: out of memory"):
            open_backend(path)
        assert not memory.taken(), number
    memory.fails_in = needed
    open_backend(path).close()
    assert not memory.taken()


def test_a_heatmap_of_no_fixed_size_is_refused(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    engine.heatmap = (-1, -1, -1)
    with pytest.raises(EngineError, match="heatmap has no fixed size"):
        open_backend(save(tmp_path))
    assert not memory.taken()


def test_images_of_another_shape_are_refused(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    opened = open_backend(save(tmp_path))
    wrongs: list[Any] = [images(1)[:, :10], images(1)[..., :1], images(1)[0], images(1) / 255]
    for wrong in wrongs:
        with pytest.raises(BackendError, match="images must be uint8"):
            opened.infer(wrong)


def test_threads_take_turns(tmp_path: Path, memory: Memory, engine: Engine) -> None:
    memory.eager = set()
    opened = open_backend(save(tmp_path))
    given = [images(count, count) for count in (1, 3, 6, 9)]
    outputs: dict[int, Any] = {}

    def infer(number: int) -> None:
        outputs[number] = opened.infer(given[number])

    threads = [Thread(target=infer, args=(number,)) for number in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, batch in enumerate(given):
        assert_right(batch, outputs[number])


def test_what_tensorrt_said_is_quoted(tmp_path: Path, memory: Memory, engine: Engine) -> None:
    with pytest.raises(EngineError, match="TensorRT said: magic tag differs; rebuild it here"):
        open_backend(save(tmp_path, b"another engine"))


def test_the_engines_profile_must_be_the_manifests(
    tmp_path: Path, memory: Memory, engine: Engine
) -> None:
    engine.most = 8
    with pytest.raises(EngineError, match=r"batches of \(1, 2, 8\), its manifest says \(1, 2, 4\)"):
        open_backend(save(tmp_path))


def test_another_gpu_is_refused(
    tmp_path: Path, memory: Memory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("RTX 4090", "8.9"))
    with pytest.raises(EngineError, match=r"here are tensorrt 10.13.3.9 and RTX 4090 \(8.9\)"):
        open_backend(save(tmp_path))


def test_tensorrt_for_rtx_captures_graphs_itself(
    tmp_path: Path, memory: Memory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx: Any = ModuleType("tensorrt_rtx")
    vars(rtx).update({k: v for k, v in vars(sys.modules["tensorrt"]).items() if k[:2] != "__"})
    rtx.__version__ = MANIFEST.builder_version
    rtx.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    configs: list[Any] = []

    class Config:
        cuda_graph_strategy = "disabled"

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            assert strategy == "user managed"

        def create_runtime_cache(self) -> object:
            return object()

        def set_runtime_cache(self, cache: object) -> None:
            self.cache = cache

    def create(config: Config) -> Context:
        assert config.cuda_graph_strategy == "whole"
        configs.append(config)
        return Context(engine)

    engine.create_runtime_config = Config  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "create_execution_context", create)
    opened = open_backend(save(tmp_path, builder="tensorrt_rtx"))
    for seed in range(2):
        given = images(11, seed)
        assert_right(given, opened.infer(given))
    assert memory.launches == 0
    assert len({config.cache for config in configs}) == 1


def members(names: set[str], tree: ast.AST) -> set[str]:
    """Attributes that are read from, or set on, variables or attributes of these names."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (getattr(node.value, "id", None) or getattr(node.value, "attr", None)) in names
    }


SOURCE = ast.parse(Path(backend.__file__).read_text())


def test_cuda_has_what_is_called() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    used = {name for name in members({"api", "runtime"}, SOURCE) if name.startswith("cuda")}
    assert len(used) > 20
    for name in sorted(used):
        assert hasattr(runtime, name), name
        fake = getattr(Memory, name)
        if isinstance(fake, type):
            for member in fake.__members__:  # type: ignore[attr-defined]
                assert hasattr(getattr(runtime, name), member), f"{name}.{member}"
        elif isinstance(fake, int):
            assert int(getattr(runtime, name)) == fake, name
        else:
            # Its documentation begins with the call's form.
            form = getattr(runtime, name).__doc__.split("(", 1)[1].split(")", 1)[0]
            arguments = [part.split(":")[0].split()[-1] for part in form.split(",") if part.strip()]
            code = fake.__code__
            assert arguments == list(code.co_varnames[1 : code.co_argcount]), name


def test_tensorrt_has_what_is_called() -> None:
    engine = members({"engine", "_engine"}, SOURCE)
    context = members({"context", "_context"}, SOURCE)
    assert "create_execution_context" in engine
    assert {"set_device_memory", "execute_async_v3"} <= context
    for path in (Path(__file__).parent.parent / "export" / "tensorrt_api").glob("*.json"):
        classes = json.loads(path.read_text())["classes"]
        assert engine - {"create_runtime_config"} <= classes["ICudaEngine"].keys(), path.stem
        assert context <= classes["IExecutionContext"].keys(), path.stem


def test_tensorrt_for_rtx_has_what_is_called() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    assert rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    assert rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for owner, names in (
        (rtx.ICudaEngine, {"engine", "_engine"}),
        (rtx.IExecutionContext, {"context", "_context"}),
        (rtx.IRuntimeConfig, {"config"}),
    ):
        for name in members(names, SOURCE):
            assert hasattr(owner, name), name

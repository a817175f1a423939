"""TensorRT: engines of `ffd-export --engine`, by tensorrt, tensorrt_lean or tensorrt_rtx.

A batch is padded up to one of a few sizes, its bucket, so that one CUDA graph for each can be
captured when it is first used and launched from then on. Batches run on two lanes in turn: while
one lane's is inferred, the next is copied in on the other. What exceeds the engine's largest batch
is run in parts.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError, DeviceError, EngineError
from ...core.install_hint import install_hint
from ...core.text import first_line
from ..backend_registry import BACKENDS, Facts
from ..devices import Gpu, count_gpus, describe_gpu, parse_device
from ..engine_manifest import EngineManifest, Here, read_manifest, require_rtx_gpu, require_runnable
from . import OUTPUTS, Outputs, failure
from .buckets import choose_bucket, find_buckets
from .cuda import Cuda
from .kernel_cache import KernelCache
from .lanes import Contexts, Execution, Job, Lane
from .tensorrt_log import remembering_logger

log = logging.getLogger(__name__)

LANES = 2


class TensorRt:
    """An engine on a GPU; made by `open_model`.

    Attributes:
        lanes: batches that can be submitted without waiting for one; see `Asynchronous`.
    """

    lanes = LANES

    def __init__(self, trt: Any, engine: Any, logger: Any, manifest: EngineManifest, index: int):
        self.card = manifest.card
        gpu = describe_gpu(index)
        self.description = f"{trt.__name__} {trt.__version__}, {gpu.name} (CUDA device {index})"
        self._logger = logger
        self._buckets = find_buckets(manifest.batch[0], manifest.batch[2])
        self._most = manifest.batch[2]
        self._lock = Lock()
        self._lanes: list[Lane] = []
        self._started = 0
        self._contexts: Contexts | None = None
        self._kernels = KernelCache(manifest.engine_sha256, gpu, trt.__version__)
        self._cuda = Cuda(index)
        self._graphs = True
        # TensorRT for RTX captures graphs itself: which of its kernels are final, only it knows.
        self._captures = trt.__name__ != "tensorrt_rtx"
        # Whatever fails from here on, what has been allocated is freed.
        try:
            self._contexts = Contexts(trt, engine, logger, self._cuda, self._kernels)
            size = self.card.preprocess.size
            shapes: dict[str, tuple[int, ...]] = {"image": (self._most, size, size, 3)}
            for name in OUTPUTS:
                shapes[name] = (self._most, *_fixed_sides(engine, name))
            self._lanes = [Lane(self._cuda, shapes) for _ in range(LANES)]
            # The largest batch shows now whether the model fits the GPU.
            self._execution(self._lanes[0], self._most)
            # A process that is killed later has compiled these kernels once and for all.
            self._kernels.save()
        except BaseException:
            self.close()
            raise

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch, in parts where the engine's largest is smaller; see `Backend.infer`."""
        return self.submit(images).collect()

    def submit(self, images: npt.NDArray[np.uint8]) -> Submitted:
        """Start one batch; see `Asynchronous.submit`."""
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
            shapes = [buffer.host.shape[1:] for buffer in self._lanes[0].outputs]
            job = Job(Outputs(*(np.empty((len(images), *shape), np.float32) for shape in shapes)))
            try:
                for start in range(0, len(images), self._most):
                    rows = slice(start, min(start + self._most, len(images)))
                    self._start(job, rows, images[rows])
            except BaseException:
                # The GPU may still read and write the buffers that the next batch would use.
                self._cuda.settle()
                for lane in self._lanes:
                    lane.drop(job)
                raise
            return Submitted(self, job)

    def _start(self, job: Job, rows: slice, images: npt.NDArray[np.uint8]) -> None:
        """Enqueue all that one part needs, on a free lane or the one with the oldest part."""
        # A second lane needs contexts of its own: one batch after the other stays on the first.
        lane = min(self._lanes, key=lambda lane: lane.age)
        lane.finish()
        bucket = choose_bucket(self._buckets, len(images))
        execution = self._execution(lane, bucket)
        # Rows beyond the images keep what an earlier batch left: any byte is a pixel, no row of
        # the network's output depends on another, and theirs is never copied back.
        lane.copy_in(images)
        self._enqueue(execution)
        lane.copy_out(len(images))
        self._started += 1
        lane.give(job, rows, self._started)

    def _enqueue(self, execution: Execution) -> None:
        if execution.graph is not None:
            self._cuda.launch(execution.graph)
            return
        if not execution.enqueue():
            raise failure(f"TensorRT failed{self._logger.quote()}")
        if not self._graphs:
            return
        # Only now: the first run at a size also brings the context's state up to date, which
        # must not become part of the graph.
        try:
            if not execution.can_be_captured():
                raise BackendError("TensorRT says that its work cannot be captured")
            if self._captures:
                execution.graph = self._cuda.capture(execution.enqueue)
        except BackendError as error:
            self._graphs = False
            log.warning(
                "this engine runs without CUDA graphs, each launch slower: %s%s",
                error,
                self._logger.quote(),
            )

    def _execution(self, lane: Lane, bucket: int) -> Execution:
        assert self._contexts is not None
        if bucket not in lane.executions:
            size = self.card.preprocess.size
            context = self._contexts.make((bucket, size, size, 3), lane.addresses)
            lane.executions[bucket] = Execution(context, self._cuda)
        return lane.executions[bucket]

    def is_done(self, job: Job) -> bool:
        """Whether `collect` does not wait for a job."""
        with self._lock:
            return all(lane.is_done() for lane in self._lanes if lane.has(job))

    def collect(self, job: Job) -> Outputs:
        """Wait for a job; see `Pending.collect`."""
        with self._lock:
            for lane in self._lanes:
                if lane.has(job):
                    self._cuda.use()
                    lane.finish()
        if job.failure:
            raise job.failure
        return job.outputs

    def close(self) -> None:
        """Free graphs, contexts, engine and every buffer; batches not collected are lost."""
        with self._lock:
            if self._contexts is None and not self._lanes:
                self._cuda.close()
                return
            try:
                self._free()
            finally:
                self._cuda.close()

    def _free(self) -> None:
        # This thread may have another device current, or none, and TensorRT frees on the current.
        with suppress(BackendError):
            self._cuda.use()
        self._cuda.settle()
        for lane in self._lanes:
            lane.fail("the model was closed before the batch ended")
        self._kernels.save()
        # Graphs hold kernels of the contexts, contexts work in the memory that goes last.
        self._cuda.destroy_graphs()
        self._lanes = []
        self._contexts = None
        self._kernels.close()


class Submitted:
    """A batch on its way; see `Pending`."""

    def __init__(self, backend: TensorRt, job: Job) -> None:
        self._backend = backend
        self._job = job

    def done(self) -> bool:
        """Whether `collect` does not wait."""
        return self._backend.is_done(self._job)

    def collect(self) -> Outputs:
        """Wait for the batch and return its outputs."""
        return self._backend.collect(self._job)


def open_model(path: Path, device: str = "auto") -> TensorRt:
    """Load an engine, once it is known that it can run here.

    Args:
        path: the engine; its manifest stands beside it.
        device: `auto`, `cuda` or `cuda:N`.

    Raises:
        EngineError: the engine does not fit its manifest, this GPU or this TensorRT.
        DeviceError: there is no such GPU, or TensorRT for RTX does not support it.
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
    if trt.__name__ == "tensorrt_rtx":
        require_rtx_gpu(trt, gpu)
    require_runnable(manifest, here)
    Cuda(index).close()  # The engine is loaded onto the current device.
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
            reasons.append(f"{name}: {first_line(error)}")
    extra = BACKENDS["tensorrt"].extras[names[0]]
    raise BackendError(
        f"the engine needs {' or '.join(names)} ({'; '.join(reasons)}): {install_hint(extra)}"
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


def probe(library: str) -> Facts:
    """Start a TensorRT module, or CUDA, without an engine; see `backend_registry`."""
    if library == "cuda":
        return _probe_cuda()
    trt = import_module(library)
    facts: Facts = {"version": trt.__version__}
    if not count_gpus():
        return {**facts, "outcome": "loaded"}
    logger = remembering_logger(trt)
    if trt.Runtime(logger) is None:
        raise BackendError(f"its runtime does not start{logger.quote()}")
    return facts


def _probe_cuda() -> Facts:
    facts: Facts = {"version": import_module("cuda.bindings").__version__}
    api = import_module("cuda.bindings.runtime")
    if not count_gpus():
        return {**facts, "outcome": "loaded"}
    error, _ = api.cudaStreamCreate()
    if error != api.cudaError_t.cudaSuccess:
        raise BackendError(f"CUDA failed: {error.name}")
    return facts

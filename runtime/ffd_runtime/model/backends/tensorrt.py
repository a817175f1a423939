"""TensorRT: engines of `ffd-export --engine`, run by tensorrt, tensorrt_lean or tensorrt_rtx.

A batch is padded to one of a few sizes, its bucket. The CUDA graph for a bucket is captured at the
first use and launched afterwards. Batches alternate between two lanes: while one lane infers, the
other copies the next batch. A batch that is larger than the engine's maximum runs in chunks.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError, DeviceError, EngineError
from ...core.install_hint import install_hint
from ...core.interruptible import run_interruptible
from ...core.text import first_line
from ..backend_registry import BACKENDS, Facts
from ..devices import Gpu, count_gpus, describe_gpu, explain_missing_gpu, parse_device
from ..engine_manifest import (
    EngineManifest,
    TargetSystem,
    read_manifest,
    require_rtx_gpu,
    require_runnable,
)
from . import OUTPUTS, Outputs, failure, require_images
from .buckets import choose_bucket, find_buckets
from .cuda import Cuda
from .kernel_cache import KernelCache
from .lanes import Contexts, Execution, Job, Lane
from .tensorrt_log import remembering_logger

log = logging.getLogger(__name__)

LANES = 2


class TensorRt:
    """An engine on a GPU; created by `open_model`.

    Attributes:
        lanes: batches that can be submitted without waiting; see `Asynchronous`.
    """

    lanes = LANES

    def __init__(self, trt: Any, engine: Any, logger: Any, manifest: EngineManifest, index: int):
        self.card = manifest.card
        gpu = describe_gpu(index)
        self.description = f"{trt.__name__} {trt.__version__}, {gpu.name} (CUDA device {index})"
        self._logger = logger
        self._buckets = find_buckets(manifest.batch[0], manifest.batch[2])
        self._max_batch = manifest.batch[2]
        self._lock = Lock()
        self._lanes: list[Lane] = []
        self._started = 0
        self._contexts: Contexts | None = None
        self._kernels = KernelCache(manifest.engine_sha256, gpu, trt.__version__)
        self._cuda = Cuda(index)
        # TensorRT for RTX captures graphs itself, because only it knows which kernels are final.
        self._graphs = trt.__name__ != "tensorrt_rtx"
        # Free all allocations if anything below fails.
        try:
            self._contexts = Contexts(trt, engine, logger, self._cuda, self._kernels)
            size = self.card.preprocess.size
            shapes: dict[str, tuple[int, ...]] = {"image": (self._max_batch, size, size, 3)}
            for name in OUTPUTS:
                shapes[name] = (self._max_batch, *_fixed_sides(engine, name))
            self._lanes = [Lane(self._cuda, shapes) for _ in range(LANES)]
            # The largest batch fails here if the model does not fit the GPU.
            self._execution(self._lanes[0], self._max_batch)
            # Save now, in case the process is killed later.
            self._kernels.save()
        except BaseException:
            self.close()
            raise

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch, in chunks if it exceeds the engine's maximum; see `Backend.infer`."""
        return self.submit(images).collect()

    def submit(self, images: npt.NDArray[np.uint8]) -> Submitted:
        require_images(images, self.card.preprocess.size)
        with self._lock:
            if self._contexts is None:
                raise BackendError("the model was closed")
            self._cuda.use()
            shapes = [buffer.host.shape[1:] for buffer in self._lanes[0].outputs]
            job = Job(Outputs(*(np.empty((len(images), *shape), np.float32) for shape in shapes)))
            try:
                for start in range(0, len(images), self._max_batch):
                    rows = slice(start, min(start + self._max_batch, len(images)))
                    self._start(job, rows, images[rows])
            except BaseException:
                # The GPU may still use the buffers of the next batch.
                self._cuda.settle()
                for lane in self._lanes:
                    lane.drop(job)
                raise
            return Submitted(self._lock, self._cuda, self._lanes, job)

    def _start(self, job: Job, rows: slice, images: npt.NDArray[np.uint8]) -> None:
        """Enqueue one chunk on a free lane, or on the lane with the oldest chunk."""
        # Each lane needs its own contexts, so consecutive single batches stay on the first lane.
        lane = min(self._lanes, key=lambda lane: lane.age)
        lane.finish()
        bucket = choose_bucket(self._buckets, len(images))
        execution = self._execution(lane, bucket)
        # Padding rows keep the pixels of an earlier batch: rows do not affect each other, and the
        # outputs of the padding are not copied back.
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
        # The first run at a size also updates the context's state, which must not become part of
        # the graph.
        try:
            execution.graph = self._cuda.capture(execution.enqueue)
        except BackendError as error:
            self._graphs = False
            log.warning(
                "this engine runs without CUDA graphs, with slower launches: %s%s",
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

    def close(self) -> None:
        """Free graphs, contexts, engine and buffers; batches that were not collected are lost."""
        with self._lock:
            if self._contexts is None and not self._lanes:
                self._cuda.close()
                return
            try:
                self._free()
            finally:
                self._cuda.close()

    def _free(self) -> None:
        # TensorRT frees memory of the current device, which may be another one in this thread.
        with suppress(BackendError):
            self._cuda.use()
        self._cuda.settle()
        for lane in self._lanes:
            lane.fail("the model was closed before the batch finished")
        self._kernels.save()
        # Graphs use kernels of the contexts, and contexts use the memory that is freed last.
        self._cuda.destroy_graphs()
        for lane in self._lanes:
            # A batch that was not collected keeps its lanes, but must not keep their contexts.
            lane.executions.clear()
        self._lanes = []
        self._contexts = None
        self._kernels.close()


class Submitted(NamedTuple):
    """A batch in progress; see `Pending`."""

    lock: Lock
    cuda: Cuda
    lanes: list[Lane]
    job: Job

    def done(self) -> bool:
        with self.lock:
            return all(lane.is_done() for lane in self.lanes if lane.has(self.job))

    def collect(self) -> Outputs:
        """Wait for the batch and return its outputs."""
        with self.lock:
            for lane in self.lanes:
                if lane.has(self.job):
                    self.cuda.use()
                    lane.finish()
        if self.job.failure:
            raise self.job.failure
        return self.job.outputs


def open_model(path: Path, device: str = "auto") -> TensorRt:
    """Load an engine, after checking that its manifest, beside it, fits this machine.

    Raises:
        EngineError: the engine does not match its manifest, this GPU or this TensorRT.
        DeviceError: the GPU is absent, or TensorRT for RTX does not support it.
        DeviceMemoryError: the engine's largest batch does not fit the GPU's memory.
        BackendError: TensorRT is not installed, or fails; the message quotes it.
    """
    manifest = read_manifest(path)
    kind, index = parse_device(device)
    if kind == "cpu":
        raise DeviceError(f"--device cpu: {path.name} is a TensorRT engine, which needs a GPU")
    trt = _import(manifest)
    if index >= count_gpus():
        reason = explain_missing_gpu(f"NVIDIA's driver offers no GPU {index}")
        raise DeviceError(
            f"{path.name} is a TensorRT engine, but {reason}: run its ONNX file on the CPU instead"
        )
    gpu: Gpu = describe_gpu(index)
    here = TargetSystem(trt.__name__, trt.__version__, gpu.name, gpu.compute_capability, index)
    if trt.__name__ == "tensorrt_rtx":
        require_rtx_gpu(trt, gpu)
    require_runnable(manifest, here)
    load = partial(_load, trt, path, manifest, index)
    return run_interruptible(load, "ffd-engine", discard=TensorRt.close)


def _load(trt: Any, path: Path, manifest: EngineManifest, index: int) -> TensorRt:
    Cuda(index).close()  # The engine is loaded on the current device.
    logger = remembering_logger(trt)
    runtime = trt.Runtime(logger)
    # The lean runtime inside an engine is code. It runs only if the manifest states that ffd-export
    # put it there. The hash detects damage but not malice, of which docs/engines.md warns.
    runtime.engine_host_code_allowed = manifest.version_compatible and manifest.lean_runtime
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT cannot load {path}{logger.quote()}; {manifest.how_to_rebuild}")
    sizes = tuple(int(shape[0]) for shape in engine.get_tensor_profile_shape("image", 0))
    if sizes != manifest.batch:
        raise EngineError(
            f"engine {path} takes batches of {sizes}, but its manifest has {manifest.batch}; "
            f"{manifest.how_to_rebuild}"
        )
    return TensorRt(trt, engine, logger, manifest, index)


def _import(manifest: EngineManifest) -> Any:
    """Import the module that runs the engine; the lean one if the full one is not installed."""
    names = [manifest.builder]
    if manifest.builder == "tensorrt" and manifest.version_compatible:
        names.append("tensorrt_lean")
    reasons = []
    for name in names:
        try:
            return import_module(name)
        except (
            Exception
        ) as error:  # the module may raise anything, such as errors of the dynamic loader
            reasons.append(f"{name}: {first_line(error)}")
    extra = BACKENDS["tensorrt"].extras[names[0]]
    raise BackendError(
        f"the engine needs {' or '.join(names)} ({'; '.join(reasons)}): {install_hint(extra)}"
    )


def _fixed_sides(engine: Any, name: str) -> tuple[int, ...]:
    """Return the shape of an output, without the batch."""
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
    if library == "tensorrt_rtx":
        require_rtx_gpu(trt, describe_gpu(0))
    logger = remembering_logger(trt)
    if trt.Runtime(logger) is None:
        raise BackendError(f"its runtime does not start{logger.quote()}")
    return facts


def _probe_cuda() -> Facts:
    facts: Facts = {"version": import_module("cuda.bindings").__version__}
    api = import_module("cuda.bindings.runtime")
    if not count_gpus():
        return {**facts, "outcome": "loaded"}
    error, _ = api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking)
    if error != api.cudaError_t.cudaSuccess:
        raise BackendError(f"CUDA failed: {error.name}")
    return facts

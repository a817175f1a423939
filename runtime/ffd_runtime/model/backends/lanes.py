"""Lanes of the TensorRT backend: the buffers of one batch, and the contexts that use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError
from . import OUTPUTS, Outputs, failure
from .cuda import Buffer, Cuda, Handle
from .kernel_cache import KernelCache


@dataclass(eq=False)
class Job:
    """A submitted batch, which one or more lanes process.

    Attributes:
        outputs: of the whole batch; complete when no lane holds a chunk of it.
        failure: why the batch has no outputs.
    """

    outputs: Outputs
    failure: BackendError | None = None


class Execution:
    """An execution context on a lane, for one bucket.

    Attributes:
        graph: the captured CUDA graph; None before the capture.
    """

    def __init__(self, context: Any, cuda: Cuda) -> None:
        self._context = context
        self._stream = cuda.stream_address
        self.graph: Handle | None = None

    def enqueue(self) -> bool:
        """Enqueue the inference, and return whether TensorRT accepted it."""
        return bool(self._context.execute_async_v3(self._stream))


class Contexts:
    """Creates execution contexts of an engine, which share their memory.

    A CUDA graph is bound to the state of its context, so each bucket needs a context. They run one
    after the other, so one block of memory is enough. Only TensorRT for RTX uses the kernel cache.
    """

    def __init__(
        self, trt: Any, engine: Any, logger: Any, cuda: Cuda, kernels: KernelCache
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._logger = logger
        self._size = max(int(engine.device_memory_size_v2), 1)
        self._memory = cuda.take_device(self._size)
        self._kernels = kernels

    def make(self, shape: tuple[int, ...], addresses: dict[str, int]) -> Any:
        """Create a context for one shape of `image`, with device addresses by tensor."""
        try:
            context = self._create()
        except BackendError:
            raise
        except Exception as error:  # some failures raise, others return None
            raise failure(f"TensorRT cannot create an execution context: {error}") from error
        if context is None:
            raise failure(f"TensorRT cannot create an execution context{self._logger.quote()}")
        context.set_device_memory(self._memory, self._size)
        if not context.set_input_shape("image", shape):
            raise BackendError(f"TensorRT rejects a batch of {shape[0]}{self._logger.quote()}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BackendError(
                    f"TensorRT rejects the address {address:#x} of {name}{self._logger.quote()}"
                )
        return context

    def _create(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._trt.__name__ != "tensorrt_rtx":
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels are compiled here; without a shared cache, for each context again.
        if not config.set_runtime_cache(self._kernels.open(config)):
            raise BackendError(f"TensorRT rejects its runtime cache{self._logger.quote()}")
        return self._engine.create_execution_context(config)


class Lane:
    """The tensors of one chunk of a batch, and the executions that use them.

    Attributes:
        age: number of the chunk, in the order of submission; 0 while the lane is free.
    """

    def __init__(self, cuda: Cuda, shapes: dict[str, tuple[int, ...]]) -> None:
        self._cuda = cuda
        self.image = Buffer(cuda, shapes["image"], np.uint8)
        self.outputs = [Buffer(cuda, shapes[name], np.float32) for name in OUTPUTS]
        self.executions: dict[int, Execution] = {}
        self.age = 0
        self._chunk: tuple[Job, slice] | None = None
        self._arrived = cuda.make_event()
        self._done = cuda.make_event()

    @property
    def addresses(self) -> dict[str, int]:
        """The address of each tensor on the device."""
        buffers = zip(OUTPUTS, self.outputs, strict=True)
        return {"image": self.image.device, **{name: buffer.device for name, buffer in buffers}}

    def give(self, job: Job, rows: slice, age: int) -> None:
        """Record which rows of a job the lane processes."""
        self._chunk = job, rows
        self.age = age

    def has(self, job: Job) -> bool:
        """Return whether the lane holds a chunk of a job."""
        return self._chunk is not None and self._chunk[0] is job

    def drop(self, job: Job) -> None:
        """Forget a failed job; the GPU must have finished it."""
        if self.has(job):
            self._take()

    def fail(self, message: str) -> None:
        """Fail the job of which the lane holds a chunk, if any."""
        if chunk := self._take():
            chunk[0].failure = BackendError(message)

    def _take(self) -> tuple[Job, slice] | None:
        chunk, self._chunk, self.age = self._chunk, None, 0
        return chunk

    def copy_in(self, images: npt.NDArray[np.uint8]) -> None:
        """Copy images to the device during an inference; the next one waits for the copy."""
        cuda = self._cuda
        self.image.host[: len(images)] = images
        self.image.to_device(len(images), cuda.copies)
        cuda.call(cuda.api.cudaEventRecord(self._arrived, cuda.copies))
        cuda.call(cuda.api.cudaStreamWaitEvent(cuda.stream, self._arrived, 0))

    def copy_out(self, count: int) -> None:
        """Copy outputs to the host after the inference."""
        for buffer in self.outputs:
            buffer.to_host(count, self._cuda.stream)
        self._cuda.call(self._cuda.api.cudaEventRecord(self._done, self._cuda.stream))

    def is_done(self) -> bool:
        """Return whether `finish` returns without waiting."""
        return self._cuda.is_reached(self._done)

    def finish(self) -> None:
        """Wait for the chunk and copy its outputs to its job; then the lane is free.

        A failure is stored in the job. An interruption is stored there and raised.
        """
        chunk = self._take()
        if chunk is None:
            return
        job, rows = chunk
        try:
            self._cuda.call(self._cuda.api.cudaEventSynchronize(self._done))
            targets = (job.outputs.probability, job.outputs.heatmap)
            for target, buffer in zip(targets, self.outputs, strict=True):
                target[rows] = buffer.host[: rows.stop - rows.start]
        except BackendError as error:
            job.failure = error
        except BaseException:
            job.failure = BackendError("the batch was interrupted")
            # The GPU may still write to the buffers that the next batch uses.
            self._cuda.settle()
            raise

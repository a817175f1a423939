"""Lanes of the TensorRT backend: buffers of one batch, and the contexts that run over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError
from . import OUTPUTS, Outputs, failure
from .cuda import Buffer, Cuda, Handle
from .kernel_cache import KernelCache


class Job:
    """A batch that was submitted, for which lanes are at work.

    Attributes:
        outputs: of the whole batch; complete once `failure` is None and no lane has a part of it.
        failure: why there are no outputs.
    """

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.failure: BackendError | None = None


class Execution:
    """An execution context on a lane, for one bucket.

    Attributes:
        graph: what was captured of it; None for nothing yet.
    """

    def __init__(self, context: Any, cuda: Cuda) -> None:
        self._context = context
        self._stream = cuda.stream_address
        self.graph: Handle | None = None

    def enqueue(self) -> bool:
        """Let TensorRT enqueue the inference; whether it did."""
        return bool(self._context.execute_async_v3(self._stream))

    def can_be_captured(self) -> bool:
        """Whether a CUDA graph can be captured; True where TensorRT cannot be asked."""
        # Only TensorRT for RTX has it: it may compile or allocate while it enqueues.
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._stream))


class Contexts:
    """Makes an engine's execution contexts, which all work in the same memory.

    A CUDA graph is bound to the state of the context that it was captured from, so each bucket
    needs its own. They run one after the other, so one block of memory is enough.

    Args:
        trt: the module that runs the engine.
        engine: its `ICudaEngine`.
        logger: quotes TensorRT.
        cuda: the GPU.
        kernels: keeps what TensorRT for RTX compiles; other modules do not use it.
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
        """Make a context for one shape of the input.

        Args:
            shape: of `image`.
            addresses: of every tensor, on the device.
        """
        try:
            context = self._create()
        except BackendError:
            raise
        except Exception as error:  # what the module raises beside returning None
            raise failure(f"TensorRT gave no execution context: {error}") from error
        if context is None:
            raise failure(f"TensorRT gave no execution context{self._logger.quote()}")
        context.set_device_memory(self._memory, self._size)
        if not context.set_input_shape("image", shape):
            raise BackendError(f"TensorRT refuses a batch of {shape[0]}{self._logger.quote()}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise BackendError(
                    f"TensorRT refuses the address {address:#x} of {name}{self._logger.quote()}"
                )
        return context

    def _create(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._trt.__name__ != "tensorrt_rtx":
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # Kernels are compiled here, for each context again if they shared no cache.
        if not config.set_runtime_cache(self._kernels.open(config)):
            raise BackendError(f"TensorRT refuses its runtime cache{self._logger.quote()}")
        return self._engine.create_execution_context(config)


class Lane:
    """The tensors of one part of a batch, and what runs over them.

    Attributes:
        age: place in the order in which lanes were given their parts; 0 while the lane is free.

    Args:
        cuda: where memory and events come from.
        shapes: by tensor, for the largest batch.
    """

    def __init__(self, cuda: Cuda, shapes: dict[str, tuple[int, ...]]) -> None:
        self._cuda = cuda
        self.image = Buffer(cuda, shapes["image"], np.uint8)
        self.outputs = [Buffer(cuda, shapes[name], np.float32) for name in OUTPUTS]
        self.executions: dict[int, Execution] = {}
        self.age = 0
        self._part: tuple[Job, slice] | None = None
        self._arrived = cuda.make_event()
        self._done = cuda.make_event()

    @property
    def addresses(self) -> dict[str, int]:
        """Of every tensor, on the device."""
        buffers = zip(OUTPUTS, self.outputs, strict=True)
        return {"image": self.image.device, **{name: buffer.device for name, buffer in buffers}}

    def give(self, job: Job, rows: slice, age: int) -> None:
        """Note whose rows the lane was given."""
        self._part = job, rows
        self.age = age

    def has(self, job: Job) -> bool:
        """Whether the lane holds a part of a job."""
        return self._part is not None and self._part[0] is job

    def drop(self, job: Job) -> None:
        """Forget a job that failed; the GPU must be done with it."""
        if self.has(job):
            self._take()

    def fail(self, message: str) -> None:
        """Fail the job that the lane holds a part of, if any."""
        if part := self._take():
            part[0].failure = BackendError(message)

    def _take(self) -> tuple[Job, slice] | None:
        part, self._part, self.age = self._part, None, 0
        return part

    def copy_in(self, images: npt.NDArray[np.uint8]) -> None:
        """Copy images to the device beside a running inference, and let the next wait for them."""
        self.image.host[: len(images)] = images
        self.image.to_device(len(images), self._cuda.copies)
        self._cuda.record(self._arrived, self._cuda.copies)
        self._cuda.make_wait(self._cuda.stream, self._arrived)

    def copy_out(self, count: int) -> None:
        """Copy outputs to the host, once they are inferred."""
        for buffer in self.outputs:
            buffer.to_host(count, self._cuda.stream)
        self._cuda.record(self._done, self._cuda.stream)

    def is_done(self) -> bool:
        """Whether `finish` does not wait."""
        return self._cuda.is_reached(self._done)

    def finish(self) -> None:
        """Wait for the part and copy its outputs to its job; then the lane is free.

        A failure becomes the job's own. An interruption is raised, and fails the job too.
        """
        part = self._take()
        if part is None:
            return
        job, rows = part
        try:
            self._cuda.wait(self._done)
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

"""Data loaders that choose their workers, measure waiting, and explain full shared memory."""

from __future__ import annotations

import errno
import os
import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import FfdError
from ffd_runtime.core.opencv_threads import limit_opencv_threads
from ffd_runtime.core.text import counted

from .dataset import FaceDataset
from .world import World

SHARED_MEMORY = "/dev/shm"  # noqa: S108 (only its size is read)
# PyTorch's messages about exhausted shared memory.
NO_SHARED_MEMORY = re.compile(
    r"(?i)(?=.*(shared memory|/dev/shm|\bshm\b))"
    r".*(no space left|cannot allocate memory|out of shared memory|bus error)[^\n]*",
    re.DOTALL,
)


class TimedLoader(DataLoader[tuple[Tensor, int]]):
    """A data loader that measures the time spent waiting for it.

    Attributes:
        waited: seconds waited since the iteration began.

    Args:
        dataset: preprocessed images and labels.
        workers: worker processes; None for one per core of this process, at most one per batch.
        options: options of `DataLoader`.
    """

    def __init__(self, dataset: FaceDataset, workers: int | None = None, **options: Any) -> None:
        if workers is None:
            cores = count_cores() // World.from_environment().local_size
            batches = options.get("batch_sampler")
            count = -(-len(dataset) // options["batch_size"]) if batches is None else len(batches)
            workers = max(1, min(cores, count))
        super().__init__(
            dataset,
            num_workers=workers,
            worker_init_fn=_init_worker,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # A separate generator, so that starting workers does not advance the one of dropout.
            generator=torch.Generator(),
            **options,
        )
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches.

        Raises:
            SharedMemoryError: the shared memory is too small for the workers' batches.
        """
        start = time.monotonic()
        # A forked worker would wait for threads of OpenCV that it does not have.
        with self._sharing(), limit_opencv_threads(1):
            batches = super().__iter__()
        self.waited = time.monotonic() - start
        try:
            while True:
                start = time.monotonic()
                try:
                    with self._sharing():
                        batch = next(batches)
                except StopIteration:
                    return
                self.waited += time.monotonic() - start
                yield batch
        finally:
            # After an error, the garbage collector would wait 5 s for each worker.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Replace an error about shared memory by one that names the remedy."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if not self.num_workers or not _lacks_shared_memory(error):
                raise
            _quieten(error)
            raise SharedMemoryError(self.num_workers) from None


class SharedMemoryError(FfdError):
    """The shared memory is too small for the workers' batches."""

    def __init__(self, workers: int) -> None:
        super().__init__(
            f"{SHARED_MEMORY} is too small{_describe_space()} for the batches of "
            f"{counted(workers, 'loading worker')}: enlarge it (docker run --shm-size 2g, or "
            "--ipc host), or use fewer --workers; --workers 0 needs none"
        )


def _lacks_shared_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is about exhausted shared memory."""
    if isinstance(error, OSError) and error.errno is not None:
        # Loaders write nowhere else.
        return error.errno == errno.ENOSPC
    # The signal that killed a worker is in the cause.
    return error is not None and (
        NO_SHARED_MEMORY.match(str(error)) is not None or _lacks_shared_memory(error.__cause__)
    )


def _quieten(error: BaseException) -> None:
    """Keep a partly constructed iterator from printing a traceback when it is freed."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, _MultiProcessingDataLoaderIter) and not hasattr(owner, "_shutdown"):
            # `__del__` reads it; no worker has been started.
            owner._shutdown = True


def _describe_space() -> str:
    """Describe the shared memory, such as ` (3 of 64 MiB free)`; empty if unknown."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):
        return ""
    size, free = (count * status.f_frsize / 2**20 for count in (status.f_blocks, status.f_bavail))
    return f" ({free:.0f} of {size:.0f} MiB free)"


def _collate(samples: list[tuple[Tensor, int]]) -> Any:
    """Collate a batch; in a worker, move it to shared memory.

    Otherwise a thread of the worker would move it, and if that failed, the error would be lost and
    the loader would wait forever.
    """
    batch = default_collate(samples)
    if get_worker_info() is not None:
        for tensor in batch:
            tensor.share_memory_()
    return batch


def _init_worker(_: int) -> None:
    # Spawned workers start with OpenCV's default.
    cv2.setNumThreads(1)

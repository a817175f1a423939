"""Loaders: how many workers, what they need, and how long training waits for them."""

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

from ffd_runtime.core.errors import FfdError
from ffd_runtime.core.text import counted
from ffd_runtime.model.devices import count_cores

from .data import FaceDataset
from .world import Processes

SHARED_MEMORY = "/dev/shm"  # noqa: S108 (only its size is read)
# What PyTorch says, in a worker or of one, where shared memory cannot be had.
NO_SHARED_MEMORY = re.compile(
    r"(?i)(?=.*(shared memory|/dev/shm|\bshm\b))"
    r".*(no space left|cannot allocate memory|out of shared memory|bus error)[^\n]*",
    re.DOTALL,
)


class TimedLoader(DataLoader[tuple[Tensor, int]]):
    """A loader of faces that knows how long it was waited for.

    Attributes:
        waited: seconds, since its iteration was begun.

    Args:
        dataset: of preprocessed images and labels.
        workers: processes that load; None for one a core of this process, but no more than there
            are batches.
        options: of `DataLoader`.
    """

    def __init__(self, dataset: FaceDataset, workers: int | None = None, **options: Any) -> None:
        if workers is None:
            cores = count_cores() // Processes.here().local_count
            workers = max(1, min(cores, _count_batches(dataset, options)))
        super().__init__(
            dataset,
            num_workers=workers,
            worker_init_fn=_init_worker,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # Of its own, so that starting workers draws nothing from what dropout draws from.
            generator=torch.Generator(),
            **options,
        )
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches, as they are loaded.

        Raises:
            SharedMemoryError: what workers hand over does not fit the shared memory.
        """
        start = time.monotonic()
        with self._sharing():
            batches = super().__iter__()
        self.waited = time.monotonic() - start
        while True:
            start = time.monotonic()
            try:
                with self._sharing():
                    batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield batch

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Replace the error of a worker without shared memory by one that says what to do."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if not self.num_workers or not _lacks_shared_memory(error):
                raise
            _quieten(error)
            raise SharedMemoryError(self.num_workers) from None


class SharedMemoryError(FfdError):
    """Workers hand batches over in shared memory, and there is too little of it.

    Args:
        workers: processes that load.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(
            f"{SHARED_MEMORY} has too little room{_room()} for the batches of "
            f"{counted(workers, 'loading worker')}: enlarge it (docker run --shm-size 2g, or "
            "--ipc host), or use fewer --workers; --workers 0 needs none"
        )


def _lacks_shared_memory(error: BaseException | None) -> bool:
    """Whether an error of a loader, or what it came from, says that shared memory has run out."""
    if isinstance(error, OSError) and error.errno is not None:
        # Queues and locks are made there, and nothing else is written.
        return error.errno == errno.ENOSPC
    # Of a worker that was killed, the signal is in the cause.
    return error is not None and (
        NO_SHARED_MEMORY.match(str(error)) is not None or _lacks_shared_memory(error.__cause__)
    )


def _quieten(error: BaseException) -> None:
    """Keep an iterator that was not made to its end from printing a traceback when it is freed."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, _MultiProcessingDataLoaderIter) and not hasattr(owner, "_shutdown"):
            # What `__del__` asks for: it has started no worker.
            owner._shutdown = True


def _room() -> str:
    """The size of the shared memory, for people; empty where that is unknown."""
    try:
        there = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):
        return ""
    size, free = (count * there.f_frsize / 2**20 for count in (there.f_blocks, there.f_bavail))
    return f" ({free:.0f} of {size:.0f} MiB free)"


def _collate(samples: list[tuple[Tensor, int]]) -> Any:
    """A batch; in a worker, all of it in shared memory.

    What is not there yet is moved by a thread of the worker, whose error nobody would hear: the
    loader would wait for ever.
    """
    batch = default_collate(samples)
    if get_worker_info() is not None:
        for tensor in batch:
            tensor.share_memory_()
    return batch


def _count_batches(dataset: FaceDataset, options: dict[str, Any]) -> int:
    batches = options.get("batch_sampler")
    return len(batches) if batches is not None else -(-len(dataset) // options["batch_size"])


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """No pool of threads in OpenCV: a forked worker would wait for those that it does not have."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _init_worker(_: int) -> None:
    # Where workers are not forked, they begin with OpenCV's own number.
    cv2.setNumThreads(1)

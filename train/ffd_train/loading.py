"""Loaders: how many workers, what they need, and how long training waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ffd_runtime.devices import count_cores

from .data import FaceDataset
from .processes import Processes


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
            pin_memory=torch.cuda.is_available(),
            # Of its own, so that starting workers draws nothing from what dropout draws from.
            generator=torch.Generator(),
            **options,
        )
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = time.monotonic()
        batches = super().__iter__()
        self.waited = time.monotonic() - start
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - start
            yield batch


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

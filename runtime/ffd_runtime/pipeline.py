"""From inputs to rows: read, decode and preprocess in threads, infer in batches, keep the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, Queue
from threading import Semaphore, Thread
from typing import Self

import numpy as np

from .backends import Backend
from .card import ModelCard, PreprocessSpec
from .decode import MAX_PIXELS, Image, decode, read_file
from .errors import InputError
from .preprocess import preprocess
from .results import Result
from .sources import Item

Prepared = tuple[str, Image | InputError]

# Seconds for which a batch that is not full waits for a source: longer than a disk needs.
GRACE = 0.05


def classify_items(
    items: Iterable[Item],
    backend: Backend,
    *,
    batch: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Result]:
    """A row for every item, in the order of the items.

    At most three batches and one image a worker are held in memory, however many items there are. A
    batch is not waited for: when the source has nothing ready, what has come is inferred.

    Args:
        items: read as rows are taken.
        backend: runs in the calling thread while workers prepare what comes next.
        batch: images that are inferred together; the last batch may be smaller.
        workers: threads that read, decode and preprocess.
        max_pixels: see `decode`.
    """
    waiting: list[Prepared] = []
    with _PrepareAhead(items, backend.card.preprocess, max_pixels, workers, 2 * batch) as ahead:
        for prepared in ahead:
            if prepared is not None:
                waiting.append(prepared)
            if prepared is None or len(waiting) == batch:
                yield from infer_prepared(waiting, backend)
                waiting = []
        yield from infer_prepared(waiting, backend)


def infer_prepared(prepared: list[Prepared], backend: Backend) -> Iterator[Result]:
    """Rows of one batch, errors at their places."""
    images = [image for _, image in prepared if not isinstance(image, InputError)]
    scores = iter(backend.infer(np.stack(images)).probability[:, 0].tolist() if images else ())
    for source, image in prepared:
        if isinstance(image, InputError):
            yield Result.failed(source, image)
        else:
            yield _judge(source, next(scores), backend.card)


def prepare(item: Item, spec: PreprocessSpec, max_pixels: int = MAX_PIXELS) -> Prepared:
    """Read, decode and preprocess one item; what goes wrong becomes part of the result."""
    if item.error:
        return item.source, item.error
    try:
        image = decode(read_file(item.source), max_pixels)
        return item.source, preprocess(image, spec)
    except InputError as error:
        return item.source, error
    except MemoryError:
        return item.source, InputError("too_large", "not enough memory for it")
    except Exception as error:  # whatever one file does, the run goes on
        reason = f"{type(error).__name__}: {error}"
        return item.source, InputError("corrupt", f"it cannot be processed ({reason})")


class _PrepareAhead:
    """Iterates over prepared items, in order; a None says that the source has nothing ready.

    A thread takes items from the source, so that a source that waits (a person, a program that
    wants a verdict before it names the next file) holds up nothing that has come already.

    Args:
        items: the source.
        spec: preprocessing.
        max_pixels: see `decode`.
        workers: threads that prepare.
        ahead: items that may be under way or ready.
    """

    def __init__(
        self,
        items: Iterable[Item],
        spec: PreprocessSpec,
        max_pixels: int,
        workers: int,
        ahead: int,
    ) -> None:
        self._items = items
        self._prepare = partial(prepare, spec=spec, max_pixels=max_pixels)
        self._pool = ThreadPoolExecutor(workers, "ffd-prepare")
        # None ends the queue; an exception is the source's own.
        self._queue: Queue[Future[Prepared] | BaseException | None] = Queue()
        self._room = Semaphore(ahead + workers)
        self._stop = False
        self._reader = Thread(target=self._read, name="ffd-read", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __iter__(self) -> Iterator[Prepared | None]:
        while True:
            try:
                entry = self._queue.get(timeout=GRACE)
            except Empty:
                yield None
                entry = self._queue.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                yield None
                raise entry
            yield entry.result()
            self._room.release()

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._room.release()
        # However this ends, nothing that has not begun is waited for.
        self._pool.shutdown(cancel_futures=True)

    def _read(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._stop:
                    return
                self._queue.put(self._pool.submit(self._prepare, item))
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)


def _judge(source: str, score: float, card: ModelCard) -> Result:
    if not 0 <= score <= 1:
        return Result.failed(
            source, InputError("bad_output", f"the model gave {score} instead of a probability")
        )
    return Result(source, label=card.verdict(score), score=score)

"""From inputs to rows: read, decode and preprocess in threads, infer in batches, keep the order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .backends import Backend
from .card import ModelCard, PreprocessSpec
from .decode import MAX_PIXELS, Image, decode, read_file
from .errors import InputError
from .preprocess import preprocess
from .results import Result
from .sources import Item

Prepared = tuple[str, Image | InputError]


def classify_items(
    items: Iterable[Item],
    backend: Backend,
    *,
    batch: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Result]:
    """A row for every item, in the order of the items.

    At most two batches and one image a worker are held in memory, however many items there are.

    Args:
        items: read as rows are taken.
        backend: runs in the calling thread while workers prepare what comes next.
        batch: images that are inferred together; the last batch may be smaller.
        workers: threads that read, decode and preprocess.
        max_pixels: see `decode`.
    """
    waiting: list[Prepared] = []
    images = 0
    with ThreadPoolExecutor(workers, "ffd-prepare") as pool:
        for prepared in _prepare_ahead(
            pool, items, backend.card.preprocess, max_pixels, 2 * batch + workers
        ):
            waiting.append(prepared)
            images += not isinstance(prepared[1], InputError)
            if images == batch or len(waiting) >= 4 * batch:
                yield from infer_prepared(waiting, backend)
                waiting, images = [], 0
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


def _prepare_ahead(
    pool: ThreadPoolExecutor,
    items: Iterable[Item],
    spec: PreprocessSpec,
    max_pixels: int,
    ahead: int,
) -> Iterator[Prepared]:
    pending: deque[Future[Prepared]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(prepare, item, spec, max_pixels))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _judge(source: str, score: float, card: ModelCard) -> Result:
    if not 0 <= score <= 1:
        return Result.failed(
            source, InputError("bad_output", f"the model gave {score} instead of a probability")
        )
    return Result(source, label=card.verdict(score), score=score)

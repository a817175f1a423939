"""Turn inputs into rows: read and preprocess in threads, infer in batches, keep the order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from queue import Empty, Queue
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..image.decode import MAX_PIXELS, Image, decode_with_header
from ..image.preprocess import preprocess
from ..inputs import Item
from ..model.backends import Backend, Finished, Pending
from ..model.card import ModelCard, PreprocessSpec
from ..model.within_memory import WithinMemory
from .errors import BackendError, DeviceMemoryError, InputError
from .opencv_threads import limit_opencv_threads
from .results import Box, Result

if TYPE_CHECKING:
    from ..image.faces import Face, FaceDetector

log = logging.getLogger(__name__)

# How long an incomplete batch waits for its source: longer than a disk needs.
IDLE_SECONDS = 0.05
# Largest file whose bytes are kept for sinks that show it: larger ones would fill memory. Sinks
# read larger files again, but cannot read archives and web addresses.
MAX_KEPT_BYTES = 1 << 23
MAX_KEPT_FETCHED_BYTES = 1 << 25
# Faces that are classified in one image: those of a crowd would fill memory.
MAX_FACES = 64
# The reason of an image whose other frames were not classified.
ANIMATION = "animation"
# How long the end of a run waits for images that are being prepared.
JOIN_SECONDS = 2.0


class Prepared(NamedTuple):
    """A preprocessed input. `Result` describes the fields that are not listed.

    Attributes:
        image: uint8 [size, size, 3], RGB, or the reason why it failed; for `prepare_faces` the
            decoded image.
        encoded: the file's bytes, if sinks need them and they are within the limit.
    """

    source: str
    image: Image | InputError
    encoded: bytes | None = None
    frame: int | None = None
    face: Box | None = None
    reason: str | None = None
    time: float | None = None


def classify_items(
    items: Iterable[Item],
    backend: Backend,
    *,
    batch: int,
    workers: int,
    max_pixels: int = MAX_PIXELS,
    keep_encoded: bool = False,
    detector: FaceDetector | None = None,
) -> Generator[Result, None, None]:
    """Yield a row for every item, or for every face in it, in the order of the items.

    Memory holds at most three batches, the batches that run on the backend, and one image for each
    worker. With `keep_encoded`, up to `MAX_KEPT_BYTES` of each file are added, or
    `MAX_KEPT_FETCHED_BYTES`. When the source has nothing ready, an incomplete batch is inferred.
    OpenCV uses one thread for each call meanwhile.

    Args:
        items: read as rows are taken.
        backend: runs in the calling thread while workers prepare the next images.
        batch: images in a batch; the last batch may be smaller.
        workers: threads that read, decode and preprocess.
        max_pixels: see `decode`.
        keep_encoded: whether rows carry the bytes of their files, for sinks that show images.
        detector: finds the faces to classify; None to classify whole images.
    """
    work = partial(
        prepare_views,
        spec=backend.card.preprocess,
        max_pixels=max_pixels,
        keep_encoded=keep_encoded,
        detector=detector,
    )
    batches = Batches(backend, batch)
    waiting: list[Prepared] = []
    # The workers use all cores, so more threads in OpenCV would only compete with them.
    with limit_opencv_threads(1), _PrepareAhead(items, work, workers, 2 * batch) as ahead:
        for prepared in ahead:
            waiting += prepared or ()
            while len(waiting) >= batch:
                yield from batches.submit(waiting[:batch])
                del waiting[:batch]
            yield from batches.ready()
            if prepared is None:
                yield from batches.infer(waiting)
                waiting = []
        yield from batches.infer(waiting)


def infer_prepared(prepared: list[Prepared], backend: Backend) -> Iterator[Result]:
    """Yield the rows of one batch, with errors at their positions."""
    return Batches(backend, len(prepared)).infer(prepared)


def prepare(item: Item, spec: PreprocessSpec) -> Prepared:
    """Read, decode and preprocess one item; an error becomes part of the result."""
    (prepared,) = prepare_views(item, spec)
    return prepared


def prepare_views(
    item: Item,
    spec: PreprocessSpec,
    max_pixels: int = MAX_PIXELS,
    keep_encoded: bool = False,
    detector: FaceDetector | None = None,
) -> list[Prepared]:
    """Return the preprocessed faces of one item, or without a detector the whole image.

    An error, or an image without a face, gives one entry with the error. The list is empty only for
    a file in a folder or an archive that is not an image; `Item.skip` receives its name.
    """
    encoded = None
    try:
        encoded = item.read()
        # A small face in a large image needs all its pixels.
        at_least = 0 if detector else spec.decode_side
        image, header = decode_with_header(encoded, max_pixels, at_least)
        limit = MAX_KEPT_FETCHED_BYTES if item.fetch else MAX_KEPT_BYTES
        kept = encoded if keep_encoded and len(encoded) <= limit else None
        reason = ANIMATION if header.animated else None
        whole = Prepared(item.source, image, kept, reason=reason)
        if detector is None:
            return [whole._replace(image=preprocess(image, spec))]
        faces = detector.detect(image)
        if not faces:
            raise InputError("no_face", "no face was found")
        return prepare_faces(whole, faces, spec)
    except InputError as error:
        # Without its traceback, which would keep the bytes of the file in memory.
        failure = InputError(error.code, error.message)
    except MemoryError:
        failure = InputError("too_large", "not enough memory for this image")
    except Exception as error:  # the run continues after any failure of one file
        reason = f"{type(error).__name__}: {error}"
        failure = InputError("corrupt", f"the image cannot be processed ({reason})")
    if item.skip and item.is_not_image(encoded, failure):
        item.skip(item.source)
        return []
    return [Prepared(item.source, failure)]


def prepare_faces(whole: Prepared, faces: Sequence[Face], spec: PreprocessSpec) -> list[Prepared]:
    """Cut out and preprocess the faces of a decoded image, at most `MAX_FACES`."""
    image = whole.image
    assert not isinstance(image, InputError)
    return [
        whole._replace(
            image=preprocess(image, spec, face.box),
            face=face.box,
            reason=face.reason or whole.reason,
        )
        for face in faces[:MAX_FACES]
    ]


class Batches:
    """Runs batches of at most `most` images from one buffer, on all lanes of the backend."""

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = WithinMemory.of(backend)
        self._lanes = self._backend.lanes
        size = backend.card.preprocess.size
        self._pixels = np.empty((most, size, size, 3), np.uint8)
        # The oldest first; None for a batch without a readable image.
        self._under_way: deque[tuple[list[Prepared], Pending | None]] = deque()

    def infer(self, prepared: list[Prepared]) -> Iterator[Result]:
        """Yield the rows of earlier batches, then those of these inputs."""
        yield from self.submit(prepared)
        while self._under_way:
            yield from self._collect()

    def submit(self, prepared: list[Prepared]) -> Iterator[Result]:
        """Start a batch, and yield the rows that are ready; a synchronous backend returns all."""
        # Start this batch before the caller uses the oldest rows, so that the device stays busy.
        rows: list[Result] = []
        while len(self._under_way) >= self._lanes:
            rows += self._collect()
        try:
            self._under_way.append((prepared, self._start(self._stack(prepared), rows)))
        except BackendError:
            yield from rows
            while self._under_way:
                yield from self._collect()
            raise
        yield from rows
        yield from self.ready()

    def ready(self) -> Iterator[Result]:
        """Yield the rows of finished batches, without waiting."""
        while self._under_way and ((first := self._under_way[0][1]) is None or first.done()):
            yield from self._collect()

    def _stack(self, prepared: list[Prepared]) -> npt.NDArray[np.uint8]:
        count = 0
        for entry in prepared:
            if not isinstance(entry.image, InputError):
                self._pixels[count] = entry.image
                count += 1
        return self._pixels[:count]

    def _start(self, images: npt.NDArray[np.uint8], rows: list[Result]) -> Pending | None:
        """Start a batch. When memory is short, finish the others first, and add their rows."""
        if not len(images):
            return None
        try:
            return self._backend.submit(images)
        except DeviceMemoryError as error:
            if not self._under_way:
                return Finished(self._backend.infer(images))
            self._lanes = 1
            log.warning("%s; continuing with one batch at a time", error)
        while self._under_way:
            rows += self._collect()
        return Finished(self._backend.infer(images))

    def _collect(self) -> Iterator[Result]:
        """Wait for the oldest batch, and yield its rows."""
        prepared, pending = self._under_way.popleft()
        outputs: Iterator[tuple[float, npt.NDArray[np.float32]]] = iter(())
        if pending:
            given = pending.collect()
            outputs = zip(given.probability[:, 0].tolist(), given.heatmap, strict=True)
        for entry in prepared:
            if isinstance(entry.image, InputError):
                yield Result.failed(entry.source, entry.image)
            else:
                yield _judge(entry, *next(outputs), self._backend.card)


class _PrepareAhead:
    """Iterates over prepared items in order; yields None when the source has nothing ready.

    A thread reads the source, so that a source that waits does not delay earlier items: a program
    may want a verdict before it names the next file. All threads are daemons, because a server that
    does not respond must not prevent the exit. At most `ahead` items, and one for each worker, are
    in preparation or ready.
    """

    def __init__(
        self,
        items: Iterable[Item],
        work: Callable[[Item], list[Prepared]],
        workers: int,
        ahead: int,
    ) -> None:
        self._items = items
        self._work = work
        # None ends the queue; an exception was raised by the source.
        self._queue: Queue[Future[list[Prepared]] | BaseException | None] = Queue()
        self._tasks: Queue[tuple[Item, Future[list[Prepared]]] | None] = Queue()
        self._room = Semaphore(ahead + workers)
        self._stop = False
        self._reader = Thread(target=self._read, name="ffd-read", daemon=True)
        self._workers = [
            Thread(target=self._prepare, name=f"ffd-prepare-{i}", daemon=True)
            for i in range(workers)
        ]

    def __enter__(self) -> Self:
        for thread in (self._reader, *self._workers):
            thread.start()
        return self

    def __iter__(self) -> Iterator[list[Prepared] | None]:
        while True:
            try:
                entry = self._queue.get(timeout=IDLE_SECONDS)
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
        # Work that has not begun is skipped.
        self._stop = True
        self._room.release()
        for _worker in self._workers:
            self._tasks.put(None)
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._workers:
            thread.join(max(0.0, deadline - time.monotonic()))
        # It may be waiting for its source, which cannot be interrupted.
        self._reader.join(IDLE_SECONDS)

    def _read(self) -> None:
        try:
            for item in self._items:
                self._room.acquire()
                if self._stop:
                    return
                future: Future[list[Prepared]] = Future()
                self._tasks.put((item, future))
                self._queue.put(future)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _prepare(self) -> None:
        while (task := self._tasks.get()) is not None:
            item, future = task
            if self._stop:
                continue
            try:
                future.set_result(self._work(item))
            except BaseException as error:
                future.set_exception(error)


def _judge(
    entry: Prepared, score: float, heatmap: npt.NDArray[np.float32], card: ModelCard
) -> Result:
    if not 0 <= score <= 1:
        message = f"the model returned {score} instead of a probability"
        failed = Result.failed(entry.source, InputError("bad_output", message))
        return replace(failed, frame=entry.frame, face=entry.face, time=entry.time)
    label, reason = card.verdict(score), entry.reason
    if reason == ANIMATION and label == "generated":
        # Its other frames cannot change this verdict.
        reason = None
    return Result(
        entry.source,
        frame=entry.frame,
        face=entry.face,
        label="unsure" if reason else label,
        score=score,
        reason=reason,
        time=entry.time,
        heatmap=heatmap,
        encoded=entry.encoded,
    )

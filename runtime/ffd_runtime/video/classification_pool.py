"""Classify the frames of a feed in a pool of threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import Self

from ..core.cores import count_cores
from ..core.errors import FfdError, InputError
from ..core.opencv_threads import limit_opencv_threads
from ..core.results import Result
from .feed import TICK_SECONDS, Feed
from .frame_classifier import FrameClassifier
from .frame_result import Frame
from .stream_reader import StreamReader

JOIN_TIMEOUT_SECONDS = 2.0


@dataclass(eq=False)
class ClassifiedFrame:
    """A frame and its results.

    Attributes:
        inference: seconds in the face detector and the model.
        failure: why there are no results; None if there are.
        done: True once the attributes above are final.
    """

    queue: SourceQueue
    frame: Frame
    results: list[Result] = field(default_factory=list)
    inference: float = 0.0
    failure: InputError | None = None
    done: bool = False


@dataclass(eq=False)
class SourceQueue:
    """The frames of one source that are being classified.

    Attributes:
        limit: maximum number of frames in the pool.
        in_flight: number of frames taken and not yet released.
        order: frames not yet delivered, in the order of the source.
    """

    reader: StreamReader
    limit: int
    in_flight: int = 0
    order: deque[ClassifiedFrame] = field(default_factory=deque)


class ClassificationPool:
    """Iterate over the classified frames of a feed; a context manager.

    Threads take frames from the sources in turn, so that no source delays another. Frames of one
    source keep their order. A live source has one frame in the pool: the next is taken once the
    caller is done with it, and is then the newest. A file has enough for all threads. OpenCV's own
    threads share the cores with the pool.

    Args:
        feed: the streams, entered.
        workers: number of threads; None for one per core.
    """

    def __init__(
        self, feed: Feed, frame_classifier: FrameClassifier, workers: int | None = None
    ) -> None:
        self._changed = feed.changed
        self._frame_classifier = frame_classifier
        workers = workers or count_cores()
        self._sources = deque(
            SourceQueue(reader, 1 if reader.stream.live else workers + 1) for reader in feed.readers
        )
        # None ends the queue; an exception ends the run.
        self._ready: Queue[ClassifiedFrame | BaseException | None] = Queue()
        self._stopped = False
        self._opencv_threads = ExitStack()
        self._running = min(workers, max(1, sum(source.limit for source in self._sources)))
        self._workers = [
            Thread(target=self._work, name=f"ffd-classify-{number}", daemon=True)
            for number in range(self._running)
        ]

    def __enter__(self) -> Self:
        # More threads than cores do not help.
        self._opencv_threads.enter_context(
            limit_opencv_threads(max(1, count_cores() // len(self._workers)))
        )
        for worker in self._workers:
            worker.start()
        return self

    def __iter__(self) -> Iterator[ClassifiedFrame | None]:
        """Yield classified frames; None every `TICK_SECONDS` without a frame.

        Raises:
            BackendError: inference failed.
            FfdError: this machine cannot read such streams.
        """
        while True:
            try:
                entry = self._ready.get(timeout=TICK_SECONDS)
            except Empty:
                yield None
                continue
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry
            with self._changed:
                # Its source may give another frame.
                entry.queue.in_flight -= 1
                self._changed.notify_all()

    def finished(self, source: str) -> bool:
        """Return True if a source has ended and the caller is done with all its frames."""
        with self._changed:
            return all(
                queue.reader.done() and not queue.in_flight
                for queue in self._sources
                if queue.reader.stream.name == source
            )

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._opencv_threads.close()

    def _work(self) -> None:
        try:
            while (entry := self._take()) is not None:
                self._classify_frame(entry)
                with self._changed:
                    entry.done = True
                    # Pass on finished frames, in order, up to the first unfinished one.
                    order = entry.queue.order
                    while order and order[0].done:
                        self._ready.put(order.popleft())
        except BaseException as error:
            self._ready.put(error)
        with self._changed:
            self._running -= 1
            if not self._running:
                self._ready.put(None)

    def _take(self) -> ClassifiedFrame | None:
        """Take a frame from the next source in turn; return None when all have ended."""
        with self._changed:
            while not self._stopped:
                for queue in self._sources:
                    queue.reader.raise_fatal()
                for queue in self._sources:
                    if queue.in_flight < queue.limit and (frame := queue.reader.take()):
                        entry = ClassifiedFrame(queue, frame)
                        queue.in_flight += 1
                        queue.order.append(entry)
                        self._sources.remove(queue)
                        self._sources.append(queue)
                        return entry
                if all(queue.reader.done() for queue in self._sources):
                    return None
                self._changed.wait(TICK_SECONDS)
            return None

    def _classify_frame(self, entry: ClassifiedFrame) -> None:
        """Set the results or the failure; a bad frame does not end the run."""
        try:
            entry.results, entry.inference = self._frame_classifier.classify(entry.frame)
        except InputError as error:
            entry.failure = error
        except FfdError:
            raise
        except MemoryError:
            entry.failure = InputError("too_large", "not enough memory for a frame")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            entry.failure = InputError("corrupt", f"a frame cannot be processed ({reason})")

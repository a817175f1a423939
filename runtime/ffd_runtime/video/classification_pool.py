"""Frames of a feed, analysed side by side."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import Self

import cv2

from ..core.errors import FfdError, InputError
from ..core.results import Result
from ..model.devices import count_cores
from .feed import TICK_SECONDS, Feed
from .frame_classifier import FrameClassifier
from .frame_result import Frame
from .stream_reader import StreamReader

# Seconds that the end waits for frames that are being analysed.
JOIN_TIMEOUT_SECONDS = 2.0


@dataclass(eq=False)
class ClassifiedFrame:
    """A frame on its way to its verdicts.

    Attributes:
        reader: that gave it.
        frame: the picture.
        results: its verdicts.
        inference: seconds that the networks took.
        failure: why there are none; None where there are.
        done: whether the above are final.
    """

    reader: StreamReader
    frame: Frame
    results: list[Result] = field(default_factory=list)
    inference: float = 0.0
    failure: InputError | None = None
    done: bool = False


@dataclass(eq=False)
class _Lane:
    """One source's share of the workers.

    Attributes:
        reader: of the source.
        room: frames that may be taken and not yet released.
        taken: frames that are.
        order: those of them that were not handed over, in the order of the source.
    """

    reader: StreamReader
    room: int
    taken: int = 0
    order: deque[ClassifiedFrame] = field(default_factory=deque)


class ClassificationPool:
    """Iterates over the analysed frames of a feed; a context manager.

    Workers take frames from the sources in turn, so that none holds another up. The frames of one
    source keep their order. Of a live source, one frame at a time is under way: the next is taken
    when the caller is done with it, and is the newest then. Of a file, enough are for all workers.
    Meanwhile OpenCV's own threads share the cores with the workers.

    Args:
        feed: the streams, entered.
        frame_classifier: classifies their frames.
        workers: threads that analyse; None for one a core.
    """

    def __init__(
        self, feed: Feed, frame_classifier: FrameClassifier, workers: int | None = None
    ) -> None:
        self._changed = feed.changed
        self._analyser = frame_classifier
        workers = workers or count_cores()
        self._lanes = deque(
            _Lane(reader, 1 if reader.stream.live else workers + 1) for reader in feed.readers
        )
        # None ends the queue; an exception ends the run.
        self._ready: Queue[ClassifiedFrame | BaseException | None] = Queue()
        self._stopped = False
        self._running = min(workers, max(1, sum(lane.room for lane in self._lanes)))
        self._workers = [
            Thread(target=self._work, name=f"ffd-classify-{number}", daemon=True)
            for number in range(self._running)
        ]

    def __enter__(self) -> Self:
        self._opencv_threads = cv2.getNumThreads()
        # More threads than cores would only take turns.
        share = max(1, count_cores() // len(self._workers))
        cv2.setNumThreads(min(share, self._opencv_threads))
        for worker in self._workers:
            worker.start()
        return self

    def __iter__(self) -> Iterator[ClassifiedFrame | None]:
        """Frames as they are analysed; None every `TICK_SECONDS` while there is none.

        Raises:
            BackendError: inference failed.
            FfdError: this machine cannot read such streams at all.
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
            self._release(entry)

    def finished(self, source: str) -> bool:
        """Whether a source has no more frames, and the caller is done with those that it gave."""
        with self._changed:
            return all(
                lane.reader.done() and not lane.taken
                for lane in self._lanes
                if lane.reader.stream.name == source
            )

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + JOIN_TIMEOUT_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        cv2.setNumThreads(self._opencv_threads)

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                lane, entry = taken
                self._classify_frame(entry)
                self._hand_over(lane, entry)
        except BaseException as error:
            self._ready.put(error)
        with self._changed:
            self._running -= 1
            if not self._running:
                self._ready.put(None)

    def _take(self) -> tuple[_Lane, ClassifiedFrame] | None:
        """The next frame of the source whose turn it is; None when no more will come."""
        with self._changed:
            while not self._stopped:
                for lane in self._lanes:
                    lane.reader.require_fit()
                for lane in self._lanes:
                    if lane.taken < lane.room and (frame := lane.reader.take()):
                        entry = ClassifiedFrame(lane.reader, frame)
                        lane.taken += 1
                        lane.order.append(entry)
                        self._lanes.remove(lane)
                        self._lanes.append(lane)
                        return lane, entry
                if all(lane.reader.done() for lane in self._lanes):
                    return None
                self._changed.wait(TICK_SECONDS)
            return None

    def _classify_frame(self, entry: ClassifiedFrame) -> None:
        """Fill in the verdicts, or why there are none: whatever one frame does, others follow."""
        try:
            ((entry.results, entry.inference),) = self._analyser.classify([entry.frame])
        except InputError as error:
            entry.failure = error
        except FfdError:
            raise
        except MemoryError:
            entry.failure = InputError("too_large", "not enough memory for a frame of it")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            entry.failure = InputError("corrupt", f"a frame cannot be processed ({reason})")

    def _hand_over(self, lane: _Lane, entry: ClassifiedFrame) -> None:
        """Give the caller what is final and has nothing before it that is not."""
        with self._changed:
            entry.done = True
            while lane.order and lane.order[0].done:
                self._ready.put(lane.order.popleft())

    def _release(self, entry: ClassifiedFrame) -> None:
        """Let the source give another frame."""
        with self._changed:
            for lane in self._lanes:
                lane.taken -= lane.reader is entry.reader
            self._changed.notify_all()

"""Verdicts on frames: faces are found, cut out, and classified."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock, Semaphore

from ..core.pipeline import Prepared, infer_prepared, prepare_faces
from ..core.results import Result
from ..core.within_memory import WithinMemory
from ..image.faces import FaceDetector, is_blank
from ..image.preprocess import preprocess
from ..model.backends import Backend
from .scene import Frame

# Batches that run at once. A second one uses a CPU's other cores while the first is in a part that
# has no parallel work, and on a GPU is copied while the first runs. More would leave no frames
# waiting that can share a batch.
MOST_BATCHES = 2


@dataclass
class _Request:
    """Views that one caller waits for.

    Attributes:
        views: what is classified.
        answer: a result for each view, and the seconds that the batch took.
    """

    views: list[Prepared]
    answer: Future[tuple[list[Result], float]] = field(default_factory=Future)


class Analyser:
    """Classifies frames. Several threads may call it: what is ready at the same time is one batch.

    Args:
        backend: the model.
        detector: finds the faces; None to classify the centre of whole pictures.
    """

    def __init__(self, backend: Backend, detector: FaceDetector | None = None) -> None:
        self._backend = WithinMemory.of(backend)
        self._detector = detector
        self._batches = Semaphore(MOST_BATCHES)
        self._lock = Lock()
        self._waiting: list[_Request] = []

    def analyse(self, frames: Sequence[Frame]) -> list[tuple[list[Result], float]]:
        """Classify some frames, all their faces in one batch.

        Args:
            frames: of any streams and sizes.

        Returns:
            For each frame its results, and the seconds that networks took: the detector on it, and
            the classifier on the batch.

        Raises:
            BackendError: inference failed.
        """
        views: list[Prepared] = []
        counts, seconds = [], []
        for frame in frames:
            found, second = self._views(frame)
            views += found
            counts.append(len(found))
            seconds.append(second)
        results, classified = self._classify(views) if views else ([], 0.0)
        rest = iter(results)
        return [
            (list(islice(rest, count)), second + classified)
            for count, second in zip(counts, seconds, strict=True)
        ]

    def _views(self, frame: Frame) -> tuple[list[Prepared], float]:
        """What is classified of a frame, and the seconds that the detector took."""
        picture = Prepared(frame.source, frame.image, frame=frame.number, time=frame.time)
        spec = self._backend.card.preprocess
        if self._detector is None:
            reason = "blank" if is_blank(frame.image) else None
            return [picture._replace(image=preprocess(frame.image, spec), reason=reason)], 0.0
        begin = time.perf_counter()
        faces = self._detector.detect(frame.image)
        seconds = time.perf_counter() - begin
        return prepare_faces(picture, faces, spec), seconds

    def _classify(self, views: list[Prepared]) -> tuple[list[Result], float]:
        """Results of views and the seconds of their batch, which the caller may share or run."""
        request = _Request(views)
        with self._lock:
            self._waiting.append(request)
        with self._batches:
            with self._lock:
                together, self._waiting = self._waiting, []
            # Empty where another caller took this request, too.
            if together:
                self._run(together)
        return request.answer.result()

    def _run(self, requests: Sequence[_Request]) -> None:
        """Answer requests by one batch, or by its error."""
        begin = time.perf_counter()
        try:
            views = [view for request in requests for view in request.views]
            results = list(infer_prepared(views, self._backend))
        except BaseException as error:
            for request in requests:
                request.answer.set_exception(error)
            return
        seconds = time.perf_counter() - begin
        rest = iter(results)
        for request in requests:
            request.answer.set_result((list(islice(rest, len(request.views))), seconds))

"""Classify frames: detect faces, crop them, and run the model on the crops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock, Semaphore

from ..core.pipeline import Prepared, infer_prepared, prepare_faces
from ..core.results import Result
from ..image.faces import FaceDetector, is_blank
from ..image.preprocess import preprocess
from ..model.backends import Backend
from ..model.card import ModelCard
from ..model.within_memory import WithinMemory
from .frame_result import Frame

# A second batch uses a CPU's idle cores during the serial parts of the first; on a GPU it is copied
# while the first runs. With more, no frames would wait, and batches could not be shared.
MAX_CONCURRENT_BATCHES = 2


@dataclass
class _Request:
    """The crops of one caller; the answer has the results and the batch's duration in seconds."""

    crops: list[Prepared]
    answer: Future[tuple[list[Result], float]] = field(default_factory=Future)


class FrameClassifier:
    """Classify frames. Thread-safe: crops of several threads share a batch.

    Args:
        backend: the model.
        detector: finds the faces; None to classify the centre of the whole frame.
    """

    def __init__(self, backend: Backend, detector: FaceDetector | None = None) -> None:
        self._backend = WithinMemory.of(backend)
        self._detector = detector
        self._batches = Semaphore(MAX_CONCURRENT_BATCHES)
        self._lock = Lock()
        self._waiting: list[_Request] = []

    @property
    def card(self) -> ModelCard:
        """The card of the model."""
        return self._backend.card

    @property
    def detects_faces(self) -> bool:
        """False if whole frames are classified."""
        return self._detector is not None

    def classify(self, frame: Frame) -> tuple[list[Result], float]:
        """Classify a frame, all its faces in one batch.

        Returns:
            One result per face, and the inference time in seconds: the detector on this frame plus
            the model on the batch.

        Raises:
            BackendError: inference failed.
        """
        crops, detection_seconds = self._crop(frame)
        results, batch_seconds = self._infer(crops) if crops else ([], 0.0)
        return results, detection_seconds + batch_seconds

    def _crop(self, frame: Frame) -> tuple[list[Prepared], float]:
        """Return the crops of a frame, and the detector's time in seconds."""
        whole = Prepared(frame.source, frame.image, frame=frame.number, time=frame.time)
        spec = self._backend.card.preprocess
        if self._detector is None:
            reason = "blank" if is_blank(frame.image) else None
            return [whole._replace(image=preprocess(frame.image, spec), reason=reason)], 0.0
        begin = time.perf_counter()
        faces = self._detector.detect(frame.image)
        seconds = time.perf_counter() - begin
        return prepare_faces(whole, faces, spec), seconds

    def _infer(self, crops: list[Prepared]) -> tuple[list[Result], float]:
        """Return results and batch time in seconds; another caller may run the batch."""
        request = _Request(crops)
        with self._lock:
            self._waiting.append(request)
        with self._batches:
            with self._lock:
                requests, self._waiting = self._waiting, []
            # Empty if another caller has already taken this request.
            if requests:
                self._run_batch(requests)
        return request.answer.result()

    def _run_batch(self, requests: Sequence[_Request]) -> None:
        """Answer all requests with one batch, or with its error."""
        begin = time.perf_counter()
        try:
            crops = [crop for request in requests for crop in request.crops]
            results = list(infer_prepared(crops, self._backend))
        except BaseException as error:
            for request in requests:
                request.answer.set_exception(error)
            return
        seconds = time.perf_counter() - begin
        rest = iter(results)
        for request in requests:
            request.answer.set_result((list(islice(rest, len(request.crops))), seconds))

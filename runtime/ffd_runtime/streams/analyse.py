"""Verdicts on frames: faces found, cut out, and classified in one batch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..backends import Backend
from ..faces import FaceDetector, is_blank
from ..pipeline import Prepared, infer_prepared, prepare_faces
from ..preprocess import preprocess
from ..results import Result
from .scene import Frame


class Analyser:
    """Classifies frames.

    Args:
        backend: the model.
        detector: finds the faces; None to classify the centre of whole pictures.
    """

    def __init__(self, backend: Backend, detector: FaceDetector | None = None) -> None:
        self._backend = backend
        self._detector = detector

    def analyse(self, frames: Sequence[Frame]) -> list[tuple[list[Result], float]]:
        """Classify some frames, all their faces in one batch.

        Args:
            frames: of any streams and sizes.

        Returns:
            For each frame its results, and the seconds that networks took: the detector on it, and
            the classifier on the batch.
        """
        prepared: list[Prepared] = []
        counts, seconds = [], []
        for frame in frames:
            views, second = self._views(frame)
            prepared += views
            counts.append(len(views))
            seconds.append(second)
        begin = time.perf_counter()
        results = infer_prepared(prepared, self._backend)
        rows = [[next(results) for _ in range(count)] for count in counts]
        classified = time.perf_counter() - begin
        return [(row, second + classified) for row, second in zip(rows, seconds, strict=True)]

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

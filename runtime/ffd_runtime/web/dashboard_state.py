"""What the page shows, kept small: each source's newest scene, and the last verdicts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core.results import Result
from ..core.text import printable
from ..image.decode import Image
from ..image.draw import classified_square
from ..video.frame_result import FrameResult, StreamHealth

if TYPE_CHECKING:
    from .metrics import Metrics

# Verdicts that are kept, and the side of their thumbnails in pixels: 1.4 MB in all.
MAX_HISTORY = 50
THUMBNAIL_PX = 96
# Tracks of a source whose verdict is remembered, so that a face that was hidden is not news.
_MAX_REMEMBERED_TRACKS = 256
# Of a source that has a picture to show; a file's last one stays.
SHOWN_STATES = ("playing", "ended")


@dataclass(frozen=True)
class Face:
    """A face that is in the picture now, or the whole picture (without `track`).

    Attributes:
        since: when its verdict came to be this one, as `Frame.time`.
    """

    track: int | None
    label: str | None
    score: float | None
    reason: str | None
    since: float


@dataclass(frozen=True)
class Verdict:
    """One line of the history.

    Attributes:
        number: from 1, in order.
        index: of its source.
        before: the label that it had.
        time: as `Frame.time`.
        thumbnail: uint8 [h, w, 3], BGR, up to `THUMBNAIL_PX` a side: what was classified.
    """

    number: int
    index: int
    track: int | None
    label: str
    before: str
    score: float | None
    time: float
    thumbnail: Image = field(repr=False)


@dataclass(frozen=True)
class SourceView:
    """What there is to draw of a source.

    Attributes:
        number: another one whenever there is another picture.
        frame_result: None where the source has no picture now.
    """

    number: int
    frame_result: FrameResult | None
    health: StreamHealth


@dataclass
class _Source:
    index: int
    name: str
    health: StreamHealth
    began: float
    number: int = 0
    frame_result: FrameResult | None = None
    faces: tuple[Face, ...] = ()
    # Label and since when, by track; a face is `unsure` until it is known better.
    verdicts: dict[int | None, tuple[str, float]] = field(default_factory=dict)


class DashboardState:
    """Takes frame_results from the run's thread, and is read from the server's.

    Args:
        metrics: what is counted on the way.
        face_scale: the card's `preprocess.face_scale`.
    """

    def __init__(self, metrics: Metrics, face_scale: float) -> None:
        self._metrics = metrics
        self._face_scale = face_scale
        self._lock = Lock()
        self._sources: dict[str, _Source] = {}
        self._history: deque[Verdict] = deque(maxlen=MAX_HISTORY)
        self._verdicts = 0
        self._ticked: float | None = None

    def show(self, frame_result: FrameResult) -> int:
        """Keep a scene in place of the one before.

        Returns:
            its source's index.
        """
        with self._lock:
            source = self._source(frame_result.health)
            source.health, source.frame_result = frame_result.health, frame_result
            source.number += 1
            news = self._follow(source, frame_result)
            labels = [face.label for face in source.faces if face.label]
            self._metrics.count(
                source.name, frame_result, labels, [verdict.label for verdict in news]
            )
            self._history.extend(news)
            return source.index

    def tick(self, healths: Sequence[StreamHealth]) -> list[int]:
        """Take how all sources are.

        Returns:
            indices of those that have another picture to show, or have it no more.
        """
        changed = []
        with self._lock:
            self._ticked = time.monotonic()
            for health in healths:
                source = self._source(health)
                if health.state != source.health.state:
                    source.number += 1
                    changed.append(source.index)
                source.health = health
                self._metrics.update(source.name, health)
        return changed

    def _source(self, health: StreamHealth) -> _Source:
        known = self._sources.get(health.source)
        if known is None:
            name = printable(health.source)
            known = _Source(len(self._sources), name, health, time.time())
            self._sources[health.source] = known
        return known

    def _follow(self, source: _Source, frame_result: FrameResult) -> list[Verdict]:
        """Find the faces that are in a scene now, and which of their verdicts changed."""
        faces, news = [], []
        for result in frame_result.results:
            track = result.track
            label = track.label if track else result.label
            score = track.score if track else result.score
            number = track.number if track else None
            # A face that is not followed has no verdict that could change.
            followed = label is not None and (track is not None or result.face is None)
            since = frame_result.frame.time
            if label is not None and followed:
                before, began = source.verdicts.pop(number, ("unsure", since))
                since = began if before == label else since
                source.verdicts[number] = (label, since)
                if before != label:
                    self._verdicts += 1
                    news.append(
                        Verdict(
                            self._verdicts,
                            source.index,
                            number,
                            label,
                            before,
                            score,
                            since,
                            _thumbnail(frame_result.frame.image, result, self._face_scale),
                        )
                    )
            reason = result.reason if label == "unsure" else None
            faces.append(Face(number, label, score, reason, since))
        while len(source.verdicts) > _MAX_REMEMBERED_TRACKS:
            del source.verdicts[next(iter(source.verdicts))]
        source.faces = tuple(faces)
        return news

    def view(self, index: int) -> SourceView | None:
        """What there is to draw; None where there is no such source."""
        with self._lock:
            source = next((s for s in self._sources.values() if s.index == index), None)
            if source is None:
                return None
            shown = source.frame_result if source.health.state in SHOWN_STATES else None
            return SourceView(source.number, shown, source.health)

    def thumbnail(self, number: int) -> Image | None:
        """A verdict's thumbnail; None where it is no longer kept."""
        with self._lock:
            return next((v.thumbnail for v in self._history if v.number == number), None)

    def metrics(self, pictures: int) -> bytes:
        """`Metrics.render`."""
        with self._lock:
            return self._metrics.render(pictures)

    def health(self) -> tuple[float | None, list[StreamHealth]]:
        """Seconds since the last tick (None before the first), and how each source is."""
        with self._lock:
            ticked = self._ticked
            healths = [source.health for source in self._sources.values()]
        return None if ticked is None else time.monotonic() - ticked, healths

    def state(self, after: int) -> dict[str, Any]:
        """Everything but pictures, as JSON types.

        Args:
            after: number of the last verdict that is known already.
        """
        with self._lock:
            sources = [_describe(source) for source in self._sources.values()]
            history = [verdict for verdict in self._history if verdict.number > after]
        return {
            "now": round(time.time(), 3),
            "sources": sources,
            "history": [
                {
                    "number": verdict.number,
                    "source": verdict.index,
                    "track": verdict.track,
                    "label": verdict.label,
                    "before": verdict.before,
                    "score": _rounded(verdict.score),
                    "time": _rounded(verdict.time),
                }
                for verdict in history
            ],
        }


def _describe(source: _Source) -> dict[str, Any]:
    health = source.health
    shown = health.state in SHOWN_STATES
    return {
        "index": source.index,
        "name": source.name,
        "live": health.live,
        "state": health.state,
        "error": health.error and printable(health.error),
        "size": health.size and list(health.size),
        "fps": _rounded(health.fps),
        "frames": health.frames,
        "analysed": health.analysed,
        "dropped": health.dropped,
        "reconnects": health.reconnects,
        "age": _rounded(health.age),
        "last_frame": _rounded(health.last_frame),
        "next_try": _rounded(health.next_try),
        "began": _rounded(source.began),
        "number": source.number,
        "faces": [
            {
                "track": face.track,
                "label": face.label,
                "score": _rounded(face.score),
                "reason": face.reason,
                "since": _rounded(face.since),
            }
            for face in source.faces
            if shown
        ],
    }


def _thumbnail(image: Image, result: Result, face_scale: float) -> Image:
    """The square that was classified, as far as it lies in the picture."""
    left, top, side = classified_square(image, result.face, face_scale)
    # Every nth pixel first: the run waits for this, and to reduce a large face whole takes 1 ms.
    step = max(1, side // (2 * THUMBNAIL_PX))
    part = image[max(top, 0) : max(top + side, 1) : step, max(left, 0) : max(left + side, 1) : step]
    if not part.size:  # a box outside of its picture
        return np.zeros((1, 1, 3), np.uint8)
    height, width = part.shape[:2]
    scale = THUMBNAIL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)

"""The data of the dashboard: each source's newest frame, and the last label changes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core.results import Result
from ..core.text import printable
from ..image.decode import Image
from ..image.preprocess import classified_square
from ..video.draw_frame import fit_size
from ..video.frame_result import FrameResult, StreamHealth

if TYPE_CHECKING:
    from .metrics import Metrics

# Label changes that are kept, and the side of their thumbnails: 1.4 MB in total.
MAX_LABEL_CHANGES = 50
THUMBNAIL_PX = 96
# Per source; a face that reappears with the same label is not a change.
_MAX_REMEMBERED_TRACKS = 256
# States in which a source has an image; the last one of a file stays.
SHOWN_STATES = ("playing", "ended")


@dataclass
class DashboardSource:
    """A source and its current image.

    Attributes:
        began: time of its first frame or tick, in seconds since 1970 (UTC).
        number: changes whenever the image changes.
        frame_result: None if the source has no image now.
        faces: the faces of the frame, or the whole frame, as JSON types.
        labels: label and time of its last change, by track; a new face is `unsure`.
    """

    index: int
    name: str
    health: StreamHealth
    began: float
    number: int = 0
    frame_result: FrameResult | None = None
    faces: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[int | None, tuple[str, float]] = field(default_factory=dict)


class DashboardState:
    """Store frames from the run's thread, for the server's thread."""

    def __init__(self, metrics: Metrics, face_scale: float) -> None:
        self._metrics = metrics
        self._face_scale = face_scale
        self._lock = Lock()
        self._sources: dict[str, DashboardSource] = {}
        # Label changes as JSON types, each with its classified square: uint8 [h, w, 3], BGR.
        self._history: deque[tuple[dict[str, Any], Image]] = deque(maxlen=MAX_LABEL_CHANGES)
        self._changes = 0
        self._ticked: float | None = None

    def show(self, frame_result: FrameResult) -> int:
        """Store a frame in place of the previous one; return the index of its source."""
        with self._lock:
            source = self._source(frame_result.health)
            source.health, source.frame_result = frame_result.health, frame_result
            source.number += 1
            changes = self._update_faces(source, frame_result)
            labels = [face["label"] for face in source.faces if face["label"]]
            new = [change["label"] for change, _ in changes]
            self._metrics.count(source.name, frame_result, labels, new)
            self._history.extend(changes)
            return source.index

    def tick(self, healths: Sequence[StreamHealth]) -> list[int]:
        """Store the health of all sources; return the indices of those whose image changed."""
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

    def _source(self, health: StreamHealth) -> DashboardSource:
        known = self._sources.get(health.source)
        if known is None:
            name = printable(health.source)
            known = DashboardSource(len(self._sources), name, health, time.time())
            self._sources[health.source] = known
        return known

    def _update_faces(
        self, source: DashboardSource, frame_result: FrameResult
    ) -> list[tuple[dict[str, Any], Image]]:
        """Update the faces of a source; return the label changes."""
        faces: list[dict[str, Any]] = []
        changes = []
        for result in frame_result.results:
            track = result.track
            label = track.label if track else result.label
            score = track.score if track else result.score
            number = track.number if track else None
            since = frame_result.frame.time
            face: dict[str, Any] = {"track": number, "label": label, "score": score}
            # A face without a track cannot change its label.
            if label is not None and (track is not None or result.face is None):
                before, began = source.labels.pop(number, ("unsure", since))
                since = began if before == label else since
                source.labels[number] = (label, since)
                if before != label:
                    self._changes += 1
                    image = _thumbnail(frame_result.frame.image, result, self._face_scale)
                    new = {"number": self._changes, "source": source.index, "before": before}
                    changes.append((_round_floats({**face, **new, "time": since}), image))
            reason = result.reason if label == "unsure" else None
            faces.append(_round_floats({**face, "reason": reason, "since": since}))
        while len(source.labels) > _MAX_REMEMBERED_TRACKS:
            del source.labels[next(iter(source.labels))]
        source.faces = faces
        return changes

    def view(self, index: int) -> DashboardSource | None:
        """Return a copy of a source; None if there is no such source."""
        with self._lock:
            source = next((s for s in self._sources.values() if s.index == index), None)
            if source is None:
                return None
            shown = source.frame_result if source.health.state in SHOWN_STATES else None
            return replace(source, frame_result=shown)

    def thumbnail(self, number: int) -> Image | None:
        """Return the thumbnail of a label change; None if it is no longer kept."""
        with self._lock:
            return next(
                (image for entry, image in self._history if entry["number"] == number), None
            )

    def metrics(self, images: int) -> bytes:
        with self._lock:
            return self._metrics.render(images)

    def health(self) -> tuple[float | None, list[StreamHealth]]:
        """Return seconds since the last tick (None before the first), and each source's health."""
        with self._lock:
            ticked = self._ticked
            healths = [source.health for source in self._sources.values()]
        return None if ticked is None else time.monotonic() - ticked, healths

    def state(self, after: int) -> dict[str, Any]:
        """Return everything except images, as JSON types; label changes follow number `after`."""
        ticked, _ = self.health()
        with self._lock:
            sources = [_describe(source) for source in self._sources.values()]
            history = [change for change, _ in self._history if change["number"] > after]
        times = _round_floats({"now": time.time(), "ticked": ticked})
        return {**times, "sources": sources, "history": history}


def _describe(source: DashboardSource) -> dict[str, Any]:
    health = source.health
    return {
        **_select(source, "index name began number"),
        **_select(health, "live state size fps frames analysed dropped reconnects"),
        **_select(health, "age last_frame next_try"),
        "error": health.error and printable(health.error),
        "faces": source.faces if health.state in SHOWN_STATES else [],
    }


def _select(item: object, names: str) -> dict[str, Any]:
    """Return attributes by name, as JSON types."""
    return _round_floats({name: getattr(item, name) for name in names.split()})


def _round_floats(values: dict[str, Any]) -> dict[str, Any]:
    """Round floats to thousandths."""
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _thumbnail(image: Image, result: Result, face_scale: float) -> Image:
    """Return the part of the classified square that is within the image."""
    left, top, side = classified_square(image, result.face, face_scale)
    # Subsampled first: the run waits for this, and to resize a large face takes 1 ms.
    step = max(1, side // (2 * THUMBNAIL_PX))
    part = image[max(top, 0) : max(top + side, 1) : step, max(left, 0) : max(left + side, 1) : step]
    if not part.size:  # the box is outside the image
        return np.zeros((1, 1, 3), np.uint8)
    height, width = part.shape[:2]
    size = fit_size((width, height), (THUMBNAIL_PX, THUMBNAIL_PX), enlarge=True)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)

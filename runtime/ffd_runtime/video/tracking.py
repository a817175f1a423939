"""Track faces through a stream, and smooth the label of each over time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.log_odds import log_odds
from ..core.results import Box, Label, Result, Track
from ..model.card import ModelCard

Corners = npt.NDArray[np.float64]

# IoU of a face's box and a track's predicted box, as in SORT (Bewley et al., "Simple Online and
# Realtime Tracking", ICIP 2016).
MIN_IOU = 0.3
# Limit for the extrapolation of motion, and half-life of the smoothed velocity: boxes jitter. In
# simulations of two faces that pass each other (2 to 25 frames per second, 0.5 to 2 widths per
# second each, jitter of 3 % of a width), both kept their numbers in 85 % of cases, without
# prediction in 46 %. Most of the others were too fast for 2 frames per second.
MAX_PREDICTION_SECONDS = 0.75
VELOCITY_HALF_LIFE_SECONDS = 0.3
# Limit for how long a track is kept in streams with a low frame rate.
MAX_GAP_SECONDS = 5.0

# The log-odds of a frame are clipped here, so that no single frame decides. If a threshold of the
# card is further out, the limit is `LOG_ODDS_HEADROOM` beyond it.
MAX_LOG_ODDS = 6.0
LOG_ODDS_HEADROOM = 2.0
# The smoothed log-odds must pass a threshold by a margin to change the label. The margin shrinks
# with the number of frames, from the first value to the minimum. With independent noise of standard
# deviation 2 around any mean, simulated labels flip at most once in 400 frames; with a minimum of
# 0.5, six times.
FIRST_MARGIN_LOG_ODDS = 2.0
MIN_MARGIN_LOG_ODDS = 1.0
LABELS = ("groundtruth", "unsure", "generated")


class GreedyIouTracker:
    """Assign track numbers and smoothed labels to the faces of one source.

    Faces are matched greedily to predicted boxes, in descending order of IoU. The label of a track
    is that of the exponentially decayed average of its log-odds. It changes only when the average
    passes a threshold by a margin.

    Args:
        forget: seconds after which a face that is not seen is forgotten; in streams with fewer
            than two frames in that time, after two frames, at most `MAX_GAP_SECONDS`.
        half_life: seconds after which the weight of a frame is halved.

    Example:
        >>> from ffd_runtime.model.card import ModelCard, Provenance
        >>> tracker = GreedyIouTracker(ModelCard("m", "resnext50_32x4d", Provenance("0")))
        >>> for time, left in enumerate((10, 20, 400)):
        ...     result = Result("0", face=(left, 10, 80, 100), label="generated", score=0.9)
        ...     track = tracker.update([result], at=time)[0].track
        ...     print(track.number, track.label)
        1 generated
        1 generated
        2 generated
    """

    def __init__(self, card: ModelCard, *, forget: float = 1.5, half_life: float = 2.0) -> None:
        self._forget = forget
        self._half_life = half_life
        low, high = card.unsure
        # A threshold of 0 or 1 becomes an infinite one.
        self._thresholds = log_odds(low), log_odds(high)
        finite = [abs(value) for value in self._thresholds if math.isfinite(value)]
        self._max_log_odds = max([MAX_LOG_ODDS, *(value + LOG_ODDS_HEADROOM for value in finite)])
        self._tracks: list[_Track] = []
        self._last_number = 0
        self._at: float | None = None
        self._gap = 0.0

    def update(self, results: Sequence[Result], at: float) -> list[Result]:
        """Return the results of one frame, each with its `track`, in the same order.

        Args:
            results: one per face, or one for the whole frame, which is always track 1. Those with a
                reason or an error are tracked, but their scores do not count.
            at: seconds of the stream's clock; after a step back or a long gap, all tracks are
                forgotten.
        """
        gap = 0.0 if self._at is None else at - self._at
        max_age = max(self._forget, min(2 * self._gap, MAX_GAP_SECONDS))
        self._at, self._gap = at, gap
        self._tracks = [t for t in self._tracks if gap >= 0 and at - t.seen <= max_age]
        tracks = self._assign_tracks([result.face for result in results], at)
        return [
            dataclasses.replace(result, track=self._update_label(track, result, at))
            for result, track in zip(results, tracks, strict=True)
        ]

    def _assign_tracks(self, faces: Sequence[Box | None], at: float) -> list[_Track]:
        """Return the track of each face, moved to its box."""
        boxes = [_corners(face) for face in faces]
        matches = _match(boxes, [track.predict(at) for track in self._tracks])
        assigned = []
        for face, box, match in zip(faces, boxes, matches, strict=True):
            if match is None:
                number = 1 if face is None else self._last_number + 1
                self._last_number = max(self._last_number, number)
                track = _Track(number, box, at)
                self._tracks.append(track)
            else:
                track = self._tracks[match]
                track.move(box, at)
            assigned.append(track)
        return assigned

    def _update_label(self, track: _Track, result: Result, at: float) -> Track:
        if result.score is not None and result.reason is None and result.error is None:
            clipped = min(max(log_odds(result.score), -self._max_log_odds), self._max_log_odds)
            track.add_score(clipped, at, self._half_life)
            track.label = self._label(track)
        score = 1 / (1 + math.exp(-track.mean)) if track.weight else None
        return Track(track.number, track.label or "unsure", score)

    def _label(self, track: _Track) -> Label:
        """Return the label of a track: the last one, unless the mean passed a threshold clearly."""
        if track.label is None:
            return self._label_of(track.mean)
        # The error of a mean decreases with the square root of the number of frames.
        margin = max(MIN_MARGIN_LOG_ODDS, FIRST_MARGIN_LOG_ODDS / math.sqrt(track.weight))
        lowest, highest = (self._label_of(track.mean + way * margin) for way in (-1, 1))
        order = LABELS.index
        if order(lowest) > order(track.label):
            return lowest
        return highest if order(highest) < order(track.label) else track.label

    def _label_of(self, mean: float) -> Label:
        """Return `ModelCard.verdict` for log-odds."""
        low, high = self._thresholds
        if mean >= high:
            return "generated"
        return "groundtruth" if mean < low else "unsure"


@dataclass
class _Track:
    """The state of a track.

    Attributes:
        box: left, top, right and bottom in pixels.
        seen: time of the last box in seconds.
        velocity: of its centre in pixels per second, smoothed; None after the first box.
        label: the last label; None before the first score that counts.
        mean: decayed average of the log-odds.
        weight: decayed number of scores in the average.
        scored: time of the last score in seconds.
    """

    number: int
    box: Corners
    seen: float
    velocity: npt.NDArray[np.float64] | None = None
    label: Label | None = None
    mean: float = 0.0
    weight: float = 0.0
    scored: float = 0.0

    def predict(self, at: float) -> Corners:
        """Return its box at a time, extrapolated with its velocity."""
        if self.velocity is None:
            return self.box
        return self.box + np.tile(self.velocity * min(at - self.seen, MAX_PREDICTION_SECONDS), 2)

    def move(self, box: Corners, at: float) -> None:
        """Move to a new box, and update the velocity."""
        if (gap := at - self.seen) > 0:
            moved = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2 / gap
            kept = 0.5 ** (gap / VELOCITY_HALF_LIFE_SECONDS)
            self.velocity = (
                moved if self.velocity is None else kept * self.velocity + (1 - kept) * moved
            )
        self.box, self.seen = box, at

    def add_score(self, log_odds: float, at: float, half_life: float) -> None:
        """Add the log-odds of a frame to the average."""
        self.weight = self.weight * 0.5 ** ((at - self.scored) / half_life) + 1
        self.mean += (log_odds - self.mean) / self.weight
        self.scored = at


# Stands for the whole frame: a box that matches itself and no face.
_WHOLE_FRAME = (-1.0, -1.0, 0.0, 0.0)


def _corners(face: Box | None) -> Corners:
    """Return left, top, right and bottom."""
    if face is None:
        return np.array(_WHOLE_FRAME)
    x, y, width, height = face
    return np.array([x, y, x + width, y + height], np.float64)


def _match(boxes: Sequence[Corners], predicted: Sequence[Corners]) -> list[int | None]:
    """Match boxes greedily to predicted ones, by descending IoU; None for those without match."""
    matches: list[int | None] = [None] * len(boxes)
    if not boxes or not predicted:
        return matches
    iou = _iou(np.array(boxes)[:, None], np.array(predicted))
    pairs = np.argwhere(iou >= MIN_IOU)
    best = np.argsort(-iou[iou >= MIN_IOU], kind="stable")
    taken = set()
    for box, other in pairs[best].tolist():
        if matches[box] is None and other not in taken:
            matches[box] = other
            taken.add(other)
    return matches


def _iou(boxes: Corners, others: Corners) -> npt.NDArray[np.float64]:
    """Return the IoU of boxes, broadcast as in numpy; 0 for empty boxes."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(
        boxes[..., :2], others[..., :2]
    )
    intersection = sides.clip(0).prod(axis=-1)
    sizes = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (boxes, others)]
    union = sizes[0] + sizes[1] - intersection
    iou: npt.NDArray[np.float64] = intersection / np.where(union > 0, union, 1.0)
    return iou

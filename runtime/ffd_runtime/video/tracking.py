"""Faces followed through a stream, each with a verdict that is smoothed over time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.results import Box, Result, Track
from ..model.card import ModelCard

Corners = npt.NDArray[np.float64]

# Share of their union that a face's box and the place where it is expected must have in common:
# SORT's (Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016).
MIN_IOU = 0.3
# Seconds for which a face is expected to move on as it did, and in which what is known of its
# motion is renewed by half, for boxes jitter. Of simulated pairs of faces that pass each other (2
# to 25 frames a second, 0.5 to 2 widths a second each, jitter of 3 % of a width), both kept their
# numbers in 85 %, without a guess in 46 %. Most of the others were too fast for 2 frames a second.
MAX_PREDICTION_SECONDS = 0.75
VELOCITY_HALF_LIFE_SECONDS = 0.3
# Most seconds between two frames of a slow stream in which faces are still the same.
MAX_GAP_SECONDS = 5.0

# Log-odds beyond which a frame counts no more, so that a single one cannot decide; where a border
# of the card is further out, it lies `LOG_ODDS_HEADROOM` beyond that border.
MAX_LOG_ODDS = 6.0
LOG_ODDS_HEADROOM = 2.0
# Log-odds by which the smoothed verdict must pass a border to become another one: when it rests on
# a single frame, and at least. With independent noise of deviation 2 around any mean, simulated
# labels flip at most once in 400 frames; with 0.5 at least, 6 times.
FIRST_MARGIN_LOG_ODDS = 2.0
MIN_MARGIN_LOG_ODDS = 1.0
LABELS = ("groundtruth", "unsure", "generated")


class GreedyIouTracker:
    """Gives the faces of one source numbers and verdicts that last.

    A face is the one whose expected place it overlaps most. Its verdict is that on the decayed
    average of its log-odds, and changes only when the average has clearly passed a border.

    Args:
        card: of the model that gave the scores.
        forget: seconds after which a face that is not seen is forgotten; in streams with fewer
            than two frames in that time, after two frames, at most `MAX_GAP_SECONDS`.
        half_life: seconds after which a frame counts half.

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
        # With a high of 1 no score is `generated`; with a low of 0 the log-odds say it themselves.
        self._borders = _log_odds(low), _log_odds(high)
        reached = [abs(border) for border in self._borders if math.isfinite(border)]
        self._most = max([MAX_LOG_ODDS, *(border + LOG_ODDS_HEADROOM for border in reached)])
        self._tracks: list[_Track] = []
        self._given = 0
        self._at: float | None = None
        self._gap = 0.0

    def update(self, results: Sequence[Result], at: float) -> list[Result]:
        """The results of one frame, each with its `track`, in the same order.

        Args:
            results: a result for each face, or one for the whole picture, which is always track 1.
                Those with a reason or an error are followed, but say nothing about their face.
            at: seconds of the stream's clock; where it goes back, or on by more than a gap, all is
                forgotten.
        """
        self._forget_old(at)
        tracks = self._follow([result.face for result in results], at)
        return [
            dataclasses.replace(result, track=self._judge(track, result, at))
            for result, track in zip(results, tracks, strict=True)
        ]

    def _forget_old(self, at: float) -> None:
        gap = 0.0 if self._at is None else at - self._at
        patience = max(self._forget, min(2 * self._gap, MAX_GAP_SECONDS))
        self._at, self._gap = at, gap
        lost = gap < 0
        self._tracks = [t for t in self._tracks if not lost and at - t.seen <= patience]

    def _follow(self, faces: Sequence[Box | None], at: float) -> list[_Track]:
        """The track of each face, moved to where it is now."""
        boxes = [_corners(face) for face in faces]
        matches = _match(boxes, [track.expected(at) for track in self._tracks])
        followed = []
        for face, box, match in zip(faces, boxes, matches, strict=True):
            if match is None:
                number = 1 if face is None else self._given + 1
                self._given = max(self._given, number)
                track = _Track(number, box, at)
                self._tracks.append(track)
            else:
                track = self._tracks[match]
                track.move(box, at)
            followed.append(track)
        return followed

    def _judge(self, track: _Track, result: Result, at: float) -> Track:
        if result.score is not None and result.reason is None and result.error is None:
            evidence = min(max(_log_odds(result.score), -self._most), self._most)
            track.weigh(evidence, at, self._half_life)
            track.label = self._label(track)
        score = 1 / (1 + math.exp(-track.mean)) if track.weight else None
        return Track(track.number, track.label or "unsure", score)

    def _label(self, track: _Track) -> str:
        """The label that a track has now: its last one unless the mean is clearly elsewhere."""
        if track.label is None:
            return self._label_of(track.mean)
        # As of any mean of so many frames, its error falls with the root of their number.
        margin = max(MIN_MARGIN_LOG_ODDS, FIRST_MARGIN_LOG_ODDS / math.sqrt(track.weight))
        lowest, highest = (self._label_of(track.mean + way * margin) for way in (-1, 1))
        order = LABELS.index
        if order(lowest) > order(track.label):
            return lowest
        return highest if order(highest) < order(track.label) else track.label

    def _label_of(self, mean: float) -> str:
        """`ModelCard.verdict` of log-odds."""
        low, high = self._borders
        if mean >= high:
            return "generated"
        return "groundtruth" if mean < low else "unsure"


@dataclass
class _Track:
    """What is known of a face.

    Attributes:
        number: see `Track`.
        box: left, top, right and bottom in pixels.
        seen: when it was last, in seconds.
        speed: of its centre, in pixels a second, smoothed.
        label: the last verdict; None before the first clear view.
        mean: average log-odds of its clear views, decayed.
        weight: clear views in it, decayed.
        weighed: when the last of them was, in seconds.
    """

    number: int
    box: Corners
    seen: float
    speed: npt.NDArray[np.float64] | None = None
    label: str | None = None
    mean: float = 0.0
    weight: float = 0.0
    weighed: float = 0.0

    def expected(self, at: float) -> Corners:
        """Its box at a moment, if it goes on as it did."""
        if self.speed is None:
            return self.box
        return self.box + np.tile(self.speed * min(at - self.seen, MAX_PREDICTION_SECONDS), 2)

    def move(self, box: Corners, at: float) -> None:
        """Take in where it is."""
        if (gap := at - self.seen) > 0:
            moved = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2 / gap
            kept = 0.5 ** (gap / VELOCITY_HALF_LIFE_SECONDS)
            self.speed = moved if self.speed is None else kept * self.speed + (1 - kept) * moved
        self.box, self.seen = box, at

    def weigh(self, evidence: float, at: float, half_life: float) -> None:
        """Take in a clear view."""
        self.weight = self.weight * 0.5 ** ((at - self.weighed) / half_life) + 1
        self.mean += (evidence - self.mean) / self.weight
        self.weighed = at


def _log_odds(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score) - math.log1p(-score)


# What stands for the whole picture: a box that is like itself and like no face's.
_WHOLE_FRAME = (-1.0, -1.0, 0.0, 0.0)


def _corners(face: Box | None) -> Corners:
    """Left, top, right and bottom."""
    if face is None:
        return np.array(_WHOLE_FRAME)
    x, y, width, height = face
    return np.array([x, y, x + width, y + height], np.float64)


def _match(boxes: Sequence[Corners], expected: Sequence[Corners]) -> list[int | None]:
    """For each box the expected one that it is: the pairs that overlap most come first."""
    matches: list[int | None] = [None] * len(boxes)
    if not boxes or not expected:
        return matches
    overlap = _overlap(np.array(boxes)[:, None], np.array(expected))
    pairs = np.argwhere(overlap >= MIN_IOU)
    best = np.argsort(-overlap[overlap >= MIN_IOU], kind="stable")
    taken = set()
    for box, other in pairs[best].tolist():
        if matches[box] is None and other not in taken:
            matches[box] = other
            taken.add(other)
    return matches


def _overlap(boxes: Corners, others: Corners) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes, as numpy broadcasts them; 0 for those without a size."""
    common = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(
        boxes[..., :2], others[..., :2]
    )
    shared = common.clip(0).prod(axis=-1)
    sizes = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (boxes, others)]
    union = sizes[0] + sizes[1] - shared
    share: npt.NDArray[np.float64] = shared / np.where(union > 0, union, 1.0)
    return share

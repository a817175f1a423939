"""The page of a run's report, rendered from counts and candidates."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.results import LABEL_NAMES, Result
from ..image.decode import decode, read_file
from ..image.draw import EVIDENCE_LIMIT, evidence_layer
from ..image.preprocess import crop_centre, crop_face, resize
from ..model.card import ModelCard
from .html_page import TEMPLATES, data_uri, encode_picture, render_page

if TYPE_CHECKING:
    from markupsafe import Markup

# Side of a thumbnail, in pixels, and its JPEG quality.
THUMBNAIL = 256
QUALITY = 80
# Side of an evidence overlay, in pixels; the browser scales it up smoothly.
OVERLAY = 64
BINS = 20

VERDICTS = ("generated", "unsure", "groundtruth")
_NAMES: dict[str, str] = {"errors": "unreadable", **dict[str, str](LABEL_NAMES.items())}
_SYMBOLS = {"generated": "▲", "unsure": "◆", "groundtruth": "●", "errors": "✕"}


@dataclass(frozen=True)
class Candidate:
    """A result that may be shown.

    Attributes:
        result: the result without file and heatmap.
        heatmap: float32 [h, w], or None for a row of an earlier run.
        encoded: the file, or a thumbnail of a large file; None for a row of an earlier run.
        small: whether `encoded` is a thumbnail.
    """

    result: Result
    heatmap: npt.NDArray[np.float32] | None
    encoded: bytes | None
    small: bool = False


@dataclass(frozen=True)
class ReportValues:
    """What a report shows.

    Attributes:
        model: model, backend and device on one line.
        card: card of the model.
        started: start of the run.
        counts: number of inputs by verdict, and of `errors`.
        histogram: number of images by bin of the score and verdict.
        codes: number of unreadable inputs by code.
        errors: unreadable inputs to list.
        highest: candidates with the highest scores.
        nearest: candidates with the scores nearest to the threshold.
    """

    model: str
    card: ModelCard
    started: datetime
    counts: Counter[str]
    histogram: Counter[tuple[int, str]]
    codes: Counter[str]
    errors: Sequence[Result]
    highest: Sequence[Candidate]
    nearest: Sequence[Candidate]


def make_thumbnail(encoded: bytes, result: Result, card: ModelCard) -> bytes | None:
    """Encode the classified square as a small JPEG; None if the file cannot be decoded."""
    try:
        # The file has been decoded before, within the pixel limit.
        image = decode(encoded, sys.maxsize)
    except InputError:
        return None
    face = result.face
    square = crop_face(image, face, card.preprocess.face_scale) if face else crop_centre(image)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    return encode_picture(".jpg", resize(square, THUMBNAIL), options)


@dataclass(frozen=True)
class _Place:
    """A source: folder, file name, and frame or face in it."""

    folder: str
    name: str
    within: str

    @classmethod
    def of(cls, result: Result) -> _Place:
        folder, slash, name = result.source.rpartition("/")
        parts = [] if result.frame is None else [f"frame {result.frame}"]
        if result.face:
            parts.append("face at {}, {} ({}x{})".format(*result.face))
        return cls(folder + slash, name, ", ".join(parts))


@dataclass(frozen=True)
class _Tile:
    """The count of one kind, its share, and its place in the bar of 1000 units."""

    kind: str
    count: int
    share: str
    left: float
    width: float


@dataclass(frozen=True)
class _Bar:
    """The images of one verdict in a bin of the histogram."""

    kind: str
    count: int
    base: float
    height: float


@dataclass(frozen=True)
class _Bin:
    """A bin of the histogram."""

    range: str
    left: float
    counts: Sequence[int]
    bars: Sequence[_Bar]


@dataclass(frozen=True)
class _Card:
    """An image in a gallery; `photo` is None if its file is not available."""

    place: _Place
    label: str | None
    score: float | None
    photo: Markup | None
    evidence: Markup | None


@dataclass(frozen=True)
class _Gallery:
    """A section with images."""

    id: str
    title: str
    note: str
    cards: Sequence[_Card]


def render(report: ReportValues) -> str:
    """Render the page."""
    total = report.counts.total()
    card = report.card
    low, high = card.unsure
    galleries = _galleries(report)
    rows = [[report.histogram[bin_, kind] for kind in VERDICTS] for bin_ in range(BINS)]
    return render_page(
        TEMPLATES / "report.html",
        page="report",
        eyebrow="ffd report",
        heading=f"{total:,} {'input' if total == 1 else 'inputs'}",
        started=report.started,
        took=_duration(report.started, datetime.now().astimezone()),
        model=report.model,
        symbols=_SYMBOLS,
        names=_NAMES,
        verdicts=VERDICTS,
        tally=_tally(report.counts),
        low=low,
        high=high,
        threshold=card.threshold,
        band=f"unsure from {low:.3g} to {high:.3g}" if low < high else "no unsure band",
        top=max(map(sum, rows)),
        bins=_bins(rows) if report.histogram else [],
        bin_width=1000 / BINS - 6,
        galleries=galleries,
        evidence=any(one.evidence for gallery in galleries for one in gallery.cards),
        evidence_limit=EVIDENCE_LIMIT,
        thumbnail_side=THUMBNAIL,
        errors=report.counts["errors"],
        codes=report.codes.most_common(),
        unreadable=[(_Place.of(result), _reason(result)) for result in report.errors],
        card_facts=_card_facts(card),
        blocks=_card_blocks(card),
    )


def _duration(started: datetime, ended: datetime) -> str:
    minutes, seconds = divmod(round((ended - started).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min")) if n]
    return " ".join([*parts, f"{seconds} s"])


def _tally(counts: Mapping[str, int]) -> list[_Tile]:
    tiles, left = [], 0.0
    total = sum(counts.values())
    for kind in (*VERDICTS, "errors"):
        count = counts[kind]
        share = f"{100 * count / total:.1f} %" if total else "0 %"
        width = 1000 * count / max(total, 1)
        tiles.append(_Tile(kind, count, share, left, width))
        left += width
    return tiles


def _bins(rows: Sequence[Sequence[int]]) -> list[_Bin]:
    """Stack the verdicts of each bin; a single image must be visible."""
    top = max(map(sum, rows))
    bins = []
    for number, row in enumerate(rows):
        bars, base = [], 300.0
        for kind, count in reversed(list(zip(VERDICTS, row, strict=True))):
            if count:
                height = min(max(285 * count / top, 3), base)
                base -= height
                bars.append(_Bar(kind, count, base, height))
        span = f"{number / BINS:.2f}-{(number + 1) / BINS:.2f}"
        bins.append(_Bin(span, 1000 * number / BINS + 3, row, bars))
    return bins


def _galleries(report: ReportValues) -> list[_Gallery]:
    highest = [_card(one, report.card) for one in report.highest]
    nearest = [_card(one, report.card) for one in report.nearest]
    return [
        _Gallery(
            "suspicious",
            "Most suspicious",
            "The highest scores." if highest else "No image could be classified.",
            highest,
        ),
        _Gallery(
            "uncertain",
            "Most uncertain",
            "The scores nearest to the threshold, in log-odds."
            if nearest
            else "No score is near the threshold.",
            nearest,
        ),
    ]


def _card(candidate: Candidate, card: ModelCard) -> _Card:
    result = candidate.result
    thumbnail = candidate.encoded if candidate.small else _read_thumbnail(candidate, card)
    photo = evidence = None
    if thumbnail is not None:
        photo = data_uri("jpeg", thumbnail)
        if candidate.heatmap is not None:
            layer = evidence_layer(candidate.heatmap, OVERLAY)
            evidence = data_uri("png", encode_picture(".png", layer))
    return _Card(_Place.of(result), result.label, result.score, photo, evidence)


def _read_thumbnail(candidate: Candidate, card: ModelCard) -> bytes | None:
    """Return the thumbnail of a kept file, or of a file that still exists."""
    encoded, result = candidate.encoded, candidate.result
    if encoded is None and result.frame is None:
        try:
            encoded = read_file(result.source)
        except InputError:
            return None
    return encoded and make_thumbnail(encoded, result, card)


def _reason(result: Result) -> str:
    return f"{result.error.code}: {result.error.message}" if result.error else "no verdict"


def _card_facts(card: ModelCard) -> dict[str, str]:
    low, high = card.unsure
    return {
        "name": card.name,
        "architecture": card.architecture,
        "precision": card.precision,
        "threshold": f"{card.threshold:.6g}",
        "unsure": f"{low:.6g} to {high:.6g}" if low < high else "never",
        "temperature": f"{card.temperature:.6g}",
        "written by": f"ffd {card.provenance.version}",
        "checkpoint": card.provenance.checkpoint_sha256 or "unknown",
        "trained from": card.provenance.weights or "unknown",
    }


def _card_blocks(card: ModelCard) -> dict[str, dict[str, str]]:
    groups = {"Preprocessing": asdict(card.preprocess)}
    groups |= {f"Measured: {name}": dict(group) for name, group in card.metrics.items()}
    return {
        title: {key.replace("_", " "): _format(value) for key, value in group.items()}
        for title, group in groups.items()
    }


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

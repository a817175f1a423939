"""The page of a run's report, rendered from counts and candidates."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.results import LABEL_NAMES, Result
from ..image.decode import decode, read_file
from ..image.draw import EVIDENCE_LIMIT, evidence_layer
from ..image.preprocess import crop_centre, crop_face, resize
from ..model.card import ModelCard
from .html_page import TEMPLATES, data_uri, encode_image, render_page

if TYPE_CHECKING:
    from .html_report import Report

THUMBNAIL_PX = 256
JPEG_QUALITY = 80
# The browser enlarges the evidence smoothly.
EVIDENCE_PX = 64
HISTOGRAM_BINS = 20

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


def make_thumbnail(encoded: bytes, result: Result, card: ModelCard) -> bytes | None:
    """Encode the classified square as a small JPEG; None if the file cannot be decoded."""
    try:
        # The file has been decoded before, within the pixel limit.
        image = decode(encoded, sys.maxsize)
    except InputError:
        return None
    face = result.face
    square = crop_face(image, face, card.preprocess.face_scale) if face else crop_centre(image)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return encode_image(".jpg", resize(square, THUMBNAIL_PX), options)


def render(report: Report) -> str:
    """Render the page."""
    total = report.counts.total()
    card = report.card
    low, high = card.unsure
    highest = [_gallery_image(candidate, card) for candidate in report.highest.best_first()]
    nearest = [_gallery_image(candidate, card) for candidate in report.nearest.best_first()]
    rows = [[report.histogram[bin_, kind] for kind in VERDICTS] for bin_ in range(HISTOGRAM_BINS)]
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
        bin_width=1000 / HISTOGRAM_BINS - 6,
        highest=highest,
        nearest=nearest,
        evidence=any(image["evidence"] for image in [*highest, *nearest]),
        evidence_limit=EVIDENCE_LIMIT,
        thumbnail_side=THUMBNAIL_PX,
        errors=report.counts["errors"],
        codes=report.codes.most_common(),
        unreadable=[(_place(result), _reason(result)) for result in report.errors],
        card_facts=_card_facts(card),
        blocks=_card_blocks(card),
    )


def _duration(started: datetime, ended: datetime) -> str:
    minutes, seconds = divmod(round((ended - started).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min")) if n]
    return " ".join([*parts, f"{seconds} s"])


def _tally(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the count of each kind, its share, and its place in a bar of 1000 units."""
    tiles, left = [], 0.0
    total = sum(counts.values())
    for kind in (*VERDICTS, "errors"):
        count = counts[kind]
        share = f"{100 * count / total:.1f} %" if total else "0 %"
        width = 1000 * count / max(total, 1)
        tiles.append({"kind": kind, "count": count, "share": share, "left": left, "width": width})
        left += width
    return tiles


def _bins(rows: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Stack the verdicts of each bin of the histogram; a single image must be visible."""
    top = max(map(sum, rows))
    bins = []
    for number, row in enumerate(rows):
        bars, base = [], 300.0
        for kind, count in reversed(list(zip(VERDICTS, row, strict=True))):
            if count:
                height = min(max(285 * count / top, 3), base)
                base -= height
                bars.append({"kind": kind, "count": count, "base": base, "height": height})
        span = f"{number / HISTOGRAM_BINS:.2f}-{(number + 1) / HISTOGRAM_BINS:.2f}"
        left = 1000 * number / HISTOGRAM_BINS + 3
        bins.append({"range": span, "left": left, "counts": row, "bars": bars})
    return bins


def _place(result: Result) -> dict[str, str]:
    """Return folder and file name of a source, and the frame or face in it."""
    folder, slash, name = result.source.rpartition("/")
    parts = [] if result.frame is None else [f"frame {result.frame}"]
    if result.face:
        parts.append("face at {}, {} ({}x{})".format(*result.face))
    return {"folder": folder + slash, "name": name, "within": ", ".join(parts)}


def _gallery_image(candidate: Candidate, card: ModelCard) -> dict[str, Any]:
    """Return an image of a gallery; `photo` is None if its file is not available."""
    result = candidate.result
    thumbnail = candidate.encoded if candidate.small else _read_thumbnail(candidate, card)
    photo = evidence = None
    if thumbnail is not None:
        photo = data_uri("jpeg", thumbnail)
        if candidate.heatmap is not None:
            layer = evidence_layer(candidate.heatmap, EVIDENCE_PX)
            evidence = data_uri("png", encode_image(".png", layer))
    return {
        "place": _place(result),
        "label": result.label,
        "score": result.score,
        "photo": photo,
        "evidence": evidence,
    }


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

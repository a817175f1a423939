"""The HTML report of a run: counts, scores, and the images that deserve a look."""

from __future__ import annotations

import heapq
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import cv2

from ..core.errors import InputError, OutputError, os_errors_as
from ..core.log_odds import log_odds
from ..core.results import LABEL_NAMES, Result
from ..core.text import format_duration
from ..image.decode import decode, read_file
from ..image.draw import EVIDENCE_LIMIT, evidence_layer
from ..image.preprocess import crop_centre, crop_face, resize
from ..model.card import ModelCard
from .html_page import PAGE_SUFFIXES, TEMPLATES, data_uri, encode_image, render_page
from .target import follow_links, is_pipe, require_file_name

# In each of the two galleries.
MAX_GALLERY_IMAGES = 24
# In every page of ffd, near its beginning.
MARK = b'<meta name="generator" content="ffd">'
MARK_WITHIN_BYTES = 4096
MAX_LISTED_ERRORS = 500
# Distance from the threshold of scores outside the unsure band that count as uncertain.
MAX_UNCERTAIN_LOG_ODDS = 1.0
# Log-odds are clipped to the six digits of a score in a row.
SCORE_MARGIN = 5e-7

# Larger files are reduced to thumbnails when they become candidates, smaller ones at the end: most
# candidates are soon replaced. This limits the memory of a run of any length.
MAX_KEPT_BYTES = 1 << 20

THUMBNAIL_PX = 256
JPEG_QUALITY = 80
# The browser enlarges the evidence smoothly.
EVIDENCE_PX = 64
HISTOGRAM_BINS = 20

VERDICTS = ("generated", "unsure", "groundtruth")
_NAMES: dict[str, str] = {"errors": "unreadable", **dict[str, str](LABEL_NAMES.items())}
_SYMBOLS = {"generated": "▲", "unsure": "◆", "groundtruth": "●", "errors": "✕"}


class Report:
    """A sink that writes a report: one HTML file without scripts or external references.

    The file is replaced atomically when the run ends. A run that fails or is interrupted keeps an
    older report. The memory does not depend on the number of rows.

    Args:
        path: path that ends with `.html` or `.htm`; a link is followed.
        model: model, backend and device on one line: `Classifier.description`.
        card: card of the model.
        noun: what a row is: an input, or with faces a row.

    Attributes:
        counts: number of inputs by verdict, and of `errors`.
        histogram: number of images by bin of the score and verdict.
        codes: number of unreadable inputs by code.
        errors: the first `MAX_LISTED_ERRORS` unreadable inputs.
        highest: candidates with the highest scores.
        nearest: candidates with the scores nearest to the threshold.

    Raises:
        OutputError: the file cannot be written, or is not a page of ffd.
    """

    def __init__(self, path: Path, *, model: str, card: ModelCard, noun: str = "input") -> None:
        require_file_name("--report", path, PAGE_SUFFIXES)
        self.path = path = follow_links(path)
        _require_replaceable(path)
        # A pipe cannot be renamed.
        self.partial = path if is_pipe(path) else path.with_name(path.name + ".partial")
        self.model = model
        self.card = card
        self.noun = noun
        self.started = datetime.now().astimezone()
        self.counts: Counter[str] = Counter()
        self.histogram: Counter[tuple[int, str]] = Counter()
        self.codes: Counter[str] = Counter()
        self.errors: list[Result] = []
        self.highest = _Best(MAX_GALLERY_IMAGES)
        self.nearest = _Best(MAX_GALLERY_IMAGES)
        with os_errors_as(OutputError, f"cannot write {self.partial}"):
            # Report an error before the work.
            self.partial.touch()

    def write(self, result: Result) -> None:
        """Count a result, and keep its image if it is a candidate for a gallery.

        A row of an earlier run has no image: its file is read at the end, if it still exists.
        """
        if result.error or result.score is None or result.label not in VERDICTS:
            self.counts["errors"] += 1
            self.codes[result.error.code if result.error else "no_verdict"] += 1
            if len(self.errors) < MAX_LISTED_ERRORS:
                self.errors.append(replace(result, encoded=None, heatmap=None))
            return
        self.counts[result.label] += 1
        bin_ = min(int(result.score * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)
        self.histogram[bin_, result.label] += 1
        self.highest.offer(result.score, result, self.card)
        threshold = log_odds(self.card.threshold, SCORE_MARGIN)
        distance = abs(log_odds(result.score, SCORE_MARGIN) - threshold)
        if result.label == "unsure" or distance <= MAX_UNCERTAIN_LOG_ODDS:
            self.nearest.offer(-distance, result, self.card)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with os_errors_as(OutputError, f"cannot write {self.path}"):
                    self.partial.write_bytes(render(self).encode())
                    if self.partial != self.path:
                        os.replace(self.partial, self.path)
        finally:
            if self.partial != self.path:
                self.partial.unlink(missing_ok=True)


def _require_replaceable(path: Path) -> None:
    """Raise an OutputError if a file exists that is neither empty nor a page of ffd."""
    if not path.is_file():
        return
    with os_errors_as(OutputError, f"cannot read {path}"), path.open("rb") as file:
        head = file.read(MARK_WITHIN_BYTES)
    if head and MARK not in head:
        raise OutputError(
            f"{path} exists and is not a page of ffd: delete it, or give --report another name"
        )


class _Best:
    """The results of the highest rank, at most `size`; earlier ones win ties.

    A kept result has a thumbnail instead of a large file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._heap: list[tuple[float, int, Result, bool]] = []

    def offer(self, rank: float, result: Result, card: ModelCard) -> None:
        """Keep a result if it is among the best so far."""
        self._seen += 1
        full = len(self._heap) == self._size
        if full and rank <= self._heap[0][0]:
            return
        # A copy: the heatmap may be a view of its whole batch.
        heatmap = None if result.heatmap is None else result.heatmap.copy()
        encoded = result.encoded
        if small := encoded is not None and len(encoded) > MAX_KEPT_BYTES:
            encoded = make_thumbnail(encoded, result, card)
        kept = replace(result, heatmap=heatmap, encoded=encoded)
        entry = (rank, -self._seen, kept, small)
        (heapq.heapreplace if full else heapq.heappush)(self._heap, entry)

    def best_first(self) -> list[tuple[Result, bool]]:
        """Return each result and whether it has a thumbnail, the highest rank first."""
        return [(result, small) for _, _, result, small in sorted(self._heap, reverse=True)]


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
    highest = [_gallery_image(*best, card) for best in report.highest.best_first()]
    nearest = [_gallery_image(*best, card) for best in report.nearest.best_first()]
    rows = [[report.histogram[bin_, kind] for kind in VERDICTS] for bin_ in range(HISTOGRAM_BINS)]
    return render_page(
        TEMPLATES / "report.html",
        page="report",
        eyebrow="ffd report",
        heading=f"{total:,} {report.noun}{'' if total == 1 else 's'}",
        started=report.started,
        took=format_duration((datetime.now().astimezone() - report.started).total_seconds()),
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
        unreadable=[
            (_place(result), f"{error.code}: {error.message}" if error else "no verdict")
            for result in report.errors
            for error in [result.error]
        ],
        card_facts=card_facts(card),
        blocks=_card_blocks(card),
    )


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


def _gallery_image(result: Result, small: bool, card: ModelCard) -> dict[str, Any]:
    """Return an image of a gallery; `photo` is None if its file is not available."""
    thumbnail = result.encoded
    if not small:
        # The file of an earlier row may still exist.
        with suppress(InputError):
            if thumbnail is None and result.frame is None:
                thumbnail = read_file(result.source)
        thumbnail = thumbnail and make_thumbnail(thumbnail, result, card)
    photo = evidence = None
    if thumbnail is not None:
        photo = data_uri("jpeg", thumbnail)
        if result.heatmap is not None:
            layer = evidence_layer(result.heatmap, EVIDENCE_PX)
            evidence = data_uri("png", encode_image(".png", layer))
    return {
        "place": _place(result),
        "label": result.label,
        "score": result.score,
        "photo": photo,
        "evidence": evidence,
    }


def card_facts(card: ModelCard) -> dict[str, str]:
    """Return what a page says about a model, by title."""
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

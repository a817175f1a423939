"""The HTML report of a run: counts, scores, and the images that deserve a look."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Self

from ..core.log_odds import log_odds
from ..core.results import Result
from ..model.card import ModelCard
from .html_page import PAGE_SUFFIXES
from .report_page import HISTOGRAM_BINS, VERDICTS, Candidate, make_thumbnail, render
from .target import follow_links, is_pipe, output_errors, require_file_name

# In each of the two galleries.
MAX_GALLERY_IMAGES = 24
MAX_LISTED_ERRORS = 500
# Distance from the threshold of scores outside the unsure band that count as uncertain.
MAX_UNCERTAIN_LOG_ODDS = 1.0
# Log-odds are clipped to the six digits of a score in a row.
SCORE_MARGIN = 5e-7

# Larger files are reduced to thumbnails when they become candidates, smaller ones at the end: most
# candidates are soon replaced. This limits the memory of a run of any length.
MAX_KEPT_BYTES = 1 << 20


class Report:
    """A sink that writes a report: one HTML file without scripts or external references.

    The file is replaced atomically when the run ends. A run that fails or is interrupted keeps an
    older report. The memory does not depend on the number of rows.

    Args:
        path: path that ends with `.html` or `.htm`; a link is followed.
        model: model, backend and device on one line: `Classifier.description`.
        card: card of the model.

    Attributes:
        counts: number of inputs by verdict, and of `errors`.
        histogram: number of images by bin of the score and verdict.
        codes: number of unreadable inputs by code.
        errors: the first `MAX_LISTED_ERRORS` unreadable inputs.
        highest: candidates with the highest scores.
        nearest: candidates with the scores nearest to the threshold.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, path: Path, *, model: str, card: ModelCard) -> None:
        require_file_name("--report", path, PAGE_SUFFIXES)
        self.path = path = follow_links(path)
        # A pipe cannot be renamed.
        self.partial = path if is_pipe(path) else path.with_name(path.name + ".partial")
        self.model = model
        self.card = card
        self.started = datetime.now().astimezone()
        self.counts: Counter[str] = Counter()
        self.histogram: Counter[tuple[int, str]] = Counter()
        self.codes: Counter[str] = Counter()
        self.errors: list[Result] = []
        self.highest = _Best(MAX_GALLERY_IMAGES)
        self.nearest = _Best(MAX_GALLERY_IMAGES)
        with output_errors(f"cannot write {self.partial}"):
            # Report an error before the work.
            self.partial.touch()

    def write(self, result: Result) -> None:
        """Count a result, and keep its image if it is a candidate for a gallery.

        A row of an earlier run has no image: its file is read at the end, if it still exists.
        """
        if result.error or result.score is None or result.label not in VERDICTS:
            self._add_error(result)
            return
        self.counts[result.label] += 1
        bin_ = min(int(result.score * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)
        self.histogram[bin_, result.label] += 1
        self.highest.offer(result.score, result, self.card)
        threshold = log_odds(self.card.threshold, SCORE_MARGIN)
        distance = abs(log_odds(result.score, SCORE_MARGIN) - threshold)
        if result.label == "unsure" or distance <= MAX_UNCERTAIN_LOG_ODDS:
            self.nearest.offer(-distance, result, self.card)

    def _add_error(self, result: Result) -> None:
        self.counts["errors"] += 1
        self.codes[result.error.code if result.error else "no_verdict"] += 1
        if len(self.errors) < MAX_LISTED_ERRORS:
            self.errors.append(replace(result, encoded=None, heatmap=None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with output_errors(f"cannot write {self.path}"):
                    self.partial.write_bytes(render(self).encode())
                    if self.partial != self.path:
                        os.replace(self.partial, self.path)
        finally:
            if self.partial != self.path:
                self.partial.unlink(missing_ok=True)


class _Best:
    """The candidates of the highest rank; earlier ones win ties.

    Args:
        size: maximum number of candidates.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._heap: list[tuple[float, int, Candidate]] = []

    def offer(self, rank: float, result: Result, card: ModelCard) -> None:
        """Keep a result if it is among the best so far."""
        self._seen += 1
        full = len(self._heap) == self._size
        if full and rank <= self._heap[0][0]:
            return
        entry = (rank, -self._seen, _candidate(result, card))
        (heapq.heapreplace if full else heapq.heappush)(self._heap, entry)

    def best_first(self) -> list[Candidate]:
        """Return the candidates, the highest rank first."""
        return [candidate for _, _, candidate in sorted(self._heap, reverse=True)]


def _candidate(result: Result, card: ModelCard) -> Candidate:
    # A copy: the heatmap may be a view of its whole batch.
    heatmap = None if result.heatmap is None else result.heatmap.copy()
    row = replace(result, encoded=None, heatmap=None)
    if result.encoded is None or len(result.encoded) <= MAX_KEPT_BYTES:
        return Candidate(row, heatmap, result.encoded)
    return Candidate(row, heatmap, make_thumbnail(result.encoded, row, card), small=True)

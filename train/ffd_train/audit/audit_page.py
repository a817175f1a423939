"""The HTML page of an audit: findings, numbers, histograms, contact sheets and copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.model.card import CLASSES
from ffd_runtime.outputs.html_page import render_page

from ..face_data import Sample
from ..thumbnail import embed_thumbnail
from .audit import Audit
from .copies import CORRELATION, DISTANCE, Copies
from .facts import FACTS, PLAIN, Fact, Table
from .groups import format_summary
from .probe import FOLDS, MAX_IMAGES, MIN_AUC, MIN_IMAGES, MIN_STANDARD_ERRORS, VIEWS

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_SHEET_IMAGES = 24
MAX_COPY_GROUPS = 24
MAX_COPY_MEMBERS = 4
MAX_UNREADABLE = 500
# The largest sources of a class have a contact sheet and histograms.
MAX_SOURCES = 12
SHEET_SIDE_PIXELS = 96
COPY_SIDE_PIXELS = 160
HISTOGRAM_BINS = 40

# An image and its thumbnail; None if the file cannot be read any more.
_Picture = tuple[Sample, "Markup | None"]

_TEMPLATE = Path(__file__).with_name("audit.html")
_SYMBOLS = {"generated": "▲", "groundtruth": "●", "high": "✕", "medium": "◆", "low": "○"}


@dataclass(frozen=True)
class _Sheet:
    """A source, or a class without known sources, and its contact sheet."""

    name: str
    label: str
    images: int
    chosen: npt.NDArray[np.bool_]
    pictures: Sequence[_Picture]


# The histogram of one source: its sheet, median, and (bin, height from 0 to 96) of each bar.
_Ridge = tuple[_Sheet, str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class _Histogram:
    """The histograms of one fact, or a note that replaces them."""

    title: str
    note: str = ""
    ridges: Sequence[_Ridge] = ()
    ends: Sequence[str] = ()


# Copies of one image: severity, title, pictures, and number of further copies.
_CopyGroup = tuple[str, str, Sequence[_Picture], int]


def write_page(path: Path, audit: Audit, started: datetime) -> None:
    """Write the page atomically.

    Raises:
        OutputError: it cannot be written.
    """
    write_output(path, render(audit, started).encode())


def render(audit: Audit, started: datetime) -> str:
    """Render the page."""
    table = audit.table
    sheets = _make_sheets(table)
    copies = sorted(audit.copies, key=lambda group: -_rank_copies(table, group))
    limits = {
        "plain": f"{PLAIN:g}",
        "distance": DISTANCE,
        "correlation": f"{CORRELATION:g}",
        "folds": FOLDS,
        "images": f"{MAX_IMAGES:,}",
        "auc": f"{MIN_AUC:g}",
        "standard_errors": f"{MIN_STANDARD_ERRORS:g}",
    }
    return render_page(
        _TEMPLATE,
        page="audit",
        eyebrow="ffd-data audit",
        heading=f"{len(table.samples):,} faces",
        started=started,
        root=str(table.data.root),
        audit=audit,
        classes=CLASSES,
        symbols=_SYMBOLS,
        views=VIEWS,
        min_images=MIN_IMAGES,
        facts_of_groups=FACTS,
        format_summary=format_summary,
        histograms=[_histogram(table, f, sheets) for f in FACTS if f.digits is not None],
        bins=HISTOGRAM_BINS,
        sheets=sheets,
        sheet_side=SHEET_SIDE_PIXELS,
        copies=[_copy_group(table, group) for group in copies[:MAX_COPY_GROUPS]],
        more_copies=len(copies) - MAX_COPY_GROUPS,
        copy_side=COPY_SIDE_PIXELS,
        unreadable=table.unreadable[:MAX_UNREADABLE],
        more_unreadable=len(table.unreadable) - MAX_UNREADABLE,
        ignored=table.data.ignored,
        limits=limits,
    )


def _make_sheets(table: Table) -> list[_Sheet]:
    """Make contact sheets of the largest sources of each class, or of a class without sources."""
    sheets = []
    # The order of digests is random, but the same every time.
    order = np.lexsort(table.digests.T[:8])
    for label, class_name in enumerate(CLASSES):
        own = table.labels == label
        names, counts = np.unique(table.sources[own], return_counts=True)
        largest = sorted(zip(-counts, names.tolist(), strict=True))[:MAX_SOURCES]
        for _, source in largest:
            chosen = own & (table.sources == source)
            indices = order[chosen[order]][:MAX_SHEET_IMAGES]
            pictures = [_picture(table, i, SHEET_SIDE_PIXELS) for i in indices]
            readable = [picture for picture in pictures if picture[1]]
            name, images = source or class_name, int(chosen.sum())
            sheets.append(_Sheet(name, class_name, images, chosen, readable))
    return sheets


def _picture(table: Table, index: int, side: int) -> _Picture:
    sample = table.samples[index]
    return sample, embed_thumbnail(table.data, sample, side)


def _histogram(table: Table, fact: Fact, sheets: Sequence[_Sheet]) -> _Histogram:
    column = table.columns[fact.name]
    known = column[~np.isnan(column)]
    if not len(known):
        return _Histogram(fact.title, "unknown for all images")
    low, high = np.percentile(known, [0.5, 99.5])
    ends = [f"{value:.{fact.digits}f}" for value in (low, (low + high) / 2, high)]
    if ends[0] == ends[2]:
        return _Histogram(fact.title, f"{ends[0]} for nearly all images")
    ridges = [_ridge(sheet, column[sheet.chosen], low, high) for sheet in sheets]
    return _Histogram(fact.title, "", ridges, ends)


def _ridge(sheet: _Sheet, values: npt.NDArray[Any], low: float, high: float) -> _Ridge:
    known = values[~np.isnan(values)]
    counts, _ = np.histogram(np.clip(known, low, high), HISTOGRAM_BINS, (low, high))
    top = max(int(counts.max()), 1)
    bars = [(at, max(96 * n / top, 2)) for at, n in enumerate(counts.tolist()) if n]
    median = f"median {np.median(known):.3g}" if len(known) else "unknown"
    return sheet, median, bars


def _rank_copies(table: Table, group: Copies) -> int:
    members = [table.samples[i] for i in group.members]
    return 2 * (len({s.label for s in members}) > 1) + (len({s.split for s in members}) > 1)


def _copy_group(table: Table, group: Copies) -> _CopyGroup:
    rank = _rank_copies(table, group)
    places = ["in both classes"] * (rank >= 2) + ["in several splits"] * (rank % 2)
    title = ", ".join([*places, "identical files" if group.exact else "nearly identical"])
    pictures = [_picture(table, i, COPY_SIDE_PIXELS) for i in group.members[:MAX_COPY_MEMBERS]]
    more = max(0, len(group.members) - MAX_COPY_MEMBERS)
    return "high" if places else "low", title, pictures, more

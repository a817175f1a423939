"""Summaries of the facts by class, source and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.model.card import CLASSES

from ..face_data import Sample
from ..folders import SPLITS
from .facts import FACTS, PLAIN, Fact, Table

# Minimum share of a value to be listed.
_MIN_LISTED_SHARE = 0.05


@dataclass(frozen=True)
class Group:
    """A class, or a source or split of a class, with the numbers of its images.

    Attributes:
        facts: by name, `median`, `p5` and `p95` of a number, or the counts of a category's values.
        plain: share of images with a plain background.
        variety: standard deviation of the backgrounds' mean colours, in units of Lab.
    """

    label: str
    source: str | None
    split: str | None
    images: int
    unreadable: int
    facts: dict[str, dict[str, float]]
    plain: float | None
    variety: float | None

    @property
    def name(self) -> str:
        """Name of the source, split or class."""
        return self.source or self.split or self.label


def summarise(table: Table) -> list[Group]:
    """Return all non-empty groups: each class, then its sources and splits."""
    lost = [failed.sample for failed in table.unreadable]
    groups = []
    for label, name in enumerate(CLASSES):
        own = [s for s in (*table.samples, *lost) if s.label == label]
        sources = sorted({s.source for s in own if s.source})
        wanted = [(None, None), *((source, None) for source in sources)]
        for source, split in (*wanted, *((None, split) for split in SPLITS)):
            chosen = _select(table.samples, label, source, split)
            unreadable = int(_select(lost, label, source, split).sum())
            if chosen.any() or unreadable:
                columns = {key: column[chosen] for key, column in table.columns.items()}
                groups.append(_summarise(columns, unreadable, name, source, split))
    return groups


def _select(
    samples: Sequence[Sample], label: int, source: str | None, split: str | None
) -> npt.NDArray[np.bool_]:
    """Select the samples of a class, and of a source or split if given."""
    return np.array(
        [
            s.label == label and source in (None, s.source) and split in (None, s.split)
            for s in samples
        ],
        np.bool_,
    )


def _summarise(
    columns: dict[str, npt.NDArray[Any]],
    unreadable: int,
    name: str,
    source: str | None,
    split: str | None,
) -> Group:
    texture = columns["texture"]
    if not len(texture):
        return Group(name, source, split, 0, unreadable, {}, None, None)
    facts = {fact.name: describe(columns[fact.name], fact) for fact in FACTS}
    colours = ("background_lightness", "background_redness", "background_yellowness")
    variety = float(np.sqrt(sum(columns[colour].var() for colour in colours)))
    plain = float((texture < PLAIN).mean())
    return Group(name, source, split, len(texture), unreadable, facts, plain, variety)


def describe(values: npt.NDArray[Any], fact: Fact) -> dict[str, float]:
    """Summarise a column: quantiles of a number, or counts of a category."""
    if fact.digits is None:
        return {str(value) or "none": n for value, n in Counter(values.tolist()).most_common()}
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    low, median, high = np.percentile(known, [5, 50, 95])
    return {"median": float(median), "p5": float(low), "p95": float(high)}


def format_summary(summary: dict[str, float], fact: Fact) -> str:
    """Format the median, or the most frequent value."""
    if not summary:
        return "none"
    if fact.digits is None:
        value, count = max(summary.items(), key=lambda item: item[1])
        share = count / sum(summary.values())
        return value if share > 0.995 else f"{value} ({100 * share:.0f} %)"
    return f"{summary['median']:.{fact.digits}f}"


def describe_typical(values: npt.NDArray[Any], fact: Fact) -> str:
    """Describe a column by its most frequent values, or by median and the middle 90 %."""
    if fact.digits is None:
        texts = [str(value) or "none" for value in values]
    else:
        texts = ["none" if np.isnan(value) else f"{value:.{fact.digits}f}" for value in values]
    frequent = Counter(texts).most_common(3)
    shares = [count / len(texts) for _, count in frequent]
    if shares[0] > 0.995:
        return frequent[0][0]
    if fact.digits is None or (fact.view == "file" and sum(shares) >= 0.8):
        listed = zip(frequent, shares, strict=True)
        return " / ".join(
            f"{value} ({100 * share:.0f} %)"
            for (value, _), share in listed
            if share >= _MIN_LISTED_SHARE
        )
    low, median, high = (f"{q:.{fact.digits}f}" for q in np.nanpercentile(values, [5, 50, 95]))
    return f"{median} ({low} to {high})"

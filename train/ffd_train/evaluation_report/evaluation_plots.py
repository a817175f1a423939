"""The values of the plots that the page's template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from ffd_runtime.outputs.html_page import trusted

from ..evaluation import Evaluation
from ..intervals import wilson

# CSS classes of the first and the second model.
SERIES = ("first", "second")
_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis of a plot, from `low` to `high`, with marked values."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    log: bool = False

    def place(self, value: float) -> float:
        """Map a value to its position, 0 at `low` and 1 at `high`, and clip it."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Plot:
    """A plot with lines and marks, each with its CSS class.

    Attributes:
        name: description for screen readers.
        x: horizontal axis.
        y: vertical axis.
        lines: CSS class and path data of each line.
        marks: CSS class, position and title of each mark.
        box: left, right, top and bottom of the axes, in units of the viewBox.
    """

    name: str
    x: Axis
    y: Axis
    lines: list[tuple[str, str]] = field(default_factory=list)
    marks: list[tuple[str, tuple[float, float], str]] = field(default_factory=list)
    box: tuple[int, int, int, int] = (58, 390, 10, 262)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Map a point to its position in units of the viewBox."""
        left, right, top, bottom = self.box
        across, up = self.x.place(x), self.y.place(y)
        return left + (right - left) * across, bottom + (top - bottom) * up

    def add_line(self, kind: str, points: Iterable[tuple[float, float]]) -> None:
        """Add a line; points that round to the same half unit are drawn once."""
        rounded = np.round(np.array([self.place(*point) for point in points]) * 2) / 2
        kept = rounded[np.append(True, (np.diff(rounded, axis=0) != 0).any(1))]
        # The page would shorten a long text that is not trusted.
        self.lines.append((kind, trusted("M" + "L".join(f"{a:g} {b:g}" for a, b in kept))))

    def add_mark(self, kind: str, x: float, y: float, title: str) -> None:
        """Add a mark."""
        self.marks.append((kind, self.place(x, y), title))


def plot_roc(evaluations: Sequence[Evaluation]) -> Plot:
    """Plot ROC curves with a logarithmic FPR axis: low FPRs matter most."""
    photographs = min(int((~each.generated).sum()) for each in evaluations)
    exponent = min(-1, max(-5, math.floor(math.log10(1 / photographs))))
    x = Axis(
        10.0**exponent,
        1,
        [10.0**power for power in range(exponent, 1)],
        "photographs called generated (logarithmic)",
        log=True,
    )
    y = Axis(0, 1, _QUARTERS, "generated faces found")
    plot = Plot("ROC curve", x, y)
    plot.add_line("guide", [(0.01, 0), (0.01, 1)])
    plot.add_mark("note", 0.01, 0.03, "1 %")
    for each, kind in zip(evaluations, SERIES, strict=False):
        alarms, found, _ = roc_curve(each.generated, each.scores)
        plot.add_line(kind, zip(alarms, found, strict=True))
        classes = each.report.per_class
        title = f"threshold {each.card.threshold:.3g}"
        plot.add_mark(kind, 1 - classes["groundtruth"], classes["generated"], title)
    return plot


def plot_precision_recall(evaluations: Sequence[Evaluation]) -> Plot:
    """Plot precision-recall curves; the precision axis begins below the lowest value."""
    curves = []
    for each in evaluations:
        precision, recall, _ = precision_recall_curve(
            each.generated, each.scores, drop_intermediate=True
        )
        curves.append((recall[::-1], precision[::-1]))
    lowest = min(float(precision.min()) for _, precision in curves)
    low = min(math.floor(10 * lowest) / 10, 0.9)
    x = Axis(0, 1, _QUARTERS, "recall: generated faces found")
    y = Axis(low, 1, _ticks(low), "precision")
    plot = Plot("Precision-recall curve", x, y)
    for (recall, precision), kind in zip(curves, SERIES, strict=False):
        plot.add_line(kind, zip(recall, precision, strict=True))
    return plot


def plot_reliability(evaluations: Sequence[Evaluation]) -> Plot:
    """Plot a reliability diagram."""
    x = Axis(0, 1, _QUARTERS, "score: mean P(generated) of a bin")
    y = Axis(0, 1, _QUARTERS, "share of generated images")
    plot = Plot("Reliability diagram", x, y)
    plot.add_line("guide", [(0, 0), (1, 1)])
    for each, kind in zip(evaluations, SERIES, strict=False):
        for found in each.reliability.bins:
            low, high = wilson(round(found.generated * found.images), found.images)
            plot.add_line(f"{kind} thin", [(found.score, low), (found.score, high)])
            title = f"{found.images:,} images, score {found.score:.3f}: {found.generated:.3f}"
            plot.add_mark(kind, found.score, found.generated, title)
    return plot


def axis_of(lowest: float, label: str) -> Axis:
    """Return an axis of shares up to 1 that begins below the lowest one."""
    low = min(math.floor(10 * lowest) / 10, 0.9)
    return Axis(low, 1, [low + (1 - low) * quarter for quarter in _QUARTERS], label)


def _ticks(low: float) -> list[float]:
    """Return three to six round values from `low`, a multiple of 0.1, to 1."""
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if (1 - low) / s <= 5.01)
    count = round((1 - low) / step - 1e-9)
    return sorted(round(1 - step * i, 6) for i in range(count + 1))

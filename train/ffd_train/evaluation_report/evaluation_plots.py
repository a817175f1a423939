"""SVG plots that use the page's colours, in light and dark mode and on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from ..evaluation import Evaluation
from ..intervals import wilson

# Size of a plot, and position of its axes, in units of the viewBox.
WIDTH, HEIGHT = 400, 310
LEFT, RIGHT, TOP, BOTTOM = 58, 390, 10, 262

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


def plot_roc(evaluations: Sequence[Evaluation]) -> str:
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
    lines = [_path(x, y, [(0.01, 0), (0.01, 1)], "guide"), _note(x, y, 0.01, 0.03, "1 %")]
    for each, kind in zip(evaluations, SERIES, strict=False):
        alarms, found, _ = roc_curve(each.generated, each.scores)
        lines.append(_path(x, y, zip(alarms, found, strict=True), kind))
        classes = each.report.per_class
        title = f"threshold {each.card.threshold:.3g}"
        lines.append(_mark(x, y, 1 - classes["groundtruth"], classes["generated"], kind, title))
    return _figure(x, y, lines, "ROC curve")


def plot_precision_recall(evaluations: Sequence[Evaluation]) -> str:
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
    lines = [
        _path(x, y, zip(recall, precision, strict=True), kind)
        for (recall, precision), kind in zip(curves, SERIES, strict=False)
    ]
    return _figure(x, y, lines, "Precision-recall curve")


def plot_reliability(evaluations: Sequence[Evaluation]) -> str:
    """Plot a reliability diagram."""
    x = Axis(0, 1, _QUARTERS, "score: mean P(generated) of a bin")
    y = Axis(0, 1, _QUARTERS, "share of generated images")
    lines = [_path(x, y, [(0, 0), (1, 1)], "guide")]
    for each, kind in zip(evaluations, SERIES, strict=False):
        for found in each.reliability.bins:
            low, high = wilson(round(found.generated * found.images), found.images)
            lines.append(_path(x, y, [(found.score, low), (found.score, high)], f"{kind} thin"))
            title = f"{found.images:,} images, score {found.score:.3f}: {found.generated:.3f}"
            lines.append(_mark(x, y, found.score, found.generated, kind, title))
    return _figure(x, y, lines, "Reliability diagram")


def draw_interval(
    axis: Axis, rows: Iterable[tuple[float, tuple[float, float], str]], title: str
) -> str:
    """Draw one line of a dot plot, with value, interval and CSS class of each model."""
    entries = list(rows)
    parts = [f'<path class="grid" d="M{1000 * axis.place(t):.1f} 0V20"/>' for t in axis.ticks]
    for number, (value, (low, high), kind) in enumerate(entries):
        middle = 20 * (number + 1) / (len(entries) + 1)
        ends = 1000 * axis.place(low), 1000 * axis.place(high)
        parts.append(f'<path class="{kind} thin" d="M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}"/>')
        # A path of length 0 with round ends: a dot that stays round when the SVG is stretched.
        at = 1000 * axis.place(value)
        parts.append(f'<path class="{kind} dot" d="M{at:.1f} {middle:.1f}h0"/>')
    shape = 'viewBox="0 0 1000 20" preserveAspectRatio="none" role="img"'
    return f'<svg class="line" {shape}><title>{escape(title)}</title>{"".join(parts)}</svg>'


def axis_of(lowest: float, label: str) -> Axis:
    """Return an axis of shares up to 1 that begins below the lowest one."""
    low = min(math.floor(10 * lowest) / 10, 0.9)
    return Axis(low, 1, [low + (1 - low) * quarter for quarter in _QUARTERS], label)


def _ticks(low: float) -> list[float]:
    """Return three to six round values from `low`, a multiple of 0.1, to 1."""
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if (1 - low) / s <= 5.01)
    count = round((1 - low) / step - 1e-9)
    return sorted(round(1 - step * i, 6) for i in range(count + 1))


def _x(axis: Axis, value: float) -> float:
    return LEFT + (RIGHT - LEFT) * axis.place(value)


def _y(axis: Axis, value: float) -> float:
    return BOTTOM + (TOP - BOTTOM) * axis.place(value)


def _path(x: Axis, y: Axis, points: Iterable[tuple[float, float]], kind: str) -> str:
    """Draw a line; points that round to the same half unit are drawn once."""
    places = np.array([(_x(x, a), _y(y, b)) for a, b in points])
    rounded = np.round(places * 2) / 2
    kept = rounded[np.append(True, (np.diff(rounded, axis=0) != 0).any(1))]
    return f'<path class="{kind}" d="M{"L".join(f"{a:g} {b:g}" for a, b in kept)}"/>'


def _mark(x: Axis, y: Axis, a: float, b: float, kind: str, title: str) -> str:
    left, top = _x(x, a), _y(y, b)
    shape = f"M{left:.1f} {top - 5:.1f}l5 5l-5 5l-5-5z"
    if kind == "first":
        shape = f"M{left - 4.5:.1f} {top:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z"
    return f'<path class="{kind} mark" d="{shape}"><title>{escape(title)}</title></path>'


def _note(x: Axis, y: Axis, a: float, b: float, text: str) -> str:
    return f'<text x="{_x(x, a) + 5:.1f}" y="{_y(y, b):.1f}">{escape(text)}</text>'


def _figure(x: Axis, y: Axis, lines: Sequence[str], name: str) -> str:
    parts = [f'<path class="axes" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>']
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(_label(at, BOTTOM + 17, f"{tick:g}", "middle"))
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(_label(LEFT - 6, at + 4.5, f"{tick:g}", "end"))
    middle = (TOP + BOTTOM) / 2
    parts.append(_label((LEFT + RIGHT) / 2, HEIGHT - 10, x.label, "middle"))
    turned = f' transform="rotate(-90 12 {middle})"'
    parts.append(_label(12, middle, y.label, "middle", turned))
    inside = "".join([*parts, *lines])
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}"'
    return f'<svg class="plot" {shape}>{inside}</svg>'


def _label(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'

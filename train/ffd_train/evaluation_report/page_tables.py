"""The tables of the evaluation page, as values for its template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ffd_runtime.model.card import CLASSES

from ..intervals import Interval
from ..robustness import CLEAN, Cell
from .study import Study, Subject, percent, span

METRICS = {
    "accuracy": "accuracy at the threshold",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "decided": "decided (not unsure)",
    "decided_accuracy": "accuracy where decided",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
}
ROBUSTNESS_METRICS = {
    "roc_auc": "ROC-AUC",
    "accuracy": "accuracy",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "false_alarms": "photographs called generated",
    "misses": "generated called photographs",
}
# Accuracies below which a cell of the table by source is shaded, from light to dark.
_SHADES = (0.95, 0.9, 0.8, 0.65)


@dataclass(frozen=True)
class Entry:
    """A cell of a table: its text, interval, and CSS class."""

    text: str
    interval: str = ""
    shade: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table: the names of its columns, and the name and entries of each row."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Entry]]]


def metrics_table(study: Study) -> PageTable:
    """Return the metrics of all models, and their differences."""
    comparison = study.comparisons.get(CLEAN)
    evaluations = [subject.evaluation for subject in study.subjects]
    rows = []
    for key, label in METRICS.items():
        row = []
        for each in evaluations:
            owner = each.reliability if key in ("nll", "brier") else each.report
            row.append(_entry(getattr(owner, key), each.intervals.get(key)))
        if comparison and key in comparison.differences:
            gap = comparison.differences[key]
            row.append(_difference(gap.difference, gap.interval))
        elif comparison:
            row.append(Entry(""))
        rows.append((label, row))
    for name in CLASSES:
        row = [
            _entry(each.report.per_class[name], each.intervals["per_class"][name])
            for each in evaluations
        ]
        rows.append((f"accuracy on {name}", [*row, *([Entry("")] if comparison else [])]))
    names = [subject.name for subject in study.subjects]
    return PageTable(["", *names, *(["difference"] if comparison else [])], rows)


def reliability_table(subject: Subject) -> PageTable:
    """Return the bins of the reliability diagram."""
    rows = [
        (
            f"{found.low:.1f} to {found.high:.1f}",
            [
                Entry(f"{found.images:,}"),
                Entry(f"{found.score:.4f}"),
                Entry(f"{found.generated:.4f}"),
            ],
        )
        for found in subject.evaluation.reliability.bins
    ]
    return PageTable(["score", "images", "mean score", "share generated"], rows)


def sources_table(subjects: Sequence[Subject]) -> PageTable | None:
    """Return accuracy and ROC-AUC by source; None if no source is known."""
    known = [subject.evaluation.report.per_source for subject in subjects]
    if not known[0]:
        return None
    kinds: dict[str, set[str]] = {}
    for sample, _ in subjects[0].evaluation.read:
        kinds.setdefault(sample.source or "", set()).add(CLASSES[sample.label])
    rows = []
    for name, first in known[0].items():
        row = [Entry(" and ".join(sorted(kinds[name]))), Entry(f"{first['images']:,}")]
        for metric, key in (("accuracy", "per_source"), ("roc_auc", "per_source_roc_auc")):
            for subject, sources in zip(subjects, known, strict=True):
                value = sources[name][metric] if name in sources else None
                row.append(_entry(value, subject.evaluation.intervals[key].get(name)))
        rows.append((name, row))
    metrics = [f"{kind}, {s.name}" for kind in ("accuracy", "ROC-AUC") for s in subjects]
    return PageTable(["source", "class", "images", *metrics], rows)


def robustness_table(cells: Sequence[Cell]) -> PageTable:
    """Return the metrics under each perturbation."""
    rows = [
        (cell.label, [_entry(getattr(cell, k), cell.intervals[k]) for k in ROBUSTNESS_METRICS])
        for cell in cells
    ]
    return PageTable(["perturbation", *ROBUSTNESS_METRICS.values()], rows)


def robustness_by_source_table(cells: Sequence[Cell]) -> PageTable | None:
    """Return the accuracy by source under each perturbation; None if no source is known."""
    sources = cells[0].per_source
    if not sources:
        return None
    rows = []
    for cell in cells:
        row = []
        for name in sources:
            accuracy = cell.per_source[name]["accuracy"]
            shade = f"shade{sum(accuracy < limit for limit in _SHADES)}"
            row.append(Entry(percent(accuracy), span(cell.per_source[name]["interval"]), shade))
        rows.append((cell.label, row))
    names = (f"{name} ({row['images']:,})" for name, row in sources.items())
    return PageTable(["accuracy by source", *names], rows)


def comparison_table(study: Study) -> PageTable:
    """Return the differences of two models under each perturbation."""
    labels = {cell.name: cell.label for cell in study.subject.cells}
    rows = []
    for name, found in study.comparisons.items():
        auc, accuracy = found.differences["roc_auc"], found.differences["accuracy"]
        row = [
            _difference(auc.difference, auc.interval),
            Entry("" if found.auc.p is None else f"{found.auc.p:.2g}"),
            _difference(accuracy.difference, accuracy.interval),
            Entry(f"{found.accuracy.p:.2g}"),
        ]
        rows.append((labels[name], row))
    head = [
        "second minus first",
        "difference of ROC-AUC",
        "p (DeLong)",
        "difference of accuracy",
        "p (McNemar)",
    ]
    return PageTable(head, rows)


def _entry(value: float | None, interval: Interval | None) -> Entry:
    if value is None:
        return Entry("none")
    return Entry(f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "")


def _difference(value: float, interval: Interval | None) -> Entry:
    return Entry(f"{value:+.4f}", f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "")

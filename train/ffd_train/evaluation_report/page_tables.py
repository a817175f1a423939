"""The tables of the evaluation page, as values for its template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ffd_runtime.model.card import CLASSES

from ..comparison import Difference
from ..evaluation import Evaluation
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


def metric_entries(evaluation: Evaluation) -> dict[str, Entry]:
    """Return the metrics of one model by their labels."""
    report, intervals = evaluation.report, evaluation.intervals
    values = {**vars(evaluation.reliability), **vars(report)}
    entries = {label: _entry(values[key], intervals.get(key)) for key, label in METRICS.items()}
    for name, value in report.per_class.items():
        entries[f"accuracy on {name}"] = _entry(value, intervals["per_class"][name])
    return entries


def metrics_table(study: Study) -> PageTable:
    """Return the metrics of all models, and their differences."""
    names = [subject.name for subject in study.subjects]
    columns = [metric_entries(subject.evaluation) for subject in study.subjects]
    if study.other:
        gaps = study.comparisons[CLEAN].differences
        names.append("difference")
        columns.append({METRICS[key]: _difference(gap) for key, gap in gaps.items()})
    rows = [(label, [of.get(label, Entry("")) for of in columns]) for label in columns[0]]
    return PageTable(["", *names], rows)


def group_entries(evaluation: Evaluation, key: str) -> dict[str, tuple[Entry, Entry]]:
    """Return accuracy and ROC-AUC of one model; the key is `per_source` or `per_family`."""
    accuracies, areas = (evaluation.intervals[name] for name in (key, f"{key}_roc_auc"))
    return {
        name: (_entry(row["accuracy"], accuracies[name]), _entry(row["roc_auc"], areas[name]))
        for name, row in getattr(evaluation.report, key).items()
    }


def groups_table(subjects: Sequence[Subject], key: str) -> PageTable | None:
    """Return accuracy and ROC-AUC by source or family; None if all are unknown."""
    evaluation = subjects[0].evaluation
    names = evaluation.sources if key == "per_source" else evaluation.families
    kinds: dict[str | None, set[str]] = {}
    for name, (sample, _) in zip(names, evaluation.read, strict=True):
        kinds.setdefault(name, set()).add(CLASSES[sample.label])
    entries = [group_entries(subject.evaluation, key) for subject in subjects]
    unknown = Entry("none"), Entry("none")
    rows = []
    for name, first in getattr(evaluation.report, key).items():
        row = [Entry(" and ".join(sorted(kinds[name]))), Entry(f"{first['images']:,}")]
        row += [of.get(name, unknown)[metric] for metric in (0, 1) for of in entries]
        rows.append((name, row))
    metrics = [f"{kind}, {s.name}" for kind in ("accuracy", "ROC-AUC") for s in subjects]
    head = [key.removeprefix("per_"), "class", "images", *metrics]
    return PageTable(head, rows) if rows else None


def robustness_by_group_tables(cells: Sequence[Cell]) -> Iterator[PageTable]:
    """Yield the accuracy by family and by source in each cell, where they are known."""
    for key in ("per_family", "per_source"):
        groups = getattr(cells[0], key)
        if not groups:
            continue
        rows = [(cell.label, list(map(_share, getattr(cell, key).values()))) for cell in cells]
        names = (f"{name} ({row['images']:,})" for name, row in groups.items())
        yield PageTable([f"accuracy by {key.removeprefix('per_')}", *names], rows)


def _share(row: dict[str, Any]) -> Entry:
    shade = sum(row["accuracy"] < limit for limit in _SHADES)
    return Entry(percent(row["accuracy"]), span(row["interval"]), f"shade{shade}")


def _entry(value: float | None, interval: Interval | None) -> Entry:
    if value is None:
        return Entry("none")
    return Entry(f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "")


def _difference(gap: Difference) -> Entry:
    ends = gap.interval
    return Entry(f"{gap.difference:+.4f}", f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "")

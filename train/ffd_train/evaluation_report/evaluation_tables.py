"""The results of ffd-eval as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffd_runtime.core.text import printable

from ..intervals import Interval
from .study import Study, Subject, note_strictness

# Label, value and interval of a metric.
_Row = tuple[str, float | None, Interval | None]


def print_tables(study: Study) -> None:
    """Print the metrics of each model, and the comparison."""
    console = Console(highlight=False)
    for subject in study.subjects:
        console.print(_metrics_table(subject))
        if subject.cells:
            console.print(_robustness_table(subject))
    for line in study.verdicts():
        console.print(printable(line), markup=False)


def _metrics_table(subject: Subject) -> Table:
    title = Text(printable(f"{subject.name}: {subject.evaluation.report.images} images"))
    table = Table(title=title, caption=note_strictness(subject))
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for label, value, interval in _metrics(subject):
        table.add_row(
            Text(printable(label)),
            "-" if value is None else f"{value:.4f}",
            "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        )
    return table


def _metrics(subject: Subject) -> Iterator[_Row]:
    report, intervals = subject.evaluation.report, subject.evaluation.intervals
    for label, name in (
        ("accuracy", "accuracy"),
        ("ROC-AUC", "roc_auc"),
        ("average precision", "average_precision"),
        ("EER", "eer"),
        ("TPR at 1 % FPR", "tpr_at_1_fpr"),
        ("ECE", "ece"),
        ("decided (not unsure)", "decided"),
        ("accuracy where decided", "decided_accuracy"),
    ):
        yield label, getattr(report, name), intervals.get(name)
    for kind, value in report.per_class.items():
        yield f"accuracy on {kind}", value, intervals["per_class"][kind]
    for source, row in report.per_source.items():
        interval = intervals["per_source"][source]
        yield f"accuracy on {source} ({row['images']})", row["accuracy"], interval
    for source, row in report.per_source.items():
        yield f"ROC-AUC of {source}", row["roc_auc"], intervals["per_source_roc_auc"][source]


def _robustness_table(subject: Subject) -> Table:
    title = Text(printable(f"{subject.name}: robustness"))
    table = Table(title=title, caption=note_strictness(subject))
    table.add_column("picture")
    for name in ("ROC-AUC", "accuracy", "TPR@1%", "alarms", "misses"):
        table.add_column(name, justify="right")
    for cell in subject.cells:
        low, high = cell.intervals["roc_auc"]
        values = (cell.accuracy, cell.tpr_at_1_fpr, cell.false_alarms, cell.misses)
        table.add_row(
            cell.label,
            f"{cell.roc_auc:.3f} ({low:.3f}-{high:.3f})",
            *(f"{value:.3f}" for value in values),
        )
    return table

"""The results of ffd-eval as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffd_runtime.core.text import printable

from ..terminal_table import make_table
from .page_tables import group_entries, metric_entries
from .study import Study, Subject, note_strictness


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
    evaluation = subject.evaluation
    entries = metric_entries(evaluation)
    for key, form in (("per_family", "family {}"), ("per_source", "{}")):
        groups = group_entries(evaluation, key)
        sizes = {name: row["images"] for name, row in getattr(evaluation.report, key).items()}
        for name, (accuracy, _) in groups.items():
            entries[f"accuracy on {form.format(name)} ({sizes[name]})"] = accuracy
        for name, (_, area) in groups.items():
            entries[f"ROC-AUC of {form.format(name)}"] = area
    title = f"{subject.name}: {evaluation.report.images} images"
    numbers = ("value", "95 % interval")
    table = make_table(title, ["metric"], numbers, note_strictness(subject))
    for label, entry in entries.items():
        table.add_row(Text(printable(label)), entry.text, entry.interval)
    return table


def _robustness_table(subject: Subject) -> Table:
    numbers = ("ROC-AUC", "accuracy", "TPR@1%", "alarms", "misses")
    title = f"{subject.name}: robustness"
    table = make_table(title, ["picture"], numbers, note_strictness(subject))
    for cell in subject.cells:
        low, high = cell.intervals["roc_auc"]
        values = (cell.accuracy, cell.tpr_at_1_fpr, cell.false_alarms, cell.misses)
        table.add_row(
            cell.label,
            f"{cell.roc_auc:.3f} ({low:.3f}-{high:.3f})",
            *(f"{value:.3f}" for value in values),
        )
    return table

"""ffd-eval: what a model is worth on labelled images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import (
    backend_option,
    device_option,
    format_option,
    version_option,
    wants_table,
)
from ffd_runtime.core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from ffd_runtime.core.classifier import Classifier

    from ..evaluation_report import Study, Subject
    from ..face_data import FaceData
    from ..robustness import Cell

EPILOG = """\b
Examples:
  ffd-eval runs/mine faces/
  ffd-eval embedded faces/ --split test --json
  ffd-eval runs/mine/best.onnx other-faces/ --robustness --report mine.html
  ffd-eval embedded faces/ --compare runs/mine
  ffd-eval embedded faces/ --robustness --card docs/MODEL_CARD.md
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Default: test where DATA has split folders, else all of it. A DATA without them is "
    "split as ffd-train does.",
)
@click.option(
    "--sample",
    type=click.IntRange(2),
    metavar="N",
    help="Measure N images, drawn by class and source, the same in every run.",
)
@click.option(
    "--robustness",
    is_flag=True,
    help="Measure again after JPEG, WebP, resizing, blur, noise, brightness and a screenshot.",
)
@click.option(
    "--compare",
    "other",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Measure this model on the same images too, and test the difference. A --backend is then "
    "for the one that it reads, or both.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page with curves, tables, and the worst errors as pictures.",
)
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="FILE.md",
    help="Replace what stands between <!-- robustness --> and <!-- /robustness --> there by "
    "--robustness's table.",
)
@backend_option()
@device_option()
@click.option("--batch", type=click.IntRange(1, 1024), default=16, show_default=True)
@format_option("")
@version_option()
def main(
    model: Path,
    data: Path,
    split: str | None,
    sample: int | None,
    robustness: bool,
    other: Path | None,
    report: Path | None,
    card: Path | None,
    backend: str,
    device: str,
    batch: int,
    as_json: bool | None,
) -> None:
    """Measure MODEL on DATA, a folder with generated/ and groundtruth/.

    MODEL is a checkpoint, a run's folder, an ONNX, an engine, or the word embedded. DATA may hold
    train/, val/ and test/; its manifest.csv, where there is one, names each image's source
    and split.
    """
    if card and not robustness:
        raise click.UsageError("--card writes the table of --robustness: give that too")
    from contextlib import ExitStack
    from datetime import datetime

    import cv2

    from ffd_runtime.core.classifier import Classifier
    from ffd_runtime.model.backends import find_embedded

    from ..evaluation import draw_sample, open_model
    from ..evaluation_report import (
        Study,
        put_table,
        require_place,
        require_writable,
        to_document,
        write_page,
    )
    from ..scanning import find_labelled

    if report:
        require_writable(report)
    if card:
        require_place(card)
    cv2.setNumThreads(1)
    started = datetime.now().astimezone()
    found = find_labelled(data, split)
    for note in found.notes:
        say(note)
    available = len(found.samples)
    if not split and not any(each.split for each in found.samples):
        say(f"{data} has no test/: all of it is measured, also what a model was perhaps trained on")
    if sample and sample < available:
        found = draw_sample(found, sample)
        say(f"a sample of {sample} of {available} images, drawn by class and source")
    paths = [
        find_embedded(device) if str(path) == "embedded" else path
        for path in (model, other)
        if path
    ]
    with ExitStack() as stack:
        # A second model that does not open is said before the work with the first.
        opened = [
            stack.enter_context(Classifier(open_model(path, device, name), batch=batch))
            for path, name in zip(paths, _choose_backends(paths, backend), strict=True)
        ]
        subjects = [
            _measure(path, classifier, found, robustness)
            for path, classifier in zip(paths, opened, strict=True)
        ]
    study = Study(subjects[0], found, split, available, started)
    if other:
        with _progress() as bar:
            bar.add_task("comparison", total=None)
            study = study.against(subjects[1])
    if wants_table(as_json):
        _print_tables(study)
    else:
        click.echo(json.dumps(to_document(study)))
    if report:
        write_page(report, study)
        say(f"{report}: the page is written")
    if card:
        put_table(card, study)
        say(f"{card}: the table is replaced")
    _end(study)


def _end(study: Study) -> None:
    """Say what was left out, by exit code too."""
    subjects = study.subjects
    left_out = {row.source: row for subject in subjects for row in subject.evaluation.unreadable}
    for row in left_out.values():
        assert row.error is not None
        say(f"left out {row.source}: {row.error.message}")
    if left_out:
        click.get_current_context().exit(3)


def _choose_backends(paths: list[Path], backend: str) -> list[str]:
    """A backend for every model: the named one for those that it reads, if there are any."""
    from ffd_runtime.model.backends import BACKENDS

    read = [path.suffix in BACKENDS.get(backend, ()) for path in paths]
    return [backend if reads or not any(read) else "auto" for reads in read]


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def _measure(path: Path, classifier: Classifier, data: FaceData, robustness: bool) -> Subject:
    from ffd_runtime.model.backends import EMBEDDED, EMBEDDED_INT8

    from ..checkpoint import sha256_of
    from ..evaluation import evaluate, find_model, measure_robustness
    from ..evaluation_report import Subject
    from ..robustness import PERTURBATIONS

    say(f"{classifier.description}; {len(data.samples)} images")
    say_more(classifier.card.to_json(indent=2))
    with _progress() as bar:
        task = bar.add_task("images", total=len(data.samples))
        evaluation = evaluate(classifier, data, lambda: bar.advance(task))
        resampling = bar.add_task("intervals", total=None)
        _ = evaluation.intervals
        bar.remove_task(resampling)
        cells: tuple[Cell, ...] = ()
        if robustness:
            count = len(evaluation.read)
            say(f"{len(PERTURBATIONS)} perturbations of {count} images")
            task = bar.add_task("perturbed", total=count)
            measured = bar.add_task("cells", total=len(PERTURBATIONS) + 1)
            cells = measure_robustness(
                classifier, evaluation, lambda: bar.advance(task), lambda: bar.advance(measured)
            )
    file = find_model(path)
    named = "embedded" if path in (EMBEDDED, EMBEDDED_INT8) else str(file)
    name, runs_on = classifier.card.name, classifier.description
    return Subject(name, named, sha256_of(file), runs_on, evaluation, cells)


def _print_tables(study: Study) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for subject in study.subjects:
        console.print(_table_of(subject))
        if subject.cells:
            console.print(_table_of_cells(subject))
    for line in study.verdicts():
        console.print(printable(line), markup=False)


def _table_of(subject: Subject) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation_report import note_strictness

    report, intervals = subject.evaluation.report, subject.evaluation.intervals
    title = Text(printable(f"{subject.name}: {report.images} images"))
    table = Table(title=title, caption=note_strictness(subject))
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for label, value, interval in (
        ("accuracy", report.accuracy, intervals["accuracy"]),
        ("ROC-AUC", report.roc_auc, intervals["roc_auc"]),
        ("average precision", report.average_precision, intervals["average_precision"]),
        ("EER", report.eer, intervals["eer"]),
        ("TPR at 1 % FPR", report.tpr_at_1_fpr, intervals["tpr_at_1_fpr"]),
        ("ECE", report.ece, intervals["ece"]),
        ("decided (not unsure)", report.decided, intervals["decided"]),
        (
            "accuracy where decided",
            report.decided_accuracy,
            intervals.get("decided_accuracy"),
        ),
        *(
            (f"accuracy on {kind}", value, intervals["per_class"][kind])
            for kind, value in report.per_class.items()
        ),
        *(
            (
                f"accuracy on {source} ({row['images']})",
                row["accuracy"],
                intervals["per_source"][source],
            )
            for source, row in report.per_source.items()
        ),
        *(
            (
                f"ROC-AUC of {source}",
                row["roc_auc"],
                intervals["per_source_roc_auc"][source],
            )
            for source, row in report.per_source.items()
        ),
    ):
        table.add_row(
            Text(printable(label)),
            "-" if value is None else f"{value:.4f}",
            "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        )
    return table


def _table_of_cells(subject: Subject) -> Table:
    from rich.table import Table
    from rich.text import Text

    from ..evaluation_report import note_strictness

    title = Text(printable(f"{subject.name}: robustness"))
    table = Table(title=title, caption=note_strictness(subject))
    table.add_column("picture")
    for name in ("ROC-AUC", "accuracy", "TPR@1%", "alarms", "misses"):
        table.add_column(name, justify="right")
    for cell in subject.cells:
        low, high = cell.intervals["roc_auc"]
        table.add_row(
            cell.label,
            f"{cell.roc_auc:.3f} ({low:.3f}-{high:.3f})",
            *(
                f"{value:.3f}"
                for value in (cell.accuracy, cell.tpr_at_1_fpr, cell.false_alarms, cell.misses)
            ),
        )
    return table

"""ffd-eval: what a model is worth on labelled images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ffd_runtime.commands.common import (
    Command,
    backend_option,
    device_option,
    format_option,
    say,
    say_more,
    version_option,
    wants_table,
)
from ffd_runtime.text import printable

if TYPE_CHECKING:
    from ..evaluation import Evaluation

EPILOG = """\b
Examples:
  ffd-eval runs/mine faces/
  ffd-eval embedded faces/ --split test --json
  ffd-eval runs/mine/best.onnx other-faces/
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
@backend_option()
@device_option()
@click.option("--batch", type=click.IntRange(1, 1024), default=16, show_default=True)
@format_option("")
@version_option()
def main(
    model: Path,
    data: Path,
    split: str | None,
    backend: str,
    device: str,
    batch: int,
    as_json: bool | None,
) -> None:
    """Measure MODEL on DATA, a folder with generated/ and groundtruth/.

    MODEL is a checkpoint, a run's folder, an ONNX, an engine, or the word embedded. DATA may hold
    train/, val/ and test/; its manifest.csv, where there is one, names each image's source.
    """
    import cv2
    from rich.console import Console
    from rich.progress import Progress

    from ffd_runtime.backends import EMBEDDED
    from ffd_runtime.classifier import Classifier

    from ..data import find_labelled
    from ..evaluation import evaluate, open_model

    cv2.setNumThreads(1)
    samples = find_labelled(data, split)
    if not split and not any(sample.split for sample in samples):
        say(f"{data} has no test/: all of it is measured, also what a model was perhaps trained on")
    path = EMBEDDED if str(model) == "embedded" else model
    with Classifier(open_model(path, device, backend), batch=batch) as classifier:
        say(f"{classifier.description}; {len(samples)} images")
        say_more(classifier.card.to_json(indent=2))
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=len(samples))
            done = evaluate(classifier, data, samples, lambda: bar.advance(task))
        name = classifier.card.name
    if wants_table(as_json):
        _print_table(name, done)
    else:
        unreadable = [row.to_row() for row in done.unreadable]
        document = {"model": name, **asdict(done.report), "unreadable": unreadable}
        click.echo(json.dumps(document))
    if done.unreadable:
        for row in done.unreadable:
            assert row.error is not None
            say(f"left out {row.source}: {row.error.message}")
        click.get_current_context().exit(3)


def _print_table(name: str, done: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    report = done.report
    table = Table(title=Text(printable(f"{name}: {report.images} images")))
    table.add_column("metric")
    table.add_column("value", justify="right")
    decided = report.decided_accuracy
    for label, value in (
        ("accuracy", report.accuracy),
        ("ROC-AUC", report.roc_auc),
        ("average precision", report.average_precision),
        ("EER", report.eer),
        ("TPR at 1 % FPR", report.tpr_at_1_fpr),
        ("ECE", report.ece),
        ("decided (not unsure)", report.decided),
        ("accuracy where decided", decided),
        *((f"accuracy on {kind}", value) for kind, value in report.per_class.items()),
        *(
            (f"accuracy on {source} ({row['images']})", row["accuracy"])
            for source, row in report.per_source.items()
        ),
    ):
        table.add_row(Text(printable(label)), "-" if value is None else f"{value:.4f}")
    Console(highlight=False).print(table)

"""ffd-eval: metrics of a model on labelled images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import (
    PathType,
    backend_option,
    device_option,
    format_option,
    version_option,
    wants_table,
)

from .progress_bar import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from ffd_runtime.core.classifier import Classifier

    from ..evaluation_report.study import Study, Subject
    from ..face_data import FaceData
    from ..robustness import Cell

EPILOG = """\b
Examples:
  ffd-eval runs/mine faces/
  ffd-eval embedded faces/ --split test --json
  ffd-eval runs/mine/best.onnx other-faces/ --robustness --report mine.html
  ffd-eval embedded faces/ --compare runs/mine
  ffd-eval embedded faces/ --robustness --card docs/MODEL_CARD.md
\b
Exit codes:
  0 done   1 could not run   2 wrong usage   3 done, but some images could not be read
"""


@dataclass(frozen=True)
class EvalOptions:
    """The arguments and options of ffd-eval."""

    model: Path
    data: Path
    split: str | None
    sample: int | None
    robustness: bool
    other: Path | None
    report: Path | None
    card: Path | None
    backend: str
    device: str
    batch: int
    as_json: bool | None

    def require_valid(self) -> None:
        """Check the options and output files before the work.

        Raises:
            UsageError: options contradict each other.
            OutputError: an output file cannot be written.
        """
        from ffd_runtime.outputs.html_page import require_page_path

        from ..evaluation_report.markdown import require_place

        if self.card and not self.robustness:
            raise click.UsageError("--card writes the robustness table: add --robustness")
        if self.report:
            require_page_path(self.report, "--report")
        if self.card:
            require_place(self.card)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model", type=PathType())
@click.argument("data", type=PathType())
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Measure only this split; DATA without splits is split as in ffd-train. Default: test if "
    "DATA has splits, else all images.",
)
@click.option(
    "--sample",
    type=click.IntRange(2),
    metavar="N",
    help="Measure a deterministic sample of N images, stratified by class and source.",
)
@click.option(
    "--robustness",
    is_flag=True,
    help="Also measure under JPEG, WebP, resizing, blur, noise, brightness and a screenshot.",
)
@click.option(
    "--compare",
    "other",
    type=PathType(),
    metavar="OTHER",
    help="Also measure this model on the same images, and test the difference. --backend applies "
    "to the models that it can read.",
)
@click.option(
    "--report",
    type=PathType(),
    metavar="FILE.html",
    help="Write a page with curves, tables, and the worst errors as images.",
)
@click.option(
    "--card",
    type=PathType(),
    metavar="FILE.md",
    help="Write the robustness table between <!-- robustness --> and <!-- /robustness --> in this "
    "file.",
)
@backend_option()
@device_option()
@click.option("--batch", type=click.IntRange(1, 1024), default=16, show_default=True)
@format_option("")
@version_option()
def main(**options: Any) -> None:
    """Measure MODEL on DATA, a folder with generated/ and groundtruth/.

    MODEL is a checkpoint, a run folder, an ONNX file, an engine, or the word embedded. DATA may
    hold train/, val/ and test/; its manifest.csv may name each image's source, split, and family of
    generators. Without a family, a generated source whose name begins with diffusion is of the
    family diffusion, and any other of the family gan.
    """
    from datetime import datetime

    import cv2

    from ..evaluation_report.evaluation_page import write_page
    from ..evaluation_report.markdown import put_table
    from ..evaluation_report.study import Study, to_document

    chosen = EvalOptions(**options)
    chosen.require_valid()
    cv2.setNumThreads(1)
    started = datetime.now().astimezone()
    data, available = _find_images(chosen)
    if chosen.split not in ("train", "val"):
        for model in filter(None, (chosen.model, chosen.other)):
            _report_known_images(model, data)
    subjects = _measure_models(chosen, data)
    study = Study(subjects[0], data, chosen.split, available, started)
    if chosen.other:
        with progress_bar() as bar:
            bar.add_task("comparison", total=None)
            study = study.against(subjects[1])
    if wants_table(chosen.as_json):
        from ..evaluation_report.evaluation_tables import print_tables

        print_tables(study)
    else:
        import json

        click.echo(json.dumps(to_document(study)))
    if chosen.report:
        write_page(chosen.report, study)
        say(f"wrote {chosen.report}")
    if chosen.card:
        put_table(chosen.card, study)
        say(f"replaced the table in {chosen.card}")
    _exit_if_unreadable(study)


def _find_images(options: EvalOptions) -> tuple[FaceData, int]:
    """Return the images to measure, and the number of images they were drawn from."""
    from ..evaluation import draw_sample
    from ..scanning import find_labelled

    data = find_labelled(options.data, options.split)
    for note in data.notes:
        say(note)
    available = len(data.samples)
    if not options.split and not any(sample.split for sample in data.samples):
        say(
            f"{options.data} has no test/: measuring all images, which may include training images "
            "of the model"
        )
    if options.sample and options.sample < available:
        data = draw_sample(data, options.sample)
        say(f"measuring {options.sample} of {available} images, sampled by class and source")
    return data, available


def _report_known_images(model: Path, data: FaceData) -> None:
    """Say how many images a run was trained or calibrated on, according to its manifest."""
    import csv

    from ..evaluation import find_model

    if str(model) == "embedded":
        return
    manifest = find_model(model).with_name("manifest.csv")
    if not manifest.is_file():
        return
    with manifest.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split") in ("train", "val")]
    known = {row.get("sha256") for row in rows}
    if count := sum(data.hash(sample) in known for sample in data.samples):
        say(
            f"{count} of {len(data.samples)} images are in the training or validation split of "
            f"{model}, so the result is too high"
        )


def _measure_models(options: EvalOptions, data: FaceData) -> list[Subject]:
    from ffd_runtime.core.classifier import Classifier
    from ffd_runtime.model.backends import find_embedded

    from ..evaluation import open_model

    paths = [
        find_embedded(options.device) if str(path) == "embedded" else path
        for path in (options.model, options.other)
        if path
    ]
    backends = _choose_backends(paths, options.backend)
    with ExitStack() as stack:
        # Open both models first, to report an error before the work.
        classifiers = [
            stack.enter_context(
                Classifier(open_model(path, options.device, backend), batch=options.batch)
            )
            for path, backend in zip(paths, backends, strict=True)
        ]
        return [
            _measure(path, classifier, data, options.robustness)
            for path, classifier in zip(paths, classifiers, strict=True)
        ]


def _exit_if_unreadable(study: Study) -> None:
    """Report unreadable images, and exit with code 3 if there are any."""
    unreadable = {
        row.source: row for subject in study.subjects for row in subject.evaluation.unreadable
    }
    for row in unreadable.values():
        assert row.error is not None
        say(f"skipped {row.source}: {row.error.message}")
    if unreadable:
        click.get_current_context().exit(3)


def _choose_backends(paths: list[Path], backend: str) -> list[str]:
    """Return a backend for each model: the given one for models it reads, if there are any."""
    from ffd_runtime.model.backend_registry import BACKENDS

    readable = [backend in BACKENDS and path.suffix in BACKENDS[backend].suffixes for path in paths]
    return [backend if reads or not any(readable) else "auto" for reads in readable]


def _measure(path: Path, classifier: Classifier, data: FaceData, robustness: bool) -> Subject:
    from ffd_runtime.core.file_hash import hash_file
    from ffd_runtime.model.backends import EMBEDDED, EMBEDDED_INT8

    from ..evaluation import evaluate, find_model, measure_robustness
    from ..evaluation_report.study import Subject
    from ..robustness import PERTURBATIONS

    say(f"{classifier.description}; {len(data.samples)} images")
    if find_model(path).suffix == ".safetensors" and "val" not in classifier.card.metrics:
        say(
            f"{path} is not calibrated, as its training has not finished: its threshold is 0.5 and "
            "its temperature 1"
        )
    say_more(classifier.card.to_json(indent=2))
    with progress_bar() as bar:
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
    shown = "embedded" if path in (EMBEDDED, EMBEDDED_INT8) else str(file)
    name, runs_on = classifier.card.name, classifier.description
    return Subject(name, shown, hash_file(file), runs_on, evaluation, cells)

"""Write the embedded model of the package as FP32 and INT8, from one checkpoint.

Usage: python -m tools.embed MODEL --calibrate faces/train --verify faces/test

MODEL is the folder of a run, a checkpoint or an FP32 ONNX of `ffd-export`. INT8 is calibrated on
one folder and compared with MODEL on the other. Its model card contains the comparison, from which
the runtime decides whether a CPU runs INT8 (`ffd_runtime.model.backends.embedded`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ffd_export.atomic_files import write_files
from ffd_export.conversion import convert
from ffd_export.export_options import AUTO, ExportOptions
from ffd_export.exported_model import ExportedModel
from ffd_export.parity import summarise
from ffd_export.reporter import Advance, Reporter
from ffd_export.sample_images import SampleImages, find_images, prepare_images
from ffd_export.source_model import SourceModel, open_source
from ffd_export.training_runs import find_checkpoint
from ffd_export.verification import measure_baseline, verify_model
from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends.embedded import EMBEDDED, EMBEDDED_INT8, explain_rejection

# Of both files together, as the wheel contains them.
MAX_BYTES = 25_000_000
ALL = sys.maxsize


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calibrate", required=True, metavar="DIR", help="Calibrate INT8 with these images.")
@click.option(
    "--verify", required=True, metavar="DIR", help="Compare models on all these labelled images."
)
@click.option(
    "--calibration-images",
    type=click.IntRange(8),
    default=512,
    show_default=True,
    help="Largest number of calibration images, balanced between the classes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=EMBEDDED.parent,
    help="Folder of the two files. Default: the package's.",
)
def main(model: Path, calibrate: str, verify: str, calibration_images: int, output: Path) -> None:
    """Write embedded.onnx and embedded.int8.onnx, and say which of them a CPU runs."""
    source = open_source(find_checkpoint(model, Path()))
    spec = source.card.preprocess
    verification = prepare_images(find_images(verify, ALL, ("test",)), spec)
    if not verification.labelled:
        raise ModelError(f"--verify {verify}: needs images below generated/ and groundtruth/")
    calibration = prepare_images(find_images(calibrate, calibration_images, ("train",)), spec)
    fp32, int8 = make_both(source, verification, calibration)
    write_both(fp32, int8, output)


def make_both(
    source: SourceModel, verification: SampleImages, calibration: SampleImages
) -> tuple[ExportedModel, ExportedModel]:
    """Convert a model to FP32 and INT8, and compare both with it on the same labelled images.

    Layers in FP32 cost speed. INT8 keeps some only if it is too inaccurate without.

    Raises:
        ModelError: a converted model differs too much from the source.
    """
    reporter = PlainReporter()
    baseline = measure_baseline(source, verification, reporter)

    def export(options: ExportOptions) -> ExportedModel:
        converted = convert(source, options, calibration, baseline, reporter)
        return verify_model(converted, baseline, reporter)

    fp32 = export(ExportOptions())
    try:
        int8 = export(ExportOptions(int8=True))
        reason = explain_rejection(int8.card, fp32.card)
    except ModelError as error:
        reason = str(error)
    if reason is None:
        return fp32, int8
    say(f"INT8 in every layer is too inaccurate: {reason}")
    return fp32, export(ExportOptions(int8=True, keep=AUTO))


def write_both(fp32: ExportedModel, int8: ExportedModel, folder: Path) -> None:
    """Write both files and say which of them a CPU runs.

    Raises:
        ModelError: they are too large for the package; nothing is written.
    """
    files = {
        folder / EMBEDDED.name: fp32.content,
        folder / EMBEDDED_INT8.name: int8.content,
    }
    size = sum(map(len, files.values()))
    if size > MAX_BYTES:
        raise ModelError(f"the two files take {size / 1e6:.1f} MB, limit {MAX_BYTES / 1e6:g} MB")
    write_files(files)
    for path, content in files.items():
        say(f"wrote {path}, {len(content) / 1e6:.1f} MB")
    if int8.parity:
        say(", ".join(f"{name} {value}" for name, value in summarise(int8.parity).items()))
    reason = explain_rejection(int8.card, fp32.card)
    say(f"a CPU runs FP32, not INT8: {reason}" if reason else "a CPU runs INT8")


class PlainReporter(Reporter):
    """Reports in lines on stderr, without progress bars."""

    def say(self, message: str) -> None:
        say(message)

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        say(f"{title} ...")
        yield lambda count: None


if __name__ == "__main__":
    main()

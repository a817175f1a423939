"""Write the embedded model of the package, FP32 and INT8, from one checkpoint.

Usage: python -m tools.embed MODEL --calibrate faces/train --verify faces/test

MODEL is a run's folder, a checkpoint or an FP32 ONNX of `ffd-export`. INT8 is calibrated on the one
folder and compared with MODEL on the other; its model card keeps the comparison, by which the
runtime decides whether a CPU runs INT8 (`ffd_runtime.model.backends.embedded`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ffd_export.atomic_files import write_files
from ffd_export.exporting import Made, Source, Wish, make, open_source, take_as_is
from ffd_export.sample_images import Images, find_images, prepare_images
from ffd_export.training_runs import find_checkpoint
from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends.embedded import EMBEDDED, EMBEDDED_INT8, explain_rejection

# Both files together, in the wheel.
MAX_BYTES = 25_000_000
ALL = sys.maxsize


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--calibrate", required=True, metavar="DIR", help="Images to calibrate INT8 with.")
@click.option(
    "--verify", required=True, metavar="DIR", help="Labelled images to compare both models on: all."
)
@click.option(
    "--calibration-images",
    type=click.IntRange(8),
    default=512,
    show_default=True,
    help="At most so many, of both classes alike.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=EMBEDDED.parent,
    help="Folder for the two files. Default: the package's.",
)
def main(model: Path, calibrate: str, verify: str, calibration_images: int, output: Path) -> None:
    """Write embedded.onnx and embedded.int8.onnx, and say whether a CPU will run the second."""
    source = open_source(find_checkpoint(model, Path()))
    spec = source.card.preprocess
    verification = prepare_images(find_images(verify, ALL, ("test",)), spec)
    if not verification.labelled:
        raise ModelError(f"--verify {verify}: needs images below generated/ and groundtruth/")
    calibration = prepare_images(find_images(calibrate, calibration_images, ("train",)), spec)
    fp32, int8 = make_both(source, verification, calibration)
    write_both(fp32, int8, output)


def make_both(source: Source, verification: Images, calibration: Images) -> tuple[Made, Made]:
    """Convert a model to FP32 and INT8, both compared with it on the same labelled images.

    Layers that stay FP32 cost speed: INT8 keeps them only where it is too inaccurate without.

    Raises:
        ModelError: one is too far from the source.
    """
    if source.content is not None:
        fp32 = take_as_is(source)
    else:
        fp32 = make(source, Wish(), verification, None, say, _untracked)
    try:
        int8 = make(source, Wish("int8"), verification, calibration, say, _untracked)
        reason = explain_rejection(int8.card, fp32.card)
    except ModelError as error:
        reason = str(error)
    if reason is None:
        return fp32, int8
    say(f"INT8 in every layer is not accurate enough: {reason}")
    wish = Wish("int8", keep=("auto",))
    return fp32, make(source, wish, verification, calibration, say, _untracked)


def write_both(fp32: Made, int8: Made, folder: Path) -> None:
    """Write the two files if they fit the package; say which of them a CPU runs.

    Raises:
        ModelError: they are too large; nothing is written.
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
        say(", ".join(f"{name} {value}" for name, value in int8.parity.summary().items()))
    reason = explain_rejection(int8.card, fp32.card)
    say(f"a CPU runs FP32: INT8 is not used, as {reason}" if reason else "a CPU runs INT8")


@contextmanager
def _untracked(title: str, total: int) -> Iterator[Callable[[int], None]]:
    say(f"{title} ...")
    yield lambda count: None


if __name__ == "__main__":
    main()

"""ffd-data prepare: pack folders of images into a data set of shards."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.cli.command import Command, say
from ffd_runtime.cli.options import PathType, is_given, version_option
from ffd_runtime.core.text import printable

from .progress_bar import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from ..prepare.entries import Input

EPILOG = """\b
Examples:
  ffd-data prepare --groundtruth celeba/ --generated 100k-faces/ --output packed/
  ffd-data prepare --groundtruth ffhq=images1024x1024/ --groundtruth celeba/ \\
      --generated 100k-faces/ --generated stylegan2=sg2/ --side 256 --output packed/
  ffd-data prepare faces/ --no-match --output packed/
  ffd-train packed/
\b
Exit codes:
  0 done   1 could not run   2 wrong usage   3 done, but some images could not be read
"""


def _parse_numbers(
    form: str, count: int, context: click.Context, parameter: click.Parameter, text: str
) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)) if len(text) < 20 else ()
    if len(numbers) != count or re.sub(r"\d+", "N", text) != re.sub(r"\d+", "N", form):
        raise click.BadParameter(f"expected a value like {form}, not {text}")
    return numbers


def _parse_quality(
    context: click.Context, parameter: click.Parameter, text: str
) -> tuple[int, ...]:
    low, high = _parse_numbers("75-95", 2, context, parameter, text)
    if not 1 <= low <= high <= 100:
        raise click.BadParameter("expected 1 <= LOW <= HIGH <= 100")
    return low, high


def _parse_split(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    shares = _parse_numbers("80/10/10", 3, context, parameter, text)
    if sum(shares) != 100 or not shares[0]:
        raise click.BadParameter("the three must sum to 100, and TRAIN must not be 0")
    return shares


@click.command("prepare", cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@click.argument("folders", metavar="[[NAME=]DATA]...", nargs=-1)
@click.option("--groundtruth", multiple=True, metavar="[NAME=]PATH", help="Folder of photographs.")
@click.option(
    "--generated", multiple=True, metavar="[NAME=]PATH", help="Folder of generated images."
)
@click.option(
    "--output",
    required=True,
    type=PathType(),
    help="Folder of the packed data set. To resume an interrupted run, repeat the command.",
)
@click.option(
    "--match/--no-match",
    default=True,
    help="Encode all images alike: crop the largest centre square, shrink it to --side, and save a "
    "4:2:0 JPEG without EXIF, with a quality from --quality. Smaller images are left out. "
    "--no-match packs the original files.",
)
@click.option(
    "--side",
    type=click.IntRange(32, 4096),
    metavar="PIXELS",
    help="Side of the squares. Default: the largest that 95 % of each source's images reach, from "
    "64 to 512.",
)
@click.option(
    "--quality",
    default="75-95",
    callback=_parse_quality,
    metavar="LOW-HIGH",
    help="Range of the JPEG quality. The content of an image determines its quality; both classes "
    "have the same distribution.",
)
@click.option(
    "--split",
    default="80/10/10",
    callback=_parse_split,
    metavar="TRAIN/VAL/TEST",
    help="Percentages for images without a split. Splits from CelebA's partition, split folders "
    "and manifest.csv are kept; if none is val, VAL percent of train become val. The images of one "
    "person stay together.",
)
@click.option(
    "--shard-images",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of images in a shard. Default: about 256 MiB.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads. Default: one per core.")
@version_option()
def prepare(
    folders: tuple[str, ...],
    groundtruth: tuple[str, ...],
    generated: tuple[str, ...],
    output: Path,
    workers: int | None,
    **options: Any,
) -> None:
    """Pack images into shards: without copies, encoded alike, and split.

    DATA has generated/ and groundtruth/, optionally in train/, val/ and test/, as for ffd-train.
    PATH in --groundtruth and --generated is a folder of images, nested to any depth. NAME= names
    the source. A manifest.csv in a folder may name each image's source, split, identity and family.
    CelebA's lists, list_eval_partition.txt and identity_CelebA.txt, are read from the folder, its
    two parent folders, or their Anno/ and Eval/. The folders are not modified.

    Of exact and near copies, only the largest is kept. Images that occur in both classes are left
    out. left_out.csv lists the images left out, with reasons. The shards are WebDataset tar files.
    """
    import cv2

    from ffd_runtime.core.cores import count_cores

    from ..prepare import preparing

    settings = preparing.Settings(**options)
    if not settings.match:
        _refuse_options_of_match()
    inputs = _parse_inputs(folders, groundtruth, generated)
    cv2.setNumThreads(1)
    with progress_bar() as bar:

        def tell(line: str) -> None:
            if bar.disable:
                say(line)
            else:
                bar.console.print(printable(line), markup=False)

        def track(name: str, total: int) -> partial[None]:
            return partial(bar.advance, bar.add_task(name, total=total))

        try:
            unreadable = preparing.prepare(
                inputs, output, settings, workers or count_cores(), tell, track
            )
        except KeyboardInterrupt:
            tell("stopped; run the same command to resume")
            raise
    if unreadable:
        click.get_current_context().exit(3)


def _refuse_options_of_match() -> None:
    """Refuse options that have no effect without --match."""
    for name in ("side", "quality"):
        if is_given(name):
            raise click.UsageError(f"--{name} needs --match")


def _parse_inputs(
    folders: Sequence[str], groundtruth: Sequence[str], generated: Sequence[str]
) -> list[Input]:
    if not folders and not (groundtruth and generated):
        raise click.UsageError("give --groundtruth and --generated, or a DATA with both")
    by_label = ((None, folders), ("groundtruth", groundtruth), ("generated", generated))
    return [_parse_input(text, label) for label, texts in by_label for text in texts]


def _parse_input(text: str, label: str | None) -> Input:
    from pathlib import Path

    from ..prepare.entries import Input

    name, sign, path = text.partition("=")
    if sign and name and "/" not in name and not os.path.exists(text):
        return Input(Path(path), label, name)
    return Input(Path(text), label)

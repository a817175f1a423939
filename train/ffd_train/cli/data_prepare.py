"""ffd-data prepare: from folders of raw pictures to a packed data set."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.text import printable

if TYPE_CHECKING:
    from ..prepare.entries import Input

EPILOG = """\b
Examples:
  ffd-data prepare --groundtruth celeba/ --generated 100k-faces/ --output packed/
  ffd-data prepare --groundtruth ffhq=images1024x1024/ --groundtruth celeba/ \\
      --generated 100k-faces/ --generated stylegan2=sg2/ --side 256 --output packed/
  ffd-data prepare faces/ --no-match --output packed/
  ffd-train packed/
"""


def _numbers(
    form: str, count: int, context: click.Context, parameter: click.Parameter, text: str
) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)) if len(text) < 20 else ()
    if len(numbers) != count or re.sub(r"\d+", "N", text) != re.sub(r"\d+", "N", form):
        raise click.BadParameter(f"expected a form like {form}, not {text}")
    return numbers


def _quality(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    low, high = _numbers("75-95", 2, context, parameter, text)
    if not 1 <= low <= high <= 100:
        raise click.BadParameter("qualities go from 1 to 100, the lower first")
    return low, high


def _split(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    shares = _numbers("80/10/10", 3, context, parameter, text)
    if sum(shares) != 100 or not shares[0]:
        raise click.BadParameter("the three must sum to 100, and the first is not 0")
    return shares


@click.command("prepare", cls=Command, epilog=EPILOG)
@click.argument("folders", metavar="[[NAME=]DATA]...", nargs=-1)
@click.option("--groundtruth", multiple=True, metavar="[NAME=]PATH", help="Folder of photographs.")
@click.option("--generated", multiple=True, metavar="[NAME=]PATH", help="Folder of generated ones.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the packed data set. If it was begun by the same command, that goes on.",
)
@click.option(
    "--match/--no-match",
    default=True,
    show_default=True,
    help="Treat all pictures alike: the largest centre square, shrunk to one size and never "
    "enlarged, then a JPEG without EXIF, 4:2:0, whose quality is drawn by content. Smaller "
    "pictures are left out. Otherwise files are packed as they are.",
)
@click.option(
    "--side",
    type=click.IntRange(32, 4096),
    metavar="PIXELS",
    help="Of the squares. Default: the largest that 95 % of each source's pictures have, from 64 "
    "to 512.",
)
@click.option(
    "--quality",
    default="75-95",
    show_default=True,
    callback=_quality,
    metavar="LOW-HIGH",
    help="Of the JPEGs, the same chances for both classes.",
)
@click.option(
    "--split",
    default="80/10/10",
    show_default=True,
    callback=_split,
    metavar="TRAIN/VAL/TEST",
    help="Percent of what has no split yet. CelebA's partition, split folders and a manifest.csv's "
    "split column are kept, and one person's pictures stay together.",
)
@click.option(
    "--shard-images",
    type=click.IntRange(1),
    metavar="N",
    help="The most in one shard. Default: about 256 MiB.",
)
@click.option("--workers", type=click.IntRange(1), help="Threads. Default: one for each core.")
def prepare(
    folders: tuple[str, ...],
    groundtruth: tuple[str, ...],
    generated: tuple[str, ...],
    output: Path,
    match: bool,
    side: int | None,
    quality: tuple[int, int],
    split: tuple[int, int, int],
    shard_images: int | None,
    workers: int | None,
) -> None:
    """Make a data set of raw pictures: no copies, treated alike, split, in a few large files.

    PATH is a folder of pictures, nested as they come. CelebA is known by list_eval_partition.txt
    and identity_CelebA.txt, in it, or in a folder or two above it or their Anno/ and Eval/. DATA
    has generated/ and groundtruth/, perhaps in train/, val/ and test/, as ffd-train takes it. A
    manifest.csv in a folder may name each path's source, split and identity. None is changed.

    Of copies, exact or nearly so, the largest is kept; none of those in both classes. What was left
    out, and why, is in left_out.csv. The shards are WebDataset tars.
    """
    if side and not match:
        raise click.UsageError("--side is for --match")
    import cv2
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from ffd_runtime.model.devices import count_cores

    from ..prepare import preparing

    inputs = [_input(text, None) for text in folders]
    inputs += [_input(text, "groundtruth") for text in groundtruth]
    inputs += [_input(text, "generated") for text in generated]
    if not folders and not (groundtruth and generated):
        raise click.UsageError("give --groundtruth and --generated, or a DATA with both")
    cv2.setNumThreads(1)
    settings = preparing.Settings(match, side, quality, split, shard_images)
    console = Console(stderr=True, highlight=False)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:

        def tell(line: str) -> None:
            if quiet:
                say(line)
            else:
                console.print(printable(line), markup=False)

        def track(name: str, total: int) -> partial[None]:
            return partial(bar.advance, bar.add_task(name, total=total))

        try:
            unreadable = preparing.prepare(
                inputs, output, settings, workers or count_cores(), tell, track
            )
        except KeyboardInterrupt:
            tell("stopped; the same command goes on from here")
            raise
    if unreadable:
        click.get_current_context().exit(3)


def _input(text: str, label: str | None) -> Input:
    from ..prepare.entries import Input

    name, sign, path = text.partition("=")
    if sign and name and "/" not in name and not os.path.exists(text):
        return Input(Path(path), label, name)
    return Input(Path(text), label)

"""ffd-train: staged training."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ffd_runtime.commands.common import Command, say, say_more, version_option

NETWORKS = ("resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d", "tf_efficientnet_lite0")

EPILOG = """\b
Examples:
  ffd-train faces/
  ffd-train faces/ --stage head:1:1e-3 --stage layer4:2:1e-3 --stage all:2:1e-4
  ffd-train faces/ --network tf_efficientnet_lite0 --weights lite0.pth \\
      --stage all:12:1e-3 --optimizer adamw --schedule one-cycle --crop 192
  ffd-train faces/ --resume runs/resnext101_32x8d-20260101-120000
"""


def _stage(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    from ..stages import ARTICLE, Stage

    try:
        return tuple(Stage.parse(value) for value in values) or ARTICLE
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command, epilog=EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--network", type=click.Choice(NETWORKS), default=NETWORKS[0], show_default=True)
@click.option(
    "--weights",
    default="imagenet",
    show_default=True,
    help="Start from: imagenet (fetched once), none, or a file of weights or one of our own.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    callback=_stage,
    metavar="PART:EPOCHS:LR",
    help="What trains (head, layer4, layer3, layer2, layer1: that part and all after it; or all), "
    "for how long, at what learning rate. Repeat for more stages. Default: head:1:1e-3, "
    "layer4:2:1e-3, all:2:1e-4.",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["constant", "one-cycle"]),
    default="constant",
    show_default=True,
    help="Learning rate within a stage.",
)
@click.option("--weight-decay", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@click.option("--batch", type=click.IntRange(2), default=32, show_default=True)
@click.option(
    "--crop",
    type=click.IntRange(32, 299),
    help="Train on random N-pixel crops of the preprocessed image; evaluation sees the whole.",
)
@click.option("--augment/--no-augment", default=True, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["auto", "32", "bf16", "16"]),
    default="auto",
    show_default=True,
    help="auto is mixed precision on a GPU and float32 on a CPU; bf16 works on both.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--workers", type=click.IntRange(0), help="Processes that load data.")
@click.option("--name", help="Of the run's folder. Default: the network and the time.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that holds the runs.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run's folder, with the settings it was started with.",
)
@version_option()
def main(data: Path, name: str | None, runs: Path, resume: Path | None, **options: Any) -> None:
    """Train a network on DATA, a folder with generated/ and groundtruth/.

    DATA may hold train/, val/ and test/ with these two in each; without them it is split 80/10/10
    by content. A run leaves best.safetensors (with its card), metrics.csv, curves.png and what
    --resume needs.
    """
    from ffd_runtime.errors import DataError, OutputError

    from ..data import scan
    from ..run_folder import BEST, SETTINGS
    from ..settings import Settings
    from ..training import train

    if resume:
        if not (resume / SETTINGS).is_file():
            raise DataError(f"{resume} is not a run: it has no {SETTINGS}")
        folder = resume
        # The data may have moved since; that it is the same is checked by content.
        settings = Settings.from_json((resume / SETTINGS).read_text(), data=str(data.absolute()))
    else:
        weights = options.pop("weights")
        if weights not in ("imagenet", "none"):
            weights = str(Path(weights).absolute())
        settings = Settings(data=str(data.absolute()), weights=weights, **options)
        folder = runs / (name or f"{settings.network}-{time.strftime('%Y%m%d-%H%M%S')}")
        if folder.exists():
            raise OutputError(f"{folder} exists: choose another --name, or --resume {folder}")
    say(f"reading {data}")
    faces = scan(data, ("train", "val"))
    counts = ", ".join(f"{len(faces.split(split))} {split}" for split in ("train", "val", "test"))
    say(f"{len(faces.samples)} images: {counts}" + _ignored(faces.ignored))
    say_more(settings.to_json())
    try:
        train(faces, settings, folder, resume=bool(resume), progress=sys.stderr.isatty(), say=say)
    except KeyboardInterrupt:
        if (folder / SETTINGS).is_file():
            say(f"stopped; go on with --resume {folder}")
        raise
    say(f"wrote {folder / BEST}")


def _ignored(count: int) -> str:
    return f" ({count} files without an image's name left out)" if count else ""

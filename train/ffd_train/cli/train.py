"""ffd-train: staged training."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import version_option

if TYPE_CHECKING:
    from ..augmentation import Recipe
    from ..settings import Settings

NETWORKS = (
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
)

# What a resumed run may be given anew: it decides where a run is trained, not what.
OF_THE_MACHINE = ("accumulate", "device", "workers", "compile")

EPILOG = """\b
Examples:
  ffd-train faces/
  ffd-train faces/ --stage head:1:1e-3 --stage layer4:2:1e-3 --stage all:2:1e-4
  ffd-train faces/ --network tf_efficientnet_lite0 --weights lite0.pth \\
      --stage all:20:1e-3 --optimizer adamw --schedule one-cycle --crop 192 --sizes 192 340
  ffd-train faces/ --network tf_efficientnet_lite0 --teacher runs/large
  ffd-train faces/ --resume runs/resnext101_32x8d-20260101-120000
  torchrun --nproc-per-node 4 -m ffd_train.cli.train shards/ --batch 256
"""


def _stage(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
    from ..stage import ARTICLE, Stage

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
    type=click.Choice(["cosine", "one-cycle", "constant"]),
    default="cosine",
    show_default=True,
    help="Learning rate within a stage: falling to 0, rising and falling, or as it is.",
)
@click.option("--weight-decay", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@click.option(
    "--batch",
    type=click.IntRange(2),
    default=32,
    show_default=True,
    help="Images a step, over all processes.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Take a batch in N parts, for a small memory. Found by itself where a GPU's is too small.",
)
@click.option(
    "--crop",
    type=click.IntRange(32, 299),
    help="Train on random N-pixel crops of the preprocessed image; evaluation sees the whole.",
)
@click.option(
    "--sizes",
    type=click.IntRange(32, 1024),
    nargs=2,
    metavar="LOW HIGH",
    help="Side of the preprocessed image that --crop cuts from is drawn from LOW to HIGH, so that "
    "faces are seen at several scales. Default: 299.",
)
@click.option(
    "--recipe",
    metavar="FILE",
    help="Augmentation: a TOML file like train/ffd_train/recipe.toml, the default; light, for a "
    "small network; varied, for many sources of different sizes; or none.",
)
@click.option(
    "--balance",
    type=click.Choice(["source", "class", "none"]),
    default="source",
    show_default=True,
    help="Draw classes equally often, and the sources in a class by the root of their size.",
)
@click.option("--label-smoothing", type=click.FloatRange(0, 0.5), default=0.05, show_default=True)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.999,
    show_default=True,
    help="Decay of the weights' moving average, which is validated and kept; 0 for none.",
)
@click.option(
    "--keep",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Which epoch: the best on validation, by AUC; or the last, where the learning rate ends "
    "at 0: validation images are clean, and do not show what laundering taught.",
)
@click.option(
    "--clip",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Limit of the gradient's norm; 0 for none.",
)
@click.option(
    "--teacher",
    default="",
    metavar="RUN",
    help="Distil from this run's folder or checkpoint: learn from its outputs, too.",
)
@click.option(
    "--teacher-weight",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the loss that is the distance to the teacher.",
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="SOURCE",
    help="Train and validate without a source of manifest.csv, so that ffd-eval can tell how the "
    "network does on what it has never seen. Repeat for more.",
)
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, 0.5),
    default=0.01,
    show_default=True,
    help="Share of any source's photographs that the threshold may call generated, on val, to the "
    "nearest photograph.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "32", "bf16", "16"]),
    default="auto",
    show_default=True,
    help="auto is float32 on a CPU, and on a GPU mixed precision: bf16 where its hardware computes "
    "it, else 16. bf16 works on both.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that load data. Default: one a core."
)
@click.option(
    "--compile/--no-compile",
    default=False,
    show_default=True,
    help="Compile the network with torch.compile: the first step of each stage takes minutes, the "
    "others are faster. Needs a C compiler.",
)
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
    """Train a network on DATA, a folder with generated/ and groundtruth/, or of shards.

    DATA may hold train/, val/ and test/ with these two in each; without them it is split 80/10/10
    by content. Shards are what ffd-data prepare writes. A run leaves best.safetensors (with its
    card), metrics.csv, curves.png, tensorboard/ and what --resume needs. Under torchrun, several
    GPUs and machines train together.
    """
    from ..data import leave_out, scan
    from ..integrity import require_whole
    from ..run_folder import BEST
    from ..training import train
    from ..world import Processes

    first = Processes.here().first
    tell = say if first else _nobody
    settings, folder = (
        _resumed(data, resume, options) if resume else _started(data, runs, name, options, first)
    )
    tell(f"reading {data}")
    faces = leave_out(scan(data, ("train", "val")), settings.leave_out)
    counts = ", ".join(f"{len(faces.split(split))} {split}" for split in ("train", "val", "test"))
    tell(f"{len(faces.samples)} images: {counts}" + _ignored(faces.ignored))
    for note in faces.notes:
        tell(note)
    if not resume:
        require_whole(faces)
    if first:
        say_more(settings.to_json())
    progress = first and sys.stderr.isatty()
    try:
        train(faces, settings, folder, resume=bool(resume), progress=progress, say=tell)
    except KeyboardInterrupt:
        if first and (folder / BEST).is_file():
            say(f"stopped; go on with --resume {folder}")
        raise
    tell(f"wrote {folder / BEST}")


def _resumed(data: Path, run: Path, options: dict[str, Any]) -> tuple[Settings, Path]:
    """The settings that a run was started with, but for those of the machine."""
    from ffd_runtime.core.errors import DataError

    from ..run_folder import SETTINGS
    from ..settings import Settings

    context = click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    other = [given[name] for name in (*options, "name", "runs") if name in given]
    other = [option for option in other if option[2:] not in OF_THE_MACHINE]
    if other:
        may = ", ".join(f"--{name}" for name in OF_THE_MACHINE)
        raise click.UsageError(
            f"--resume keeps the run's settings, {', '.join(other)} too; it takes {may}"
        )
    if not (run / SETTINGS).is_file():
        raise DataError(f"{run} is not a run: it has no {SETTINGS}")
    # The data may have moved since; that it is the same is checked by content.
    text = (run / SETTINGS).read_text()
    changes = {name: options[name] for name in OF_THE_MACHINE if name in given}
    settings = Settings.from_json(text, data=str(data.absolute()), **changes)
    _require_parts(settings.batch, settings.accumulate)
    return settings, run


def _started(
    data: Path, runs: Path, name: str | None, options: dict[str, Any], first: bool
) -> tuple[Settings, Path]:
    """The settings of a new run, by the command line."""
    from ffd_runtime.core.errors import OutputError

    from ..settings import Settings

    _require_sizes(options["crop"], options["sizes"])
    _require_share(options["batch"], options["accumulate"])
    options["recipe"] = _recipe(options["recipe"])
    for key in ("weights", "teacher"):
        if options[key] not in ("imagenet", "none", ""):
            options[key] = str(Path(options[key]).absolute())
    settings = Settings(data=str(data.absolute()), **options)
    folder = runs / (name or f"{settings.network}-{time.strftime('%Y%m%d-%H%M%S')}")
    # The first process may have made it already.
    if first and folder.exists():
        raise OutputError(f"{folder} exists: choose another --name, or --resume {folder}")
    return settings, folder


def _require_sizes(crop: int | None, sizes: tuple[int, int] | None) -> None:
    if sizes and not crop:
        raise click.UsageError("--sizes needs --crop: images of a batch have one size")
    if sizes and not (crop or 0) <= sizes[0] <= sizes[1]:
        raise click.UsageError(f"--sizes LOW HIGH: --crop ({crop}) <= LOW <= HIGH")


def _require_share(batch: int, parts: int) -> None:
    from ..world import Processes

    shares = Processes.here().count * parts
    if batch < 2 * shares:
        raise click.UsageError(
            f"--batch {batch} leaves a part less than two images: at least {2 * shares} here"
        )
    if batch % shares:
        nearest = (batch + shares // 2) // shares * shares
        raise click.UsageError(
            f"--batch {batch} cannot be shared evenly, here by {shares}: --batch {nearest} can"
        )


def _require_parts(batch: int, parts: int) -> None:
    """Refuse to go on with a run's batch where it cannot be shared as it was."""
    from ..sampling import possible_parts
    from ..world import Processes

    count = Processes.here().count
    possible = possible_parts(batch, count)
    if parts in possible:
        return
    what = "start another number of processes"
    if possible:
        what = f"give --accumulate {next((n for n in possible if n >= parts), possible[-1])}"
    raise click.UsageError(
        f"this run's batch of {batch} images cannot be shared evenly by {count} x {parts} "
        f"(processes x parts), two or more to each: {what}"
    )


def _recipe(text: str | None) -> Recipe | None:
    from ..augmentation import Recipe

    if text == "none":
        return None
    if text in ("light", "varied"):
        return Recipe.packaged(text)
    return Recipe.load(Path(text)) if text else Recipe.default()


def _nobody(_: str) -> None:
    """Only the first process speaks."""


def _ignored(count: int) -> str:
    return f" ({count} files without an image's name left out)" if count else ""


if __name__ == "__main__":
    # torchrun -m ffd_train.cli.train
    main(prog_name="ffd-train")

"""ffd-train: staged training."""

from __future__ import annotations

import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import is_given, version_option
from ffd_runtime.core.errors import DataError, OutputError

from ..network_registry import NETWORKS

if TYPE_CHECKING:
    from ..augmentation import AugmentationPipeline
    from ..settings import Settings
    from ..stage import Stage

# Options that a resumed run may change: they affect where a run trains, not what.
MACHINE_OPTIONS = ("accumulate", "device", "workers", "compile")

EPILOG = """\b
Examples:
  ffd-train faces/
  ffd-train faces/ --stage head:1:1e-3 --stage layer4:2:1e-3 --stage all:2:1e-4
  ffd-train faces/ --network tf_efficientnet_lite0 --weights lite0.pth \\
      --stage all:20:1e-3 --optimizer adamw --schedule one-cycle --crop 192 --sizes 192 340
  ffd-train faces/ --network tf_efficientnet_lite0 --teacher runs/large
  ffd-train faces/ --resume runs/resnext101_32x8d-20260101-120000
  torchrun --nproc-per-node 4 -m ffd_train.cli.train shards/ --batch 256
\b
Exit codes:
  0 done   1 could not run   2 wrong usage
"""


def _parse_stages(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[Stage, ...]:
    from ..stage import ARTICLE, Stage

    try:
        return tuple(Stage.parse(value) for value in values) or ARTICLE
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--network", type=click.Choice(NETWORKS), default=next(iter(NETWORKS)))
@click.option(
    "--weights",
    default="imagenet",
    help="Initial weights: imagenet (downloaded once), none, or a file: ImageNet weights or a "
    "checkpoint of ffd-train.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    callback=_parse_stages,
    metavar="PART:EPOCHS:LR",
    help="Train PART and all parts after it (head, layer4, layer3, layer2, layer1 or all) for "
    "EPOCHS epochs at learning rate LR. Repeat for more stages. Default: head:1:1e-3, "
    "layer4:2:1e-3, all:2:1e-4.",
)
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "one-cycle", "constant"]),
    default="cosine",
    help="Learning rate schedule within a stage.",
)
@click.option("--weight-decay", type=click.FloatRange(0, 1), default=0.0)
@click.option(
    "--batch",
    type=click.IntRange(2),
    default=32,
    help="Images per optimizer step, over all processes.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    help="Gradient accumulation steps. Increased automatically when a GPU runs out of memory.",
)
@click.option(
    "--crop",
    type=click.IntRange(32, 299),
    help="Train on random crops of the preprocessed image, CROP pixels wide. Evaluation uses the "
    "whole image.",
)
@click.option(
    "--sizes",
    type=click.IntRange(32, 1024),
    nargs=2,
    metavar="LOW HIGH",
    help="Before --crop, resize the image to a random side from LOW to HIGH pixels. Default: 299.",
)
@click.option(
    "--recipe",
    metavar="FILE",
    help="Augmentation pipeline: a TOML file like train/ffd_train/recipe.toml (the default); "
    "light, for a small network; varied, for sources of different sizes; or none.",
)
@click.option(
    "--balance",
    type=click.Choice(["source", "class", "none"]),
    default="source",
    help="Sampling: class draws both classes equally often; source also weights the sources of a "
    "class by the square root of their size.",
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 0.5),
    default=0.05,
    help="Share of each label that is spread over both classes.",
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.999,
    help="Decay of the moving average of the weights, which is validated and saved; 0 disables it.",
)
@click.option(
    "--keep",
    type=click.Choice(["best", "last"]),
    default="best",
    help="Checkpoint policy: save the epoch with the highest validation AUC, or the last one. "
    "Validation images are clean and do not show the effect of augmentation.",
)
@click.option(
    "--clip",
    type=click.FloatRange(0),
    default=1.0,
    help="Maximum gradient norm; 0 disables clipping.",
)
@click.option(
    "--teacher",
    multiple=True,
    metavar="RUN",
    help="Distil from the network of this run folder or checkpoint. Repeat to distil from the mean "
    "of the logits of several.",
)
@click.option(
    "--teacher-weight",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Weight of the distillation loss.",
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="SOURCE",
    help="Exclude a source of manifest.csv from train and val, to test on an unseen source with "
    "ffd-eval. Repeat for more.",
)
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, 0.5),
    default=0.01,
    help="Maximum false positive rate: share of each source's photographs in val that may be "
    "labelled generated. Sets the threshold.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "32", "bf16", "16"]),
    default="auto",
    help="auto: 32 on a CPU; on a GPU, mixed precision with bf16 if the hardware supports it, else "
    "with 16.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--workers", type=click.IntRange(0), help="Data loading processes. Default: one per core."
)
@click.option(
    "--compile/--no-compile",
    default=False,
    help="Compile the network with torch.compile: the first step of each stage takes minutes, the "
    "others are faster. Needs a C compiler.",
)
@click.option("--name", help="Name of the run folder. Default: network and time.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    help="Folder of all runs.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Resume the run in this folder with its settings.",
)
@version_option()
def main(data: Path, name: str | None, runs: Path, resume: Path | None, **options: Any) -> None:
    """Train a network on DATA, a folder with generated/ and groundtruth/, or with shards.

    DATA may contain train/, val/ and test/ with these two in each; otherwise it is split 80/10/10
    by a hash of each image. ffd-data prepare writes shards. A run writes best.safetensors (with its
    model card), metrics.csv, curves.png, tensorboard/ and the state for --resume. To train on
    several GPUs or machines, start the command with torchrun.
    """
    from ..integrity import require_intact
    from ..run_folder import BEST
    from ..scanning import leave_out, scan
    from ..settings import Settings
    from ..training import train
    from ..world import World

    is_main = World.from_environment().is_main
    tell = say if is_main else (lambda _: None)
    options["recipe"] = None if resume else _load_recipe(options["recipe"])
    settings = Settings(str(data.absolute()), **options)
    if resume:
        settings, folder = _load_settings(settings, resume), resume
    else:
        settings = _complete_settings(settings)
        folder = runs / (name or f"{settings.network}-{time.strftime('%Y%m%d-%H%M%S')}")
        # Other ranks may find the folder that rank 0 has just created.
        if is_main and folder.exists():
            raise OutputError(f"{folder} exists: choose another --name, or --resume {folder}")
    tell(f"reading {data}")
    faces = leave_out(scan(data, ("train", "val")), settings.leave_out)
    counts = ", ".join(f"{len(faces.split(split))} {split}" for split in ("train", "val", "test"))
    skipped = f" (skipped {faces.ignored} files that are not images)" if faces.ignored else ""
    tell(f"{len(faces.samples)} images: {counts}{skipped}")
    for note in faces.notes:
        tell(note)
    if not resume:
        require_intact(faces)
    if is_main:
        say_more(settings.to_json())
    progress = is_main and sys.stderr.isatty()
    try:
        train(faces, settings, folder, resume=bool(resume), progress=progress, say=tell)
    except KeyboardInterrupt:
        if is_main and (folder / BEST).is_file():
            say(f"stopped; resume with --resume {folder}")
        raise
    tell(f"wrote {folder / BEST}")


def _complete_settings(settings: Settings) -> Settings:
    """Check the settings of a new run, and make its paths absolute.

    Raises:
        UsageError: options contradict each other.
    """
    crop, sizes = settings.crop, settings.sizes
    if sizes and not crop:
        raise click.UsageError("--sizes needs --crop: the images of a batch have one size")
    if sizes and not (crop or 0) <= sizes[0] <= sizes[1]:
        raise click.UsageError(f"--sizes LOW HIGH: --crop ({crop}) <= LOW <= HIGH")
    if is_given("teacher_weight") and not settings.teacher:
        raise click.UsageError("--teacher-weight needs --teacher")
    _require_divisible(settings, resumed=False)
    weights = settings.weights
    if weights not in ("imagenet", "none"):
        weights = str(Path(weights).absolute())
    teacher = tuple(str(Path(path).absolute()) for path in settings.teacher)
    return replace(settings, weights=weights, teacher=teacher)


def _load_recipe(text: str | None) -> AugmentationPipeline | None:
    """Return the augmentation pipeline of `--recipe`.

    Raises:
        DataError: the recipe is invalid.
    """
    from ..augmentation import AugmentationPipeline

    if text == "none":
        return None
    if text in ("light", "varied"):
        return AugmentationPipeline.packaged(text)
    return AugmentationPipeline.load(Path(text)) if text else AugmentationPipeline.default()


def _load_settings(chosen: Settings, run: Path) -> Settings:
    """Read the settings of the run to resume, and apply the options of the machine."""
    from ..run_folder import SETTINGS

    context = click.get_current_context()
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if is_given(parameter.name or "")
    }
    # The data may have moved: they are compared by content.
    changeable = ("data", *MACHINE_OPTIONS)
    names = (*(field.name for field in fields(chosen)), "name", "runs")
    other = [given[name] for name in names if name in given and name not in changeable]
    if other:
        allowed = ", ".join(f"--{name}" for name in MACHINE_OPTIONS)
        raise click.UsageError(
            f"--resume uses the settings of the run: remove {', '.join(other)} "
            f"(it allows {allowed})"
        )
    if not (run / SETTINGS).is_file():
        raise DataError(f"{run} is not a run: it has no {SETTINGS}")
    changes = {name: getattr(chosen, name) for name in changeable if name in given}
    settings = chosen.from_json((run / SETTINGS).read_text(), **changes)
    _require_divisible(settings, resumed=True)
    return settings


def _require_divisible(settings: Settings, *, resumed: bool) -> None:
    """Check that a batch can be divided among the processes; a resumed run keeps its batch."""
    from ..sampling import possible_accumulation_steps
    from ..world import World

    batch, steps, size = settings.batch, settings.accumulate, World.from_environment().size
    possible = possible_accumulation_steps(batch, size)
    if steps in possible:
        return
    if not resumed:
        count = size * steps
        what = f"use --batch {max(2, (batch + count // 2) // count) * count}"
    elif possible:
        what = f"use --accumulate {next((n for n in possible if n >= steps), possible[-1])}"
    else:
        what = "start another number of processes"
    raise click.UsageError(
        f"a batch of {batch} images cannot be divided evenly into {size} x {steps} micro-batches "
        f"(processes x accumulation steps) of two images or more: {what}"
    )


if __name__ == "__main__":
    # torchrun -m ffd_train.cli.train
    main(prog_name="ffd-train")

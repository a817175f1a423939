"""ffd-export: from a checkpoint to files that the runtime runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import format_option, version_option, wants_table

if TYPE_CHECKING:
    from ffd_runtime.model.card import PreprocessSpec

    from ..engine_build import Builder, EngineOptions
    from ..export_files import Artefacts
    from ..exporting import Made, Source, Wish
    from ..sample_images import Example, Images

EPILOG = """\b
Examples:
  ffd-export                          the newest run in runs/, as FP32 ONNX
  ffd-export --fp16                   as FP16 ONNX, and an engine where TensorRT and a GPU are
  ffd-export runs/mine --int8 --calibrate faces/train --keep auto
  ffd-export best.fp16.onnx --engine tensorrt --verify DIR    on the device; needs no torch
  ffd-export best.fp16.onnx --engine rtx --compute-capability 8.6,8.9
  ffd-export runs/mine --fp16 --triton models/
"""


# Fewer images than these cannot tell half a point of accuracy.
FEW = 200


@click.command(cls=Command, epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--fp16", is_flag=True, help="FP16, typed in the ONNX.")
@click.option("--int8", is_flag=True, help="INT8, by static quantisation.")
@click.option(
    "--target",
    type=click.Choice(["cpu", "tensorrt"]),
    help="Which INT8: onnxruntime's on a CPU, or TensorRT's. Default: tensorrt with --engine, "
    "else cpu.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images to calibrate INT8 with. Default: the run's training images.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(8, 8192),
    default=512,
    show_default=True,
    help="At most so many, of both classes alike.",
)
@click.option(
    "--calibration",
    type=click.Choice(["auto", "percentile", "entropy"]),
    default="auto",
    show_default=True,
    help="How INT8's ranges are found; auto measures both.",
)
@click.option(
    "--keep",
    metavar="LAYER,...|auto",
    help="Layers that stay FP32; auto measures which cost most.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "rtx", "none"]),
    default="auto",
    show_default=True,
    help="Build an engine; auto does with --fp16 where TensorRT and a GPU are.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="The largest batch that an engine takes.",
)
@click.option(
    "--opt-batch", type=click.IntRange(1, 1024), help="Batch to be fastest at. Default: 16."
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="GPU memory for scratch.")
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="From 0, the quickest build, to 5, the fastest engine. Default: TensorRT's.",
)
@click.option("--version-compatible", is_flag=True, help="Let later versions of TensorRT run it.")
@click.option(
    "--exclude-lean-runtime",
    is_flag=True,
    help="Leave the lean runtime out of a version-compatible engine.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
    default="none",
    show_default=True,
    help="Which other GPUs an engine of TensorRT may run on.",
)
@click.option(
    "--compute-capability",
    metavar="X.Y,...",
    help="GPUs to build for without having them (--engine rtx).",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder that keeps TensorRT's timings. Default: ffd in the user's cache.",
)
@click.option(
    "--verify",
    metavar="DIR|none",
    help="Real images to compare the export with the checkpoint on. Default: the run's "
    "validation images.",
)
@click.option(
    "--triton",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a Triton model repository too.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files. Default: beside MODEL.",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where the newest run is looked for.",
)
@format_option(" Lines")
@version_option()
def main(model: Path | None, **options: Any) -> None:
    """Export MODEL, a checkpoint, a run's folder or an ONNX, to an ONNX and a TensorRT engine.

    Without MODEL, the newest run. Every file is compared with the checkpoint on real images and its
    layers' types are counted; if either is not as asked, the command fails and writes nothing.
    """
    _check_usage(options)
    artefacts = _export(model, _wish(options), options)
    artefacts.write()
    for row in artefacts.rows:
        say(f"wrote {row['file']}, {row['bytes'] / 1e6:.1f} MB")
    if options["triton"]:
        say(f"wrote a Triton model repository to {options['triton']}")
    _print(artefacts.rows, wants_table(options["as_json"]))


def _check_usage(options: dict[str, Any]) -> None:
    if options["fp16"] and options["int8"]:
        raise click.UsageError("--fp16 and --int8 are two exports: run ffd-export twice")
    for option in ("target", "calibrate"):
        if options[option] and not options["int8"]:
            raise click.UsageError(f"--{option} is for --int8")
    if options["keep"] and not (options["fp16"] or options["int8"]):
        raise click.UsageError("--keep is for --fp16 and --int8")
    if (options["fp16"], options["keep"], options["verify"]) == (True, "auto", "none"):
        raise click.UsageError("--keep auto needs images to measure FP16 on: --verify DIR")
    if options["exclude_lean_runtime"] and not options["version_compatible"]:
        raise click.UsageError("--exclude-lean-runtime is for --version-compatible")
    if options["target"] == "cpu" and options["engine"] in ("tensorrt", "rtx"):
        raise click.UsageError("--target cpu is INT8 that TensorRT does not take")
    if options["compute_capability"] and options["engine"] != "rtx":
        raise click.UsageError("--compute-capability is for --engine rtx: TensorRT builds for the "
                               "GPU that it runs on, or see --hardware-compatibility")  # fmt: skip
    builds = options["fp16"] or (options["int8"] and options["target"] == "tensorrt")
    if options["engine"] == "none" or (options["engine"] == "auto" and not builds):
        given = {**options, "hardware_compatibility": options["hardware_compatibility"] != "none"}
        for option in (
            "workspace",
            "optimization_level",
            "version_compatible",
            "hardware_compatibility",
            "timing_cache",
        ):
            # Level 0 is a wish too.
            if given[option] is not None and given[option] is not False:
                raise click.UsageError(f"--{option.replace('_', '-')} is for an engine (--engine)")
    if options["triton"] and options["engine"] == "rtx":
        raise click.UsageError("Triton does not serve engines of TensorRT for RTX")
    if options["opt_batch"] and options["opt_batch"] > options["max_batch"]:
        raise click.UsageError("--opt-batch is larger than --max-batch")


def _wish(options: dict[str, Any]) -> Wish:
    from ..exporting import Wish

    precision = "fp16" if options["fp16"] else "int8" if options["int8"] else "fp32"
    named = options["engine"] in ("tensorrt", "rtx")
    return Wish(
        precision=precision,
        target=options["target"] or ("tensorrt" if named else "cpu"),
        method=options["calibration"],
        keep=tuple(filter(None, map(str.strip, (options["keep"] or "").split(",")))),
    )


def _export(model: Path | None, wish: Wish, options: dict[str, Any]) -> Artefacts:
    """Everything that is to be written."""
    from ..export_files import Artefacts
    from ..exporting import make, open_source, take_as_is
    from ..training_runs import find_calibration, find_checkpoint, find_verification

    path = find_checkpoint(model, options["runs"])
    is_onnx = path.suffix.lower() == ".onnx"
    as_is = is_onnx and wish.precision == "fp32"
    # What cannot end well ends here, before minutes of work.
    builder = _choose_builder(wish, as_is, options)
    if as_is and builder.module is None and not options["triton"]:
        raise click.UsageError(f"{path} is an ONNX already: say what to make of it (--help)")
    # Read at once, so that a wrong file is said to be wrong; a checkpoint takes its time.
    source = open_source(path) if is_onnx else None
    verify = calibrate = None
    if options["verify"] != "none" and (not as_is or builder.verifies):
        verify = find_verification(path, Path(options["verify"]) if options["verify"] else None)
    if wish.precision == "int8":
        calibrate = find_calibration(path, options["calibrate"], options["calibration_images"])
    say(f"exporting {path}")
    if source is None:
        _warn_of_uncalibrated(path)
        source = open_source(path)
    spec = source.card.preprocess
    verification = _prepare(verify, spec)
    if as_is:
        made = take_as_is(source)
    else:
        made = make(source, wish, verification, _prepare(calibrate, spec), say, _track)
    say_more(made.card.to_json(indent=2))
    folder = options["output"] or path.parent
    onnx = path if as_is else folder / (path.name.removesuffix(path.suffix) + wish.suffix)
    artefacts = Artefacts()
    if not as_is:
        artefacts.add(onnx, made.content, made.card.precision, made.layers, made.parity)
    engine = None
    if builder.module is not None:
        engine = _build(source, made, onnx, folder, builder, verification, artefacts)
    elif builder.missing:
        say(f"no engine: {builder.missing}; on the device run {builder.command(onnx.name)}")
    if options["triton"]:
        artefacts.add_repository(options["triton"], made, engine, builder.options.max_batch)
    return artefacts


def _choose_builder(wish: Wish, as_is: bool, options: dict[str, Any]) -> Builder:
    """The builder that was asked for, or the one that is here, or none."""
    from ..engine_build import Builder, find_builder, open_builder

    asked = options["engine"]
    settings = _engine_options(options)
    if asked in ("tensorrt", "rtx"):
        return open_builder(asked, settings)
    for_tensorrt = wish.precision == "fp16" or (
        wish.precision == "int8" and wish.target == "tensorrt"
    )
    if asked == "none" or as_is or not for_tensorrt:
        return Builder("tensorrt", settings)
    # Triton does not serve engines of TensorRT for RTX.
    return find_builder(settings, ("tensorrt",) if options["triton"] else ("tensorrt", "rtx"))


def _engine_options(options: dict[str, Any]) -> EngineOptions:
    from ..engine_build import EngineOptions, default_timing_cache

    named = (options["compute_capability"] or "").replace(" ", "").split(",")
    return EngineOptions(
        max_batch=options["max_batch"],
        opt_batch=options["opt_batch"],
        workspace=options["workspace"],
        optimization_level=options["optimization_level"],
        timing_cache=options["timing_cache"] or default_timing_cache(),
        version_compatible=options["version_compatible"],
        lean_runtime=not options["exclude_lean_runtime"],
        hardware_compatibility=options["hardware_compatibility"],
        compute_capabilities=tuple(dict.fromkeys(filter(None, named))),
    )


def _warn_of_uncalibrated(path: Path) -> None:
    from ffd_train.checkpoint import load_card

    if "val" not in load_card(path).metrics:
        say("the checkpoint is not calibrated: its training has not ended (ffd-train --resume)")


def _prepare(examples: list[Example] | None, spec: PreprocessSpec) -> Images | None:
    """The images; what could not be read is said."""
    from ..sample_images import prepare_images

    if not examples:
        return None
    images = prepare_images(examples, spec)
    if images.unreadable:
        path, reason = images.unreadable[0]
        say(
            f"{len(images.unreadable)} of {len(examples)} files could not be read, "
            f"the first: {path}: {reason}"
        )
    if len(images) < FEW:
        say(f"only {images.describe()}: what is measured on so few says little")
    return images


def _build(
    source: Source,
    made: Made,
    onnx: Path,
    folder: Path,
    builder: Builder,
    verification: Images | None,
    artefacts: Artefacts,
) -> bytes:
    """Build the engine; add it and its manifest."""
    from ffd_runtime.model.engine_manifest import manifest_path

    from ..exporting import build

    with _phases() as progress:
        engine, manifest, parity = build(source, made, onnx.name, builder, verification, progress)
    say(f"engine: {engine.layers} by the parsed network")
    if engine.built_layers:
        told = ", ".join(f"{count} {name}" for name, count in engine.built_layers.items())
        say(f"engine: kernels {told} by TensorRT's inspector")
    if parity is None:
        say("engine: not verified on a GPU")
    path = folder / (onnx.name.removesuffix(".onnx") + builder.suffix)
    artefacts.add(path, engine.content, made.card.precision, engine.layers, parity)
    artefacts.files[manifest_path(path)] = manifest.to_json().encode()
    return engine.content


def _print(rows: list[dict[str, Any]], table: bool) -> None:
    if not table:
        for row in rows:
            click.echo(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ffd_runtime.core.text import printable

    grid = Table(title="against what it was made from")
    grid.add_column("")
    for row in rows:
        grid.add_column(Text(printable(Path(row["file"]).name)), justify="right", overflow="fold")
    for line in zip(_LABELS, *map(_cells, rows), strict=True):
        grid.add_row(*line)
    Console(highlight=False).print(grid)


_LABELS = ("MB", "layers", "images", "largest |Δp|", "mean |Δp|", "flips", "Δaccuracy", "ΔAUC")


def _cells(row: dict[str, Any]) -> list[str]:
    parity = row["parity"]
    layers = ", ".join(f"{count} {kind}" for kind, count in row["layers"].items())
    cells = [f"{row['bytes'] / 1e6:.1f}", layers]
    if "images" not in parity:
        return [*cells, "not verified", *"-----"]
    cells += [
        str(parity["images"]),
        f"{parity['largest_difference']:.1e}",
        f"{parity['mean_difference']:.1e}",
        str(parity["verdict_flips"]),
    ]
    for name, form in (("accuracy", "+.4f"), ("roc_auc", "+.5f")):
        given = name in parity
        cells.append(format(parity[name] - parity[f"{name}_reference"], form) if given else "-")
    return cells


@contextmanager
def _track(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _phases() -> Iterator[Any]:
    """A progress bar for each of the builder's phases that is under way."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:

        class Phases:
            def __init__(self) -> None:
                self.tasks: dict[str, TaskID] = {}

            def begin(self, phase: str, steps: int) -> None:
                self.tasks[phase] = bar.add_task(phase, total=steps)

            def step(self, phase: str, done: int) -> None:
                if phase in self.tasks:
                    bar.update(self.tasks[phase], completed=done)

            def end(self, phase: str) -> None:
                if phase in self.tasks:
                    bar.remove_task(self.tasks.pop(phase))

        yield Phases()

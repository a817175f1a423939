"""ffd-export: from a checkpoint to files that the runtime runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.commands.common import (
    Command,
    format_option,
    say,
    say_more,
    version_option,
    wants_table,
)

if TYPE_CHECKING:
    from ..engine import EngineOptions
    from ..exporting import Made, Source, Wish
    from ..images import Images
    from ..parity import Parity

EPILOG = """\b
Examples:
  ffd-export                          the newest run in runs/, as FP32 ONNX
  ffd-export --fp16                   as FP16 ONNX, and an engine where TensorRT and a GPU are
  ffd-export runs/mine --int8 --calibrate faces/train --keep auto
  ffd-export best.fp16.onnx --engine tensorrt       on the device; needs no torch
  ffd-export best.fp16.onnx --engine rtx --compute-capability 8.6,8.9
  ffd-export runs/mine --fp16 --triton models/
"""


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
@click.option("--calibration-images", type=click.IntRange(8, 8192), default=512, show_default=True)
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
    help="Layers that stay FP32; auto measures which cost INT8 most.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "rtx", "none"]),
    default="auto",
    show_default=True,
    help="Build an engine; auto does with --fp16 where TensorRT and a GPU are.",
)
@click.option("--max-batch", type=click.IntRange(1, 1024), default=32, show_default=True)
@click.option(
    "--opt-batch", type=click.IntRange(1, 1024), help="Batch to be fastest at. Default: 16."
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="GPU memory for scratch.")
@click.option("--optimization-level", type=click.IntRange(0, 5))
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
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@format_option(" Lines")
@version_option()
def main(model: Path | None, **options: Any) -> None:
    """Export MODEL, a checkpoint, a run's folder or an ONNX, to an ONNX and a TensorRT engine.

    Without MODEL, the newest run. Every file is compared with the checkpoint on real images and its
    layers' types are counted; if either is not as asked, the command fails and writes nothing.
    """
    _check_usage(options)
    wish = _wish(options)
    files, rows = _export(model, wish, options)
    from ..output import write_files

    write_files(files)
    for row in rows:
        say(f"wrote {row['file']}, {row['bytes'] / 1e6:.1f} MB")
    _print(rows, wants_table(options["as_json"]))


def _check_usage(options: dict[str, Any]) -> None:
    if options["fp16"] and options["int8"]:
        raise click.UsageError("--fp16 and --int8 are two exports: run ffd-export twice")
    for option in ("target", "calibrate"):
        if options[option] and not options["int8"]:
            raise click.UsageError(f"--{option} is for --int8")
    if options["keep"] and not (options["fp16"] or options["int8"]):
        raise click.UsageError("--keep is for --fp16 and --int8")
    if options["keep"] == "auto" and not options["int8"]:
        raise click.UsageError("--keep auto is for --int8: FP16 keeps by itself what overflows")
    if options["exclude_lean_runtime"] and not options["version_compatible"]:
        raise click.UsageError("--exclude-lean-runtime is for --version-compatible")
    if options["target"] == "cpu" and options["engine"] in ("tensorrt", "rtx"):
        raise click.UsageError("--target cpu is INT8 that TensorRT does not take")
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
        keep=tuple(filter(None, (options["keep"] or "").split(","))),
    )


def _export(
    model: Path | None, wish: Wish, options: dict[str, Any]
) -> tuple[dict[Path, bytes], list[dict[str, Any]]]:
    """Everything that is to be written, and a row about each artefact."""
    from ..engine import import_builder, require_buildable
    from ..exporting import make, open_source, take_as_is
    from ..images import prepare_images
    from ..runs import find_calibration, find_checkpoint, find_verification

    path = find_checkpoint(model, options["runs"])
    kind = options["engine"]
    engine_options = _engine_options(options)
    trt = None
    # What cannot end well ends here, before minutes of work.
    if kind in ("tensorrt", "rtx"):
        require_buildable(kind, engine_options)
        trt = import_builder(kind)
    as_is = path.suffix == ".onnx" and wish.precision == "fp32"
    if as_is and trt is None and not options["triton"]:
        raise click.UsageError(f"{path} is an ONNX already: say what to make of it (--help)")
    if kind == "auto" and not as_is and _takes_engine(wish):
        kind, trt = _find_builder(served=bool(options["triton"]))
    verify = options["verify"]
    to_verify: list[str] = []
    if verify != "none" and (not as_is or _runs_here(trt)):
        to_verify = find_verification(path, Path(verify) if verify else None)
    to_calibrate: list[str] = []
    if wish.precision == "int8":
        to_calibrate = find_calibration(path, options["calibrate"], options["calibration_images"])
    say(f"exporting {path}")
    _warn_of_uncalibrated(path)
    source = open_source(path)
    spec = source.card.preprocess
    verification = prepare_images(to_verify, spec) if to_verify else None
    calibration = prepare_images(to_calibrate, spec) if to_calibrate else None
    made = (
        take_as_is(source) if as_is else make(source, wish, verification, calibration, say, _track)
    )
    say_more(made.card.to_json(indent=2))
    folder = options["output"] or path.parent
    onnx = path if as_is else folder / (path.name.split(".")[0] + wish.suffix)
    files, rows = {}, []
    if not as_is:
        files[onnx] = made.content
        rows.append(_row(onnx, made.content, made.card.precision, made.layers, made.parity))
    plan: tuple[bytes, Path] | None = None
    if trt is not None:
        plan = _build(source, made, onnx, folder, kind, trt, engine_options, verification, files,
                      rows)  # fmt: skip
    elif options["engine"] == "auto" and not as_is and _takes_engine(wish):
        say(
            f"no engine: {kind}; on the device run "
            f"ffd-export {onnx.name} --engine tensorrt --verify DIR"
        )
    if options["triton"]:
        _add_triton(options["triton"], made, onnx, plan, engine_options, files)
        say(f"Triton model repository in {options['triton']}")
    return files, rows


def _takes_engine(wish: Wish) -> bool:
    """Whether an engine is part of what --engine auto makes."""
    return wish.precision == "fp16" or (wish.precision == "int8" and wish.target == "tensorrt")


def _runs_here(trt: Any) -> bool:
    from ffd_runtime.devices import count_gpus

    return trt is not None and count_gpus() > 0


def _find_builder(served: bool) -> tuple[str, Any]:
    """TensorRT, or TensorRT for RTX, if it and a GPU are here; else why not, and None.

    Args:
        served: whether Triton must be able to serve the engine.
    """
    from ffd_runtime.devices import count_gpus
    from ffd_runtime.errors import BackendError

    from ..engine import import_builder

    if not count_gpus():
        return "there is no GPU here", None
    for kind in ("tensorrt",) if served else ("tensorrt", "rtx"):
        try:
            return kind, import_builder(kind)
        except BackendError:
            continue
    return "neither tensorrt nor tensorrt_rtx is installed", None


def _engine_options(options: dict[str, Any]) -> EngineOptions:
    from ..engine import EngineOptions, default_timing_cache

    return EngineOptions(
        max_batch=options["max_batch"],
        opt_batch=options["opt_batch"],
        workspace=options["workspace"],
        optimization_level=options["optimization_level"],
        timing_cache=options["timing_cache"] or default_timing_cache(),
        version_compatible=options["version_compatible"],
        lean_runtime=not options["exclude_lean_runtime"],
        hardware_compatibility=options["hardware_compatibility"],
        compute_capabilities=tuple(
            filter(None, (options["compute_capability"] or "").replace(" ", "").split(","))
        ),
    )


def _warn_of_uncalibrated(path: Path) -> None:
    if path.suffix != ".onnx":
        from ffd_train.checkpoint import load_card

        if "val" not in load_card(path).metrics:
            say("the checkpoint is not calibrated: its training has not ended (ffd-train --resume)")


def _build(
    source: Source,
    made: Made,
    onnx: Path,
    folder: Path,
    kind: str,
    trt: Any,
    options: EngineOptions,
    verification: Images | None,
    files: dict[Path, bytes],
    rows: list[dict[str, Any]],
) -> tuple[bytes, Path]:
    """Build the engine; add it, its manifest and its row."""
    from ffd_runtime.engine import manifest_path

    from ..exporting import build, reference_rows

    reference = None
    if verification is not None and _runs_here(trt):
        reference = reference_rows(source, verification)
    with _phases() as progress:
        engine, manifest, parity = build(
            made, onnx.name, kind, trt, options, verification, reference, progress
        )
    say(f"engine: {engine.layers} by the parsed network")
    if engine.built_layers:
        told = ", ".join(f"{count} {name}" for name, count in engine.built_layers.items())
        say(f"engine: kernels {told} by TensorRT's inspector")
    if parity is None:
        say("engine: not verified on a GPU")
    suffix = ".engine" if kind == "tensorrt" else ".rtx.engine"
    path = folder / (onnx.name.removesuffix(".onnx") + suffix)
    files[path] = engine.content
    files[manifest_path(path)] = manifest.to_json().encode()
    rows.append(_row(path, engine.content, made.card.precision, engine.layers, parity))
    return engine.content, path


def _add_triton(
    folder: Path,
    made: Made,
    onnx: Path,
    plan: tuple[bytes, Path] | None,
    options: EngineOptions,
    files: dict[Path, bytes],
) -> None:
    from ffd_runtime.errors import OutputError

    from ..triton import VERSION, triton_files

    home = folder / made.card.name
    newer = [
        p.name for p in home.glob("[0-9]*") if p.name.isdecimal() and int(p.name) > int(VERSION)
    ]
    if newer:
        raise OutputError(
            f"--triton {folder}: {home} holds version {max(newer, key=int)} already, and version "
            f"{max(newer, key=int)} would be served instead of this export: remove it first"
        )
    files.update(
        triton_files(
            folder,
            made.card.name,
            plan[0] if plan else made.content,
            made.card,
            platform="tensorrt" if plan else "onnxruntime",
            heatmap=_heatmap_size(made),
            max_batch=options.max_batch,
        )
    )


def _heatmap_size(made: Made) -> tuple[int, int]:
    import numpy as np

    from ..candidate import open_candidate

    size = made.card.preprocess.size
    with open_candidate(made.content) as backend:
        heatmap = backend.infer(np.zeros((1, size, size, 3), np.uint8)).heatmap
    return heatmap.shape[1], heatmap.shape[2]


def _row(
    path: Path, content: bytes, precision: str, layers: Any, parity: Parity | None
) -> dict[str, Any]:
    import hashlib

    from ..parity import NOT_VERIFIED

    return {
        "file": str(path),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "precision": precision,
        "layers": layers.counts(),
        "parity": parity.summary() if parity else NOT_VERIFIED,
    }


def _print(rows: list[dict[str, Any]], table: bool) -> None:
    if not table:
        for row in rows:
            click.echo(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ffd_runtime.text import printable

    grid = Table(title="against the checkpoint")
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

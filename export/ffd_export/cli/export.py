"""ffd-export: export a trained model to files that the runtime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ffd_runtime.cli.command import Command
from ffd_runtime.cli.options import format_option, version_option, wants_table

from ..export_options import METHODS

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)

EPILOG = """\b
Examples:
  ffd-export                          export the newest run in runs/ to an FP32 ONNX
  ffd-export --fp16                   also to an engine, if TensorRT and a GPU are present
  ffd-export runs/mine --int8 --calibrate faces/train --keep auto
  ffd-export best.fp16.onnx --engine tensorrt --verify DIR    on the device, without torch
  ffd-export best.fp16.onnx --engine rtx --compute-capability 8.6,8.9
  ffd-export runs/mine --fp16 --triton models/
\b
Exit codes:
  0 done   1 could not run   2 wrong usage
"""


def _split(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, (value or "").split(",")))))


@click.command(cls=Command, epilog=EPILOG, context_settings={"show_default": True})
@click.argument("model", required=False, type=PATH)
@click.option("--fp16", is_flag=True, help="Convert to FP16.")
@click.option("--int8", is_flag=True, help="Convert to INT8 by static quantisation.")
@click.option(
    "--target",
    type=click.Choice(["cpu", "tensorrt"]),
    help="Quantise for onnxruntime on a CPU or for TensorRT. Default: tensorrt with --engine, "
    "otherwise cpu.",
)
@click.option(
    "--calibrate",
    type=PATH,
    metavar="DIR",
    help="Calibrate INT8 with these images. Default: the run's training images.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(8, 8192),
    default=512,
    help="Largest number of calibration images, balanced between the classes.",
)
@click.option(
    "--calibration",
    type=click.Choice(["auto", *METHODS]),
    default="auto",
    help="Method that finds INT8's calibration ranges. auto uses the more accurate one.",
)
@click.option(
    "--keep",
    callback=_split,
    metavar="LAYER,...|auto",
    help="Keep these layers in FP32. auto keeps those whose conversion causes the most error.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "rtx", "none"]),
    default="auto",
    help="Build an engine. auto builds one with --fp16 if TensorRT and a GPU are present.",
)
@click.option(
    "--max-batch", type=click.IntRange(1, 1024), default=32, help="Largest batch of an engine."
)
@click.option(
    "--opt-batch", type=click.IntRange(1, 1024), help="Batch to optimise for. Default: 16."
)
@click.option(
    "--workspace",
    type=click.IntRange(1),
    metavar="MIB",
    help="GPU memory for the scratch space of a layer. Default: all.",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="From 0 (shortest build) to 5 (fastest engine). Default: TensorRT's.",
)
@click.option(
    "--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine."
)
@click.option(
    "--exclude-lean-runtime",
    is_flag=True,
    help="Leave the lean runtime out of a version-compatible engine.",
)
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
    default="none",
    help="GPUs other than this one that a TensorRT engine can run on.",
)
@click.option(
    "--compute-capability",
    callback=_split,
    metavar="X.Y,...",
    help="With --engine rtx, build for these GPUs, which may be absent.",
)
@click.option(
    "--timing-cache",
    type=FOLDER,
    metavar="DIR",
    help="Folder of TensorRT's timing caches. Default: ffd in the user's cache folder.",
)
@click.option(
    "--verify",
    metavar="DIR|none",
    help="Compare the export with the checkpoint on these real images. Default: the run's "
    "validation images.",
)
@click.option("--triton", type=FOLDER, metavar="DIR", help="Also write a Triton model repository.")
@click.option("--output", type=FOLDER, help="Folder for the files. Default: beside MODEL.")
@click.option(
    "--runs", type=PATH, default=Path("runs"), help="Folder of the runs, if MODEL is not given."
)
@format_option(" Lines")
@version_option()
def main(as_json: bool | None, **values: Any) -> None:
    """Export MODEL (a checkpoint, a run folder or an ONNX file) to ONNX, TensorRT or Triton.

    Without MODEL, export the newest run. Each file is compared with the checkpoint on real images,
    and its layers are counted by type. If a file fails one of these checks, the command fails and
    writes nothing.
    """
    from ..export_options import ExportOptions
    from ..exporting import export
    from .export_terminal import TerminalReporter, print_files

    print_files(export(ExportOptions(**values), TerminalReporter()), wants_table(as_json))

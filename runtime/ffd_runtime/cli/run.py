"""ffd-run: classify images and streams."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from .command import Command, option
from .options import backend_option, device_option, format_option, version_option

EPILOG = """\b
Examples:
  ffd-run portraits/
  ffd-run 'uploads/**/*.jpg' --output verdicts.csv --overwrite
  ffd-run portraits/ --output verdicts.parquet --resume --report night.html
  ffd-run portraits/ --annotate shown/ --heatmap
  ffd-run portraits/ --model runs/mine/best.onnx --device cuda
  find . -name '*.png' -print0 | ffd-run --null - | jq .label
  ffd-run uploads.zip https://example.org/portrait.jpg
  ffd-run s3://bucket/uploads/ --ray 10.0.0.1:6379 --output s3://bucket/verdicts/
  ffd-run 0 --show
  ffd-run door=rtsp://10.0.0.5/live --events --serve 8080
  ffd-run clip.mp4 --record annotated.mp4 --output rows.csv

\b
Exit codes:
  0 done   1 could not run   2 wrong usage   3 done, but some inputs could not be read
"""

# Modules outside the runtime that declare the options of their programs. They are named, not
# imported, because the runtime does not depend on them.
OPTION_MODULES = ("ffd_cluster.cluster_options",)


def add_package_options(command: Any) -> Any:
    """Add the options of `OPTION_MODULES`."""
    for name in OPTION_MODULES:
        for declare in reversed(import_module(name).OPTIONS):
            command = declare(command)
    return command


@click.command(cls=Command, epilog=EPILOG)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@option(
    "--sources",
    "listed",
    group="Input",
    type=click.Path(),
    metavar="FILE",
    help="Read more SOURCEs from a file, one per line. This keeps passwords out of the process "
    "list.",
)
@option(
    "-0",
    "--null",
    group="Input",
    is_flag=True,
    help="Separate the paths on standard input and in --sources by NUL, not by line ends.",
)
@option(
    "--max-pixels",
    group="Input",
    type=click.IntRange(1),
    default=1 << 27,
    show_default=True,
    help="Refuse images with more pixels.",
)
@option(
    "--timeout",
    group="Input",
    type=click.FloatRange(0, 86400, min_open=True),
    help="Seconds to wait for a web address (default 20), or for a stream to open and for each "
    "frame (default 10).",
)
@option(
    "--allow-private",
    group="Input",
    is_flag=True,
    help="Also fetch images from private addresses.",
)
@option(
    "--model",
    group="Model",
    type=click.Path(),
    help="An ONNX or engine made by ffd-export. Default: the embedded model.",
)
@backend_option(group="Model")
@device_option(group="Model")
@option(
    "--batch",
    group="Model",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Images per inference.",
)
@option(
    "--workers",
    group="Model",
    type=click.IntRange(1, 256),
    help="Threads that decode images or analyse frames. Default: one per core.",
)
@option(
    "--faces/--no-faces",
    group="Model",
    default=None,
    help="Detect faces and classify each one. Default: only in streams.",
)
@option(
    "--face-model",
    group="Model",
    type=click.Path(),
    envvar="FFD_FACE_MODEL",
    show_envvar=True,
    help="ONNX file of the YuNet face detector. Default: downloaded once from OpenCV's model zoo.",
)
@option(
    "--min-face",
    group="Model",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Label a face as unsure if the shorter side of its box is below this. Default: 96.",
)
@option(
    "--output",
    group="Output",
    type=click.Path(),
    metavar="FILE.{jsonl,csv,parquet}",
    help="Write rows to a file. It gets this name when it is complete. Live streams append to a "
    ".jsonl file.",
)
@option("--overwrite", group="Output", is_flag=True, help="Replace an existing --output.")
@option(
    "--resume", group="Output", is_flag=True, help="Resume an interrupted run from FILE.partial."
)
@option(
    "--annotate",
    group="Output",
    type=click.Path(),
    metavar="DIR",
    help="Write a copy of each image with its label and score drawn on it. The originals do not "
    "change.",
)
@option(
    "--heatmap",
    group="Output",
    is_flag=True,
    help="Draw a heatmap of the evidence in --annotate, --show and --record.",
)
@option(
    "--report",
    group="Output",
    type=click.Path(),
    metavar="FILE.html",
    help="Write an HTML page: counts, scores, the most suspicious and most uncertain images.",
)
@format_option(" Lines; nothing with --output", group="Output")
@option("--gst", group="Streams", is_flag=True, help="Read SOURCEs as GStreamer pipelines.")
@option(
    "--stream",
    group="Streams",
    is_flag=True,
    help="Read http addresses as streams, not as images.",
)
@option(
    "--every",
    group="Streams",
    type=click.IntRange(1),
    metavar="N",
    help="Classify every Nth frame.",
)
@option(
    "--fps",
    group="Streams",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Classify at most this many frames per second.",
)
@option(
    "--retries",
    group="Streams",
    type=click.IntRange(0),
    help="Give up a live stream after this many attempts to connect. Default: no limit.",
)
@option(
    "--show",
    group="Streams",
    is_flag=True,
    help="Show the stream in a window: q quits, h shows the heatmap.",
)
@option(
    "--record",
    group="Streams",
    type=click.Path(),
    metavar="FILE.{mp4,mkv}",
    help="Write the annotated video. If the file exists, a number is added to its name.",
)
@option("--events", group="Streams", is_flag=True, help="Write a row only when a label changes.")
@option(
    "--serve",
    group="Web page",
    metavar="[HOST:]PORT",
    help="Serve a web page with live images, /healthz and /metrics.",
)
@option(
    "--token",
    group="Web page",
    envvar="FFD_TOKEN",
    show_envvar=True,
    help="Token that viewers must give. Required if HOST is not a loopback address.",
)
@add_package_options
@version_option()
def main(sources: tuple[str, ...], listed: str | None, **values: Any) -> None:
    """Classify face images as generated, photograph or unsure.

    SOURCE is a file, a folder (searched recursively), a glob, a zip or tar archive, an http or
    https address of an image, or - for paths and addresses on standard input. Every input gives one
    row, in input order. The row of an unreadable input states the reason. In folders and archives,
    files that are not images are skipped and counted.

    SOURCE may also be a stream: the number of a camera, an rtsp address or a video file. NAME=
    before an address names it. Each face in each frame gives one row. After a failure, a live
    stream is reconnected.
    """
    # Imported here, so that --help does not wait for the programs.
    from .program import choose_program

    if listed:
        from ..inputs.lists import read_sources

        sources += read_sources(listed, values["null"])
    choose_program(sources, values).start(sources, values)

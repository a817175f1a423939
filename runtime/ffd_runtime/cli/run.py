"""ffd-run: classify images and streams."""

from __future__ import annotations

import os
from functools import partial
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

input_option = partial(option, group="Input")
model_option = partial(option, group="Model")
output_option = partial(option, group="Output")
stream_option = partial(option, group="Streams")
page_option = partial(option, group="Web page")

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
@input_option(
    "--sources",
    "listed",
    type=click.Path(),
    metavar="FILE",
    help="Read more SOURCEs from a file, one per line. This keeps passwords out of the process "
    "list.",
)
@input_option(
    "-0",
    "--null",
    is_flag=True,
    help="Separate the paths on standard input and in --sources by NUL, not by line ends.",
)
@input_option(
    "--max-pixels",
    type=click.IntRange(1),
    default=1 << 27,
    show_default=True,
    help="Refuse images with more pixels.",
)
@input_option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    help="Seconds to wait for a web address (default 20), or for a stream to open and for each "
    "frame (default 10; HLS at least 30 for a frame).",
)
@input_option("--allow-private", is_flag=True, help="Also fetch images from private addresses.")
@model_option(
    "--model",
    type=click.Path(),
    help="An ONNX or engine made by ffd-export. Default: the embedded model.",
)
@backend_option(group="Model")
@device_option(group="Model")
@model_option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Images per inference.",
)
@model_option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Threads that decode images or analyse frames. Default: one per core.",
)
@model_option(
    "--faces/--no-faces",
    default=None,
    help="Detect faces and classify each one. Default: only in streams.",
)
@model_option(
    "--face-model",
    type=click.Path(),
    envvar="FFD_FACE_MODEL",
    show_envvar=True,
    help="ONNX file of the YuNet face detector. Default: downloaded once from OpenCV's model zoo.",
)
@model_option(
    "--min-face",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Label a face as unsure if the shorter side of its box is below this. Default: 96.",
)
@output_option(
    "--output",
    type=click.Path(),
    metavar="FILE.{jsonl,csv,parquet}",
    help="Write rows to FILE.partial, and rename it to FILE when it is complete. Live streams "
    "append to a .jsonl file.",
)
@output_option("--overwrite", is_flag=True, help="Replace an existing --output.")
@output_option("--resume", is_flag=True, help="Resume an interrupted run from FILE.partial.")
@output_option(
    "--annotate",
    type=click.Path(),
    metavar="DIR",
    help="Write a copy of each image with its label and score drawn on it. The originals do not "
    "change.",
)
@output_option(
    "--heatmap",
    is_flag=True,
    help="Draw a heatmap of the evidence in --annotate, --show and --record.",
)
@output_option(
    "--report",
    type=click.Path(),
    metavar="FILE.html",
    help="Write an HTML page: counts, scores, the most suspicious and most uncertain images.",
)
@format_option(" Lines; nothing with --output", group="Output")
@stream_option("--gst", is_flag=True, help="Read SOURCEs as GStreamer pipelines.")
@stream_option("--stream", is_flag=True, help="Read http addresses as streams, not as images.")
@stream_option("--every", type=click.IntRange(1), metavar="N", help="Classify every Nth frame.")
@stream_option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="Classify at most this many frames per second.",
)
@stream_option(
    "--retries",
    type=click.IntRange(0),
    help="Reconnect a live stream at most this many times in a row. Default: no limit.",
)
@stream_option(
    "--show", is_flag=True, help="Show the stream in a window: q quits, h shows the heatmap."
)
@stream_option(
    "--record",
    type=click.Path(),
    metavar="FILE.{mp4,mkv}",
    help="Write the annotated video. If the file exists, a number is added to its name.",
)
@stream_option("--events", is_flag=True, help="Write a row only for a new face or a changed label.")
@page_option(
    "--serve",
    metavar="[HOST:]PORT",
    help="Serve a web page with live images, /healthz and /metrics.",
)
@page_option(
    "--token",
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
    before it sets its name. Each face in each frame gives one row. After a failure, a live
    stream is reconnected.
    """
    # Imported here, so that --help does not wait for the programs.
    from .program import choose_program

    if listed:
        from ..inputs.lists import read_sources

        sources += read_sources(listed, values["null"])
        if not sources:
            raise click.UsageError(f"--sources {listed} contains no SOURCE")
        for path in filter(None, (values["output"], values["report"])):
            if os.path.isfile(path) and os.path.realpath(path) == os.path.realpath(listed):
                raise click.UsageError(f"{path} is also the list of --sources: name another file")
    choose_program(sources, values).start(sources, values)

"""ffd-bench: measure the speed of each stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from ..model.backend_registry import BACKENDS
from .command import Command, say
from .options import device_option, format_option, open_console, version_option, wants_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..model.backends import Backend
    from .bench_images import BenchImages

EPILOG = """\b
Examples:
  ffd-bench
  ffd-bench portraits/ --batch 1 --batch 32 --seconds 60
  ffd-bench --backend onnxruntime --rounds 10 --cold-start --json > bench.json
  ffd-bench --device cuda --cuda-option prefer_nhwc --cuda-option fuse_conv_bias

\b
Exit codes:
  0 done   1 could not run   2 wrong usage
"""


# Equal to `backends.onnxruntime.TUNING`, which is slow to import.
TUNING = ("prefer_nhwc", "fuse_conv_bias")
DEFAULT_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """The options of ffd-bench; see `ffd-bench --help`."""

    model: str | None
    backends: tuple[str, ...]
    device: str
    tuning: tuple[str, ...]
    batches: tuple[int, ...]
    workers: int | None
    seconds: float | None
    rounds: int | None
    cold_start: bool
    as_json: bool | None

    def __post_init__(self) -> None:
        if self.seconds and self.rounds:
            raise click.UsageError("--seconds and --rounds cannot be combined: give one")


@click.command(cls=Command, epilog=EPILOG)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--model",
    type=click.Path(),
    help="An ONNX or engine made by ffd-export. Default: the embedded model.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["auto", *BACKENDS]),
    default=["auto"],
    show_default=True,
    help="A backend to measure, as for ffd-run. May be repeated.",
)
@device_option()
@click.option(
    "--cuda-option",
    "tuning",
    multiple=True,
    type=click.Choice(TUNING),
    help="Also measure onnxruntime on CUDA with this option. May be repeated: each option is "
    "measured, and all together.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=[1, 8, 16],
    show_default=True,
    help="A batch size to measure. May be repeated.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Threads that decode images. Default: one per core.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="Start new rounds for this many seconds; run at least one. Default: 20.",
)
@click.option("--rounds", type=click.IntRange(1), help="Run this number of rounds.")
@click.option(
    "--cold-start",
    is_flag=True,
    help="Also measure new processes, from their start to the first result.",
)
@format_option("")
@version_option()
def main(sources: tuple[str, ...], **values: Any) -> None:
    """Measure the stages decode, preprocess and infer of ffd-run, and the whole pipeline.

    SOURCE is a file, a folder, a glob, or - for paths on standard input. The first 32 readable
    images are used. Without a SOURCE, synthetic JPEGs of 1024x1024 pixels are made.
    """
    options = BenchOptions(**values)
    # Imported here, so that --help does not wait for OpenCV and onnxruntime.
    import cv2

    from ..core.cores import count_cores
    from ..core.machine import peak_memory
    from .cold_start import measure_cold_start
    from .stage_times import Bench

    # As in ffd-run, where each worker decodes its own image.
    cv2.setNumThreads(1)
    console = open_console(options.as_json)
    with ExitStack() as stack:
        on_step = stack.enter_context(_status(console))
        backends = _open_backends(stack, options)
        images = _find_images(stack, sources)
        workers = options.workers or count_cores()
        bench = Bench(backends, images, sorted(set(options.batches)), workers)
        rounds = bench.run(options.rounds, options.seconds or DEFAULT_SECONDS, on_step)
        report = {
            **_describe_setup(options.model, backends, images, made=not sources),
            "workers": workers,
            "rounds": rounds,
            "stages": bench.stages(),
            "end_to_end": bench.distances(),
            "peak_memory_bytes": peak_memory(),
            "cold_start": None,
        }
        if options.cold_start:
            report["cold_start"] = []
            for name in dict.fromkeys(options.backends):
                on_step(f"cold start of {name}")
                size = backends[name].card.preprocess.size
                given = (options.model, name, options.device, size, images.items[0])
                report["cold_start"].append(measure_cold_start(*given))
    if console and wants_table(options.as_json):
        from .bench_table import print_report

        print_report(console, report)
    else:
        click.echo(json.dumps(report))


@contextmanager
def _status(console: Console | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on a terminal."""
    if not console or not console.is_terminal:
        yield lambda _: None
        return
    # Drawing competes with the measured code for the interpreter: draw once per second.
    with console.status("opening the model ...", refresh_per_second=1) as status:
        yield lambda step: status.update(f"{step} ...")


def _open_backends(stack: ExitStack, options: BenchOptions) -> dict[str, Backend]:
    from ..model.backends import open_backend

    names = dict.fromkeys(options.backends)
    opened = ((name, open_backend(options.model, name, options.device)) for name in names)
    backends: dict[str, Backend] = {}
    for name, backend in chain(opened, _open_tuned(backends, options)):
        backends[name] = backend
        stack.callback(backend.close)
        say(f"{name}: {backend.description}")
    return backends


def _open_tuned(
    backends: dict[str, Backend], options: BenchOptions
) -> Iterator[tuple[str, Backend]]:
    """Open the model on CUDA with each --cuda-option, and with all of them.

    Raises:
        BackendError: no open backend is onnxruntime on CUDA.
    """
    from ..core.errors import BackendError
    from ..model.backends import find_model
    from ..model.backends.onnxruntime import OnnxRuntime, open_model
    from ..model.devices import parse_device

    tuning = tuple(dict.fromkeys(options.tuning))
    if not tuning:
        return
    if not any(isinstance(one, OnnxRuntime) and one.on_cuda for one in backends.values()):
        running = ", ".join(backend.description for backend in backends.values())
        raise BackendError(
            f"--cuda-option {tuning[0]} applies only to onnxruntime on CUDA, but the model runs on "
            f"{running}: leave it out, or give --device cuda"
        )
    _, index = parse_device(options.device)
    for chosen in dict.fromkeys([*((name,) for name in tuning), tuning]):
        opened = open_model(find_model(options.model), f"cuda:{index}", chosen)
        yield f"onnxruntime+{'+'.join(chosen)}", opened


def _find_images(stack: ExitStack, sources: tuple[str, ...]) -> BenchImages:
    import tempfile
    from pathlib import Path

    from ..inputs import find_files
    from .bench_images import choose_images, make_images

    if sources:
        return choose_images(find_files(sources))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ffd-bench-"))
    return choose_images(make_images(Path(folder)))


def _describe_setup(
    model: str | None, backends: dict[str, Backend], images: BenchImages, made: bool
) -> dict[str, Any]:
    from .. import __version__

    card = next(iter(backends.values())).card
    return {
        "schema": 1,
        "ffd": __version__,
        "machine": describe_machine(),
        "model": {
            "path": model,
            "name": card.name,
            "architecture": card.architecture,
            "precision": card.precision,
        },
        "backends": {name: backend.description for name, backend in backends.items()},
        "images": {
            "made": made,
            "count": len(images.items),
            "unreadable": images.unreadable,
            "mean_megapixels": round(images.pixels / 1e6, 3),
            "mean_bytes": round(images.size),
        },
    }


def describe_machine() -> dict[str, Any]:
    """Return processor, GPUs and versions, as JSON types."""
    from ..core.machine import describe_cpu, packages
    from ..model.devices import count_gpus, describe_gpu

    cpu = describe_cpu()
    return {
        "cpu": cpu["name"],
        "cores": cpu["cores_usable"],
        "features": cpu["features"],
        "gpus": [describe_gpu(index).name for index in range(count_gpus())],
        "python": sys.version.split()[0],
        "packages": packages(),
    }

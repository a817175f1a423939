"""ffd-bench: how fast every stage is, and how far the whole is from its floors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..core.text import printable
from .command import Command, say
from .options import device_option, format_option, version_option, wants_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from ..model.backends import Backend
    from .stage_times import Bench, Pictures

EPILOG = """\b
Examples:
  ffd-bench
  ffd-bench portraits/ --batch 1 --batch 32 --seconds 60
  ffd-bench --backend onnxruntime --rounds 10 --cold-start --json > bench.json
  ffd-bench --device cuda --cuda-option prefer_nhwc --cuda-option fuse_conv_bias

\b
Exit codes:
  0 done   1 could not run   2 usage
"""


# Those of `backends.onnxruntime.TUNING`, which --help must not wait for.
TUNING = ("prefer_nhwc", "fuse_conv_bias")


def _known_backends(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> list[str]:
    from ..model.backend_registry import BACKENDS

    known = ["auto", *BACKENDS]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    return list(dict.fromkeys(names))


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
    default=["auto"],
    show_default=True,
    callback=_known_backends,
    metavar="NAME",
    help="As for ffd-run. More than once: each is measured.",
)
@device_option()
@click.option(
    "--cuda-option",
    "tuning",
    multiple=True,
    type=click.Choice(TUNING),
    help="Also measure onnxruntime on CUDA with this option; more than once: with each, and all.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=[1, 8, 16],
    show_default=True,
    help="More than once: each is measured.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Decoding threads. Default: one a core."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="Rounds begin for so long; there is at least one. Default: 20.",
)
@click.option("--rounds", type=click.IntRange(1), help="So many rounds, however long they take.")
@click.option(
    "--cold-start", is_flag=True, help="Also time fresh processes from start to first verdict."
)
@format_option("")
@version_option()
def main(sources: tuple[str, ...], **options: Any) -> None:
    """Measure decode, preprocess, infer and the whole, through the code that ffd-run uses.

    SOURCE is a file, a folder, a glob, or - for paths on standard input; the first 32 readable
    pictures are measured with. Without one, synthetic JPEGs of 1024x1024 pixels are made.
    """
    if options["seconds"] and options["rounds"]:
        raise click.UsageError("--seconds and --rounds exclude each other: give one")
    _run(sources, options)


def _run(sources: tuple[str, ...], options: dict[str, Any]) -> None:
    # Imported here, so that --help does not wait for OpenCV and onnxruntime.
    import cv2

    from ..model.devices import count_cores
    from .stage_times import Bench, measure_cold_start

    # As in ffd-run: each worker decodes an image of its own.
    cv2.setNumThreads(1)
    table = wants_table(options["as_json"])
    with ExitStack() as stack:
        console, tell = stack.enter_context(_status(table))
        backends = _open_backends(stack, options)
        pictures = _choose(stack, sources)
        workers = options["workers"] or count_cores()
        bench = Bench(backends, pictures, sorted(set(options["batches"])), workers)
        rounds = bench.run(options["rounds"], options["seconds"] or 20.0, tell)
        document = {
            **_setting(options, backends, pictures, made=not sources),
            "workers": workers,
            "rounds": rounds,
            **_measured(bench),
            "cold_start": None,
        }
        if options["cold_start"]:
            document["cold_start"] = []
            for name in options["backends"]:
                tell(f"cold start of {name}")
                size = backends[name].card.preprocess.size
                given = (options["model"], name, options["device"], size, pictures.items[0])
                document["cold_start"].append(measure_cold_start(*given))
    if table and console:
        _print(console, document)
    else:
        click.echo(json.dumps(document))


@contextmanager
def _status(table: bool) -> Iterator[tuple[Console | None, Callable[[str], None]]]:
    """Where the table goes, and where it is said what is being measured: a terminal, or nowhere."""
    if not (table or sys.stderr.isatty()):
        yield None, lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=not table, highlight=False)
    if not console.is_terminal:
        yield console, lambda _: None
        return
    # Drawing takes the interpreter from what is measured: once a second is enough.
    with console.status("opening the model ...", refresh_per_second=1) as status:
        yield console, lambda what: status.update(f"{what} ...")


def _open_backends(stack: ExitStack, options: dict[str, Any]) -> dict[str, Backend]:
    from ..model.backends import open_backend

    backends = {}
    for name in options["backends"]:
        backends[name] = open_backend(options["model"], name, options["device"])
        stack.callback(backends[name].close)
        say(f"{name}: {backends[name].description}")
    for name, backend in _open_tuned(backends, options):
        backends[name] = backend
        stack.callback(backend.close)
        say(f"{name}: {backend.description}")
    return backends


def _open_tuned(
    backends: dict[str, Backend], options: dict[str, Any]
) -> Iterator[tuple[str, Backend]]:
    """The model on CUDA once more, with each option of --cuda-option and with all of them.

    Raises:
        BackendError: nothing of what was opened is onnxruntime on CUDA.
    """
    from ..core.errors import BackendError
    from ..model.backends import find_model
    from ..model.backends.onnxruntime import OnnxRuntime, open_model
    from ..model.devices import parse_device

    tuning = tuple(dict.fromkeys(options["tuning"]))
    if not tuning:
        return
    if not any(isinstance(one, OnnxRuntime) and one.on_cuda for one in backends.values()):
        running = ", ".join(backend.description for backend in backends.values())
        raise BackendError(
            f"--cuda-option {tuning[0]} applies to onnxruntime on CUDA only, and the model runs by "
            f"{running}: leave it out, or give --device cuda"
        )
    _, index = parse_device(options["device"])
    for chosen in dict.fromkeys([*((name,) for name in tuning), tuning]):
        opened = open_model(find_model(options["model"]), f"cuda:{index}", chosen)
        yield f"onnxruntime+{'+'.join(chosen)}", opened


def _choose(stack: ExitStack, sources: tuple[str, ...]) -> Pictures:
    import tempfile
    from pathlib import Path

    from ..inputs import find_files
    from .stage_times import choose_pictures, make_pictures

    if sources:
        return choose_pictures(find_files(sources))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ffd-bench-"))
    return choose_pictures(make_pictures(Path(folder)))


def _setting(
    options: dict[str, Any], backends: dict[str, Backend], pictures: Pictures, made: bool
) -> dict[str, Any]:
    from .. import __version__
    from .stage_times import describe_machine

    card = next(iter(backends.values())).card
    return {
        "schema": 1,
        "ffd": __version__,
        "machine": describe_machine(),
        "model": {
            "path": options["model"],
            "name": card.name,
            "architecture": card.architecture,
            "precision": card.precision,
        },
        "backends": {name: backend.description for name, backend in backends.items()},
        "pictures": {
            "made": made,
            "count": len(pictures.items),
            "unreadable": pictures.unreadable,
            "mean_megapixels": round(pictures.pixels / 1e6, 3),
            "mean_bytes": round(pictures.size),
        },
    }


def _measured(bench: Bench) -> dict[str, Any]:
    from .stage_times import peak_memory

    return {
        "stages": bench.stages(),
        "end_to_end": bench.distances(),
        "peak_memory_bytes": peak_memory(),
    }


def _print(console: Console, document: dict[str, Any]) -> None:
    def line(text: str) -> None:
        console.print(printable(text), soft_wrap=True, markup=False)

    for text in _head(document):
        line(text)
    for table in (_stage_table(document["stages"]), _floor_table(document["end_to_end"])):
        line("")
        # As wide as it is: a pipe has no width, and cut numbers are wrong numbers.
        console.print(table, width=200, soft_wrap=True)
    line("(+N %): so far is end to end above that floor, by time a picture, within one round")
    memory = document["peak_memory_bytes"]
    if memory is not None:
        line(f"peak memory of this process, everything above together: {memory / 1e6:.0f} MB")
    for cold in document["cold_start"] or ():
        line(_cold(cold))


def _head(document: dict[str, Any]) -> Iterator[str]:
    machine, model, pictures = document["machine"], document["model"], document["pictures"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    yield f"ffd {document['ffd']} on {machine['cpu']}, {machine['cores']} cores, {gpus}"
    packages = (f"{name} {version}" for name, version in machine["packages"].items())
    yield f"Python {machine['python']}, {', '.join(packages)}"
    yield f"model {model['name']} ({model['architecture']}, {model['precision']})"
    kind = "synthetic JPEGs made for this run" if pictures["made"] else "pictures of yours"
    yield (
        f"{pictures['count']} {kind}, on average {pictures['mean_megapixels']:.2f} megapixels and "
        f"{pictures['mean_bytes'] / 1000:.0f} kB; {pictures['unreadable']} unreadable left out"
    )
    yield f"rounds: {document['rounds']}, workers: {document['workers']}"


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("stage", "backend", "batch", "n", "p50 ms", "p95 ms", "p99 ms", "images/s")
    for row in rows:
        if row["stage"] != "end_to_end":
            table.add_row(
                row["stage"],
                row["backend"] or "",
                _number(row["batch"], "d"),
                str(row["n"]),
                *(_number(row[f"p{rank}_ms"], ".2f") for rank in (50, 95, 99)),
                _number(row["images_per_second"], ".1f"),
            )
    return table


def _floor_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("end to end", "batch", "images/s", "ms", "slowest stage ms", "sum of stages ms")
    for row in rows:
        slowest, total = row["floors"]["slowest_stage"], row["floors"]["sum_of_stages"]
        table.add_row(
            row["backend"],
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            f"{row['ms_per_picture']:.2f}",
            f"{slowest['stage']} {_floor(slowest)}",
            _floor(total),
        )
    return table


def _floor(floor: dict[str, Any]) -> str:
    return f"{floor['ms_per_picture']:.2f} ({floor['above_percent']:+.0f} %)"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        left = name in ("stage", "backend", "end to end")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cold(cold: dict[str, Any]) -> str:
    text = (
        f"cold start of {cold['backend']}: {cold['first_verdict_ms']:.0f} ms from process to first "
        f"verdict (median of {cold['pairs']})"
    )
    if cold["bare_ms"] is not None:
        text += (
            f"; {cold['ratio']:.2f} times the {cold['bare_ms']:.0f} ms of bare imports, session "
            "and one run"
        )
    if cold["peak_memory_bytes"] is not None:
        text += f"; peak memory {cold['peak_memory_bytes'] / 1e6:.0f} MB"
    return text

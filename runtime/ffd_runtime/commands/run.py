"""ffd-run: classify images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from .common import (
    Command,
    device_option,
    format_option,
    say,
    say_more,
    version_option,
    wants_table,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from ..sinks import Sink

EPILOG = """\b
Examples:
  ffd-run portraits/
  ffd-run 'uploads/**/*.jpg' --output verdicts.csv
  ffd-run portraits/ --model runs/mine/best.onnx --device cuda
  find . -name '*.png' -print0 | ffd-run --null - | jq .label

\b
Exit codes:
  0 done   1 could not run   2 usage   3 done, but some inputs could not be read
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--model",
    type=click.Path(),
    help="An ONNX or engine made by ffd-export. Default: the embedded model.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
)
@device_option()
@click.option("--batch", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Decoding threads. Default: one a core."
)
@click.option(
    "--output",
    type=click.Path(),
    metavar="FILE.{jsonl,csv}",
    help="Write rows to a file; it takes its name when it is whole.",
)
@format_option(" Lines; nothing with --output")
@click.option("-0", "--null", is_flag=True, help="Paths on standard input end with NUL.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=1 << 27,
    show_default=True,
    help="Refuse larger images.",
)
@version_option()
def main(sources: tuple[str, ...], **options: Any) -> None:
    """Say of each image whether its face is generated or a photograph.

    SOURCE is a file, a folder (with all below it), a glob, or - for paths on standard input. Every
    input gives one row, in order; what cannot be read gives a row that says why.
    """
    _run(sources, options)


def _run(sources: tuple[str, ...], options: dict[str, Any]) -> None:
    _refuse_streams(sources)
    # Imported here, so that --help does not wait for OpenCV and onnxruntime.
    from pathlib import Path

    import cv2

    from ..classifier import Classifier
    from ..sinks import check_file_sink
    from ..sources import find_files

    # Each worker decodes an image of its own; OpenCV's threads would only get in the way.
    cv2.setNumThreads(1)
    output = Path(options["output"]) if options["output"] else None
    if output:
        check_file_sink(output)
        if any(Path(s).resolve() == output.resolve() for s in sources if "\0" not in s):
            raise click.UsageError(f"--output {output} is also a SOURCE: it would be overwritten")
    leave_out = _own_files(output) if output else frozenset()
    null = options["null"]
    with ExitStack() as stack:
        classifier = stack.enter_context(
            Classifier.open(
                options["model"],
                backend=options["backend"],
                device=options["device"],
                batch=options["batch"],
                workers=options["workers"],
                max_pixels=options["max_pixels"],
            )
        )
        say(classifier.description)
        say_more(classifier.card.to_json(indent=2))
        sinks, console = _open_sinks(stack, output, options["as_json"])
        count = None if "-" in sources else lambda: _count(find_files(sources, leave_out=leave_out))
        items = find_files(sources, null=null, leave_out=leave_out)
        tally: dict[str, int] = {}
        with _progress(console, count) as advance, _say_where_rows_are(output):
            for result in classifier.classify_items(items):
                for sink in sinks:
                    sink.write(result)
                kind = result.label or "errors"
                tally[kind] = tally.get(kind, 0) + 1
                advance()
    say(_summary(tally))
    if tally.get("errors"):
        click.get_current_context().exit(3)


@contextmanager
def _say_where_rows_are(output: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if output:
            say(f"rows so far are in {output}.partial")
        raise


def _refuse_streams(sources: Iterable[str]) -> None:
    for source in sources:
        scheme, found, _ = source.partition("://")
        if found and scheme.isalnum():
            raise click.UsageError(f"{scheme}:// is not a source that ffd-run reads: give files")


def _own_files(output: Path) -> frozenset[str]:
    """The files that this run writes, which must not be read as its input."""
    path = str(output.parent.resolve() / output.name)
    return frozenset((path, path + ".partial"))


def _open_sinks(
    stack: ExitStack, output: Path | None, as_json: bool | None
) -> tuple[list[Sink], Console | None]:
    """Where rows go, and the terminal to draw on, if stdout or stderr is one."""
    from ..sinks import JsonLines, open_file_sink

    console: Console | None = None
    table = wants_table(as_json)
    if table or sys.stderr.isatty():
        from rich.console import Console

        # Rows and progress bar must share a console, or they overwrite each other.
        console = Console(stderr=not table, highlight=False)
    sinks: list[Sink] = []
    if output:
        sinks.append(stack.enter_context(open_file_sink(output)))
    if table and console and (as_json is False or not output):
        from ..sinks.table import Table

        sinks.append(stack.enter_context(Table(console)))
    elif as_json or not (output or table):
        sinks.append(JsonLines(sys.stdout))
    return sinks, console


def _count(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


@contextmanager
def _progress(
    console: Console | None, count: Callable[[], int] | None
) -> Iterator[Callable[[], None]]:
    """A progress bar where there is a terminal; its total is counted in the background."""
    if console is None or not console.is_terminal:
        yield lambda: None
        return
    import threading

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TimeRemainingColumn,
    )

    with Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)
        if count:

            def update() -> None:
                # What goes wrong here goes wrong in the run too, and is said there.
                with suppress(Exception):
                    progress.update(task, total=count())

            threading.Thread(target=update, daemon=True).start()
        yield lambda: progress.advance(task)


def _summary(tally: dict[str, int]) -> str:
    total = sum(tally.values())
    if not total:
        return "no files found"
    kinds = ("generated", "groundtruth", "unsure", "errors")
    parts = ", ".join(f"{tally.get(kind, 0)} {kind}" for kind in kinds)
    return f"{total} {'input' if total == 1 else 'inputs'}: {parts}"

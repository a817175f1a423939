"""ffd-run: classify images."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import OutputError
from ..core.text import counted
from .options import (
    Command,
    backend_option,
    device_option,
    format_option,
    say,
    say_more,
    version_option,
    wants_table,
)
from .run_cluster import cluster_options, run_on_cluster, wants_cluster
from .run_streams import open_detector, stream_options, wants_streams, watch_streams

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from ..core.classifier import Classifier
    from ..core.results import Result
    from ..inputs import Item
    from ..outputs import Sink
    from ..outputs.annotated_copies import Annotate
    from ..outputs.html_report import Report
    from ..outputs.partial_file import PartialFile
    from ..outputs.provenance import Origin

# Seconds for a picture on the web.
TIMEOUT = 20.0
# Options that name files to write.
OUTPUTS = ("output", "report")

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
  0 done   1 could not run   2 usage   3 done, but some inputs could not be read
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option(
    "--sources",
    "listed",
    type=click.Path(),
    metavar="FILE",
    help="More SOURCEs from a file, one a line: passwords in them are not in the process list.",
)
@click.option(
    "--model",
    type=click.Path(),
    help="An ONNX or engine made by ffd-export. Default: the embedded model.",
)
@backend_option()
@device_option()
@click.option("--batch", type=click.IntRange(1, 1024), default=16, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    help="Threads that decode pictures or analyse frames. Default: one a core.",
)
@click.option(
    "--output",
    type=click.Path(),
    metavar="FILE.{jsonl,csv,parquet}",
    help="Write rows to a file; it takes its name when it is whole. Live streams add to a .jsonl.",
)
@click.option("--overwrite", is_flag=True, help="Replace an --output that exists.")
@click.option(
    "--resume", is_flag=True, help="Continue the rows of an interrupted run, in FILE.partial."
)
@click.option(
    "--annotate",
    type=click.Path(),
    metavar="DIR",
    help="Write copies with verdict and score drawn into a folder; originals stay as they are.",
)
@click.option(
    "--heatmap",
    is_flag=True,
    help="Draw the evidence into what --annotate, --show and --record make.",
)
@click.option(
    "--report",
    type=click.Path(),
    metavar="FILE.html",
    help="Write one page: counts, scores, the most suspicious and uncertain pictures.",
)
@click.option(
    "--faces/--no-faces",
    default=None,
    help="Find faces and judge each. Default: for streams, not for pictures.",
)
@click.option(
    "--face-model",
    type=click.Path(),
    envvar="FFD_FACE_MODEL",
    show_envvar=True,
    help="The YuNet face detector. Default: fetched once from OpenCV's model zoo.",
)
@click.option(
    "--min-face", type=click.IntRange(1), metavar="PIXELS", help="Smaller faces are unsure."
)
@stream_options()
@cluster_options()
@format_option(" Lines; nothing with --output")
@click.option(
    "-0", "--null", is_flag=True, help="Paths on standard input and in --sources end with NUL."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=1 << 27,
    show_default=True,
    help="Refuse larger images.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    help="Seconds for a web address (default 20), for a stream to open and for each frame (10).",
)
@click.option("--allow-private", is_flag=True, help="Fetch from addresses that are not public too.")
@version_option()
def main(sources: tuple[str, ...], **options: Any) -> None:
    """Say of each image whether its face is generated or a photograph.

    SOURCE is a file, a folder (with all below it), a glob, a zip or tar archive, an http or https
    address of a picture, or - for paths and addresses on standard input. Every input gives one row,
    in order; what cannot be read gives a row that says why. In folders and archives, files that are
    not pictures are skipped and counted.

    Or it is a stream: a camera's number, an rtsp address, a video file; NAME= before an address
    names it. A row for each face in each frame; a camera that breaks is tried again.
    """
    if listed := options.pop("listed"):
        from ..inputs.lists import read_sources

        sources += read_sources(listed, options["null"])
    cluster = wants_cluster(sources, options)
    if not sources:
        raise click.UsageError("Missing argument 'SOURCE...'.")
    if not cluster and wants_streams(sources, options):
        options["faces"] = options["faces"] is not False
        watch_streams(sources, options)
    elif options["min_face"] and not options["faces"]:
        raise click.UsageError("--min-face needs --faces")
    elif cluster:
        run_on_cluster(sources, options)
    else:
        _run(sources, options)


def _run(sources: tuple[str, ...], options: dict[str, Any]) -> None:
    _refuse_streams(sources)
    # Imported here and below, so that --help does not wait for OpenCV and onnxruntime.
    from ..inputs.kinds import Skipped

    output, pipe, report = _check_outputs(sources, options)
    tally: Counter[str] = Counter()
    skipped = Skipped()
    with ExitStack() as stack:
        classifier = _open_classifier(stack, options)
        if options["resume"] and output and output.exists() and not _partial(output).exists():
            _require_same_run(output, sources, classifier, options)
            say(f"{output} is whole: there is nothing to resume (delete it to run again)")
            return
        # What may refuse comes before what leaves files.
        copies = _open_annotate(stack, sources, classifier, options)
        page = _open_report(stack, report, classifier) if report else None
        file = _open_file(stack, output, sources, classifier, options) if output else None
        done, last = _take_up(file, tally, page) if file and options["resume"] else (Counter(), "")
        earlier = done.total()
        # A picture has as many rows as faces, so the last one may lack some: it is judged again.
        known = done.pop(last, 0) if classifier.detector else 0
        rows = _open_pipe(stack, pipe) if pipe else file
        sinks, console = _open_sinks(stack, rows, options["as_json"])
        sinks += [page] if page else []
        find = _finder(sources, options, _own_files(options))
        begin = time.monotonic()
        with (
            progress(console, _counter(find, sources), earlier) as advance,
            _say_where_rows_are(output, tally),
        ):
            items = _skip(find(_both(skipped.add, advance)), done, classifier.detector is None)
            results = classifier.classify_items(items, keep_encoded=bool(page or copies))
            results = _leave_out(results, last, known)
            for result in copies.follow(results, "-" in sources) if copies else results:
                for sink in sinks:
                    sink.write(result)
                tally[result.label or "errors"] += 1
                advance(1)
    say(summarise(tally, earlier, time.monotonic() - begin, skipped))
    if tally["errors"]:
        click.get_current_context().exit(3)


def _both(add: Callable[[str], None], advance: Callable[[int], None]) -> Callable[[str], None]:
    """Count a file that is skipped, and move the progress bar by it."""

    def skip(source: str) -> None:
        add(source)
        advance(1)

    return skip


def _check_outputs(
    sources: Iterable[str], options: dict[str, Any]
) -> tuple[Path | None, Path | None, Path | None]:
    """Refuse early what could only fail after a night's work.

    Returns:
        The file of rows, with links followed, or the pipe that rows go to; and the report's file.
    """
    from pathlib import Path

    from ..outputs import check_file_sink, follow_links, is_pipe, require_folder, require_new

    output, report = (Path(options[name]) if options[name] else None for name in OUTPUTS)
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume keeps rows that --overwrite would replace: give one")
    if output is None and (options["resume"] or options["overwrite"]):
        option = "resume" if options["resume"] else "overwrite"
        raise click.UsageError(f"--{option} needs the --output that it is about")
    if options["heatmap"] and not options["annotate"]:
        raise click.UsageError("--heatmap needs the --annotate DIR that it draws into")
    for written in filter(None, (output, report)):
        _refuse_sources(written, sources)
    if report:
        require_folder("--report", report)
    if output is None:
        return None, None, report
    check_file_sink(output)
    if is_pipe(output):
        if options["resume"]:
            raise click.UsageError(f"--resume cannot read back what went to the pipe {output}")
        return None, output, report
    if not (options["resume"] or options["overwrite"]):
        require_new(output)
    return follow_links(output), None, report


def _open_classifier(stack: ExitStack, options: dict[str, Any]) -> Classifier:
    from ..image.preprocess import warming_up

    with warming_up():
        from ..core.classifier import Classifier

        names = ("model", "backend", "device", "batch", "workers", "max_pixels")
        detector = open_detector(options) if options["faces"] else None
        classifier = Classifier.open(**{name: options[name] for name in names}, detector=detector)
    stack.enter_context(classifier)
    say(classifier.description)
    say_more(classifier.card.to_json(indent=2))
    return classifier


def _finder(
    sources: tuple[str, ...], options: dict[str, Any], leave_out: frozenset[str]
) -> Callable[[Callable[[str], object]], Iterator[Item]]:
    """Gives the inputs, told what is to be done with files that are not pictures."""
    from ..inputs import FetchPolicy, find_files

    policy = FetchPolicy(options["timeout"] or TIMEOUT, allow_private=options["allow_private"])
    return lambda skip: find_files(
        sources, null=options["null"], leave_out=leave_out, policy=policy, skip=skip
    )


def _counter(
    find: Callable[[Callable[[str], object]], Iterator[Item]], sources: tuple[str, ...]
) -> Callable[[], int] | None:
    """Counts the inputs; None for standard input, which cannot be read twice."""
    return None if "-" in sources else lambda: _count(find(lambda _: None))


def _refuse_sources(written: Path, sources: Iterable[str]) -> None:
    target = os.path.realpath(written)
    if any(os.path.realpath(source) == target for source in sources if "\0" not in source):
        raise click.UsageError(f"{written} is also a SOURCE: it would be overwritten")


def _origin(sources: tuple[str, ...], classifier: Classifier, options: dict[str, Any]) -> Origin:
    from pathlib import Path

    from ..model.backends import find_embedded_by
    from ..outputs.provenance import Origin

    detector = classifier.detector
    return Origin.of(
        Path(options["model"] or find_embedded_by(classifier.card)),
        classifier.card,
        sources,
        faces=detector.settings if detector else None,
    )


def _require_same_run(
    output: Path, sources: tuple[str, ...], classifier: Classifier, options: dict[str, Any]
) -> None:
    from ..outputs.partial_file import record_of

    _origin(sources, classifier, options).require_same_file(record_of(output), output)


def _open_file(
    stack: ExitStack,
    output: Path,
    sources: tuple[str, ...],
    classifier: Classifier,
    options: dict[str, Any],
) -> PartialFile:
    from ..outputs import open_file_sink

    file = open_file_sink(output, _origin(sources, classifier, options), options["resume"])
    stack.enter_context(file)
    return file


def _open_pipe(stack: ExitStack, path: Path) -> Sink:
    from ..outputs import open_pipe_sink

    return stack.enter_context(open_pipe_sink(path))


def _open_report(stack: ExitStack, path: Path, classifier: Classifier) -> Report:
    from ..outputs.html_report import Report

    page = Report(path, model=classifier.description, card=classifier.card)
    stack.enter_context(page)
    return page


def _open_annotate(
    stack: ExitStack, sources: Iterable[str], classifier: Classifier, options: dict[str, Any]
) -> Annotate | None:
    if not options["annotate"]:
        return None
    from pathlib import Path

    from ..outputs.annotated_copies import Annotate

    copies = Annotate(
        Path(options["annotate"]),
        sources,
        heatmap=options["heatmap"],
        face_scale=classifier.card.preprocess.face_scale,
    )
    stack.enter_context(copies)
    return copies


def _take_up(
    file: PartialFile, tally: Counter[str], page: Report | None
) -> tuple[Counter[str], str]:
    """What the interrupted run has done: how often each source has a row, and the last one."""
    done: Counter[str] = Counter()
    last = ""
    for result in file.earlier():
        last = result.source
        done[last] += 1
        tally[result.label or "errors"] += 1
        if page:
            page.add_row(result)
    if done:
        say(f"going on after {done.total()} rows of {file.partial}")
    return done, last


def _skip(items: Iterable[Item], done: Counter[str], once: bool) -> Iterator[Item]:
    """The items that have no row yet.

    Args:
        items: all.
        done: rows by source.
        once: each has one row, so one that is named twice has two.
    """
    for item in items:
        if done[item.source] <= 0:
            yield item
        elif once:
            done[item.source] -= 1


def _leave_out(results: Iterable[Result], source: str, count: int) -> Iterator[Result]:
    """Results without the first of a source."""
    for result in results:
        if count and result.source == source:
            count -= 1
        else:
            yield result


@contextmanager
def _say_where_rows_are(output: Path | None, tally: Counter[str]) -> Iterator[None]:
    try:
        yield
    except OutputError:
        # It says so itself.
        raise
    except BaseException:
        if output and tally:
            say(f"rows so far are in {_partial(output)}; --resume goes on with them")
        raise


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _refuse_streams(sources: Iterable[str]) -> None:
    """Refuse what is meant for an address and is none: as a path, its password would be shown."""
    for source in sources:
        if "://" in source and not source.lower().startswith(("http://", "https://")):
            from ..core.redact import redact

            if not os.path.lexists(source.partition("\0")[0]):
                raise click.UsageError(f"{redact(source)!r} is not an address that ffd-run reads")


def _own_files(options: dict[str, Any]) -> frozenset[str]:
    """The files that this run writes, and links to them, which must not be read as its input."""
    from pathlib import Path

    from ..outputs import follow_links
    from ..outputs.partial_file import own_files

    given = [Path(options[name]) for name in OUTPUTS if options[name]]
    written = {one for path in given for one in (path, follow_links(path))}
    paths = (own_files(Path(os.path.realpath(path.parent), path.name)) for path in written)
    return frozenset(str(path) for group in paths for path in group)


def _open_sinks(
    stack: ExitStack, file: Sink | None, as_json: bool | None
) -> tuple[list[Sink], Console | None]:
    """Where rows go, and the terminal to draw on, if stdout or stderr is one."""
    from ..outputs import JsonLines

    console: Console | None = None
    table = wants_table(as_json)
    if table or sys.stderr.isatty():
        from rich.console import Console

        # Rows and progress bar must share a console, or they overwrite each other.
        console = Console(stderr=not table, highlight=False)
    sinks: list[Sink] = [file] if file else []
    if table and console and (as_json is False or not file):
        from ..outputs.table import Table

        sinks.append(stack.enter_context(Table(console)))
    elif as_json or not (file or table):
        sinks.append(JsonLines(sys.stdout))
    return sinks, console


def _count(items: Iterable[object]) -> int:
    return sum(1 for _ in items)


@contextmanager
def progress(
    console: Console | None, count: Callable[[], int] | None, done: int
) -> Iterator[Callable[[int], None]]:
    """A progress bar where there is a terminal; its total is counted in the background.

    Args:
        console: to draw on; None for none.
        count: gives the total; None if it cannot be known.
        done: inputs that need nothing any more.

    Returns:
        Moves the bar by a number of inputs.
    """
    if console is None or not console.is_terminal:
        yield lambda _: None
        return
    import threading

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", "progress.data.speed")

    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    bar.start()
    try:
        task = bar.add_task("", total=None, completed=done)
        if count:

            def update() -> None:
                # What goes wrong here goes wrong in the run too, and is said there.
                with suppress(Exception):
                    bar.update(task, total=count())

            threading.Thread(target=update, daemon=True).start()
        yield lambda count: bar.advance(task, count)
    finally:
        # The terminal may be gone in the morning; the rows must not go with it.
        with suppress(OSError):
            bar.stop()


def summarise(tally: Counter[str], earlier: int, seconds: float, skipped: Sized = ()) -> str:
    """Counts of all rows, the rate of those that are new, and the files that were skipped.

    Args:
        tally: rows by label, or `errors`.
        earlier: rows of the run that this one continued.
        seconds: that this run took.
        skipped: its text says what; left out if there are none.
    """
    total = tally.total()
    kinds = ("generated", "groundtruth", "unsure", "errors")
    parts = ", ".join(f"{tally[kind]} {kind}" for kind in kinds)
    rate = (total - earlier) / max(seconds, 1e-3)
    said = f"{counted(total, 'input')}: {parts} ({rate:.1f} a second)"
    if not total:
        said = "no pictures found" if skipped else "no files found"
    return f"{said}; {skipped}" if skipped else said

"""ffd-run on images: files, folders, archives and web addresses."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.redact import redact
from ..core.text import counted
from ..inputs import FetchPolicy, Item, find_files
from ..inputs.archives import is_compressed
from ..inputs.kinds import Skipped
from ..inputs.source_registry import ADDRESS_MODULES
from ..outputs import Sink, check_file_sink, open_file_sink, open_pipe_sink, require_new
from ..outputs.jsonlines import JsonLines
from ..outputs.partial_file import completed_record, files_of_sink
from ..outputs.provenance import RunProvenance
from ..outputs.target import descriptor_of, follow_links, is_pipe, require_folder
from .command import say, say_more
from .lost_storage import end_if_lost
from .options import open_console, wants_table
from .program import Program, RunOptions
from .run_progress import progress, summarise

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.classifier import Classifier
    from ..core.results import Result
    from ..outputs.annotated_copies import AnnotatedCopies
    from ..outputs.html_report import Report
    from ..outputs.partial_file import PartialFile

# Seconds until the download of an image is given up.
TIMEOUT_S = 20.0
STDOUT = 1


@dataclass(frozen=True, kw_only=True)
class ImageOptions(RunOptions):
    """The options for images; see `ffd-run --help`."""

    batch: int
    workers: int | None
    max_pixels: int
    null: bool
    timeout: float | None
    allow_private: bool
    overwrite: bool
    resume: bool
    annotate: str | None
    heatmap: bool
    report: str | None
    as_json: bool | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise click.UsageError(
                "--resume keeps earlier rows, --overwrite deletes them: give one of them"
            )
        if (self.resume or self.overwrite) and not self.output:
            option = "resume" if self.resume else "overwrite"
            raise click.UsageError(f"--{option} needs --output")
        if self.heatmap and not self.annotate:
            raise click.UsageError("--heatmap needs --annotate DIR, where it is drawn")


@dataclass(frozen=True)
class Targets:
    """Where a run writes.

    Attributes:
        rows: file of rows, with links followed; None if rows go elsewhere.
        pipe: pipe or device of rows.
        report: the HTML report.
        named: the paths as they were given.
    """

    rows: Path | None
    pipe: Path | None
    report: Path | None
    named: tuple[Path, ...]

    @classmethod
    def check(cls, sources: Iterable[str], options: ImageOptions) -> Targets:
        """Find early what would otherwise fail at the end of a run.

        Raises:
            OutputError: a target cannot be written.
            click.UsageError: a target is also a source, or cannot be resumed.
        """
        output = Path(options.output) if options.output else None
        report = Path(options.report) if options.report else None
        named = tuple(path for path in (output, report) if path)
        for path in named:
            target = os.path.realpath(path)
            if any(os.path.realpath(source) == target for source in sources if "\0" not in source):
                raise click.UsageError(f"{path} is also a SOURCE: it would be overwritten")
            if "-" in sources and _is_standard_input(path):
                raise click.UsageError(f"{path} is also the list on standard input")
        if report:
            require_folder("--report", report)
        if output is None:
            return cls(None, None, report, named)
        check_file_sink(output)
        if is_pipe(output):
            if options.resume:
                raise click.UsageError(f"--resume needs a regular file, and {output} is not one")
            return cls(None, output, report, named)
        if not (options.resume or options.overwrite):
            require_new(output, resumable=True)
        return cls(follow_links(output), None, report, named)

    @property
    def partial(self) -> Path | None:
        """The file that rows go to until the run is complete."""
        return self.rows and self.rows.with_name(self.rows.name + ".partial")

    @property
    def complete(self) -> Path | None:
        """The file of rows if an earlier run has completed it."""
        if not (self.rows and self.partial) or self.partial.exists():
            return None
        return self.rows if self.rows.exists() and self.rows.stat().st_size else None

    def files(self) -> frozenset[str]:
        """The files that this run writes, and links to them: they are not inputs."""
        written = {path for named in self.named for path in (named, follow_links(named))}
        absolute = (Path(os.path.realpath(path.parent), path.name) for path in written)
        return frozenset(str(path) for one in absolute for path in files_of_sink(one))


class EarlierRows:
    """The rows of an interrupted run.

    Attributes:
        total: number of rows.

    Args:
        once: whether each input has one row, rather than one for each face.
        counts: receives the number of rows by label, and of `errors`.
    """

    def __init__(self, once: bool, counts: Counter[str]) -> None:
        self.counts = counts
        self.total = 0
        self._by_source: Counter[str] = Counter()
        self._once = once
        self._last = ""
        self._last_rows = 0

    def read(
        self, file: PartialFile, report: Report | None, copies: AnnotatedCopies | None
    ) -> None:
        """Read the rows that `file` has already."""
        unreadable, without_copy = False, 0
        for result in file.earlier():
            self._last = result.source
            self._by_source[self._last] += 1
            self.counts[result.label or "errors"] += 1
            unreadable = bool(result.error and not result.face)
            if report:
                report.write(result)
            if copies and not copies.remember(result):
                without_copy += 1
        self.total = self._by_source.total()
        if self.total:
            say(f"resuming after {self.total} rows in {file.partial}")
        if copies and without_copy:
            say(f"{copies.folder} has no copies of {counted(without_copy, 'earlier row')}")
        if not (self._once or unreadable):
            # An image has a row for each face. The last one may be incomplete: classify it again.
            self._last_rows = self._by_source.pop(self._last, 0)

    def remaining(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the inputs that have no rows yet."""
        for item in items:
            if self._by_source[item.source] <= 0:
                yield item
            elif self._once:
                self._by_source[item.source] -= 1

    def without_known(self, results: Iterable[Result]) -> Iterator[Result]:
        """Drop the rows of the last image that are in the file already."""
        for result in results:
            if self._last_rows and result.source == self._last:
                self._last_rows -= 1
            else:
                yield result


def run(sources: Sequence[str], options: ImageOptions) -> None:
    """Classify images; write a row for each, in the order of the inputs."""
    _refuse_unknown_addresses(sources)
    targets = Targets.check(sources, options)
    skipped = Skipped()
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(_naming_partial_rows(targets, counts))
        classifier = stack.enter_context(_open_classifier(options))
        origin = _origin(sources, classifier, options)
        if options.resume and (complete := targets.complete):
            origin.require_same_file(completed_record(complete), complete)
            _say_complete(complete, options)
            return
        # Steps that may fail come before steps that create files.
        copies = _open_copies(stack, sources, classifier, options)
        file = _open_rows(stack, targets.rows, origin, options)
        # The rows stay resumable until the report is written.
        report = _open_report(stack, targets.report, classifier)
        earlier = EarlierRows(classifier.detector is None, counts)
        if file and options.resume:
            earlier.read(file, report, copies)
        console = open_console(options.as_json)
        sinks = list(_open_sinks(stack, file, targets.pipe, console, options.as_json))
        sinks += [report] if report else []
        find = _finder(sources, options, targets.files())
        count = (lambda: sum(1 for _ in find())) if _is_countable(sources, options) else None
        begin = time.monotonic()
        with progress(console, count, earlier.total) as advance:

            def skip(source: str) -> None:
                skipped.add(source)
                advance(1)

            items = earlier.remaining(find(skip=skip))
            items = copies.without_copies(items, skip) if copies else items
            found = classifier.classify_items(items, keep_encoded=bool(report or copies))
            stack.callback(found.close)
            results = earlier.without_known(found)
            # A program that names the next file after each row must get every row at once.
            results = results if "-" in sources else end_if_lost(results)
            for result in copies.follow(results, "-" in sources) if copies else results:
                for sink in sinks:
                    sink.write(result)
                counts[result.label or "errors"] += 1
                advance(1)
    say(summarise(counts, earlier.total, time.monotonic() - begin, skipped, options.detect_faces))
    if counts["errors"]:
        click.get_current_context().exit(3)


def _is_countable(sources: Sequence[str], options: ImageOptions) -> bool:
    """Return whether the rows can be counted in advance, for the progress bar.

    Standard input is read once, a compressed archive would be decompressed twice, and the number of
    faces is not known.
    """
    compressed = (source == "-" or is_compressed(source) for source in sources)
    return not options.detect_faces and not any(compressed)


def _is_standard_input(path: Path) -> bool:
    try:
        return path.is_file() and os.path.samestat(path.stat(), os.fstat(sys.stdin.fileno()))
    except (OSError, ValueError, AttributeError):  # AttributeError: it is closed
        return False


def _say_complete(path: Path, options: ImageOptions) -> None:
    unwritten = [f"--{name}" for name in ("annotate", "report") if getattr(options, name)]
    without = f", so {' and '.join(unwritten)} will not be written" if unwritten else ""
    say(f"{path} is complete: nothing to resume{without} (delete it to run again)")


def _open_classifier(options: ImageOptions) -> Classifier:
    classifier = options.open_classifier(
        options.workers, batch=options.batch, max_pixels=options.max_pixels
    )
    say(classifier.description)
    say_more(classifier.card.to_json(indent=2))
    return classifier


def _finder(
    sources: Sequence[str], options: ImageOptions, leave_out: frozenset[str]
) -> Callable[..., Iterator[Item]]:
    """Return `find_files` with all arguments but `skip`."""
    policy = FetchPolicy(options.timeout or TIMEOUT_S, allow_private=options.allow_private)
    return partial(find_files, sources, null=options.null, leave_out=leave_out, policy=policy)


def _refuse_unknown_addresses(sources: Iterable[str]) -> None:
    """Refuse addresses of an unsupported scheme: as a path, a password in one would be shown."""
    for source in sources:
        scheme, is_address, _ = source.partition("://")
        foreign = is_address and scheme.lower() not in ADDRESS_MODULES
        if foreign and not os.path.lexists(source.partition("\0")[0]):
            raise click.UsageError(f"{redact(source)!r} is not a supported address")


def _origin(sources: Sequence[str], classifier: Classifier, options: ImageOptions) -> RunProvenance:
    from ..model.backends import find_embedded_by

    detector = classifier.detector
    return RunProvenance.of(
        Path(options.model or find_embedded_by(classifier.card)),
        classifier.card,
        sources,
        faces=detector.settings if detector else None,
    )


def _open_rows(
    stack: ExitStack, path: Path | None, origin: RunProvenance, options: ImageOptions
) -> PartialFile | None:
    if not path:
        return None
    file = stack.enter_context(open_file_sink(path, origin, options.resume))
    if not (options.resume or options.overwrite):
        # Another run may have completed its rows meanwhile.
        require_new(path, resumable=True)
    return file


def _open_report(stack: ExitStack, path: Path | None, classifier: Classifier) -> Report | None:
    if not path:
        return None
    from ..outputs.html_report import Report

    noun = "row" if classifier.detector else "input"
    report = Report(path, model=classifier.description, card=classifier.card, noun=noun)
    return stack.enter_context(report)


def _open_copies(
    stack: ExitStack, sources: Iterable[str], classifier: Classifier, options: ImageOptions
) -> AnnotatedCopies | None:
    if not options.annotate:
        return None
    from ..outputs.annotated_copies import AnnotatedCopies

    copies = AnnotatedCopies(
        Path(options.annotate),
        sources,
        heatmap=options.heatmap,
        face_scale=classifier.card.preprocess.face_scale,
    )
    stack.enter_context(copies)
    return copies


def _open_sinks(
    stack: ExitStack,
    file: Sink | None,
    pipe: Path | None,
    console: Console | None,
    as_json: bool | None,
) -> Iterator[Sink]:
    rows = stack.enter_context(open_pipe_sink(pipe)) if pipe else file
    if rows:
        yield rows
    table = wants_table(as_json)
    if table and console and (as_json is False or not rows):
        from ..outputs.table import Table

        yield stack.enter_context(Table(console))
    elif not (rows or table) or (as_json and not (pipe and descriptor_of(pipe) == STDOUT)):
        yield JsonLines(sys.stdout)


@contextmanager
def _naming_partial_rows(targets: Targets, counts: Counter[str]) -> Iterator[None]:
    """Say where the rows of an interrupted run are."""
    try:
        yield
    except BaseException as error:
        partial = targets.partial
        if partial and counts and partial.exists() and str(partial) not in str(error):
            say(f"rows so far are in {partial}; resume with --resume")
        raise


PROGRAM = Program("images", ImageOptions, lambda *_: True, run)

"""ffd-run on streams: cameras, servers and video files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import OutputError
from ..core.redact import is_ambiguous, redact
from ..outputs import Sink, check_file_sink, open_file_sink, open_pipe_sink, require_new
from ..outputs.jsonlines import AppendedJsonLines, JsonLines
from ..outputs.target import is_pipe
from ..video.stream_address import Stream, is_named_video, is_stream, is_video_file, to_streams
from .command import say
from .options import is_given, open_console, wants_table
from .program import Program, RunOptions

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.classifier import Classifier
    from ..video.frame_result import FrameSink
    from ..web.listen_address import ListenAddress

# Seconds that a stream may take to connect, and for each frame.
TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class StreamOptions(RunOptions):
    """The options for streams; see `ffd-run --help`."""

    workers: int | None
    timeout: float | None
    overwrite: bool
    heatmap: bool
    as_json: bool | None
    gst: bool
    stream: bool
    every: int | None
    fps: float | None
    retries: int | None
    show: bool
    record: str | None
    events: bool
    serve: str | None
    token: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heatmap and not (self.record or self.show):
            raise click.UsageError("--heatmap needs --show or --record, where it is drawn")

    @property
    def detect_faces(self) -> bool:
        """Whether faces are detected: by default, yes."""
        return self.faces is not False


def accepts(sources: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Return whether the sources are streams; a mixture with images is wrong usage."""
    if values["gst"]:
        return True
    found = list(filter(is_stream, sources))
    # Beside a live stream, an http address is one, too.
    web = values["stream"] or any(stream.live for stream in to_streams(found))
    others = [source for source in sources if not is_stream(source, web)]
    if found and others and not web:
        # A shell pattern may match a video among images.
        say(
            f"{redact(found[0])} is treated as an image, as the other SOURCEs are images: classify "
            "videos in a separate run"
        )
        return False
    if others and web:
        raise click.UsageError(
            f"{redact(others[0])} is not a stream: classify images and streams in separate runs"
        )
    if not others:
        for path in (stream.target for stream in to_streams(sources)):
            if isinstance(path, str) and is_video_file(path) and not is_named_video(path):
                say(f"{path} is a video, according to its content")
    return not others


def run(sources: Sequence[str], options: StreamOptions) -> None:
    """Classify streams until they end or the user stops them."""
    from ..video.feed import Feed
    from ..video.frame_classifier import FrameClassifier
    from ..video.stream_pipeline import StreamPipeline
    from ..video.stream_policy import StreamPolicy

    streams = to_streams(sources, options.gst)
    for stream in streams:
        # Part of the password would be looked up as a host name.
        if stream.kind != "pipeline" and is_ambiguous(str(stream.target)):
            raise click.UsageError(
                f"{stream.name}: the password is ambiguous: write %40 for @ and %2F for /"
            )
    _check_outputs(streams, options)
    server = _parse_server(options.serve)
    with ExitStack() as stack:
        classifier = stack.enter_context(options.open_classifier(options.workers))
        say(classifier.description + ("" if classifier.detector else ", whole frames"))
        console = open_console(options.as_json)
        rows = [stack.enter_context(sink) for sink in _rows(streams, options)]
        # The table shows only changes, also without --events.
        table = [stack.enter_context(sink) for sink in _table(options, console)]
        frame_sinks = [
            stack.enter_context(sink)
            for sink in _frame_sinks(streams, options, console, classifier, server)
        ]
        policy = StreamPolicy(
            timeout=options.timeout or TIMEOUT_S,
            retries=options.retries,
            every=options.every or 1,
            fps=options.fps,
        )
        pipeline = StreamPipeline(
            stack.enter_context(Feed(streams, policy)),
            FrameClassifier(classifier.backend, classifier.detector),
            rows=[] if options.events else rows,
            changes=[*rows, *table] if options.events else table,
            frame_sinks=frame_sinks,
            report=say,
        )
        stack.callback(lambda: say(pipeline.summary()))
        pipeline.run(classifier.workers)
    if pipeline.errors:
        click.get_current_context().exit(3)


def _check_outputs(streams: Sequence[Stream], options: StreamOptions) -> None:
    """Find early what would otherwise fail after the models are loaded."""
    output = options.output
    live = any(stream.live for stream in streams)
    if options.overwrite and (live or not output):
        raise click.UsageError(
            "--overwrite needs --output and a video file: live streams append to their file"
        )
    if is_given("token") and not options.serve:
        raise click.UsageError("--token needs --serve")
    if options.retries is not None and not live:
        raise click.UsageError("--retries applies only to live streams")
    if output:
        check_file_sink(Path(output))
        if live and not (output.endswith(".jsonl") or is_pipe(Path(output))):
            raise OutputError(
                f"--output {output}: live streams append to a .jsonl file: change the name"
            )
        if not (live or options.overwrite):
            require_new(Path(output), resumable=False)
    if options.record:
        from ..video.recording import check_recording_path

        check_recording_path(Path(options.record), live)
    if options.gst:
        from ..video.capture import require_gstreamer

        require_gstreamer()


def _parse_server(text: str | None) -> ListenAddress | None:
    """Parse --serve before the models are loaded."""
    if text is None:
        return None
    from ..web.listen_address import parse_listen_address

    try:
        return parse_listen_address(text)
    except ValueError as error:
        raise click.UsageError(f"--serve: {error}") from None


def _rows(streams: Sequence[Stream], options: StreamOptions) -> Iterator[Sink]:
    as_json, output = options.as_json, options.output
    if output and is_pipe(Path(output)):
        yield open_pipe_sink(Path(output))
    elif output:
        live = any(stream.live for stream in streams)
        yield AppendedJsonLines(Path(output)) if live else open_file_sink(Path(output))
    if as_json or not (output or wants_table(as_json)):
        yield JsonLines(sys.stdout)


def _table(options: StreamOptions, console: Console | None) -> Iterator[Sink]:
    if console and wants_table(options.as_json):
        from ..outputs.table import Table

        yield Table(console)


def _frame_sinks(
    streams: Sequence[Stream],
    options: StreamOptions,
    console: Console | None,
    classifier: Classifier,
    server: ListenAddress | None,
) -> Iterator[FrameSink]:
    from ..video.systemd import SystemdNotifier

    names = [stream.name for stream in streams]
    heatmap, face_scale = options.heatmap, classifier.card.preprocess.face_scale
    if server:
        from ..web.dashboard_server import DashboardServer

        page = DashboardServer(
            server, card=classifier.card, model=classifier.description, token=options.token
        )
        yield page
        say(f"serving {page.url}")
    if options.record:
        from ..video.recording import Recorder
        from ..video.source_recording import choose_recording_rate

        yield Recorder(
            Path(options.record),
            names,
            heatmap=heatmap,
            face_scale=face_scale,
            fps=choose_recording_rate(options.fps),
            live=any(stream.live for stream in streams),
        )
    if options.show:
        from ..video.window import Window

        yield Window(names, heatmap=heatmap, face_scale=face_scale)
    if console and console.is_terminal:
        from ..video.status_line import StatusLine

        yield StatusLine(console)
    yield SystemdNotifier()


PROGRAM = Program("streams", StreamOptions, accepts, run)

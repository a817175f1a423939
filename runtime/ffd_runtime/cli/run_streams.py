"""ffd-run on cameras, servers and video files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import OutputError
from .options import say, together, wants_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.classifier import Classifier
    from ..image.faces import FaceDetector
    from ..outputs import Sink
    from ..video.frame_classifier import Analyser
    from ..video.scene import SceneSink
    from ..video.stream_address import Stream
    from ..video.stream_policy import StreamPolicy
    from ..web.listen_address import Address

# Options of ffd-run that say nothing about a picture, and those that say nothing about a stream.
STREAMS_ALONE = "gst stream every fps retries show record events serve token".split()
PICTURES_ALONE = "resume annotate report null batch max_pixels allow_private".split()
# Seconds that a stream may take for its connection, and for each frame.
TIMEOUT = 10.0


def stream_options() -> Callable[[Any], Any]:
    """The options that are about streams alone."""
    return together(
        click.option("--gst", is_flag=True, help="SOURCEs are GStreamer pipelines."),
        click.option("--stream", is_flag=True, help="http addresses are streams, not pictures."),
        click.option("--every", type=click.IntRange(1), metavar="N", help="Each Nth frame only."),
        click.option(
            "--fps",
            type=click.FloatRange(0, 1000, min_open=True),
            help="At most so many frames a second.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(0),
            help="Give a live stream up after so many tries. Default: never.",
        ),
        click.option("--show", is_flag=True, help="Show a window; q ends, h shows the evidence."),
        click.option(
            "--record",
            type=click.Path(),
            metavar="FILE.{mp4,mkv}",
            help="Write the annotated video; a name that is taken gets a number.",
        ),
        click.option("--events", is_flag=True, help="Rows only where the verdict changes."),
        click.option("--serve", metavar="[HOST:]PORT", help="Serve a page, /healthz and /metrics."),
        click.option(
            "--token",
            envvar="FFD_TOKEN",
            show_envvar=True,
            help="What --serve asks for; needed unless it serves this machine alone.",
        ),
    )


def wants_streams(sources: Sequence[str], options: dict[str, Any]) -> bool:
    """Whether the sources are streams.

    Raises:
        click.UsageError: some are and some are not, or an option is not for what they are.
    """
    from ..core.redact import redact
    from ..video.stream_address import is_named_video, is_stream, is_video_file

    if options["gst"]:
        return _check_options(True, options)
    found = list(filter(is_stream, sources))
    # Beside a camera, an address is hardly a picture's.
    web = options["stream"] or not all(map(is_video_file, found))
    others = [source for source in sources if not is_stream(source, web)]
    if found and others and not web:
        # What a shell's pattern gave: a video among pictures is a file that is no picture.
        say(f"{found[0]} is taken for a picture: run videos by themselves")
        return _check_options(False, options)
    if others and web:
        raise click.UsageError(
            f"{redact(others[0])} is no stream: run pictures and streams one after the other"
        )
    for source in () if others else sources:
        if is_video_file(source) and not is_named_video(source):
            say(f"{source} is a video by its content")
    return _check_options(not others, options)


def _check_options(streams: bool, options: dict[str, Any]) -> bool:
    """Refuse an option that says nothing about what is run."""
    given = click.get_current_context().get_parameter_source
    for name in PICTURES_ALONE if streams else STREAMS_ALONE:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for {'pictures' if streams else 'streams'} alone")
    if streams and options["heatmap"] and not (options["record"] or options["show"]):
        raise click.UsageError("--heatmap needs the --show or --record that it is drawn into")
    return streams


def watch_streams(sources: Sequence[str], options: dict[str, Any]) -> None:
    """Classify streams until they end or somebody ends them."""
    from ..video.feed import Feed
    from ..video.stream_address import to_streams
    from ..video.watch import Watch

    streams = to_streams(sources, options["gst"])
    _refuse_ambiguous(streams)
    _check_outputs(streams, options)
    server = _parse_server(options["serve"])
    with ExitStack() as stack:
        classifier, analyser = _open_analyser(stack, options)
        console = _open_console(options["as_json"])
        rows = [stack.enter_context(sink) for sink in _rows(streams, options)]
        # A person who reads along wants to know what is new.
        table = [stack.enter_context(sink) for sink in _table(options, console)]
        scenes = [
            stack.enter_context(sink)
            for sink in _scenes(streams, options, console, classifier, server)
        ]
        feed = stack.enter_context(Feed(streams, _policy(options)))
        watch = Watch(
            feed,
            analyser,
            classifier.card,
            rows=[] if options["events"] else rows,
            changes=[*rows, *table] if options["events"] else table,
            scenes=scenes,
            whole=not options["faces"],
            say=say,
            workers=classifier.workers,
        )
        stack.callback(lambda: say(watch.summary()))
        watch.run()
    if watch.errors:
        click.get_current_context().exit(3)


def _refuse_ambiguous(streams: Sequence[Stream]) -> None:
    """Refuse an address of which a part of the password would be looked up as its host."""
    from ..core.redact import is_ambiguous

    for stream in streams:
        if stream.kind != "pipeline" and is_ambiguous(str(stream.target)):
            raise click.UsageError(
                f"{stream.name}: not clear where its password ends: write %40 for an @, %2F for a /"
            )


def _check_outputs(streams: Sequence[Stream], options: dict[str, Any]) -> None:
    """Refuse early what could only fail after the models were loaded."""
    from pathlib import Path

    from ..outputs import check_file_sink, is_pipe, require_new

    output = options["output"]
    live = any(stream.live for stream in streams)
    if options["overwrite"] and (live or not output):
        raise click.UsageError("--overwrite needs an --output, and live streams append to theirs")
    if output:
        check_file_sink(Path(output))
        if live and not (output.endswith(".jsonl") or is_pipe(Path(output))):
            raise OutputError(
                f"--output {output}: rows of live streams go to a .jsonl, which grows"
            )
        if not (live or options["overwrite"]):
            require_new(Path(output))
    if options["record"]:
        from ..video.recording import check_record

        check_record(Path(options["record"]))
    if options["gst"]:
        from ..video.capture import require_gstreamer

        require_gstreamer()


def _parse_server(text: str | None) -> Address | None:
    """Where to serve, if at all; refused before the models are loaded."""
    if text is None:
        return None
    from ..web.listen_address import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise click.UsageError(f"--serve: {error}") from None


def _open_analyser(stack: ExitStack, options: dict[str, Any]) -> tuple[Classifier, Analyser]:
    from ..image.preprocess import warming_up

    with warming_up():
        from ..core.classifier import Classifier
        from ..video.frame_classifier import Analyser

        detector = None
        if options["faces"]:
            detector = open_detector(options)
        names = ("model", "backend", "device", "workers")
        classifier = Classifier.open(**{name: options[name] for name in names})
    stack.enter_context(classifier)
    say(classifier.description + ("" if detector else ", whole pictures"))
    return classifier, Analyser(classifier.backend, detector)


def open_detector(options: dict[str, Any]) -> FaceDetector:
    """The face detector that the options ask for."""
    from pathlib import Path

    from ..image.face_model import find_face_model
    from ..image.faces import FaceDetector

    given = options["face_model"]
    model = find_face_model(Path(given) if given else None)
    sides = {} if options["min_face"] is None else {"min_side": options["min_face"]}
    return FaceDetector(model, **sides)


def _open_console(as_json: bool | None) -> Console | None:
    table = wants_table(as_json)
    if not (table or sys.stderr.isatty()):
        return None
    from rich.console import Console

    return Console(stderr=not table, highlight=False)


def _rows(streams: Sequence[Stream], options: dict[str, Any]) -> Iterator[Sink]:
    from pathlib import Path

    from ..outputs import JsonLines, is_pipe, open_file_sink, open_pipe_sink

    as_json, output = options["as_json"], options["output"]
    if output and is_pipe(Path(output)):
        yield open_pipe_sink(Path(output))
    elif output:
        from ..outputs.jsonlines import AppendedJsonLines

        live = any(stream.live for stream in streams)
        yield AppendedJsonLines(Path(output)) if live else open_file_sink(Path(output))
    if as_json or not (output or wants_table(as_json)):
        yield JsonLines(sys.stdout)


def _table(options: dict[str, Any], console: Console | None) -> Iterator[Sink]:
    if console and wants_table(options["as_json"]):
        from ..outputs.table import Table

        yield Table(console)


def _scenes(
    streams: Sequence[Stream],
    options: dict[str, Any],
    console: Console | None,
    classifier: Classifier,
    server: Address | None,
) -> Iterator[SceneSink]:
    from pathlib import Path

    from ..video.systemd import Notify

    names = [stream.name for stream in streams]
    looks = {
        "heatmap": options["heatmap"],
        "face_scale": classifier.card.preprocess.face_scale,
    }
    if server:
        from ..web.server import Serve

        page = Serve(
            server, card=classifier.card, model=classifier.description, token=options["token"]
        )
        yield page
        say(f"{page.url} shows it")
    if options["record"]:
        from ..video.recording import Record

        yield Record(Path(options["record"]), names, **looks)
    if options["show"]:
        from ..video.window import Window

        yield Window(names, **looks)
    if console and console.is_terminal:
        from ..video.status_line import StatusLine

        yield StatusLine(console)
    yield Notify()


def _policy(options: dict[str, Any]) -> StreamPolicy:
    from ..video.stream_policy import StreamPolicy

    return StreamPolicy(
        timeout=options["timeout"] or TIMEOUT,
        retries=options["retries"],
        every=options["every"] or 1,
        fps=options["fps"],
    )

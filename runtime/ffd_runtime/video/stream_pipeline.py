"""The loop over all streams: classify frames, track faces, write rows, feed frame sinks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..core.results import LABEL_NAMES, LABELS, Label, Result, RowError
from ..core.text import counted
from .classification_pool import ClassificationPool, ClassifiedFrame
from .feed import TICK_SECONDS, Feed
from .frame_classifier import FrameClassifier
from .frame_result import FrameResult, FrameSink, Quit, StreamHealth
from .tracking import GreedyIouTracker

if TYPE_CHECKING:
    from ..outputs import RowWriter

# Per source, only the newest tracks keep their last label. No frame shows this many faces.
MAX_REMEMBERED_TRACKS = 256


@dataclass
class _SourceState:
    """The state of one source.

    Attributes:
        reported: the health that was last reported.
        labels: label by track number.
        tally: number of tracks by their last label.
        failure: error message of the last frame; None if it was classified.
    """

    tracker: GreedyIouTracker
    reported: StreamHealth
    labels: dict[int, str] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)
    failure: str | None = None

    def update(self, result: Result) -> bool:
        """Record a result; return True if its track is new or its label changed."""
        assert result.track is not None
        number, label = result.track.number, result.track.label
        before = self.labels.pop(number, None)
        self.labels[number] = label
        if len(self.labels) > MAX_REMEMBERED_TRACKS:
            del self.labels[next(iter(self.labels))]
        if label == before:
            return False
        if before is not None:
            self.tally[before] -= 1
        self.tally[label] += 1
        return True


class StreamPipeline:
    """Classify the frames of a feed and pass the results to sinks.

    Args:
        feed: the streams, entered.
        rows: receive one row per face and frame, and one each time a stream breaks.
        changes: receive only the rows of new tracks, changed labels and errors.
        frame_sinks: receive each frame with its results.
        report: called with a line of text when a source breaks or recovers.
    """

    def __init__(
        self,
        feed: Feed,
        frame_classifier: FrameClassifier,
        *,
        rows: Sequence[RowWriter] = (),
        changes: Sequence[RowWriter] = (),
        frame_sinks: Sequence[FrameSink] = (),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._feed = feed
        self._frame_classifier = frame_classifier
        self._rows = rows
        self._frame_sinks = frame_sinks
        self._changes = changes
        self._report = report
        self._sources = {
            reader.stream.name: _SourceState(
                GreedyIouTracker(frame_classifier.card),
                StreamHealth(reader.stream.name, reader.stream.live, "connecting"),
            )
            for reader in feed.readers
        }
        self._written: list[Result] = []
        self.errors = 0
        """Number of rows with an error so far."""

    def run(self, workers: int | None = None) -> None:
        """Run until all streams have ended or a sink raises `Quit`.

        Args:
            workers: number of threads that classify frames; None for one per core.

        Raises:
            OutputError: a sink failed.
            BackendError: inference failed.
        """
        for _ in self.results(workers):
            pass

    def results(self, workers: int | None = None) -> Iterator[Result]:
        """Run as `run` does, and yield each row after the sinks have received it."""
        ticked = 0.0
        try:
            with ClassificationPool(self._feed, self._frame_classifier, workers) as pool:
                for classified in pool:
                    if classified:
                        self._process(classified)
                    if time.monotonic() - ticked >= TICK_SECONDS:
                        self._tick(pool)
                        ticked = time.monotonic()
                    yield from self._take_written()
                self._tick(pool)
                yield from self._take_written()
        except Quit:
            return

    def _take_written(self) -> list[Result]:
        written, self._written = self._written, []
        return written

    def summary(self) -> str:
        """Describe all sources on one line: frames, drops and faces."""
        return "; ".join(self._summary(health) for health in self._feed.health())

    def _summary(self, health: StreamHealth) -> str:
        text = f"{health.source}: {health.analysed} of {health.frames} frames"
        if health.dropped:
            text += f", {health.dropped} dropped"
        if health.undecoded:
            text += f", {health.undecoded} damaged"
        if health.note:
            text += f", {health.note}"
        if not self._frame_classifier.detects_faces:
            return text
        tally = self._sources[health.source].tally
        total = tally.total()
        kinds = ", ".join(_count(tally[label], label) for label in LABELS if tally[label])
        return f"{text}, {counted(total, 'face')}" + (kinds and f" ({kinds})")

    def _process(self, classified: ClassifiedFrame) -> None:
        reader, frame = classified.queue.reader, classified.frame
        source = self._sources[frame.source]
        if classified.failure:
            row = Result.failed(frame.source, classified.failure)
            changed = classified.failure.message != source.failure
            self._write(replace(row, frame=frame.number, time=frame.time), changed)
            source.failure = classified.failure.message
            return
        source.failure = None
        clock = frame.captured if reader.stream.live else frame.time
        results = source.tracker.update(classified.results, clock)
        health = reader.count_analysed(time.monotonic() - frame.captured + frame.lag)
        for result in results:
            self._write(result, source.update(result))
        frame_result = FrameResult(frame, results, health, classified.inference)
        for sink in self._frame_sinks:
            sink.show(frame_result)

    def _tick(self, pool: ClassificationPool) -> None:
        healths = self._feed.health()
        for health in healths:
            # The end of a source is reported after its last results.
            if health.state not in ("ended", "failed") or pool.finished(health.source):
                self._report_change(health, self._sources[health.source])
        for sink in self._frame_sinks:
            sink.tick(healths)

    def _report_change(self, health: StreamHealth, source: _SourceState) -> None:
        """Report a change of state and write its row, if the state has changed."""
        reported, name = source.reported, health.source
        broke = health.breaks > reported.breaks
        if health.state == "connecting" or (
            not broke and (health.state, health.error) == (reported.state, reported.error)
        ):
            return
        message = _change_message(health, reported)
        if message:
            self._report(f"{name}: {message}")
        # Without an error now, the source failed and recovered between two ticks.
        error = health.broken if broke else None
        if health.error and health.code:
            error = RowError(health.code, health.error)
        elif (
            health.state == "ended"
            and not broke
            and self._frame_classifier.detects_faces
            and not (source.failure or source.tally.total())
        ):
            error = RowError("no_face", "no face was found in any frame")
        if error:
            self._write(Result(name, error=error, time=time.time() if health.live else None))
        source.reported = health

    def _write(self, result: Result, changed: bool = True) -> None:
        self.errors += result.error is not None
        self._written.append(result)
        for sink in (*self._rows, *self._changes) if changed else self._rows:
            sink.write(result)


def _change_message(health: StreamHealth, reported: StreamHealth) -> str | None:
    """Describe a change since the last report; None if there is nothing to report."""
    if health.state == "waiting" and health.error:
        return f"{health.error}; trying again"
    if health.state == "failed" and health.error:
        return health.error + ("; given up" if health.live else "")
    if health.state == "playing" and health.outage is not None:
        unreported = health.broken if reported.state != "waiting" else None
        reason = f"{unreported.message}; " if unreported else ""
        return f"{reason}back after {health.outage:.1f} s"
    if health.state == "playing" and health.size:
        note = f", {health.note}" if health.note else ""
        return f"playing, {health.size[0]}x{health.size[1]}{note}"
    return None


def _count(count: int, label: Label) -> str:
    name = LABEL_NAMES[label]
    return counted(count, name) if label == "groundtruth" else f"{count} {name}"

"""The loop: frames in; rows, pictures and news of the sources out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..core.errors import InputError
from ..core.results import Result, RowError
from ..model.card import ModelCard
from ..outputs import Sink
from .feed import TICK, Feed
from .frame_classifier import Analyser
from .pool import Analysed, AnalysisPool
from .scene import Frame, Health, Quit, Scene, SceneSink
from .tracking import Tracker

# Tracks of a source whose verdicts are remembered, the latest: more than it can show at once.
REMEMBERED = 256
LABELS = ("generated", "groundtruth", "unsure")


@dataclass
class _Source:
    """What is remembered of a source.

    Attributes:
        tracker: of its faces.
        said: how it was when that was last said.
        labels: verdicts by track.
        tally: tracks by their last verdict.
        failure: of the last frame; None where it was analysed.
    """

    tracker: Tracker
    said: Health
    labels: dict[int, str] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)
    failure: str | None = None

    def note(self, result: Result) -> bool:
        """Take in a result; whether its track is new or its verdict another."""
        assert result.track is not None
        number, label = result.track.number, result.track.label
        before = self.labels.pop(number, None)
        self.labels[number] = label
        if len(self.labels) > REMEMBERED:
            del self.labels[next(iter(self.labels))]
        if label == before:
            return False
        if before is not None:
            self.tally[before] -= 1
        self.tally[label] += 1
        return True


class Watch:
    """Classifies what a feed gives, and tells it to sinks.

    Args:
        feed: the streams, entered.
        analyser: classifies their frames.
        card: of its model.
        rows: take a row a face and frame, and one each time that a stream breaks.
        changes: take these rows only where the verdict on a face is new or another.
        scenes: show or keep pictures.
        whole: pictures are classified as a whole, not by face.
        say: takes a line for a person when a source breaks or comes back.
        workers: threads that analyse frames; None for one a core.
    """

    def __init__(
        self,
        feed: Feed,
        analyser: Analyser,
        card: ModelCard,
        *,
        rows: Sequence[Sink] = (),
        changes: Sequence[Sink] = (),
        scenes: Sequence[SceneSink] = (),
        whole: bool = False,
        say: Callable[[str], None] = lambda _: None,
        workers: int | None = None,
    ) -> None:
        self._feed = feed
        self._analyser = analyser
        self._rows = rows
        self._scenes = scenes
        self._changes = changes
        self._whole = whole
        self._say = say
        self._workers = workers
        self._sources = {
            reader.stream.name: _Source(
                Tracker(card),
                Health(reader.stream.name, reader.stream.live, "connecting"),
            )
            for reader in feed.readers
        }
        self.errors = 0
        """Rows with an error so far."""

    def run(self) -> None:
        """Go on until all streams have ended, or a person has had enough.

        Raises:
            OutputError: a sink cannot do its work.
            BackendError: inference failed.
        """
        ticked = 0.0
        try:
            with AnalysisPool(self._feed, self._analyser, self._workers) as pool:
                for analysed in pool:
                    if analysed:
                        self._take(analysed)
                    if time.monotonic() - ticked >= TICK:
                        self._tick(pool)
                        ticked = time.monotonic()
                self._tick(pool)
        except Quit:
            return

    def summary(self) -> str:
        """What was seen, on one line."""
        return "; ".join(self._summary(health) for health in self._feed.health())

    def _summary(self, health: Health) -> str:
        text = f"{health.source}: {health.analysed} of {health.frames} frames"
        if health.dropped:
            text += f", {health.dropped} dropped"
        if health.undecoded:
            text += f", {health.undecoded} damaged"
        if health.note:
            text += f", {health.note}"
        if self._whole:
            return text
        tally = self._sources[health.source].tally
        total = tally.total()
        kinds = ", ".join(f"{tally[label]} {label}" for label in LABELS if tally[label])
        return f"{text}, {total} {'face' if total == 1 else 'faces'}" + (kinds and f" ({kinds})")

    def _take(self, analysed: Analysed) -> None:
        reader, frame = analysed.reader, analysed.frame
        source = self._sources[frame.source]
        if analysed.failure:
            self._take_failure(frame, analysed.failure, source)
            return
        source.failure = None
        clock = frame.captured if reader.stream.live else frame.time
        results = source.tracker.update(analysed.results, clock)
        health = reader.count_analysed(time.monotonic() - frame.captured + frame.lag)
        for result in results:
            self._write(result, source.note(result))
        scene = Scene(frame, results, health, analysed.inference)
        for sink in self._scenes:
            sink.show(scene)

    def _take_failure(self, frame: Frame, failure: InputError, source: _Source) -> None:
        """Write the row of a frame without verdicts, which leaves the tracks as they are."""
        row = Result.failed(frame.source, failure)
        changed = failure.message != source.failure
        self._write(replace(row, frame=frame.number, time=frame.time), changed)
        source.failure = failure.message

    def _tick(self, pool: AnalysisPool) -> None:
        states = self._feed.health()
        for health in states:
            # What a source ends with is said after its last verdicts.
            if health.state not in ("ended", "failed") or pool.finished(health.source):
                self._tell(health, self._sources[health.source])
        for sink in self._scenes:
            sink.tick(states)

    def _tell(self, health: Health, source: _Source) -> None:
        """Say and write how a source has changed, if it has."""
        said, name = source.said, health.source
        broke = health.breaks > said.breaks
        if health.state == "connecting" or (
            not broke and (health.state, health.error) == (said.state, said.error)
        ):
            return
        sentence = _sentence(health, said)
        if sentence:
            self._say(f"{name}: {sentence}")
        if health.error and health.code:
            self._write(Result(name, error=RowError(health.code, health.error)))
        elif broke:
            # It was back before anybody looked.
            self._write(Result(name, error=health.broken))
        elif health.state == "ended" and not (
            self._whole or source.failure or source.tally.total()
        ):
            self._write(Result.failed(name, InputError("no_face", "no face was found in it")))
        source.said = health

    def _write(self, result: Result, changed: bool = True) -> None:
        self.errors += result.error is not None
        for sink in (*self._rows, *self._changes) if changed else self._rows:
            sink.write(result)


def _sentence(health: Health, said: Health) -> str | None:
    """What a person is told of a source that has changed.

    Args:
        health: how it is.
        said: how it was.
    """
    if health.state == "waiting" and health.error:
        return f"{health.error}; trying again"
    if health.state == "failed" and health.error:
        return health.error + ("; given up" if health.live else "")
    if health.state == "playing" and health.outage is not None:
        unsaid = f"{health.broken.message}; " if said.state != "waiting" and health.broken else ""
        return f"{unsaid}back after {health.outage:.1f} s"
    if health.state == "playing" and health.size:
        note = f", {health.note}" if health.note else ""
        return f"playing, {health.size[0]}x{health.size[1]}{note}"
    return None

"""Counters and gauges of a run, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..video.frame_result import FrameResult, StreamHealth

LABELS = ("generated", "groundtruth", "unsure")
# Upper edges in seconds: from a GPU's milliseconds to a stream that has piled up.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Version 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


@dataclass
class _Series:
    """What is known of one source; the counts of `StreamHealth` are kept from going back."""

    health: StreamHealth
    frames: int = 0
    dropped: int = 0
    analysed: int = 0
    reconnects: int = 0
    faces: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    delay: _Histogram = field(default_factory=_Histogram)
    inference: _Histogram = field(default_factory=_Histogram)


class Metrics:
    """Counts frame_results; not safe for several threads at once.

    Args:
        facts: labels of `ffd_build_info`.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self._facts = facts
        self._series: dict[str, _Series] = {}

    def update(self, source: str, health: StreamHealth) -> None:
        """Take how a source is."""
        series = self._series.setdefault(source, _Series(health))
        series.health = health
        series.frames = max(series.frames, health.frames)
        series.dropped = max(series.dropped, health.dropped)
        series.analysed = max(series.analysed, health.analysed)
        series.reconnects = max(series.reconnects, health.reconnects)

    def count(
        self, source: str, frame_result: FrameResult, shown: Iterable[str], new: Iterable[str]
    ) -> None:
        """Count a scene.

        Args:
            source: its name.
            frame_result: its times.
            shown: labels of the faces in it.
            new: labels of the verdicts that it changed.
        """
        self.update(source, frame_result.health)
        series = self._series[source]
        series.faces.update(shown)
        series.changes.update(new)
        series.inference.observe(frame_result.inference)
        if frame_result.health.age is not None:
            series.delay.observe(frame_result.health.age)

    def render(self, pictures: int) -> str:
        """Everything, as `CONTENT_TYPE`.

        Args:
            pictures: that were drawn for viewers of the page.
        """
        return "".join(f"{line}\n" for line in self._lines(pictures))

    def _lines(self, pictures: int) -> Iterator[str]:
        yield from _head("ffd_build_info", "gauge", "Version and model; always 1.")
        yield _sample("ffd_build_info", self._facts, 1)
        yield from _head("ffd_page_pictures_total", "counter", "Pictures drawn for viewers.")
        yield _sample("ffd_page_pictures_total", {}, pictures)
        for name, kind, text, value in _PER_SOURCE:
            yield from _head(name, kind, text)
            for source, series in self._series.items():
                found = value(series)
                if found is not None:
                    yield _sample(name, {"source": source}, found)
        yield from self._by_label(
            "ffd_faces_total",
            "Verdicts on faces (or whole pictures) in analysed frames.",
            lambda series: series.faces,
        )
        yield from self._by_label(
            "ffd_verdict_changes_total",
            "Times that a face's (or whole picture's) verdict changed to this label.",
            lambda series: series.changes,
        )
        yield from self._histogram(
            "ffd_verdict_delay_seconds",
            "From a frame's capture to its verdict.",
            lambda series: series.delay,
        )
        yield from self._histogram(
            "ffd_inference_seconds",
            "Detector and classifier, for one frame.",
            lambda series: series.inference,
        )

    def _by_label(
        self, name: str, text: str, value: Callable[[_Series], Counter[str]]
    ) -> Iterator[str]:
        yield from _head(name, "counter", text)
        for source, series in self._series.items():
            for label in LABELS:
                yield _sample(name, {"source": source, "label": label}, value(series)[label])

    def _histogram(
        self, name: str, text: str, value: Callable[[_Series], _Histogram]
    ) -> Iterator[str]:
        yield from _head(name, "histogram", text)
        for source, series in self._series.items():
            histogram, below = value(series), 0
            edges = [*map(_number, BUCKETS), "+Inf"]
            for edge, count in zip(edges, histogram.counts, strict=True):
                below += count
                yield _sample(f"{name}_bucket", {"source": source, "le": edge}, below)
            yield _sample(f"{name}_sum", {"source": source}, histogram.sum)
            yield _sample(f"{name}_count", {"source": source}, below)


_PER_SOURCE: tuple[tuple[str, str, str, Callable[[_Series], float | None]], ...] = (
    (
        "ffd_source_up",
        "gauge",
        "1 while frames come, 0 else.",
        lambda series: int(series.health.state == "playing"),
    ),
    ("ffd_frames_total", "counter", "Frames that came.", lambda series: series.frames),
    (
        "ffd_frames_dropped_total",
        "counter",
        "Frames that were not classified because a newer one had come.",
        lambda series: series.dropped,
    ),
    (
        "ffd_frames_analysed_total",
        "counter",
        "Frames that were classified.",
        lambda series: series.analysed,
    ),
    (
        "ffd_reconnects_total",
        "counter",
        "Times that the source came back after it had failed.",
        lambda series: series.reconnects,
    ),
    (
        "ffd_frame_age_seconds",
        "gauge",
        "From capture to verdict of the frame that was analysed last.",
        lambda series: series.health.age,
    ),
    (
        "ffd_last_frame_timestamp_seconds",
        "gauge",
        "When the last frame came, in seconds since 1970.",
        lambda series: series.health.last_frame,
    ),
)


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{f'{{{inside}}}' if inside else ''} {_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))

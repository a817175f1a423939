"""Counters, gauges and histograms of a run, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from ..video.frame_result import FrameResult, StreamHealth

LABELS = ("generated", "groundtruth", "unsure")
# Upper bounds in seconds, from the latency of a GPU to that of a stream with a backlog.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Version 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# By attribute of `StreamHealth`.
_TOTALS = {
    "frames": ("ffd_frames_total", "Frames received."),
    "dropped": ("ffd_frames_dropped_total", "Frames not classified: a newer one had arrived."),
    "analysed": ("ffd_frames_analysed_total", "Frames classified."),
    "reconnects": ("ffd_reconnects_total", "Times that the source recovered from a failure."),
}

# Creation times would double the number of series, and Prometheus does not use them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server; not thread-safe.

    Args:
        build_info: labels of `ffd_build_info`.
    """

    def __init__(self, build_info: Mapping[str, str]) -> None:
        self._registry = CollectorRegistry()
        info = self._gauge("ffd_build_info", "Version and model; always 1.", *build_info)
        info.labels(**build_info).set(1)
        pictures = self._counter("ffd_page_pictures_total", "Pictures drawn for viewers.")
        self._pictures = _RunningTotal(pictures)
        self._up = self._gauge("ffd_source_up", "1 while frames arrive, otherwise 0.", "source")
        self._totals = {
            total: self._counter(name, text, "source") for total, (name, text) in _TOTALS.items()
        }
        self._age = self._gauge(
            "ffd_frame_age_seconds", "Capture to result of the last classified frame.", "source"
        )
        self._last_frame = self._gauge(
            "ffd_last_frame_timestamp_seconds",
            "Time of the last frame in seconds since 1970.",
            "source",
        )
        self._faces = self._counter(
            "ffd_faces_total", "Results for faces (or whole frames).", "source", "label"
        )
        self._changes = self._counter(
            "ffd_verdict_changes_total",
            "Times that the label of a face (or whole frame) changed to this one.",
            "source",
            "label",
        )
        self._delay = self._histogram(
            "ffd_verdict_delay_seconds", "Capture of a frame to its result."
        )
        self._inference = self._histogram(
            "ffd_inference_seconds", "Face detector and model, for one frame."
        )
        self._running_totals: dict[tuple[str, str], _RunningTotal] = {}

    def update(self, source: str, health: StreamHealth) -> None:
        """Take over the health of a source.

        Args:
            source: its name.
            health: its totals must not decrease; smaller ones are ignored.
        """
        self._create_series(source)
        self._up.labels(source).set(health.state == "playing")
        for name in self._totals:
            self._running_totals[source, name].raise_to(getattr(health, name))
        if health.age is not None:
            self._age.labels(source).set(health.age)
        if health.last_frame is not None:
            self._last_frame.labels(source).set(health.last_frame)

    def count(
        self, source: str, frame_result: FrameResult, shown: Iterable[str], new: Iterable[str]
    ) -> None:
        """Count a frame.

        Args:
            source: its name.
            frame_result: its times and health.
            shown: labels of the faces in it.
            new: labels that changed with it.
        """
        self.update(source, frame_result.health)
        for label in shown:
            self._faces.labels(source, label).inc()
        for label in new:
            self._changes.labels(source, label).inc()
        self._inference.labels(source).observe(frame_result.inference)
        if frame_result.health.age is not None:
            self._delay.labels(source).observe(frame_result.health.age)

    def render(self, pictures: int) -> bytes:
        """Return all metrics as `CONTENT_TYPE`.

        Args:
            pictures: number of pictures drawn for viewers.
        """
        self._pictures.raise_to(pictures)
        return generate_latest(self._registry)

    def _create_series(self, source: str) -> None:
        """Create the series of a new source, so that they start at 0."""
        if (source, "frames") in self._running_totals:
            return
        for name, total in self._totals.items():
            self._running_totals[source, name] = _RunningTotal(total.labels(source))
        for label in LABELS:
            self._faces.labels(source, label)
            self._changes.labels(source, label)
        self._delay.labels(source)
        self._inference.labels(source)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["source"], registry=self._registry, buckets=BUCKETS)


class _RunningTotal:
    """A counter that follows a total."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._total = 0

    def raise_to(self, total: int) -> None:
        if total > self._total:
            self._counter.inc(total - self._total)
            self._total = total

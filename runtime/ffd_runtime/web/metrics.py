"""Counters, gauges and histograms of a run, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..core.results import LABELS
from ..video.frame_result import FrameResult, StreamHealth

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
prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics(Collector):
    """The metrics of one server; not thread-safe.

    Args:
        build_info: labels of `ffd_build_info`.
    """

    def __init__(self, build_info: Mapping[str, str]) -> None:
        self._registry = prometheus.CollectorRegistry()
        info = prometheus.Gauge(
            "ffd_build_info", "Version and model; always 1.", build_info, registry=self._registry
        )
        info.labels(**build_info).set(1)
        self._images = 0
        self._healths: dict[str, StreamHealth] = {}
        self._totals: Counter[tuple[str, str]] = Counter()
        self._registry.register(self)
        self._faces = self._counter("ffd_faces_total", "Results for faces (or whole frames).")
        self._changes = self._counter(
            "ffd_verdict_changes_total",
            "Times that the label of a face (or whole frame) changed to this one.",
        )
        self._delay = self._histogram(
            "ffd_verdict_delay_seconds", "Seconds from the capture of a frame to its result."
        )
        self._inference = self._histogram(
            "ffd_inference_seconds", "Seconds in the face detector and the model, for one frame."
        )

    def update(self, source: str, health: StreamHealth) -> None:
        """Take over the health of a source; totals that decreased are ignored."""
        if source not in self._healths:
            # Series start at 0.
            for label in LABELS:
                self._faces.labels(source, label)
                self._changes.labels(source, label)
            self._delay.labels(source)
            self._inference.labels(source)
        self._healths[source] = health
        for name in _TOTALS:
            self._totals[source, name] = max(self._totals[source, name], getattr(health, name))

    def count(
        self, source: str, frame_result: FrameResult, shown: Iterable[str], new: Iterable[str]
    ) -> None:
        """Count a frame, the labels shown in it, and those that are new."""
        self.update(source, frame_result.health)
        for label in shown:
            self._faces.labels(source, label).inc()
        for label in new:
            self._changes.labels(source, label).inc()
        self._inference.labels(source).observe(frame_result.inference)
        if frame_result.health.age is not None:
            self._delay.labels(source).observe(frame_result.health.age)

    def render(self, images: int) -> bytes:
        """Return all metrics as `CONTENT_TYPE`; `images` is the number drawn for viewers."""
        self._images = images
        return prometheus.generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are part of the sources' health."""
        yield CounterMetricFamily(
            "ffd_page_images_total", "Images drawn for viewers.", self._images
        )
        up = _gauge("ffd_source_up", "1 while frames arrive, otherwise 0.")
        age = _gauge(
            "ffd_frame_age_seconds",
            "Seconds from the capture of the last classified frame to its result.",
        )
        last_frame = _gauge(
            "ffd_last_frame_timestamp_seconds", "Time of the last frame in seconds since 1970."
        )
        for source, health in self._healths.items():
            up.add_metric([source], health.state == "playing")
            if health.age is not None:
                age.add_metric([source], health.age)
            if health.last_frame is not None:
                last_frame.add_metric([source], health.last_frame)
        yield from (up, age, last_frame)
        for total, (name, text) in _TOTALS.items():
            family = CounterMetricFamily(name, text, labels=["source"])
            for source in self._healths:
                family.add_metric([source], self._totals[source, total])
            yield family

    def _counter(self, name: str, text: str) -> prometheus.Counter:
        return prometheus.Counter(name, text, ["source", "label"], registry=self._registry)

    def _histogram(self, name: str, text: str) -> prometheus.Histogram:
        return prometheus.Histogram(
            name, text, ["source"], registry=self._registry, buckets=BUCKETS
        )


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["source"])

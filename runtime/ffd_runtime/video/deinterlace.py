"""Deinterlace frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame

# Consecutive progressive frames after which the filter is removed. Broadcasts mix both kinds, and
# each new filter graph lacks the previous fields.
MIN_PROGRESSIVE_FRAMES = 50


class Deinterlacer:
    """Deinterlace with FFmpeg's bwdif: one frame out for each frame in.

    Progressive frames pass through without delay until the first interlaced frame. From then on
    each frame is delayed by one, because the filter needs the fields before and after it.

    Args:
        time_base: unit of the frames' timestamps in seconds.
        threads: threads of the filter graph; 0 for one per processor.
    """

    def __init__(self, time_base: Fraction, threads: int = 0) -> None:
        self._time_base = time_base
        self._threads = threads
        self._graph: Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._progressive = 0

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Take a frame and yield those that are ready, in order, each with its `opaque`.

        Raises:
            av.FFmpegError: FFmpeg cannot filter such frames.
        """
        shape = (frame.width, frame.height, frame.format.name)
        self._progressive = 0 if frame.interlaced_frame else self._progressive + 1
        if self._graph and (shape != self._shape or self._progressive > MIN_PROGRESSIVE_FRAMES):
            yield from self.flush()
        if not self._graph:
            if not frame.interlaced_frame:
                yield frame
                return
            self._graph, self._shape = self._build(frame), shape
        self._graph.vpush(frame)
        yield from _ready(self._graph)

    def flush(self) -> Iterator[VideoFrame]:
        """Yield the delayed frames."""
        graph, self._graph = self._graph, None
        if graph:
            graph.vpush(None)
            yield from _ready(graph)

    def _build(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        graph = Graph()
        graph.threads = self._threads
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._time_base,
        )
        # deint=interlaced: frames flagged as progressive are not changed.
        bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    from av.error import BlockingIOError, EOFError

    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return

"""Turn interlaced frames into progressive ones."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame

# Progressive frames in a row after which a stream is no longer treated as interlaced: broadcasts
# mix both, and each new filter graph begins without the fields before.
MIN_PROGRESSIVE_FRAMES = 50


class Deinterlacer:
    """Weaves and interpolates fields with FFmpeg's bwdif, one frame out for each one in.

    Progressive frames pass unchanged and undelayed until the first interlaced one comes. From then
    on each frame is held back until the next, because the filter needs the fields on both sides.

    Args:
        time_base: of the frames' timestamps, in seconds.
        threads: that a filter graph may use; 0 for one a processor.
    """

    def __init__(self, time_base: Fraction, threads: int = 0) -> None:
        self._time_base = time_base
        self._threads = threads
        self._graph: Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._progressive = 0

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Take a frame and give those that are ready, in order.

        `opaque` of each frame given is that of the frame it was made of.

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
        """Give the frames that are held back."""
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
        # Frames that are flagged progressive amid interlaced ones stay as they are.
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

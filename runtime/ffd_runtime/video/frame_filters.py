"""Filter decoded frames with FFmpeg: deinterlace them, and convert them to upright BGR images."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av.buffer import Buffer
    from av.filter import Graph
    from av.video.frame import VideoFrame

    from ..image.decode import Image

# Consecutive progressive frames after which the filter is removed. Broadcasts mix both kinds, and
# each new filter graph lacks the previous fields.
MIN_PROGRESSIVE_FRAMES = 50
# Values of AVColorSpace that FFmpeg's scaler supports, and the value for an unknown one.
SUPPORTED_COLORSPACES = frozenset((0, 1, 2, 4, 5, 6, 7, 9))
COLORSPACE_UNSPECIFIED = 2
# AVColorTransferCharacteristic: PQ (HDR10, Dolby Vision) and HLG (phones, broadcasts).
HDR_TRANSFERS = frozenset((16, 18))
# AVColorPrimaries that FFmpeg's scaler supports, and the usual one of HDR.
SUPPORTED_PRIMARIES = frozenset((1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22))
BT2020 = 9
# Aspect ratios of pixels are at most 2, in anamorphic film; higher ones are invalid.
MAX_PIXEL_ASPECT = 4


class Deinterlacer:
    """Deinterlace with FFmpeg's bwdif: one frame out for each frame in.

    Progressive frames pass through without delay until the first interlaced frame. From then on
    each frame is delayed by one, because the filter needs the fields before and after it.

    Args:
        time_base: unit of the frames' timestamps in seconds.
        threads: threads of the filter graph; 0 for one per processor.
        separate_fields: whether each interlaced frame is one field, as FFmpeg decodes HEVC; such
            frames pass through.
    """

    def __init__(
        self, time_base: Fraction, threads: int = 0, separate_fields: bool = False
    ) -> None:
        self._time_base = time_base
        self._separate_fields = separate_fields
        self._threads = threads
        self._graph: Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._progressive = 0

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Take a frame and yield those that are ready, in order, each with its `opaque`.

        Raises:
            av.FFmpegError: FFmpeg cannot filter such frames.
        """
        if self._separate_fields:
            yield frame
            return
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
            width=frame.width, height=frame.height, format=frame.format, time_base=self._time_base
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


class PixelConverter:
    """Convert frames; size, pixel format and orientation may change from frame to frame.

    Args:
        aspect: width of a pixel divided by its height, None if unknown. If it is not 1, frames are
            enlarged to square pixels.
        separate_fields: see `Deinterlacer`; fields get the height of their frame.
    """

    def __init__(self, aspect: Fraction | None = None, separate_fields: bool = False) -> None:
        self._separate_fields = separate_fields
        self._aspect = aspect or Fraction(1)
        if not 1 <= max(self._aspect, 1 / self._aspect) <= MAX_PIXEL_ASPECT:
            self._aspect = Fraction(1)
        # A filter graph takes its frames from a pool. `VideoFrame.reformat` allocates each one, and
        # the page faults cost more than the conversion.
        self._graph: Graph | None = None
        self._kind: tuple[object, ...] = ()

    def __call__(self, frame: VideoFrame) -> Image | None:
        """Return a frame as uint8 [height, width, 3], BGR; None if FFmpeg cannot convert it."""
        from av.error import FFmpegError

        if frame.colorspace not in SUPPORTED_COLORSPACES:
            frame.colorspace = COLORSPACE_UNSPECIFIED
        if frame.color_trc not in HDR_TRANSFERS:
            # Only matrix and range are applied; FFmpeg rejects frames with reserved values here.
            frame.color_trc = frame.color_primaries = COLORSPACE_UNSPECIFIED
        elif frame.color_primaries not in SUPPORTED_PRIMARIES:
            frame.color_primaries = BT2020
        size = self._square_size(frame)
        kind = (
            (frame.width, frame.height, size),
            (frame.format.name, frame.colorspace, frame.color_range),
            (frame.color_trc, frame.color_primaries),
        )
        try:
            if self._graph is None or kind != self._kind:
                self._graph, self._kind = self._build(frame, size), kind
            self._graph.vpush(frame)
            pixels = cast("Image", self._graph.vpull().to_ndarray())
        except (FFmpegError, ValueError):
            self._graph = None
            return None
        return np.ascontiguousarray(_upright(pixels, frame))

    def _square_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Return width and height of a frame with square pixels."""
        is_field = self._separate_fields and frame.interlaced_frame
        aspect = self._aspect / 2 if is_field else self._aspect
        if aspect > 1:
            return round(frame.width * aspect), frame.height
        return frame.width, round(frame.height / aspect)

    @staticmethod
    def _build(frame: VideoFrame, size: tuple[int, int]) -> Graph:
        from av.filter import Graph

        graph = Graph()
        # The decoder's threads use the other processors.
        graph.threads = 1
        source = graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
            f":time_base=1/1000:colorspace={frame.colorspace}:range={frame.color_range}",
        )
        width, height = size
        options = [f"{width}:{height}"] if size != (frame.width, frame.height) else []
        if frame.color_trc in HDR_TRANSFERS:
            # The network learned from sRGB images: an HDR image would look flat and pale to it.
            options.append("out_transfer=iec61966-2-1:out_primaries=bt709")
        scale = [graph.add("scale", ":".join(options))] if options else []
        graph.link_nodes(source, *scale, graph.add("format", "bgr24"), graph.add("buffersink"))
        graph.configure()
        return graph


def _upright(pixels: Image, frame: VideoFrame) -> Image:
    """Apply the display matrix that phones write: quarter turns and reflections."""
    from av.sidedata.sidedata import Type

    data = cast("Mapping[Type, Buffer]", frame.side_data).get(Type.DISPLAYMATRIX)
    if data is None:
        return pixels
    # Rows of 3 fixed-point numbers: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.swapaxes(0, 1)
        a, d = c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

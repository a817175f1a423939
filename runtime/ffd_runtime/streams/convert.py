"""Decoded frames to BGR pixels, as a player would show them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av.buffer import Buffer
    from av.video.frame import VideoFrame

    from ..decode import Image


class Converter:
    """Converts frames of any size, pixel format and orientation, which may change between them.

    Args:
        threads: that a conversion may use; 0 for one a processor.
    """

    def __init__(self, threads: int = 0) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._threads = threads

    def __call__(self, frame: VideoFrame) -> Image | None:
        """The pixels of a frame.

        Returns:
            uint8 [height, width, 3], BGR, in memory of its own; None if FFmpeg cannot convert it.
        """
        from av.error import FFmpegError

        try:
            converted = self._reformatter.reformat(frame, format="bgr24", threads=self._threads)
        except (FFmpegError, ValueError):
            return None
        # Copied so that FFmpeg's buffer is free for the next frame: a new one each time costs as
        # much in page faults as the conversion itself.
        pixels = cast("Image", converted.to_ndarray())
        return np.array(_upright(pixels, frame), np.uint8, order="C")


def _upright(pixels: Image, frame: VideoFrame) -> Image:
    """Apply a display matrix, by quarter turns and reflections, as phones write it."""
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

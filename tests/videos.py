"""Write videos for tests with PyAV's encoders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

Image = npt.NDArray[np.uint8]

# AV_CODEC_FLAG_INTERLACED_DCT and AV_CODEC_FLAG_INTERLACED_ME.
INTERLACED = 1 << 18 | 1 << 29
RATE = 25


def bars(number: int, width: int = 192, height: int = 96) -> Image:
    """Draw a number as six vertical bars, black or white."""
    bits = [255 * (number >> bit & 1) for bit in range(6)]
    row = np.repeat(np.array(bits, np.uint8), width // 6)
    return np.tile(row[None, :, None], (height, 1, 3))


def number_in(image: Image) -> int:
    """Read the number in an image of `bars`."""
    height, width = image.shape[:2]
    places = [(2 * bit + 1) * width // 12 for bit in range(6)]
    return sum(int(image[height // 2, x].mean() > 127) << bit for bit, x in enumerate(places))


def woven(first: Image, second: Image) -> Image:
    """Interlace two images: even rows of the first, odd rows of the second."""
    frame = first.copy()
    frame[1::2] = second[1::2]
    return frame


def moving(count: int, top_first: bool = True) -> Iterator[Image]:
    """Yield interlaced frames of a white column on grey that moves 8 pixels a field."""
    for number in range(count):
        fields = []
        for field in (2 * number, 2 * number + 1):
            picture = np.full((96, 192, 3), 80, np.uint8)
            picture[:, 8 * field % 160 : 8 * field % 160 + 8] = 255
            fields.append(picture)
        yield woven(*(fields if top_first else fields[::-1]))


def write_video(
    path: Path,
    pictures: Iterable[Image],
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    fields: str | None = None,
    start: float = 0.0,
    muxer: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Encode images as 25 frames a second.

    Args:
        path: its suffix selects the container.
        pictures: uint8 [height, width, 3], BGR, all of one size.
        codec: FFmpeg's encoder.
        pix_fmt: pixel format of the encoded video.
        options: of the encoder.
        fields: encode interlaced, `tff` (top field first) or `bff`; None for progressive.
        start: time of the first frame, in seconds.
        muxer: options of FFmpeg's muxer.
        aspect: width of a pixel divided by its height.

    Returns:
        `path`.
    """
    first, *rest = pictures
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options or {})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if fields:
            stream.codec_context.flags |= INTERLACED
        for number, picture in enumerate(itertools.chain([first], rest)):
            frame = av.VideoFrame.from_ndarray(picture, "bgr24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = number + round(start * RATE), Fraction(1, RATE)
            container.mux(stream.encode(_flagged(frame, fields) if fields else frame))
        container.mux(stream.encode(None))
    return path


def _flagged(frame: av.VideoFrame, fields: str) -> av.VideoFrame:
    """Mark the first field of a frame."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    graph.link_nodes(source, graph.add("setfield", fields), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


def remux(source: Path, path: Path, skip: int = 0) -> Path:
    """Copy all but the first `skip` packets of a video into another container."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        video = before.streams.video[0]
        stream = after.add_stream_from_template(video)
        for packet in itertools.islice(before.demux(video), skip, None):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    return path


def write_audio(path: Path, cover: Image | None = None) -> Path:
    """Write a fifth of a second of silence, with or without a cover image."""
    with av.open(str(path), "w") as container:
        audio: Any = container.add_stream(
            "libmp3lame" if path.suffix == ".mp3" else "aac", rate=8000
        )
        picture: Any = None
        if cover is not None:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width = cover.shape[:2]
            picture.pix_fmt = "yuvj420p"
            picture.disposition = Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(cover, "bgr24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1, 1)
            container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    return path


def write_two_videos(path: Path, *pictures: Image) -> Path:
    """Write a file with a video stream of one frame for each image."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("mpeg4", rate=RATE) for _ in pictures]
        for stream, picture in zip(streams, pictures, strict=True):
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt = "yuv420p"
        for stream, picture in zip(streams, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "bgr24")
            container.mux(stream.encode(frame) + stream.encode(None))
    return path

"""Decode every common kind of video; the files are encoded here."""

from __future__ import annotations

import itertools
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import BackendError, InputError
from ffd_runtime.video import container, ffmpeg
from ffd_runtime.video.feed import Feed
from ffd_runtime.video.ffmpeg import FFmpegCapture
from ffd_runtime.video.frame_filters import HDR_TRANSFERS, PixelConverter
from ffd_runtime.video.remote_reader import RemoteCapture
from ffd_runtime.video.replay_filter import ReplayFilter
from ffd_runtime.video.stream_address import Stream, is_video_file
from ffd_runtime.video.stream_policy import StreamPolicy

from ..nightly import examples
from ..servers import say_nothing, serving
from ..videos import (
    Image,
    bars,
    moving,
    number_in,
    remux,
    write_audio,
    write_two_videos,
    write_video,
)


@dataclass
class Read:
    """The content of a file: pictures (None if damaged), their times, and the error at the end."""

    images: list[Image | None]
    times: list[float]
    error: InputError | None
    note: str | None

    @property
    def numbers(self) -> list[int]:
        return [number_in(image) for image in self.images if image is not None]


def read(path: Path) -> Read:
    found = Read([], [], None, None)
    with closing(FFmpegCapture(Stream(str(path), str(path), "file"), 10.0)) as capture:
        found.note = capture.note
        try:
            while capture.grab():
                found.images.append(capture.retrieve())
                found.times.append(capture.timestamp())
        except InputError as error:
            found.error = error
    return found


def read_error(path: Path) -> InputError:
    """Return the error of a file without frames."""
    with pytest.raises(InputError) as refused:
        read(path)
    return refused.value


def combing(image: Image) -> float:
    """Return the largest difference, by column, of rows to the mean of their neighbours."""
    grey = image[4:-4, :, 1].astype(float)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean(0).max())


X264 = {"preset": "ultrafast", "qp": "10"}
INTERLACED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "h264-tff.mp4": ("libx264", "tff", {"options": X264}),
    "h264-bff.mkv": ("libx264", "bff", {"options": X264}),
    "h264-422.ts": ("libx264", "tff", {"options": X264, "pix_fmt": "yuv422p10le"}),
    "mpeg2-tff.ts": ("mpeg2video", "tff", {"options": {"b": "4M"}}),
    "mpeg2-bff.mpg": ("mpeg2video", "bff", {"options": {"b": "4M"}}),
    "mpeg4.avi": ("mpeg4", "tff", {"options": {"b": "4M"}}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_frame_shows_its_first_field(tmp_path: Path, name: str) -> None:
    codec, fields, options = INTERLACED[name]
    pictures = list(moving(10, fields == "tff"))
    assert min(map(combing, pictures)) > 50
    found = read(write_video(tmp_path / name, pictures, codec, fields=fields, **options))
    assert found.error is None
    assert found.times == pytest.approx([n / 25 for n in range(10)], abs=1e-3)
    for number, image in enumerate(found.images):
        assert image is not None
        assert combing(image) < 25
        # The column at its position in the first field.
        assert int(image[..., 1].mean(0).argmax()) // 8 == 2 * number % 20


@pytest.mark.parametrize(
    ("name", "size", "pix_fmt"),
    [("a.avi", (576, 720), "yuv420p"), ("a.dv", (576, 720), "yuv420p")],
)
def test_dv(tmp_path: Path, name: str, size: tuple[int, int], pix_fmt: str) -> None:
    pictures = [bars(number, size[1], size[0]) for number in range(4)]
    path = write_video(tmp_path / name, pictures, "dvvideo", pix_fmt=pix_fmt)
    with av.open(str(path)) as opened:
        assert next(opened.decode(video=0)).interlaced_frame
    found = read(path)
    assert (found.numbers, found.error) == ([0, 1, 2, 3], None)


def test_deinterlacing_keeps_progressive_content(tmp_path: Path) -> None:
    # Broadcasts of films: flagged as interlaced, with progressive content.
    noise = np.random.default_rng(0).integers(60, 200, (48, 96, 1), np.uint8)
    picture = noise.repeat(2, 0).repeat(2, 1).repeat(3, 2)
    options = {**X264, "qp": "1"}
    path = write_video(tmp_path / "a.mp4", [picture] * 6, fields="tff", options=options)
    # Without the first frame, which has no previous one.
    for image in read(path).images[1:]:
        assert image is not None
        assert np.abs(image.astype(int) - picture).mean() < 6


def test_size_and_format_may_change_within_a_stream(tmp_path: Path) -> None:
    parts: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (192, 96)),
        ({"fields": "tff"}, (192, 96)),
        ({"fields": "bff"}, (384, 192)),
        ({"pix_fmt": "yuv422p"}, (384, 192)),
        ({}, (96, 48)),
    ]
    joined = tmp_path / "joined.ts"
    numbers = itertools.count()
    with joined.open("wb") as file:
        for part, (options, size) in enumerate(parts):
            pictures = [bars(next(numbers), *size) for _ in range(8)]
            file.write(write_video(tmp_path / f"{part}.ts", pictures, **options).read_bytes())
    found = read(joined)
    assert found.error is None
    assert found.numbers == list(range(40))
    assert [image.shape[1] for image in found.images[::8] if image is not None] == [
        size[0] for _, size in parts
    ]
    assert found.times == pytest.approx([n / 25 for n in range(40)], abs=0.01)


def test_partly_interlaced_stream_keeps_every_frame(tmp_path: Path) -> None:
    joined = tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for part in range(4):
            pictures = [bars(8 * part + number) for number in range(8)]
            fields = "tff" if part % 2 else None
            file.write(write_video(tmp_path / f"{part}.ts", pictures, fields=fields).read_bytes())
    found = read(joined)
    assert (found.numbers, found.error) == (list(range(32)), None)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv"])
def test_av1(tmp_path: Path, name: str) -> None:
    pictures = [bars(number) for number in range(4)]
    options = {"preset": "12", "svtav1-params": "enable-stat-report=0"}
    found = read(write_video(tmp_path / name, pictures, "libsvtav1", options=options))
    assert (found.numbers, found.error) == ([0, 1, 2, 3], None)


def test_unknown_codec_is_unsupported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", [bars(0)] * 3, "mpeg4")
    # An unknown codec.
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZ01"))
    refused = read_error(path)
    assert refused.code == "unsupported"
    assert "convert it to H.264" in refused.message


@pytest.mark.parametrize("start", [0.4, 3.0, 100.0])
@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.mp4"])
def test_file_may_start_at_any_timestamp(tmp_path: Path, name: str, start: float) -> None:
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    pictures = [bars(number) for number in range(40)]
    options = {"g": "20", **({"deadline": "realtime"} if name == "a.webm" else {"bf": "0"})}
    path = write_video(tmp_path / name, pictures, codec, start=start, options=options)
    found = read(path)
    assert found.error is None
    assert found.numbers == list(range(40))
    assert found.times == pytest.approx([n / 25 for n in range(40)], abs=2e-3)


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.mkv", 0.0), ("a.mkv", 3.0), ("a.mkv", 100.0), ("a.avi", 0.0), ("a.flv", 0.0)],
)
def test_file_that_ends_early_is_truncated(tmp_path: Path, name: str, start: float) -> None:
    codec = "flv" if name == "a.flv" else "mpeg4"
    options = {"g": "1", "b": "4M"}
    path = write_video(tmp_path / name, map(bars, range(60)), codec, start=start, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = read(path)
    assert 10 < len(found.numbers) < 50
    assert found.error is not None
    assert found.error.code == "truncated"
    assert "of 2.4 s" in found.error.message


def test_audio_longer_than_video_is_not_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 192, 96, "yuv420p"
        audio: Any = container.add_stream("aac", rate=8000)
        frame = av.VideoFrame.from_ndarray(bars(1), "bgr24")
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 40000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    found = read(path)
    assert (found.numbers, found.error) == ([1], None)


def test_choice_of_a_video_stream_is_reported(tmp_path: Path) -> None:
    path = write_two_videos(tmp_path / "a.mkv", bars(1), bars(2))
    found = read(path)
    assert len(found.numbers) == 1
    assert found.note == f"video stream {found.numbers[0]} of 2"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "an HTML page instead of the file"),
    ],
)
def test_text_instead_of_a_video_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(data * 40)
    refused = read_error(path)
    assert (refused.code, words in refused.message) == ("unsupported", True)


def test_zeros_instead_of_a_video_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(5000))
    refused = read_error(path)
    assert (refused.code, "only zeros" in refused.message) == ("corrupt", True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("stated", [None, 0, 8, 1])
def test_video_without_its_index_is_named(tmp_path: Path, name: str, stated: int | None) -> None:
    path = write_video(tmp_path / name, map(bars, range(9)))
    data = path.read_bytes()
    place = data.index(b"mdat") - 4
    if stated is not None:
        # Recorders write the size of the data at the end.
        data = data[:place] + struct.pack(">I", stated) + data[place + 4 :]
    index = data.index(b"moov") - 4
    for shown in (data[:index], data[: index + 50]):
        path.write_bytes(shown)
        refused = read_error(path)
        assert refused.code == "truncated"
        assert "its index (moov) is missing" in refused.message
    path.write_bytes(data[: index + 8] + b"\xaa" * (len(data) - index - 8))
    assert read_error(path).code == "truncated" if stated is not None else "corrupt"


def test_segment_without_its_header_is_named(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", map(bars, range(9)), muxer={"movflags": "frag_keyframe+empty_moov"}
    )
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"moof") - 4 :])
    refused = read_error(path)
    assert (refused.code, "append it to its init segment" in refused.message) == (
        "unsupported",
        True,
    )


@pytest.mark.parametrize("name", ["a.mp3", "a.mp4"])
def test_cover_picture_is_unsupported(tmp_path: Path, name: str) -> None:
    refused = read_error(write_audio(tmp_path / name, bars(3)))
    assert (refused.code, refused.message) == (
        "unsupported",
        "an audio file with a cover image, not a video",
    )


def test_audio_is_unsupported(tmp_path: Path) -> None:
    refused = read_error(write_audio(tmp_path / "a.mp4"))
    assert (refused.code, refused.message) == ("unsupported", "it contains no video, only audio")


@pytest.mark.parametrize("codec", ["mjpeg", "libx264"])
def test_damaged_frames_are_skipped_and_counted(tmp_path: Path, codec: str) -> None:
    options = {"g": "1"} if codec == "libx264" else {}
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = tmp_path / "a.mkv"
    write_video(path, map(bars, range(12)), codec, pix_fmt=pix_fmt, options=options)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in (5, 6):
        at = data.index(packets[number]) + len(packets[number]) // 3
        data[at : at + len(packets[number]) // 2] = bytes(len(packets[number]) // 2)
    path.write_bytes(data)
    found = read(path)
    assert found.numbers == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert found.error is not None
    assert found.error.code == "corrupt"
    assert found.error.message == "2 of 12 frames could not be decoded"


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_that_copy_from_a_damaged_one_are_skipped(tmp_path: Path, codec: str) -> None:
    rng = np.random.default_rng(0)
    # Noise on the bars, so that every frame has data to damage.
    pictures = [
        np.clip(bars(n).astype(int) + rng.integers(-40, 40, (96, 192, 3)), 0, 255).astype(np.uint8)
        for n in range(30)
    ]
    options = {"g": "10", "bf": "0", "sc_threshold": "0" if codec == "libx264" else "1000000000"}
    path = write_video(tmp_path / "a.mkv", pictures, codec, options=options)
    with av.open(str(path)) as container:
        demuxed = [packet for packet in container.demux(video=0) if packet.size]
    packets = [bytes(packet) for packet in demuxed]
    key = next(n for n, packet in enumerate(demuxed) if packet.is_keyframe and n > 14)
    assert key == 20
    data = bytearray(path.read_bytes())
    at = data.index(packets[14]) + len(packets[14]) // 3
    data[at : at + len(packets[14]) // 3] = rng.bytes(len(packets[14]) // 3)
    path.write_bytes(data)
    found = read(path)
    assert found.numbers == [*range(14), *range(20, 30)]
    assert found.error is not None
    assert found.error.message == "6 of 30 frames could not be decoded"


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mpeg2video", "libvpx-vp9"])
def test_recording_may_start_between_key_frames(tmp_path: Path, codec: str) -> None:
    path = write_video(
        tmp_path / "whole.mkv", map(bars, range(30)), codec, options={"g": "10", "bf": "0"}
    )
    with av.open(str(path)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    found = read(remux(path, tmp_path / "cut.mkv", skip=4))
    assert found.error is None
    # No frame is made from missing references.
    assert found.numbers == list(range(next(key for key in keys if key >= 4), 30))


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    one = 1 << 16
    return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)


TURNS: dict[tuple[int, int, int, int], Callable[[Image], Any]] = {
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
}


@pytest.mark.parametrize("turn", TURNS, ids=str)
@pytest.mark.parametrize("interlaced", [False, True])
def test_display_matrix_is_applied(
    tmp_path: Path, turn: tuple[int, int, int, int], interlaced: bool
) -> None:
    picture = np.zeros((96, 192, 3), np.uint8)
    picture[:48, :96], picture[48:, :96], picture[:48, 96:] = 255, 128, 64
    fields = "tff" if interlaced else None
    path = write_video(tmp_path / "a.mp4", [picture] * 3, fields=fields, options={"qp": "5"})
    data = path.read_bytes()
    # In the track header; the movie header before it also has a matrix.
    at = data.index(matrix(1, 0, 0, 1), data.index(b"tkhd"))
    path.write_bytes(data[:at] + matrix(*turn) + data[at + 36 :])
    expected = TURNS[turn](picture).astype(int)
    for image in read(path).images:
        assert image is not None
        assert image.shape == expected.shape
        assert image.flags.c_contiguous
        assert np.abs(image - expected).mean() < 8


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "size"),
    [
        ("hdv.mp4", "libx264", Fraction(4, 3), (96, 192)),
        ("dvd.mkv", "mpeg2video", Fraction(32, 27), (96, 171)),
        ("narrow.mp4", "libx264", Fraction(8, 9), (108, 144)),
        ("divx.avi", "mpeg4", Fraction(4, 3), (96, 192)),
        ("square.mp4", "libx264", Fraction(1), (96, 144)),
        ("invalid.mp4", "libx264", Fraction(9), (96, 144)),
    ],
)
@pytest.mark.parametrize("fields", [None, "tff"])
def test_frames_get_square_pixels(
    tmp_path: Path, name: str, codec: str, aspect: Fraction, size: tuple[int, int], fields: str
) -> None:
    pictures = [bars(number, 144) for number in range(3)]
    found = read(write_video(tmp_path / name, pictures, codec, aspect=aspect, fields=fields))
    assert found.numbers == [0, 1, 2]
    assert {image.shape[:2] for image in found.images if image is not None} == {size}


def test_fields_of_interlaced_hevc_have_the_height_of_a_frame(tmp_path: Path) -> None:
    # FFmpeg decodes each field as a frame of half the height.
    frames = list(moving(4))
    fields = [frame[first::2] for frame in frames for first in (0, 1)]
    options = {"preset": "ultrafast", "x265-params": "interlace=tff:crf=5:log-level=none"}
    found = read(write_video(tmp_path / "a.ts", fields, "libx265", options=options))
    assert found.error is None
    for field, image in zip(fields, found.images, strict=True):
        assert image is not None
        assert image.shape == frames[0].shape
        assert np.abs(image[::2].astype(int) - field).mean() < 8


@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from(["yuv420p", "yuv422p", "yuv444p", "gray", "bgr0", "yuv420p10le"]),
)
def test_any_size_and_pixel_format(tmp_path: Path, width: int, height: int, pix_fmt: str) -> None:
    picture = np.full((height, width, 3), (60, 120, 180), np.uint8)
    if pix_fmt == "gray":
        picture[:] = 120
    found = read(write_video(tmp_path / "a.nut", [picture] * 2, "rawvideo", pix_fmt=pix_fmt))
    assert found.error is None
    for image in found.images:
        assert image is not None
        assert image.shape == picture.shape
        assert np.abs(image.astype(int) - picture).max() <= 6


def test_only_formats_with_a_duration_can_be_truncated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.m2v", map(bars, range(30)), "mpeg2video")
    with container.open_container(str(path), 1.0, live=False) as opened:
        assert container.FORMATS_WITH_DURATION.isdisjoint(opened.format.name.split(","))
    assert read(path).error is None


CONTAINERS: dict[str, tuple[str, tuple[int, int]]] = {
    **dict.fromkeys("avi flv mkv mov mp4 wmv".split(), ("mpeg4", (192, 96))),
    **dict.fromkeys("mpg mxf m2ts ts".split(), ("mpeg2video", (192, 96))),
    "3gp": ("mpeg4", (176, 144)),
    "dv": ("dvvideo", (720, 576)),
    "flv": ("flv", (192, 96)),
    "h264": ("libx264", (192, 96)),
    "hevc": ("libx265", (192, 96)),
    "ivf": ("libvpx-vp9", (192, 96)),
    "m2v": ("mpeg2video", (192, 96)),
    "webm": ("libvpx-vp9", (192, 96)),
}


@pytest.mark.parametrize("ending", CONTAINERS)
def test_video_is_recognised_by_content(tmp_path: Path, ending: str) -> None:
    codec, size = CONTAINERS[ending]
    path = write_video(tmp_path / f"a.{ending}", [bars(n, *size) for n in range(4)], codec)
    nameless = path.rename(tmp_path / "recording")
    assert is_video_file(str(nameless))
    assert read(nameless).numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".gif", ".avif"])
def test_image_is_not_recognised_as_video(tmp_path: Path, ending: str) -> None:
    done, data = cv2.imencode(ending, bars(3))
    if not done:
        pytest.skip(f"this OpenCV does not write {ending}")
    path = tmp_path / "picture"
    path.write_bytes(data.tobytes())
    assert not is_video_file(str(path))


def test_audio_is_not_recognised_as_video(tmp_path: Path) -> None:
    assert not is_video_file(str(write_audio(tmp_path / "a.m4a").rename(tmp_path / "sound")))
    assert not is_video_file(str(write_audio(tmp_path / "a.mp3").rename(tmp_path / "sound")))


def test_folder_settings_of_macos_are_not_recognised_as_video(tmp_path: Path) -> None:
    path = tmp_path / ".DS_Store"
    path.write_bytes(b"\0\0\0\1Bud1" + bytes(6140))
    assert not is_video_file(str(path))


def sending(data: bytes, kind: str = "video/mp2t") -> Callable[[socket.socket], None]:
    """A server that sends the same data to each client, and then nothing."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n"
        connection.sendall(head.encode() + data)
        say_nothing(connection)

    return answer


def test_live_stream_may_become_interlaced(tmp_path: Path) -> None:
    data = b""
    for part, fields in enumerate([None, "tff", None]):
        pictures = [bars(number) for number in range(16 * part, 16 * part + 16)]
        data += write_video(tmp_path / "a.ts", pictures, fields=fields).read_bytes()
    with serving(sending(data)) as port:
        address = f"http://127.0.0.1:{port}/live"
        with closing(FFmpegCapture(Stream("live", address, "server"), 1.0)) as capture:
            numbers: list[int] = []
            # The last frames are still in the filter.
            while capture.grab() and len(numbers) < 40:
                image = capture.retrieve()
                assert image is not None
                numbers.append(number_in(image))
    assert numbers == list(range(40))


def jpegs(
    first: bytes,
    between: bytes,
    length: bool = True,
    line: bytes = b"\r\n",
    damaged: range = range(0),
) -> bytes:
    """Parts of a multipart response; each picture shows its number.

    Args:
        first: the boundary before the first part.
        between: the boundary before the others.
        length: whether each part states its length.
        line: line end in the header of a part.
        damaged: numbers of the parts without an image.
    """
    data = b""
    for number in range(60):
        jpeg = cv2.imencode(".jpg", bars(number))[1].tobytes()
        jpeg = b"?" * len(jpeg) if number in damaged else jpeg
        head = [b"Content-Type: image/jpeg"]
        head += [b"Content-Length: %d" % len(jpeg)] if length else []
        boundary = between if number else first
        data += boundary + line.join([*head, b"", jpeg, b""])
    return data


def assert_server_is_read(data: bytes, kind: str) -> None:
    """Read the numbered images 0 to 49 from an MJPEG server of this content type."""
    with serving(sending(data, kind)) as port:
        address = f"http://127.0.0.1:{port}/cam.mjpg"
        with closing(FFmpegCapture(Stream("cam", address, "server"), 2.0)) as capture:
            for number in range(50):
                assert capture.grab()
                image = capture.retrieve()
                assert image is not None
                assert number_in(image) == number
                # FFmpeg's timestamps would show a delay that grows with the time.
                assert capture.timestamp() == capture.grabbed


@pytest.mark.parametrize(("line", "length"), [(b"\r\n", True), (b"\r\n", False), (b"\n", True)])
@pytest.mark.parametrize("boundary", ["next", "--next", '"next"'])
@pytest.mark.parametrize("first", [True, False])
def test_mjpeg_with_and_without_a_first_boundary(
    first: bool, boundary: str, line: bytes, length: bool
) -> None:
    data = jpegs(b"--next" + line if first else b"", b"--next" + line, length, line)
    kind = f"multipart/x-mixed-replace; boundary={boundary}"
    assert_server_is_read(data, kind)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"Content-Length: %d\r\n",
        b"Content-Type: image/jpg\r\nContent-Length: %d\r\n",
        b"Content-Type: application/octet-stream\r\n",
        b"Content-Type: image/jpeg\r\nContent-Length: 9\r\n",
    ],
)
def test_mjpeg_with_missing_or_wrong_headers(head: bytes) -> None:
    data = b""
    for number in range(60):
        jpeg = cv2.imencode(".jpg", bars(number))[1].tobytes()
        data += b"--next\r\n" + (head % len(jpeg) if b"%" in head else head)
        data += b"\r\n" + jpeg + b"\r\n"
    assert_server_is_read(data, "multipart/x-mixed-replace; boundary=next")


def test_damaged_frames_of_a_live_stream_are_skipped_and_counted() -> None:
    boundary = b"--next\r\n"
    data = jpegs(boundary, boundary, damaged=range(20, 25))
    data += jpegs(boundary, boundary, damaged=range(60))
    with serving(sending(data, "multipart/x-mixed-replace; boundary=next")) as port:
        stream = Stream("cam", f"http://127.0.0.1:{port}/cam.mjpg", "server")
        capture, numbers = RemoteCapture(stream, 1.0), []
        with pytest.raises(InputError) as refused:
            while capture.grab():
                image = capture.retrieve()
                assert image is not None
                numbers.append(number_in(image))
        capture.close()
    assert numbers == [*range(20), *range(25, 60)]
    assert capture.broken == 5
    assert refused.value.code == "timeout"
    assert re.fullmatch("no valid frame within 1 s, only [1-9].* damaged ones", str(refused.value))


def test_web_page_is_not_an_mjpeg_stream() -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>hello")

    with serving(answer) as port:
        stream = Stream("page", f"http://127.0.0.1:{port}/", "server")
        with pytest.raises(InputError, match="sends no video"):
            FFmpegCapture(stream, 1.0)


def test_ffmpeg_options_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over UDP, rtsps:// would send the video without encryption.
    assert container._options("rtsps://a/b", live=True)["rtsp_transport"] == "tcp"
    monkeypatch.setenv(container.FFMPEG_OPTIONS_VARIABLE, "rtsp_transport;udp|buffer_size;65536")
    options = container._options("rtsp://a/b", live=True)
    assert (options["rtsp_transport"], options["buffer_size"]) == ("udp", "65536")


def test_missing_pyav_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [bars(0)])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match="pip install av"):
        read(path)


@given(
    st.integers(0, 19),
    st.integers(0, 20),
    st.integers(0, 25).filter(lambda transfer: transfer not in HDR_TRANSFERS),
    st.integers(0, 2),
)
def test_any_colour_space_is_converted(
    matrix: int, primaries: int, transfer: int, span: int
) -> None:
    picture = np.full((32, 48, 3), (60, 120, 180), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, "bgr24").reformat(format="yuv420p")
    frame.colorspace, frame.color_range = matrix, span
    frame.color_primaries, frame.color_trc = primaries, transfer
    image = PixelConverter()(frame)
    assert image is not None
    assert image.flags.c_contiguous
    # A wrong matrix or range would shift the colours.
    assert np.abs(image.astype(int) - picture).max() < 50


@pytest.mark.parametrize("matrix", [1, 5])
def test_colour_matrix_of_a_video_is_applied(matrix: int) -> None:
    picture = np.full((32, 48, 3), (60, 120, 180), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, "bgr24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
    frame.colorspace = matrix
    image = PixelConverter()(frame)
    assert image is not None
    assert np.abs(image.astype(int) - picture).max() <= 3


def test_frames_are_not_overwritten_by_later_ones(tmp_path: Path) -> None:
    # The converter reuses its memory.
    kept = read(write_video(tmp_path / "a.mp4", map(bars, range(40)))).images
    assert [number_in(image) for image in kept if image is not None] == list(range(40))


def pq_signal(light: float) -> float:
    """Return the signal of a luminance in cd/m² (SMPTE ST 2084)."""
    power = (light / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def hlg_signal(light: float) -> float:
    """Return the signal of grey of a luminance in cd/m² on a display of 1,000 (ITU-R BT.2100)."""
    scene = (light / 1000) ** (1 / 1.2)
    if scene <= 1 / 12:
        return float((3 * scene) ** 0.5)
    return float(0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073)


@pytest.mark.parametrize(("transfer", "signal"), [(16, pq_signal), (18, hlg_signal)])
def test_hdr_becomes_srgb(transfer: int, signal: Callable[[float], float]) -> None:
    """Diffuse white, 203 cd/m² by ITU-R BT.2408, becomes white, and greys keep their sRGB value."""
    convert = PixelConverter()
    # Unspecified primaries (2) are taken for those of BT.2020 (9).
    for level, primaries in itertools.product((32, 64, 128, 192, 255), (9, 2)):
        linear = ((level / 255 + 0.055) / 1.055) ** 2.4
        luma = round(64 + 876 * signal(203 * linear))
        frame = av.VideoFrame(32, 32, "yuv420p10le")
        for plane, value in zip(frame.planes, (luma, 512, 512), strict=True):
            plane.update(np.full((plane.height, plane.line_size // 2), value, np.uint16).tobytes())
        frame.colorspace, frame.color_range = 9, 1
        frame.color_trc, frame.color_primaries = transfer, primaries
        image = convert(frame)
        assert image is not None
        assert image.mean((0, 1)) == pytest.approx([level] * 3, abs=5)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def files_over_http(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve files with ranges over HTTP; yield the address of the root."""

    class Handler(BaseHTTPRequestHandler):
        do_GET = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_video_whose_connection_is_closed_is_read_on(tmp_path: Path) -> None:
    """As by a server with a limit for slow clients."""
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (96, 192, 3), np.uint8) for _ in range(30)]
    data = write_video(tmp_path / "a.mkv", pictures, "mjpeg", pix_fmt="yuvj420p").read_bytes()
    starts: list[int] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        first = int((request.headers["Range"] or "bytes=0-")[6:].partition("-")[0])
        starts.append(first)
        request.send_response(206)
        request.send_header("Content-Length", str(len(data) - first))
        request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        request.wfile.write(data[first : first + len(data) // 4])
        request.close_connection = True

    with files_over_http(answer) as root, closing(open_web_file(f"{root}/a.mkv")) as capture:
        frames = 0
        while capture.grab():
            frames += 1
    assert frames == 30
    assert len(starts) > 3


def test_a_video_that_the_server_refuses_to_continue_is_not_complete(tmp_path: Path) -> None:
    """As at an address whose signature has expired; the format states no duration."""
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (96, 192, 3), np.uint8) for _ in range(100)]
    data = write_video(tmp_path / "a.ts", pictures, "mpeg2video").read_bytes()
    assert len(data) > 200_000

    def answer(request: BaseHTTPRequestHandler) -> None:
        first = int((request.headers["Range"] or "bytes=0-")[6:].partition("-")[0])
        if first:
            request.send_error(403)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        # Whole packets of the transport stream.
        request.wfile.write(data[: len(data) // 2 // 188 * 188])
        request.close_connection = True

    with (
        files_over_http(answer) as root,
        closing(open_web_file(f"{root}/a.ts")) as capture,
        pytest.raises(InputError) as cut,
    ):
        while capture.grab():
            pass
    assert cut.value.code == "read_failed"


def open_web_file(address: str) -> FFmpegCapture:
    return FFmpegCapture(Stream("web", address, "file"), 10.0)


def test_hls_may_take_longer_than_the_timeout_for_a_segment(tmp_path: Path) -> None:
    """The first three segments are there at once, the next after two seconds."""
    for number in range(4):
        write_video(tmp_path / f"{number}.ts", [bars(number)] * 25, start=float(number))
    begin = time.monotonic()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if not request.path.endswith("m3u8"):
            content = (tmp_path / request.path[1:]).read_bytes()
        else:
            count = 4 if time.monotonic() - begin > 2 else 3
            head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
            listed = [f"#EXTINF:1.0,\n{number}.ts\n" for number in range(count)]
            content = "".join([head, *listed]).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with files_over_http(answer) as root:
        stream = Stream("tv", f"{root}/live.m3u8", "server")
        with closing(RemoteCapture(stream, 1.0)) as capture:
            seen = set()
            while 3 not in seen:
                assert capture.grab()
                image = capture.retrieve()
                assert image is not None
                seen.add(number_in(image))
    assert time.monotonic() - begin > 2


def test_a_playlist_that_stands_still_is_not_shown_again(tmp_path: Path) -> None:
    """An encoder that has stopped leaves its last segments on the server."""
    for number in range(5):
        write_video(tmp_path / f"{number}.ts", [bars(number)] * 25, start=10.0 + number)
    count = 3
    connections = 0

    def answer(request: BaseHTTPRequestHandler) -> None:
        nonlocal connections
        if not request.path.endswith("m3u8"):
            content = (tmp_path / request.path[1:]).read_bytes()
        else:
            connections += 1
            head = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n"
            listed = [f"#EXTINF:1.0,\n{number}.ts\n" for number in range(count)]
            # With its end, so that the connection does not wait for more.
            content = "".join([head, *listed, "#EXT-X-ENDLIST\n"]).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    policy = StreamPolicy(initial_backoff=0.01, max_backoff=0.02)
    with (
        files_over_http(answer) as root,
        Feed([Stream("tv", f"{root}/live.m3u8", "server")], policy) as feed,
    ):
        reader = feed.readers[0]
        wait_until(lambda: reader.health().error == "its playlist has no new video")
        # A reader that is behind omits frames.
        shown = reader.health().frames
        assert 0 < shown <= 75
        seen = connections
        wait_until(lambda: connections >= seen + 2)
        assert reader.health().frames == shown
        assert reader.health().state != "playing"
        count = 5
        wait_until(lambda: reader.health().frames > shown)
        wait_until(lambda: reader.health().error == "its playlist has no new video")
        assert shown < reader.health().frames <= shown + 50


@pytest.mark.parametrize("first", [0.0, 99.0, 161.0])
def test_a_clock_that_was_reset_is_no_replay(first: float) -> None:
    replays = ReplayFilter()
    replays.connect()
    assert all(replays.is_new(100 + number) for number in range(61))
    replays.connect()
    assert replays.is_new(first)
    assert replays.is_new(first + 1)
    assert not replays.replaying


def test_known_frames_of_a_new_connection_are_replays() -> None:
    replays = ReplayFilter()
    replays.connect()
    assert [replays.is_new(at) for at in (1.0, 2.0, 3.0)] == [True] * 3
    replays.connect()
    assert [replays.is_new(at) for at in (1.5, 2.5, 3.0)] == [False] * 3
    assert replays.replaying
    assert [replays.is_new(at) for at in (3.1, 2.9)] == [True, True]
    assert not replays.replaying


def test_a_huge_frame_of_a_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the memory of the other cameras."""
    boundary = b"--next\r\n"
    huge = cv2.imencode(".jpg", np.zeros((400, 500, 3), np.uint8))[1].tobytes()
    data = jpegs(boundary, boundary)
    data += boundary + b"Content-Type: image/jpeg\r\n\r\n" + huge + b"\r\n"
    data += jpegs(boundary, boundary)
    monkeypatch.setattr(ffmpeg, "MAX_LIVE_PIXELS", 100_000)
    with serving(sending(data, "multipart/x-mixed-replace; boundary=next")) as port:
        stream = Stream("cam", f"http://127.0.0.1:{port}/cam.mjpg", "server")
        said = "a frame of 500x400 pixels"
        with (
            closing(FFmpegCapture(stream, 5.0)) as capture,
            pytest.raises(InputError, match=said) as big,
        ):
            while capture.grab():
                pass
    assert big.value.code == "too_large"

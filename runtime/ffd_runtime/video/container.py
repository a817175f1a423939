"""Open what holds a video: its options, which of its streams is read, how long it says to be."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..core.errors import BackendError, InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

# FFmpeg's own options, as OpenCV reads them: `name;value|name;value`.
FFMPEG_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# Formats whose headers state a duration; that of others is estimated, by bit rate at worst.
FORMATS_WITH_DURATION = frozenset(("mov", "matroska", "avi", "flv", "asf"))
# AVFMT_FLAG_GENPTS of libavformat/avformat.h, which PyAV sets.
AVFMT_FLAG_GENPTS = 1
# What may be missing of a stated duration, which formats round: seconds and share.
MAX_MISSING_SECONDS, MAX_MISSING_SHARE = 0.5, 0.01


def require_pyav() -> None:
    """Check that PyAV is installed.

    Raises:
        BackendError: it is not.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"video files and network streams need PyAV ({error}): pip install av"
        ) from None


def open_container(target: str, timeout: float, live: bool) -> InputContainer:
    """Open a file or an address.

    Args:
        target: a path, or an address with a scheme.
        timeout: seconds for opening, and for each read.
        live: it is a server's.

    Raises:
        av.FFmpegError: FFmpeg cannot open it.
        InputError: the name cannot be a file's.
    """
    if "\0" in target:
        raise InputError("not_found", "no file has a NUL character in its name")
    if "://" not in target:
        # A path may look like an address: `cam:1.mp4`.
        return _open(f"file:{target}", {}, timeout)
    container = _open_address(target, _options(target, live), timeout, live)
    if live:
        # It would hold back packets without a timestamp until a later one has one.
        container.flags &= ~AVFMT_FLAG_GENPTS
    return container


def _open(
    name: str, options: dict[str, str], timeout: float, form: str | None = None
) -> InputContainer:
    import av

    limits = (timeout, timeout)
    return av.open(name, "r", form, options=options, timeout=limits, metadata_errors="replace")


def _open_address(
    address: str, options: dict[str, str], timeout: float, live: bool
) -> InputContainer:
    from av.error import InvalidDataError

    begin = time.monotonic()
    try:
        return _open(address, options, timeout)
    except InvalidDataError:
        left = timeout - (time.monotonic() - begin)
        if not live or left <= 0 or not address.lower().startswith("http"):
            raise
        container = _open_jpegs(address, options, left)
        if container is None:
            raise
        return container


def _open_jpegs(address: str, options: dict[str, str], timeout: float) -> InputContainer | None:
    """Open a server whose parts FFmpeg cannot tell apart: one without a boundary before the first.

    Returns:
        None if it sends no JPEG.
    """
    from av.error import FFmpegError

    try:
        # One picture tells all there is to know.
        container = _open(address, {**options, "analyzeduration": "1"}, timeout, "mjpeg")
    except FFmpegError:
        return None
    if container.streams.video and container.streams.video[0].codec_context.width:
        return container
    container.close()
    return None


def _options(address: str, live: bool) -> dict[str, str]:
    options = {}
    if live:
        # The rate of a live stream is not used; measuring it takes 20 frames.
        options["fpsprobesize"] = "0"
    if address.lower().startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
    for pair in os.environ.get(FFMPEG_OPTIONS_VARIABLE, "").split("|"):
        name, separator, value = pair.partition(";")
        if separator:
            options[name.strip()] = value.strip()
    return options


def select_video(container: InputContainer) -> VideoStream:
    """The video stream to read: FFmpeg's choice among those that are no cover pictures.

    Raises:
        InputError: there is none, or no decoder for it.
    """
    videos = _videos(container)
    if not videos:
        raise InputError("unsupported", _what_it_holds(container))
    best = container.streams.best("video")
    stream = next((video for video in videos if video is best), videos[0])
    if stream.codec_context is None:
        raise InputError(
            "unsupported",
            "its video is in a codec that this FFmpeg does not know: convert it to H.264",
        )
    return stream


def describe(container: InputContainer, stream: VideoStream) -> str | None:
    """What a user may not expect of the choice of a stream; None where there was none."""
    videos = _videos(container)
    if len(videos) < 2:
        return None
    return f"video stream {videos.index(stream) + 1} of {len(videos)} in it"


def _videos(container: InputContainer) -> list[VideoStream]:
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [video for video in container.streams.video if not video.disposition & pictures]


def _what_it_holds(container: InputContainer) -> str:
    if container.streams.video:
        return "no video: it is audio with a cover picture"
    kinds = sorted({stream.type for stream in container.streams} - {"unknown", "data"})
    return f"no video in it, only {' and '.join(kinds)}" if kinds else "no video in it"


class DurationCheck:
    """Compares how long a file says to be with how far it went.

    Args:
        container: the file, open.
        stream: its video that is read.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._reached = 0.0
        self._stated = 0.0
        self._start = 0.0
        # A container's duration may be that of its audio.
        self.every_stream = False
        if FORMATS_WITH_DURATION.isdisjoint(container.format.name.split(",")):
            return
        if stream.duration and stream.time_base:
            self._stated = float(stream.duration * stream.time_base)
            if container.format.name == "avi" and stream.average_rate:
                # FFmpeg shortens the duration to what is there, not the header's count of frames.
                self._stated = max(self._stated, float(stream.frames / stream.average_rate))
            self._start = float((stream.start_time or 0) * stream.time_base)
        elif container.duration:
            self._start = (container.start_time or 0) / 1e6
            total = container.duration / 1e6
            # Matroska's ends with its last timestamp, which need not begin at 0.
            self._stated = total - self._start if total > self._start > 0 else total
            self.every_stream = True

    def note(self, packet: Packet[Stream]) -> None:
        """Take in a packet that counts although no frame of it is shown."""
        if packet.pts is not None and packet.time_base:
            self.reach(float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def reach(self, end: float) -> None:
        """Take in that a frame lasted until a time, in seconds of the stream's own clock."""
        self._reached = max(self._reached, end - self._start)

    def require(self) -> None:
        """Check the end.

        Raises:
            InputError: `truncated`.
        """
        missing = self._stated - self._reached
        if missing > max(MAX_MISSING_SECONDS, MAX_MISSING_SHARE * self._stated):
            raise InputError(
                "truncated", f"it ends after {self._reached:.1f} of {self._stated:.1f} s"
            )

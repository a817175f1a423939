"""Open video containers, explain failures, select the video stream, and check the duration."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import SplitResult, urlsplit

from ..core.errors import BackendError, InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

# FFmpeg options in OpenCV's format: `name;value|name;value`.
FFMPEG_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# Formats whose headers state the duration. FFmpeg estimates it for others, sometimes from the bit
# rate.
FORMATS_WITH_DURATION = frozenset(("mov", "matroska", "avi", "flv", "asf"))
# Set by PyAV; from libavformat/avformat.h.
AVFMT_FLAG_GENPTS = 1
# Formats round the stated duration: a file that ends earlier than this is truncated.
MAX_MISSING_SECONDS, MAX_MISSING_SHARE = 0.5, 0.01
# Of a web file without a stated duration: an index after its last frame.
MAX_UNREAD_BYTES = 1 << 16
# First boxes of MP4 and QuickTime files (ISO/IEC 14496-12).
_MP4_BOXES = frozenset((b"ftyp", b"styp", b"mdat", b"wide", b"free", b"skip", b"moof", b"sidx"))
_MAX_BOXES = 100_000
# Apple recommends segments of 6 s; some servers send 10 s and more.
HLS_TIMEOUT_SECONDS = 30.0
PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


def require_pyav() -> None:
    """Raise a BackendError if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"video files and network streams need PyAV ({error}): pip install av"
        ) from None


def open_container(target: str, timeout: float, live: bool) -> InputContainer:
    """Open a path, or an address with a scheme; the timeout is in seconds, also for each read.

    Raises:
        av.FFmpegError: FFmpeg cannot open it.
        InputError: the path contains a NUL character.
    """
    from av.error import InvalidDataError

    if "\0" in target:
        raise InputError("not_found", "a file name cannot contain a NUL character")
    if "://" not in target:
        # `file:`: FFmpeg would take `cam:1.mp4` for an address.
        return _open(f"file:{target}", {}, timeout)
    options = _options(target, live)
    deadline = time.monotonic() + timeout
    reading = frame_timeout(target, live, timeout)
    try:
        container = _open(target, options, timeout, read_timeout=reading)
    except InvalidDataError:
        is_web = live and target.lower().startswith(("http://", "https://"))
        found = _open_mjpeg(target, options, deadline, timeout) if is_web else None
        if found is None:
            raise
        container = found
    if container.format.name == "mpjpeg" and not _has_size(container):
        # FFmpeg rejects the first part: it lacks the type `image/jpeg` or has a wrong length.
        container.close()
        container = _open_mjpeg(target, options, deadline, timeout) or _open(
            target, options, timeout
        )
    if live:
        # With it, FFmpeg delays packets without a timestamp until one with a timestamp arrives.
        container.flags &= ~AVFMT_FLAG_GENPTS
    return container


def is_hls(address: str) -> bool:
    """Return whether an address is that of an HLS playlist, by its path."""
    return re.split("[?#]", address, maxsplit=1)[0].lower().endswith(".m3u8")


def frame_timeout(address: str, live: bool, timeout: float) -> float:
    """Return the limit in seconds for a frame: HLS sends segments of several seconds."""
    return max(timeout, HLS_TIMEOUT_SECONDS) if live and is_hls(address) else timeout


def _open(
    name: str,
    options: dict[str, str],
    timeout: float,
    form: str | None = None,
    read_timeout: float | None = None,
) -> InputContainer:
    import av

    limits = (timeout, read_timeout or timeout)
    return av.open(name, "r", form, options=options, timeout=limits, metadata_errors="replace")


def _open_mjpeg(
    address: str, options: dict[str, str], deadline: float, timeout: float
) -> InputContainer | None:
    """Open a server without valid multipart headers, by its JPEGs only; None if it sends none."""
    from av.error import FFmpegError

    left = deadline - time.monotonic()
    if left <= 0:
        return None
    try:
        # The first image is enough to analyse the stream.
        options = {**options, "analyzeduration": "1"}
        container = _open(address, options, left, "mjpeg", read_timeout=timeout)
    except FFmpegError:
        return None
    if _has_size(container):
        return container
    container.close()
    return None


def _has_size(container: InputContainer) -> bool:
    """Return whether the size of the video is known."""
    videos = container.streams.video
    return bool(videos and videos[0].codec_context and videos[0].codec_context.width)


def _options(address: str, live: bool) -> dict[str, str]:
    options = {}
    if live:
        # The frame rate of a live stream is not used; to measure it takes 20 frames.
        options["fpsprobesize"] = "0"
    elif address.lower().startswith("http"):
        # A server may close the connection while the classification is slower than the video.
        options |= {"reconnect": "1", "reconnect_delay_max": "5"}
    if address.lower().startswith("rtsp://"):
        # UDP is only for cameras that refuse TCP, because it loses packets.
        options |= {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"}
    elif address.lower().startswith("rtsps://"):
        options["rtsp_transport"] = "tcp"
    for pair in os.environ.get(FFMPEG_OPTIONS_VARIABLE, "").split("|"):
        name, separator, value = pair.partition(";")
        if separator:
            options[name.strip()] = value.strip()
    return options


def open_failure(error: Exception, target: str, timeout: float, took: float) -> InputError:
    """Turn FFmpeg's error after `took` seconds into a message without credentials."""
    from av.error import ExitError, TimeoutError

    # RTSP reports its own interruption as invalid data.
    if took >= timeout or isinstance(error, ExitError | TimeoutError):
        return InputError("timeout", f"no video within {timeout:g} s")
    if "://" not in target:
        return _file_failure(target)
    return InputError("fetch_failed", _server_failure(error, target))


def _file_failure(path: str) -> InputError:
    from ..image.decode import os_error
    from ..image.formats.foreign import name_text

    try:
        with open(path, "rb") as file:
            head = file.read(2048)
            boxes = _top_boxes(file)
    except OSError as error:
        return os_error(error, path)
    if not head:
        return InputError("empty", "the file is empty")
    if text := name_text(head):
        return InputError("unsupported" if head.strip(b"\0") else "corrupt", text)
    if b"moof" in boxes and b"moov" not in boxes:
        return InputError(
            "unsupported",
            "a segment of a fragmented MP4 without its header: append it to its init segment",
        )
    if _MP4_BOXES.issuperset(boxes[:1]) and boxes and b"moov" not in boxes:
        return InputError(
            "truncated",
            "its index (moov) is missing, so the recording or copy was not finished: copy it "
            "again, or repair it with a tool such as untrunc, and record as Matroska or "
            "fragmented MP4, which need no index",
        )
    return InputError("corrupt", "no decodable video: it is damaged or not a video")


def _top_boxes(file: BinaryIO) -> list[bytes]:
    """Return the types of the complete boxes of an MP4 or QuickTime file, and of the last one."""
    kinds: list[bytes] = []
    begin, end = 0, file.seek(0, os.SEEK_END)
    while begin + 8 <= end and len(kinds) < _MAX_BOXES:
        file.seek(begin)
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size = large if size == 1 else size or end - begin
        if size < 8 or (kind == b"moov" and begin + size > end):
            break
        kinds.append(kind)
        begin += size
    return kinds


def _server_failure(error: Exception, address: str) -> str:
    from av import error as reasons

    try:
        parts = urlsplit(address)
        where = _host_and_port(parts)
    except ValueError:
        return "the address is invalid"
    if not parts.hostname:
        return "the address has no host"
    if isinstance(error, reasons.HTTPUnauthorizedError):
        if parts.username:
            return f"{where} rejected the user and password"
        return f"{where} requires a user and password"
    if isinstance(error, reasons.ProtocolNotFoundError):
        return f"this FFmpeg does not support {parts.scheme}:// addresses"
    reason = getattr(error, "strerror", None) or type(error).__name__
    if isinstance(error, reasons.HTTPClientError | reasons.HTTPServerError):
        path = " (wrong path?)" if isinstance(error, reasons.HTTPNotFoundError) else ""
        return f"{where}: {reason}{path}"
    if isinstance(error, reasons.InvalidDataError):
        return f"{where} sends no decodable video"
    if not _resolves(parts.hostname):
        return f"the host name {parts.hostname} cannot be resolved"
    return f"{where} sends no video ({reason[:1].lower()}{reason[1:]})"


def _host_and_port(parts: SplitResult) -> str:
    """Return host and port, without credentials; raise ValueError for an invalid port."""
    host = parts.hostname or ""
    port = parts.port or PORTS.get(parts.scheme.lower())
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _resolves(host: str) -> bool:
    """Return True if a host name can be resolved: FFmpeg only reports an I/O error."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def select_video(container: InputContainer) -> tuple[VideoStream, str | None]:
    """Select the video stream: FFmpeg's choice, without cover images.

    Returns:
        The stream, and a note if there are several.

    Raises:
        InputError: there is no video stream, or no decoder for it.
    """
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [video for video in container.streams.video if not video.disposition & covers]
    if not videos and container.streams.video:
        raise InputError("unsupported", "an audio file with a cover image, not a video")
    if not len(container.streams) and container.name.startswith("file:"):
        raise _file_failure(container.name.removeprefix("file:"))
    if not videos:
        kinds = sorted({stream.type for stream in container.streams} - {"unknown", "data"})
        found = f", only {' and '.join(kinds)}" if kinds else ""
        raise InputError("unsupported", f"it contains no video{found}")
    best = container.streams.best("video")
    stream = next((video for video in videos if video is best), videos[0])
    if stream.codec_context is None:
        raise InputError(
            "unsupported",
            "this FFmpeg does not support the codec of the video: convert it to H.264",
        )
    place = f"video stream {videos.index(stream) + 1} of {len(videos)}"
    return stream, place if len(videos) > 1 else None


class DurationCheck:
    """Compare the stated duration of a file with its actual end."""

    def __init__(self, container: InputContainer, stream: VideoStream, live: bool) -> None:
        self._reached = 0.0
        self._stated = 0.0
        self._start = 0.0
        # FFmpeg takes an error of a server after a reconnection for the end of the file.
        is_web_file = not live and container.name.lower().startswith("http")
        self._bytes = max(0, container.size) if is_web_file else 0
        self._reached_bytes = 0
        # The container's duration may be that of the audio, which is then read too.
        self.every_stream = False
        if FORMATS_WITH_DURATION.isdisjoint(container.format.name.split(",")):
            return
        if stream.duration and stream.time_base:
            self._stated = float(stream.duration * stream.time_base)
            if container.format.name == "avi" and stream.average_rate:
                # FFmpeg shortens the duration of a truncated AVI, but not its frame count.
                self._stated = max(self._stated, float(stream.frames / stream.average_rate))
            self._start = float((stream.start_time or 0) * stream.time_base)
        elif container.duration:
            self._start = (container.start_time or 0) / 1e6
            total = container.duration / 1e6
            # Matroska states the last timestamp; the first need not be 0.
            self._stated = total - self._start if total > self._start > 0 else total
            self.every_stream = True

    def count_bytes(self, packet: Packet[Stream]) -> None:
        """Note how much of the file was read."""
        if packet.pos is not None:
            self._reached_bytes = max(self._reached_bytes, packet.pos + packet.size)

    def count_packet(self, packet: Packet[Stream]) -> None:
        """Count a packet that is not shown as a frame."""
        if packet.pts is not None and packet.time_base:
            self.advance(float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def advance(self, end: float) -> None:
        """Record the end of a frame, in seconds of the stream's clock."""
        self._reached = max(self._reached, end - self._start)

    def require_complete(self) -> None:
        """Raise an InputError `truncated` if the file ended too early."""
        missing = self._stated - self._reached
        if missing > max(MAX_MISSING_SECONDS, MAX_MISSING_SHARE * self._stated):
            raise InputError(
                "truncated", f"it ends after {self._reached:.1f} of {self._stated:.1f} s"
            )
        unread = self._bytes - self._reached_bytes
        if not self._stated and unread > MAX_UNREAD_BYTES + MAX_MISSING_SHARE * self._bytes:
            raise InputError(
                "read_failed",
                f"the server ended it after {self._reached_bytes} of {self._bytes} bytes",
            )

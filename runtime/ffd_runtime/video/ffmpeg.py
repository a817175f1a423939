"""Decode video files and network streams with FFmpeg, through PyAV."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from ..core.errors import InputError
from .container import (
    DurationCheck,
    frame_timeout,
    open_container,
    open_failure,
    require_pyav,
    select_video,
)
from .frame_filters import Deinterlacer, PixelConverter
from .stream_address import Stream as Source

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from ..image.decode import Image

# Decoders that return a grey or black frame, not flagged as corrupt, if its key frame is missing.
CONCEALING_DECODERS = frozenset(
    "flv h263 h263p mpeg4 msmpeg4 msmpeg4v1 msmpeg4v2 rv10 rv20 wmv1 wmv2".split()
)
# Formats without timestamps: FFmpeg counts frames at 25 per second, or at a rate that it guesses.
FORMATS_WITHOUT_CLOCK = frozenset("mpjpeg mjpeg h264 hevc".split())
# A larger frame of a server is an error: it would need a gigabyte, and so the other cameras' share.
MAX_LIVE_PIXELS = 1 << 26
# A larger step back of the timestamps means that two files were concatenated.
MIN_JOIN_JUMP_SECONDS = 1.0


class _FrameTiming(NamedTuple):
    """Timing of a frame; stored in `opaque`, which filters preserve.

    `pts` and `duration` are in ticks of the stream, `arrived` in seconds of `time.monotonic`.
    """

    pts: int | None
    duration: int
    arrived: float


def _timing(frame: VideoFrame) -> _FrameTiming:
    assert isinstance(frame.opaque, _FrameTiming)
    return frame.opaque


class _Clock:
    """Convert timestamps to seconds, which always increase for a file.

    Attributes:
        seconds: time of the last frame: since the start of a file, or of a server's clock.
    """

    def __init__(self, stream: VideoStream, live: bool) -> None:
        self._base = stream.time_base
        self._live = live
        rate = stream.guessed_rate or stream.average_rate
        self._step = float(1 / rate) if rate else 0.0
        self._start = 0.0 if live else self._to_seconds(stream.start_time or 0)
        self.seconds, self._end, self._started = 0.0, 0.0, False

    def advance(self, timing: _FrameTiming) -> float:
        """Advance to a frame; return its end in seconds of the stream's clock."""
        at = None if timing.pts is None else self._to_seconds(timing.pts) - self._start
        late = at is None or (self._started and not self._live and at <= self.seconds)
        if at is not None and late and self.seconds - at > MIN_JOIN_JUMP_SECONDS:
            self._start -= self._end - at
        self.seconds = self._end if at is None or late else at
        self._started = True
        self._end = self.seconds + (self._to_seconds(timing.duration) or self._step)
        return self._end + self._start

    def _to_seconds(self, ticks: int) -> float:
        return float(ticks * self._base) if self._base else 0.0


class FFmpegCapture:
    """A file or server that PyAV reads; see `capture.Capture`.

    Frames are deinterlaced, enlarged to square pixels, and turned upright. Damaged frames are never
    returned: those of a server are skipped; for those of a file `retrieve` returns None, and the
    end of the file raises an error with their number. The frames between a damaged frame and the
    next key frame count as damaged: they copy from it, and FFmpeg does not flag them.

    Args:
        stream: a local or remote file, or a server.
        timeout: limit in seconds for opening, and for each frame.

    Attributes:
        timeout: limit in seconds for each frame; longer for HLS, which sends segments.

    Raises:
        InputError: it cannot be opened, or has no video.
        BackendError: PyAV is not installed.
    """

    def __init__(self, stream: Source, timeout: float) -> None:
        require_pyav()
        from av.error import FFmpegError

        begin = time.monotonic()
        self.grabbed, self.waited, self.broken = begin, 0.0, 0
        self._live = stream.live
        target = str(stream.target)
        try:
            self._container = open_container(target, timeout, stream.live)
        except FFmpegError as error:
            raise open_failure(error, target, timeout, time.monotonic() - begin) from None
        self.timeout = frame_timeout(target, stream.live, timeout)
        try:
            self._stream, self.note = select_video(self._container)
        except BaseException:
            self._container.close()
            raise
        # The name of the codec, `av1`, not of the decoder, `libdav1d`.
        self._codec = self._stream.codec_context.codec.canonical_name
        # Each frame thread would add a delay of one frame.
        self._stream.thread_type = "SLICE" if stream.live else "AUTO"
        self._stream.thread_count = threads = 1 if stream.live else 0
        assert self._stream.time_base
        fields = self._codec == "hevc"
        self._deinterlacer = Deinterlacer(self._stream.time_base, threads, fields)
        self._convert = PixelConverter(self._stream.sample_aspect_ratio, fields)
        self._duration_check = DurationCheck(self._container, self._stream, stream.live)
        self._clock = _Clock(self._stream, stream.live)
        self._has_clock = not (stream.live and self._container.format.name in FORMATS_WITHOUT_CLOCK)
        self._has_key_frame = self._stream.codec_context.codec.name not in CONCEALING_DECODERS
        # True after a damaged frame, until the next key frame.
        self._copies_damage = False
        # True if it starts within a group of pictures, as recordings of broadcasts do.
        self._starts_mid_group: bool | None = None
        # Timestamps of incomplete packets: not all decoders flag the frames as corrupt.
        self._incomplete: deque[int] = deque(maxlen=64)
        # In a transport stream, the complete packet before each join is flagged, too.
        self._flags_joins = "mpegts" in self._container.format.name
        self._frames = self._read()
        self._frame: VideoFrame | None = None
        self._deadline = 0.0
        # Number of good frames, and of damaged frames since the last good one.
        self._good = self._bad = 0

    def grab(self) -> bool:
        """Advance to the next frame; return False at the end of the stream.

        Raises:
            InputError: no frame arrived within the timeout; the connection failed; the file is
                truncated or contains frames that could not be decoded.
        """
        begin, busy = time.monotonic(), _busy_seconds() if self._live else 0.0
        self._deadline = begin + self.timeout
        frame = next(self._frames, False)
        while frame is None and self._live:
            frame = next(self._frames, False)
        if frame is False:
            if not self._live:
                self._require_complete()
            return False
        assert frame is not True
        if frame and self._live and frame.width * frame.height > MAX_LIVE_PIXELS:
            raise InputError("too_large", f"a frame of {frame.width}x{frame.height} pixels")
        self._frame = frame
        self.grabbed = _timing(frame).arrived if frame else time.monotonic()
        if self._live:
            self.waited = max(0.0, time.monotonic() - begin - (_busy_seconds() - busy))
        return True

    def timestamp(self) -> float:
        # A live source without a clock cannot be late.
        return self._clock.seconds if self._has_clock else self.grabbed

    def retrieve(self) -> Image | None:
        if self._frame is None:
            return None
        image = self._convert(self._frame)
        self.broken += image is None
        return image

    def close(self) -> None:
        self._frames.close()
        self._container.close()

    def _read(self) -> Generator[VideoFrame | None]:
        """Yield progressive frames in order; None for each damaged one."""
        from av.error import FFmpegError

        for packet in self._packets():
            frames: Sequence[VideoFrame | None]
            try:
                frames = packet.decode()
            except FFmpegError:
                frames = [None]
            for frame in frames:
                yield from self._progressive(frame)
        yield from map(self._counted, self._deinterlacer.flush())

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Yield the packets of the stream, and an empty one at the end that flushes the decoder."""
        from av.error import FFmpegError

        index = self._stream.index
        streams: list[Stream] = [self._stream]
        if self._duration_check.every_stream and not self._live:
            streams = list(self._container.streams)
        try:
            for packet in self._container.demux(*streams):
                if time.monotonic() > self._deadline:
                    raise InputError("timeout", self._timeout_message())
                if packet.stream_index != index:
                    self._duration_check.count_packet(packet)
                    continue
                self._duration_check.count_bytes(packet)
                if self._starts_mid_group is None:
                    self._starts_mid_group = not packet.is_keyframe
                if packet.is_corrupt and packet.pts is not None and not self._flags_joins:
                    self._incomplete.append(packet.pts)
                if packet.is_discard:
                    self._duration_check.count_packet(packet)
                yield cast("Packet[VideoStream]", packet)
        except FFmpegError as error:
            raise self._failure(error) from None

    def _progressive(self, frame: VideoFrame | None) -> Iterator[VideoFrame | None]:
        from av.error import FFmpegError

        damaged = frame is None or frame.is_corrupt or frame.pts in self._incomplete
        if frame is None or damaged or (self._copies_damage and not frame.key_frame):
            # Frames before the first key frame cannot be decoded; that is not an error.
            if self._good or not self._starts_mid_group:
                self._copies_damage = True
                yield self._counted(None)
            return
        self._copies_damage = False
        self._has_key_frame |= frame.key_frame
        if not self._has_key_frame:
            return
        frame.opaque = _FrameTiming(frame.pts, frame.duration, time.monotonic())
        try:
            yield from map(self._counted, self._deinterlacer.push(frame))
        except FFmpegError:
            yield self._counted(None)

    def _counted(self, frame: VideoFrame | None) -> VideoFrame | None:
        if frame is None:
            self._bad += 1
            return None
        self.broken += self._bad
        self._good, self._bad = self._good + 1, 0
        self._duration_check.advance(self._clock.advance(_timing(frame)))
        return frame

    def _failure(self, error: Exception) -> InputError:
        from av.error import ExitError, TimeoutError

        if isinstance(error, ExitError | TimeoutError) or time.monotonic() > self._deadline:
            return InputError("timeout", self._timeout_message())
        reason = getattr(error, "strerror", None) or error
        if self._live:
            return InputError("fetch_failed", f"the stream was interrupted ({reason})")
        where = f"after {self._clock.seconds:.1f} s of video"
        return InputError("read_failed", f"reading failed {where} ({reason})")

    def _timeout_message(self) -> str:
        if self._bad:
            return f"no valid frame within {self.timeout:g} s, only {self._bad} damaged ones"
        return f"no frame within {self.timeout:g} s"

    def _require_complete(self) -> None:
        """Raise an InputError if a file that has been read to its end is damaged or truncated."""
        if not self._good:
            raise InputError(
                "corrupt",
                f"no frame of the {self._codec} video can be decoded: it is damaged, or FFmpeg "
                "does not support its encoding (convert it to H.264)",
            )
        self._duration_check.require_complete()
        broken = self.broken + self._bad
        if broken:
            raise InputError(
                "corrupt", f"{broken} of {self._good + broken} frames could not be decoded"
            )


def _busy_seconds() -> float:
    """Return the seconds that this thread has computed or waited for a processor."""
    seconds = time.thread_time()
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return seconds + int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return seconds

"""Recognise streams among sources, and give them names without credentials."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ..core.redact import redact
from ..inputs.kinds import is_called_picture
from .video_signature import SIGNATURE_BYTES, is_video

Kind = Literal["file", "camera", "server", "pipeline"]

# Network protocols of FFmpeg, besides http.
STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp")
WEB_SCHEMES = ("http", "https")
VIDEO_EXTENSIONS = tuple(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)
# A local path with it is a video without timestamps; an address is a camera.
MJPEG_EXTENSIONS = (".mjpeg", ".mjpg")
PLAYLIST_EXTENSIONS = (".m3u8", ".mpd")

_NAMED = re.compile(r"\s*([^/=]*[^/=\s])\s*=\s*(?=[a-z][a-z0-9+.-]*://|/dev/|\d+$)", re.IGNORECASE)


@dataclass(frozen=True)
class Stream:
    """A source of frames.

    Attributes:
        name: its name in rows, images and messages; without credentials.
        target: a path, an address, a camera's number or a GStreamer pipeline. It may contain a
            password and is not part of the representation.
    """

    name: str
    target: str | int = field(repr=False)
    kind: Kind

    @property
    def live(self) -> bool:
        """True if frames arrive in real time, and must be dropped when classification is slower."""
        return self.kind != "file"


def is_stream(source: str, web: bool = False) -> bool:
    """Return True if a source is a stream, not images.

    Args:
        source: as on the command line.
        web: treat each http and https address as a stream, regardless of its extension.
    """
    _, target = _split(source)
    scheme = _scheme(target)
    if scheme in WEB_SCHEMES:
        extensions = VIDEO_EXTENSIONS + MJPEG_EXTENSIONS + PLAYLIST_EXTENSIONS
        return web or urlsplit(target).path.lower().endswith(extensions)
    if scheme:
        return scheme in STREAM_SCHEMES
    return _is_camera(target) or is_video_file(source)


def is_video_file(path: str) -> bool:
    """Return True if a source is a local video file, by name or by content."""
    return os.path.isfile(path) and (is_named_video(path) or _holds_video(path))


def is_named_video(path: str) -> bool:
    """Return True if a path has the extension of a video."""
    return path.lower().endswith(VIDEO_EXTENSIONS + MJPEG_EXTENSIONS)


def to_streams(sources: Iterable[str], gst: bool = False) -> list[Stream]:
    """Turn sources into streams with unique names.

    Args:
        sources: as on the command line; `NAME=ADDRESS` sets the name.
        gst: the sources are GStreamer pipelines.
    """
    streams: list[Stream] = []
    seen: Counter[str] = Counter()
    for source in sources:
        stream = _to_stream(source, gst)
        seen[stream.name] += 1
        if seen[stream.name] > 1:
            # Addresses may differ only in their credentials.
            stream = Stream(f"{stream.name}#{seen[stream.name]}", stream.target, stream.kind)
        streams.append(stream)
    return streams


def _to_stream(source: str, gst: bool) -> Stream:
    if gst:
        return Stream(redact(source), source, "pipeline")
    name, target = _split(source)
    if _is_camera(target):
        return Stream(name or target, int(target) if target.isdigit() else target, "camera")
    scheme = _scheme(target)
    if scheme:
        # A remote file has an end, and none of its frames is dropped.
        extension = urlsplit(target).path.lower().endswith(VIDEO_EXTENSIONS)
        kind: Kind = "file" if scheme in WEB_SCHEMES and extension else "server"
        return Stream(name or redact(target), target, kind)
    # FFmpeg would take `cam:1.mp4` for an address.
    special = (":" in source or "," in source) and not os.path.isabs(source)
    return Stream(source, os.path.join(os.curdir, source) if special else source, "file")


def _split(source: str) -> tuple[str, str]:
    """Split `NAME=ADDRESS`; the name may be empty."""
    named = None if os.path.lexists(source.partition("\0")[0]) else _NAMED.match(source)
    return (named[1], source[named.end() :]) if named else ("", source)


def _scheme(text: str) -> str:
    scheme, found, _ = text.partition("://")
    return scheme.lower() if found and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else ""


def _is_camera(text: str) -> bool:
    number = text.isascii() and text.isdigit() and len(text) < 4 and not os.path.lexists(text)
    return number or text.startswith("/dev/video")


def _holds_video(path: str) -> bool:
    if is_called_picture(path):
        return False
    try:
        with open(path, "rb") as file:
            return is_video(file.read(SIGNATURE_BYTES))
    except OSError:
        return False

"""Recognise streams among sources by address or content, and name them without credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from ..core.redact import redact
from ..inputs.kinds import has_image_suffix

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

# Three packets of a transport stream with time codes.
MAX_SIGNATURE_BYTES = 2 * 192 + 5
# Brands of images (HEIF, AVIF, JPEG XL, JPEG 2000, Canon raw) and of audio in an MP4 container.
_NON_VIDEO_BRANDS = re.compile(
    rb"heic|heix|heim|heis|hevc|hevx|mif1|msf1|miaf|avif|avis|jxl |jp2 |jpx |crx |M4A |M4B |M4P "
)
_SIGNATURES = re.compile(
    rb"\x1aE\xdf\xa3"  # Matroska, WebM
    rb"|RIFF....AVI "
    rb"|FLV\x01"
    rb"|0&\xb2u\x8ef\xcf\x11"  # ASF, WMV
    rb"|\x00\x00\x01[\xba\xb3]"  # MPEG program stream, MPEG-1 and MPEG-2 video
    rb"|\x00\x00\x00\x01(?:[\x09\x27\x47\x67]|[\x40\x42\x46]\x01)"  # H.264, H.265
    rb"|\x1f\x07\x00[\x3f\xbf]"  # DV
    rb"|\x06\x0e\x2b\x34\x02\x05\x01\x01"  # MXF
    rb"|DKIF|YUV4MPEG2 |\.RMF"
    rb"|OggS.{24,}(?:\x80theora|BBCD|\x01video)",
    re.DOTALL,
)
# First atoms of QuickTime files without a leading `ftyp`.
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"pnot")


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
    return _is_camera(target) or is_video_file(target)


def is_video_file(path: str) -> bool:
    """Return True if a source is a local video file, by name or by content."""
    return os.path.isfile(path) and (is_named_video(path) or _holds_video(path))


def is_named_video(path: str) -> bool:
    """Return True if a path has the extension of a video."""
    return path.lower().endswith(VIDEO_EXTENSIONS + MJPEG_EXTENSIONS)


def to_streams(sources: Iterable[str], gst: bool = False) -> list[Stream]:
    """Turn sources into streams with unique names.

    Args:
        sources: as on the command line; `NAME=` before an address or a video sets its name.
        gst: the sources are GStreamer pipelines.
    """
    sources = list(sources)
    streams = [_to_stream(source, gst) for source in sources]
    reserved, used = {stream.name for stream in streams}, set[str]()
    # Of equal names, the user's own remains. Addresses may differ only in their credentials.
    for index in sorted(range(len(sources)), key=lambda index: not _split(sources[index])[0]):
        name, number = streams[index].name, 1
        while name in used or (number > 1 and name in reserved):
            number += 1
            name = f"{streams[index].name}#{number}"
        used.add(name)
        streams[index] = replace(streams[index], name=name)
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
    return Stream(name or target, target, "file")


def _split(source: str) -> tuple[str, str]:
    """Split `NAME=ADDRESS` or `NAME=VIDEO`; the name may be empty."""
    if os.path.lexists(source.partition("\0")[0]):
        return "", source
    if named := _NAMED.match(source):
        return named[1], source[named.end() :]
    name, _, path = source.partition("=")
    is_name = name.strip() and not set("/\\") & set(name)
    return (name.strip(), path) if is_name and is_video_file(path) else ("", source)


def _scheme(text: str) -> str:
    scheme, found, _ = text.partition("://")
    return scheme.lower() if found and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme) else ""


def _is_camera(text: str) -> bool:
    number = text.isascii() and text.isdigit() and len(text) < 4 and not os.path.lexists(text)
    return number or text.startswith("/dev/video")


def _holds_video(path: str) -> bool:
    if has_image_suffix(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(MAX_SIGNATURE_BYTES)
    except OSError:
        return False
    kind = head[4:8]
    if kind == b"ftyp":
        return not _NON_VIDEO_BRANDS.match(head[8:12])
    return kind in _QUICKTIME_ATOMS or bool(_SIGNATURES.match(head)) or _is_transport_stream(head)


def _is_transport_stream(head: bytes) -> bool:
    """Check the sync byte of each packet: of 188 bytes, or 192 with a time code before it."""
    for size, first in ((188, 0), (192, 4)):
        if len(head) > first + 2 * size and set(head[first::size][:3]) == {0x47}:
            return True
    return False

"""Recognise videos by their first bytes."""

from __future__ import annotations

import re

# Bytes that `is_video` needs: three packets of a transport stream with time codes.
SIGNATURE_BYTES = 2 * 192 + 5
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
    rb"|\x00\x00\x00\x01[\x09\x27\x46\x47\x67\x40\x42]"  # H.264, H.265
    rb"|\x1f\x07\x00[\x3f\xbf]"  # DV
    rb"|\x06\x0e\x2b\x34\x02\x05\x01\x01"  # MXF
    rb"|DKIF|YUV4MPEG2 |\.RMF"
    rb"|OggS.{24,}(?:\x80theora|BBCD|\x01video)",
    re.DOTALL,
)
# First atoms of QuickTime files without a leading `ftyp`.
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"pnot")


def is_video(head: bytes) -> bool:
    """Return True if the first bytes of a file are those of a video.

    Args:
        head: the first `SIGNATURE_BYTES` bytes, or the whole file if it is shorter.
    """
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

"""The header of an encoded image, which the reader of each format returns."""

from __future__ import annotations

from dataclasses import dataclass, field

# Real files have fewer segments, chunks or blocks, and reading more would take seconds.
MAX_PARTS = 200_000


@dataclass(frozen=True)
class ImageHeader:
    """Format and claimed size of an encoded image.

    Attributes:
        format: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`, `avif`, `heif` or `pnm`.
        width: in pixels, before any EXIF rotation.
        height: in pixels, before any EXIF rotation.
        complete: False if the file ends early. A JPEG without its end marker may still contain the
            whole image, which decoding shows.
        alpha: True if parts may be transparent.
        orientation: as in EXIF, 1 to 8.
        depth: bits of a sample; OpenCV does not convert the 10 and 12 bits of AVIF.
        scans: number of scans of a JPEG, at most one above the limit; 1 for other formats.
        scanned: total of the samples in all scans of a JPEG; 0 for other formats.
        lacks_scans: True if a progressive JPEG lacks whole scans.
        maximum: decoded sample value of white in a PNM; 255 for other formats.
        premultiplied: True if OpenCV returns colour that is multiplied by alpha.
        transparent: decoded grey level that is transparent in a PNG; None if no level is.
        animated: True if viewers show other frames than the one that is decoded.
        profile: the ICC profile of the colours; empty if the file has none.
        other_profile: an ICC profile that applies if `profile` is empty or invalid.
    """

    format: str
    width: int
    height: int
    complete: bool = True
    alpha: bool = False
    orientation: int = 1
    depth: int = 8
    scans: int = 1
    scanned: int = 0
    lacks_scans: bool = False
    maximum: int = 255
    premultiplied: bool = False
    transparent: int | None = None
    animated: bool = False
    profile: bytes = field(default=b"", repr=False)
    other_profile: bytes = field(default=b"", repr=False)


def take(data: bytes, start: int, length: int) -> bytes:
    """Return a range of bytes, or raise `IndexError` if the file is too short."""
    if start < 0 or len(data) < start + length:
        raise IndexError
    return data[start : start + length]

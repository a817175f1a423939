"""The facts of an encoded image that every format's reader returns."""

from __future__ import annotations

from dataclasses import dataclass

# No real file has as many segments, chunks or blocks; walking more would take seconds.
MAX_PARTS = 200_000


@dataclass(frozen=True)
class ImageHeader:
    """Format and claimed size of an encoded image.

    Attributes:
        format: `jpeg`, `png`, `webp`, `gif`, `bmp`, `tiff`, `avif`, `heif` or `pnm`.
        width: in pixels, before any EXIF rotation.
        height: in pixels, before any EXIF rotation.
        complete: False if the file ends early. A JPEG without its end marker may still hold its
            whole picture: decoding it tells.
        alpha: True if some of it may be transparent.
        orientation: as in EXIF, 1 to 8.
        depth: bits a sample; of AVIF, where OpenCV leaves 10 and 12 bits as they are.
        scans: number of scans of a JPEG, at most one more than is allowed; 1 for other formats.
        scanned: samples that all scans of a JPEG cover together; 0 for other formats.
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


def take(data: bytes, start: int, length: int) -> bytes:
    """A part of a file.

    Raises:
        IndexError: the file ends before that.
    """
    if start < 0 or len(data) < start + length:
        raise IndexError
    return data[start : start + length]

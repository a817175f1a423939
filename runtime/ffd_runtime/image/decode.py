"""Decode an image file to 8-bit BGR, the first step of preprocessing."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from .colour_profile import convert_to_srgb
from .decoder_messages import messages
from .formats import bmff, bmp, gif, jpeg, png, tiff, tiff_blocks, webp
from .formats.jpeg import MAX_SCANS
from .heif import read_heif_pixels
from .image_header import ImageHeader, read_header

Image = npt.NDArray[np.uint8]

# 134 megapixels decode to 400 MB, more than portrait cameras need.
MAX_PIXELS = 1 << 27
MAX_FILE_BYTES = 1 << 29
# Total of the samples in all scans of a JPEG. libjpeg-turbo takes 3 to 10 ns for each (AMD EPYC),
# so the limit is 6 to 20 s. Encoders write 8 to 14 samples for each pixel, so every image fits.
MAX_SCANNED_SAMPLES = 16 * MAX_PIXELS

# Larger images are decoded one at a time, so that two do not exceed a memory that suffices for one:
# a PNG of 134 megapixels with alpha and 16 bits takes 2.1 GB.
MAX_PARALLEL_PIXELS = 1 << 25
_decoding_large = threading.Lock()

_REDUCED_FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}

# OpenCV reports failures by exception or None. Its log would repeat them inside the progress bar.
# OpenCV 4 has the first function, OpenCV 5 only the second.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
_set_log_level(0)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        InputError: the file is absent, not permitted, or not regular (opening a pipe could block).
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except OSError as error:
        raise os_error(error, path) from None
    except ValueError:
        raise InputError("not_found", "not a valid file name") from None
    raise InputError("not_a_file", "not a regular file")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file.

    Raises:
        InputError: see `open_file`; or the file is larger than `MAX_FILE_BYTES`, or reading fails.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            reason = f"{size >> 20} MiB, over the limit of {MAX_FILE_BYTES >> 20}"
            raise InputError("too_large", reason)
        try:
            # Exactly its size, because Python allocates the requested size first.
            return file.read(size)
        except OSError as error:
            raise os_error(error, path) from None


def os_error(error: OSError, path: str | os.PathLike[str]) -> InputError:
    """Return the input error for an error of the operating system."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        if os.path.islink(path):
            return InputError("not_found", "the link leads nowhere")
        is_long = error.errno == errno.ENAMETOOLONG
        return InputError(
            "not_found", "the path is too long" if is_long else "no such file or folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError("permission_denied", "no permission to read it")
    if error.errno == errno.ELOOP:
        return InputError("link_loop", "the link leads back to itself")
    return InputError("read_failed", f"reading failed: {error.strerror or error}")


def decode(data: bytes, max_pixels: int = MAX_PIXELS, at_least: int = 0) -> Image:
    """Decode an image file as a viewer shows it.

    EXIF orientation is applied, grey and CMYK become BGR, 16 bits become 8, colours that the file
    describes become sRGB, and transparent parts become white. An animation gives its first frame, a
    TIFF its first image except thumbnails.

    Args:
        data: content of the file.
        max_pixels: limit of width times height; a larger image is not decoded.
        at_least: minimum of the shorter side, in pixels, when a JPEG is decoded at 1/2, 1/4 or 1/8
            of its size; 0 to decode the whole size.

    Returns:
        uint8 [height, width, 3], BGR.

    Raises:
        InputError: `empty`, `not_an_image`, `unsupported`, `truncated`, `corrupt` or `too_large`.
    """
    return decode_with_header(data, max_pixels, at_least)[0]


def decode_with_header(
    data: bytes, max_pixels: int = MAX_PIXELS, at_least: int = 0
) -> tuple[Image, ImageHeader]:
    """Decode an image file as `decode` does, and return its header, too."""
    header = read_header(data)
    _check_header(header, max_pixels)
    try:
        with _alone_if_large(header, at_least):
            if header.format == "heif":
                _require_undamaged(header, data)
                image = to_bgr(read_heif_pixels(data))
            else:
                image = _decode_with_opencv(header, data, at_least)
            return convert_to_srgb(image, header.profile, header.other_profile), header
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise InputError("too_large", "not enough memory to decode it") from None
        detail = " ".join(str(error.err or error).split())
        raise _explain(header, data, detail) from None
    except MemoryError:
        raise InputError("too_large", "not enough memory to decode it") from None


def _check_header(header: ImageHeader, max_pixels: int) -> None:
    """Check limits and completeness before decoding.

    A JPEG or GIF without its end passes, because the decoder reports what is missing.
    """
    if header.width * header.height > max_pixels:
        raise InputError(
            "too_large",
            f"{header.width}x{header.height} pixels, over the limit of {max_pixels / 1e6:.3g} "
            "million (--max-pixels)",
        )
    if header.scans > MAX_SCANS or header.scanned > max(MAX_SCANNED_SAMPLES, 16 * max_pixels):
        scans = f"more than {MAX_SCANS}" if header.scans > MAX_SCANS else header.scans
        raise InputError(
            "too_large",
            f"a JPEG of {header.width}x{header.height} pixels in {scans} scans, which takes too "
            "long to decode: save it again",
        )
    reported = header.format == "gif" or (header.format == "jpeg" and messages.available())
    if not header.complete and not reported:
        raise InputError("truncated", f"the {header.format.upper()} ends early")
    if header.lacks_scans:
        raise InputError("truncated", "the progressive JPEG lacks scans: it is only a preview")


def _alone_if_large(header: ImageHeader, at_least: int) -> AbstractContextManager[object]:
    """Return a lock for an image that takes much memory, or a context that does nothing."""
    # libjpeg reduces the rows of a JPEG with a single scan as it reads them.
    is_reduced = header.scans == 1 and _reduction(header, at_least) != cv2.IMREAD_COLOR
    if header.width * header.height <= MAX_PARALLEL_PIXELS or is_reduced:
        return nullcontext()
    return _decoding_large


def to_bgr(array: npt.NDArray[Any]) -> Image:
    """Convert an array of OpenCV to 8-bit BGR.

    Args:
        array: uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] (BGR) or [H, W, 4] (BGRA).

    Raises:
        ValueError: the shape or the type is another one.
    """
    if array.dtype == np.uint16:
        array = shift_to_8_bits(array, 8)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"an image must be uint8 [height, width, 3] in BGR order, "
            f"not {array.dtype} {list(array.shape)}"
        )
    image = np.ascontiguousarray(array, np.uint8)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    if channels == 4:
        return _on_white(image)
    if channels != 3:
        raise ValueError(f"an image must have 1, 3 or 4 channels, not {channels}")
    return image


def _decode_with_opencv(header: ImageHeader, data: bytes, at_least: int) -> Image:
    """Decode an image, and raise for damage that the decoder reports."""
    if header.format == "tiff" and (obstacle := tiff.find_obstacle(data)):
        raise InputError("unsupported", f"a TIFF that ffd cannot read: {obstacle}")
    _require_undamaged(header, data)
    shown = data
    if header.format in _PREPARED and not (header.format == "jpeg" and header.complete):
        shown = _PREPARED[header.format](data)

    image, text = _run_opencv(header, shown, at_least)
    if header.format == "jpeg":
        padded = jpeg.without_padding(text, shown)
        if padded and jpeg.find_damage(text, shown) is None:
            shown = padded
            image, text = _run_opencv(header, shown, at_least)
        if damage := jpeg.find_damage(text, shown):
            raise InputError(*damage)
    if image is None or image.size == 0:
        said = re.search(r"libpng error: (.*)", text)
        raise _explain(header, data, said[1] if said else "it cannot be decoded")
    return image


# Find damage that the decoders do not report.
_FIND_DAMAGE: dict[str, Callable[[bytes], str | None]] = {
    "heif": bmff.find_damage,
    "tiff": tiff_blocks.find_damage,
    "webp": webp.find_damage,
}


def _require_undamaged(header: ImageHeader, data: bytes) -> None:
    """Raise an InputError for damage that the decoder would not report."""
    find = _FIND_DAMAGE.get(header.format)
    if find and (damage := find(data)):
        raise InputError("corrupt", f"broken {header.format.upper()}: {damage}")
    pixels = 0
    for block in tiff_blocks.read_jpegs(data) if header.format == "tiff" else ():
        try:
            shown = read_header(block)
        except InputError as error:
            raise InputError("corrupt", f"broken TIFF: in a JPEG block, {error.message}") from None
        pixels += shown.width * shown.height
        # Blocks may be larger than the image: a narrow one has wide tiles.
        if pixels > 4 * max(MAX_PIXELS, header.width * header.height):
            reason = f"a TIFF whose JPEG blocks have at least {pixels} pixels: save it again"
            raise InputError("too_large", reason)
        if shown.scans > MAX_SCANS:
            raise InputError(
                "too_large",
                f"a TIFF whose JPEG blocks have more than {MAX_SCANS} scans, which takes too long "
                "to decode: save it again",
            )
        _, text = _run_opencv(shown, block, at_least=1)
        if found := jpeg.find_damage(text, block):
            raise InputError(found[0], f"broken TIFF: {found[1]}")


def _run_opencv(header: ImageHeader, shown: bytes, at_least: int) -> tuple[Image | None, str]:
    """Decode an image, and return it with the messages of the decoder."""

    def suspicious(image: Image | None, text: str) -> bool:
        if image is None or header.format != "jpeg":
            return image is None
        return jpeg.find_damage(text, shown) is not None or bool(jpeg.without_padding(text, shown))

    return messages.run(
        lambda: _decode_whole(header, np.frombuffer(shown, np.uint8), at_least),
        suspicious,
        alone=not header.complete,
    )


# Return a complete file with only the image to classify. A file without its end may contain the
# whole image, but OpenCV requires the end.
_PREPARED: dict[str, Callable[[bytes], bytes]] = {
    "avif": bmff.with_brand,
    "bmp": lambda data: bmp.with_usual_masks(data) + bytes(3),
    "gif": gif.first_frame,
    "jpeg": jpeg.with_end,
    "png": png.with_end,
    # Text files (P1 to P3) need a space after their last number.
    "pnm": lambda data: data + b"\n" if data[1:2] in b"123" else data,
    "tiff": tiff.with_page,
    "webp": webp.whole_part,
}


def _explain(header: ImageHeader, data: bytes, detail: str) -> InputError:
    """Return why a file could not be decoded: it is damaged, or OpenCV does not support it."""
    if header.format == "tiff" and (compression := tiff.explain_failure(data)):
        return InputError("unsupported", f"a TIFF that OpenCV cannot read: {compression}")
    if header.format == "jpeg" and (coding := jpeg.describe_coding(data)):
        return InputError("unsupported", f"a {coding} JPEG: save it as an 8-bit baseline JPEG")
    name = header.format.upper()
    support = re.compile(rf"^\s*{name}:\s*(?!NO)\S", re.MULTILINE)
    if name in ("AVIF", "GIF") and not support.search(cv2.getBuildInformation()):
        return InputError(
            "unsupported",
            f"an image in the format {name}, which OpenCV {cv2.__version__} was built without: "
            "install opencv-python 4.12 or later, or convert it to JPEG or PNG",
        )
    if header.format == "gif" and not header.complete:
        return InputError("truncated", "the GIF ends early")
    return InputError("corrupt", f"broken {header.format.upper()}: {detail}")


def _decode_whole(header: ImageHeader, data: Image, at_least: int) -> Image | None:
    if header.alpha:
        # IMREAD_COLOR would drop alpha and show the colours of transparent parts.
        raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.ndim == 3 and raw.shape[2] == 4 and raw.dtype.kind == "u":
            if raw.dtype == np.uint16:
                # The samples of AVIF are not scaled to 16 bits.
                raw = shift_to_8_bits(raw, header.depth - 8 if header.format == "avif" else 8)
            image = np.asarray(raw, np.uint8)
            white = _add_white(image) if header.premultiplied else to_bgr(image)
            return _turn(white, header.orientation)
        if raw is not None and raw.ndim == 2 and header.transparent is not None:
            # OpenCV drops the transparent level of a grey PNG.
            grey = to_bgr(raw)
            grey[raw == header.transparent] = 255
            return _turn(grey, header.orientation)
    if header.maximum not in (255, 65535):
        # OpenCV does not scale the samples of most PNM files.
        raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if raw is None or header.maximum < 1:
            return None
        levels = np.arange(1 << 16) * (255 / header.maximum)
        return to_bgr(levels.round().clip(0, 255).astype(np.uint8)[raw])
    # Versions of OpenCV apply EXIF orientation to different formats, so it is applied here.
    flags = _reduction(header, at_least) | cv2.IMREAD_IGNORE_ORIENTATION
    colour = cv2.imdecode(data, flags)
    return None if colour is None else _turn(np.asarray(colour, np.uint8), header.orientation)


def _reduction(header: ImageHeader, at_least: int) -> int:
    """Return OpenCV's flag for the smallest size that keeps enough pixels.

    Only libjpeg saves time, because it transforms fewer coefficients.
    """
    if header.format == "jpeg" and at_least:
        for factor, flag in _REDUCED_FLAGS.items():
            if min(header.width, header.height) >= factor * at_least:
                return flag
    return cv2.IMREAD_COLOR


def _turn(image: Image, orientation: int) -> Image:
    """Apply an EXIF orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def shift_to_8_bits(samples: npt.NDArray[Any], bits: int) -> Image:
    """Shift samples of 16 bits, in strips, because a whole shifted copy would fill memory."""
    out = np.empty(samples.shape, np.uint8)
    for top in range(0, samples.shape[0], 64):
        out[top : top + 64] = samples[top : top + 64] >> bits
    return out


def _on_white(bgra: Image) -> Image:
    """Blend with white in strips, because a whole image in 16 bits would need twice the memory."""
    out = np.empty((*bgra.shape[:2], 3), np.uint8)
    for top in range(0, bgra.shape[0], 64):
        strip = bgra[top : top + 64]
        alpha = strip[..., 3:].astype(np.uint16)
        mixed = strip[..., :3] * alpha + 255 * (255 - alpha) + 127
        out[top : top + 64] = mixed // 255
    return out


def _add_white(bgra: Image) -> Image:
    """Blend premultiplied colour with white."""
    white = cv2.cvtColor(255 - bgra[..., 3], cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.add(np.ascontiguousarray(bgra[..., :3]), white), np.uint8)

"""HEIC, the format of phones' cameras, read by the optional package pillow-heif."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.install_hint import install_hint


def read_heif_pixels(data: bytes) -> npt.NDArray[Any]:
    """Decode the primary picture of a HEIC.

    libheif applies the container's own rotation and cropping, and EXIF's orientation does not count
    beside it (ISO/IEC 23008-12, 6.5.10).

    Args:
        data: the whole file.

    Returns:
        uint8 [height, width], [height, width, 3] (BGR) or [height, width, 4] (BGRA).

    Raises:
        InputError: `unsupported` without pillow-heif, or for a coding that it cannot read;
            `truncated` or `corrupt`.
        MemoryError: it does not fit the memory.
    """
    try:
        import pillow_heif
    except ImportError:
        raise InputError(
            "unsupported",
            f"a HEIC picture: {install_hint('heif')} to read it, or convert it to JPEG",
        ) from None
    # Several workers decode at once, each a picture of its own.
    pillow_heif.options.DECODE_THREADS = 1
    try:
        picture = pillow_heif.open_heif(data, convert_hdr_to_8bit=True, bgr_mode=True)
        multiplied = picture.premultiplied_alpha
        pixels = np.asarray(picture)
    except SyntaxError as error:
        raise InputError("unsupported", f"a HEIC that cannot be read: {_line(error)}") from None
    except OSError as error:
        raise MemoryError(_line(error)) from None
    except (ValueError, EOFError, RuntimeError) as error:
        early = isinstance(error, EOFError) or "end of file" in str(error).lower()
        code = "truncated" if early else "corrupt"
        raise InputError(code, f"broken HEIC: {_line(error)}") from None
    if pixels.dtype != np.uint8:
        # Grey pictures of 10 or 12 bits come in 16.
        pixels = (pixels >> 8).astype(np.uint8)
    if multiplied:
        pixels = _divide(pixels)
    return pixels


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _divide(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Colour that is multiplied by alpha, divided by it again."""
    alpha = np.maximum(pixels[..., 3:], 1).astype(np.float32)
    colour = np.minimum(pixels[..., :3] * (255 / alpha), 255).round().astype(np.uint8)
    return np.concatenate([colour, pixels[..., 3:]], axis=-1)

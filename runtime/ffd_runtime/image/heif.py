"""Decode HEIC, the format of phone cameras, with the optional package pillow-heif."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.install_hint import install_hint
from ..core.text import first_line


def read_heif_pixels(data: bytes) -> npt.NDArray[Any]:
    """Decode the primary image of a HEIC file.

    libheif applies the rotation and cropping of the container, which replace the EXIF orientation
    (ISO/IEC 23008-12, 6.5.10).

    Returns:
        uint8 [height, width], [height, width, 3] (BGR) or [height, width, 4] (BGRA).

    Raises:
        InputError: `unsupported` without pillow-heif, or for a coding that it cannot read;
            `truncated` or `corrupt`.
        MemoryError: the image does not fit the memory.
    """
    try:
        import pillow_heif
    except ImportError:
        raise InputError(
            "unsupported",
            f"a HEIC image: {install_hint('heif')} to read it, or convert it to JPEG",
        ) from None
    # Several workers decode images in parallel.
    pillow_heif.options.DECODE_THREADS = 1
    try:
        image = pillow_heif.open_heif(data, convert_hdr_to_8bit=True, bgr_mode=True)
        multiplied = image.premultiplied_alpha
        pixels = np.asarray(image)
    except SyntaxError as error:
        raise InputError(
            "unsupported", f"a HEIC that cannot be read: {first_line(error)}"
        ) from None
    except OSError as error:
        raise MemoryError(first_line(error)) from None
    except (ValueError, EOFError, RuntimeError, IndexError) as error:
        early = isinstance(error, EOFError) or "end of file" in str(error).lower()
        code = "truncated" if early else "corrupt"
        raise InputError(code, f"broken HEIC: {first_line(error)}") from None
    if pixels.dtype != np.uint8:
        # Grey images of 10 or 12 bits are returned in 16 bits.
        pixels = (pixels >> 8).astype(np.uint8)
    if multiplied:
        alpha = np.maximum(pixels[..., 3:], 1).astype(np.float32)
        colour = np.minimum(pixels[..., :3] * (255 / alpha), 255).round().astype(np.uint8)
        pixels = np.concatenate([colour, pixels[..., 3:]], axis=-1)
    return pixels

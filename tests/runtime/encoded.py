"""The same small image in every format that ffd reads, and in unusual variants."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow

from ..conftest import picture

WIDTH, HEIGHT = 40, 30
BGR = picture("red", HEIGHT, WIDTH)


def pillow(image: Any = None, form: str = "PNG", **options: Any) -> bytes:
    """Encode with Pillow, for variants that OpenCV does not write."""
    buffer = io.BytesIO()
    image = image or Pillow.fromarray(BGR[..., ::-1])
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opencv(extension: str, image: Any = BGR) -> bytes:
    ok, data = cv2.imencode(extension, image)
    assert ok
    return data.tobytes()


def rgba() -> Any:
    """Return an image that is opaque red on the left, and transparent black on the right."""
    array = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    array[:, : WIDTH // 2] = (255, 0, 0, 255)
    return Pillow.fromarray(array)


FORMATS = {
    "jpeg": pillow(form="JPEG", quality=95),
    "progressive": pillow(form="JPEG", progressive=True),
    "png": pillow(),
    "webp": pillow(form="WEBP", quality=95),
    "webp-lossless": pillow(form="WEBP", lossless=True),
    "webp-alpha": pillow(rgba(), "WEBP", lossless=True),
    "gif": pillow(form="GIF"),
    "bmp": pillow(form="BMP"),
    "tiff": pillow(form="TIFF"),
    "tiff-lzw": pillow(form="TIFF", compression="tiff_lzw"),
    "bigtiff": pillow(form="TIFF", big_tiff=True),
    "avif": pillow(form="AVIF"),
    "pnm": opencv(".ppm"),
}

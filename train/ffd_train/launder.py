"""Changes that images undergo when they are shared: codecs, resizing, screenshots.

Training applies random combinations of them, and evaluation measures each one separately.
"""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.image.decode import Image

# The longest side that a codec supports, in pixels.
MAX_SIDE_PIXELS = {"jpeg": 65_500, "webp": 16_383}

# Interpolation kernels of browsers, phones and libraries.
KERNELS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
}


def jpeg(image: Image, quality: int) -> Image:
    """Compress as JPEG with OpenCV, 4:2:0, and decode.

    Args:
        image: uint8 [H, W, 3], BGR, in all functions of this module; not modified.
        quality: 1 to 100.

    Returns:
        uint8 [H, W, 3], BGR, in all functions of this module.
    """
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def jpeg_by_pillow(image: Image, quality: int, subsampling: str = "4:2:0") -> Image:
    """Compress as JPEG with Pillow at a quality of 1 to 100, and decode.

    The chroma subsampling is `4:4:4`, `4:2:2` or `4:2:0`.
    """
    from PIL import Image as Pillow

    data = BytesIO()
    picture = Pillow.fromarray(np.ascontiguousarray(image[..., ::-1]))
    picture.save(data, "JPEG", quality=quality, subsampling=subsampling)
    with Pillow.open(data) as opened:
        return np.ascontiguousarray(np.asarray(opened.convert("RGB"))[..., ::-1])


def webp(image: Image, quality: int) -> Image:
    """Compress as lossy WebP at a quality of 1 to 100, and decode."""
    _, data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def rescale(image: Image, factor: float, down: str = "area", up: str | None = "linear") -> Image:
    """Scale down by a factor, to at least 8 pixels a side, and back up unless `up` is None.

    The kernels are keys of `KERNELS`.
    """
    height, width = image.shape[:2]
    small = max(8, round(width * factor)), max(8, round(height * factor))
    image = np.asarray(cv2.resize(image, small, interpolation=KERNELS[down]), np.uint8)
    if up is None:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=KERNELS[up]), np.uint8)


def blur(image: Image, sigma: float) -> Image:
    """Blur with a Gaussian; sigma in pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def noise(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Add Gaussian noise, independent for each channel; deviation in levels of 255."""
    drawn = rng.standard_normal(image.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


def brightness(image: Image, factor: float) -> Image:
    """Multiply all levels by a factor, and clip."""
    return np.asarray(cv2.LUT(image, _table(np.arange(256) * factor)), np.uint8)


def gamma(image: Image, exponent: float) -> Image:
    """Apply a gamma curve; an exponent above 1 darkens the image."""
    return np.asarray(cv2.LUT(image, _table((np.arange(256) / 255) ** exponent * 255)), np.uint8)


def screenshot(
    image: Image,
    zoom: float = 1.25,
    border: tuple[float, float, float, float] = (0.10, 0.06, 0.02, 0.02),
    colour: tuple[int, int, int] = (24, 24, 24),
    quality: int = 85,
) -> Image:
    """Imitate a screenshot: zoom linearly, add a border, compress as JPEG.

    The border is above, below, left and right, as fractions of the zoomed image's side. Its colour
    is BGR.
    """
    height, width = image.shape[:2]
    shown = max(8, round(width * zoom)), max(8, round(height * zoom))
    image = np.asarray(cv2.resize(image, shown, interpolation=cv2.INTER_LINEAR), np.uint8)
    above, below = (round(share * shown[1]) for share in border[:2])
    left, right = (round(share * shown[0]) for share in border[2:])
    framed = cv2.copyMakeBorder(image, above, below, left, right, cv2.BORDER_CONSTANT, value=colour)
    return jpeg(np.asarray(framed, np.uint8), quality)


def _table(levels: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(np.rint(levels), 0, 255), np.uint8)[None]

"""What happens to a picture between its making and its viewer: codecs, resizing, screenshots.

Training draws from these, evaluation measures each alone; both call the same functions, so that
what was trained against is what is measured.
"""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.image.decode import Image

# The longest side that a codec can hold, in pixels.
LONGEST = {"jpeg": 65_500, "webp": 16_383}

# Kernels that browsers, phones and libraries resize with. Nearest stands for the careless ones.
KERNELS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
}


def jpeg(image: Image, quality: int) -> Image:
    """Through OpenCV's JPEG and back, with chroma at half size.

    Args:
        image: uint8 [H, W, 3], BGR, here and in all that follows; never changed.
        quality: 1 to 100.

    Returns:
        uint8 [H, W, 3], BGR, here and in all that follows.
    """
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def jpeg_by_pillow(image: Image, quality: int, subsampling: str = "4:2:0") -> Image:
    """Through Pillow's JPEG and back.

    Args:
        image: the picture.
        quality: 1 to 100.
        subsampling: of the chroma: `4:4:4`, `4:2:2` or `4:2:0`.
    """
    from PIL import Image as Pillow

    data = BytesIO()
    picture = Pillow.fromarray(np.ascontiguousarray(image[..., ::-1]))
    picture.save(data, "JPEG", quality=quality, subsampling=subsampling)
    with Pillow.open(data) as opened:
        return np.ascontiguousarray(np.asarray(opened.convert("RGB"))[..., ::-1])


def webp(image: Image, quality: int) -> Image:
    """Through lossy WebP and back, at a quality of 1 to 100."""
    _, data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def rescale(image: Image, factor: float, down: str = "area", up: str | None = "linear") -> Image:
    """To a fraction of its size, and back if `up` names a kernel.

    Args:
        image: the picture.
        factor: of each side; no side becomes shorter than 8 pixels.
        down: key of `KERNELS`.
        up: key of `KERNELS`, or None to leave the picture small.
    """
    height, width = image.shape[:2]
    small = max(8, round(width * factor)), max(8, round(height * factor))
    image = np.asarray(cv2.resize(image, small, interpolation=KERNELS[down]), np.uint8)
    if up is None:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=KERNELS[up]), np.uint8)


def blur(image: Image, sigma: float) -> Image:
    """Gaussian blur; sigma in pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def noise(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Gaussian noise, each channel of its own; deviation in levels of 255."""
    drawn = rng.standard_normal(image.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


def brightness(image: Image, factor: float) -> Image:
    """Every level times a factor, clipped."""
    return np.asarray(cv2.LUT(image, _table(np.arange(256) * factor)), np.uint8)


def gamma(image: Image, exponent: float) -> Image:
    """Every level to a power; above 1 the picture gets darker."""
    return np.asarray(cv2.LUT(image, _table((np.arange(256) / 255) ** exponent * 255)), np.uint8)


def screenshot(
    image: Image,
    zoom: float = 1.25,
    border: tuple[float, float, float, float] = (0.10, 0.06, 0.02, 0.02),
    colour: tuple[int, int, int] = (24, 24, 24),
    quality: int = 85,
) -> Image:
    """As shown on a screen and captured there: zoomed linearly, a frame around it, a JPEG again.

    Args:
        image: the picture.
        zoom: of the viewer.
        border: above, below, left and right, as fractions of the zoomed picture's side.
        colour: of the border, BGR.
        quality: of the JPEG that the screenshot is shared as.
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

"""Convert colours to sRGB by the ICC profile of an image, as viewers do.

Without it, an image in a wide gamut looks dull to the model, and a profile with exchanged primaries
hides a generated face from it but not from people.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .formats.icc import MAX_PROFILE_BYTES, keep_shown_tags

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

# A profile that changes no colour by more levels is that of sRGB.
_MAX_LEVELS_OF_SRGB = 3
# Levels of each channel with which that is measured.
_LEVELS = np.linspace(0, 255, 9).round().astype(np.uint8)
_STRIP_ROWS = 256

Image = npt.NDArray[np.uint8]


def convert_to_srgb(image: Image, *profiles: bytes) -> Image:
    """Return an image with the colours that its profile means.

    Args:
        image: uint8 [height, width, 3], BGR.
        profiles: ICC profiles, of which the first valid one applies. One that is invalid, or not of
            RGB, is ignored, as in browsers.

    Returns:
        uint8 [height, width, 3], BGR; the image itself if the profile is that of sRGB.
    """
    built = (_build_transform(one) for one in profiles if 0 < len(one) <= MAX_PROFILE_BYTES)
    transform = next((one.transform for one in built if one.valid), None)
    if transform is None:
        return image
    converted = np.empty_like(image)
    for top in range(0, len(image), _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        converted[rows] = _apply(transform, image[rows, :, ::-1])[:, :, ::-1]
    return converted


class _Built(NamedTuple):
    """Whether a profile is valid, and its conversion to sRGB; None if it changes no colour."""

    valid: bool
    transform: ImageCmsTransform | None


_NO_PROFILE = _Built(False, None)


@lru_cache(maxsize=16)
def _build_transform(profile: bytes) -> _Built:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(keep_shown_tags(profile)))
        if source.profile.xcolor_space.strip() != "RGB":
            return _NO_PROFILE
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            # Perceptual would also make the darkest colour black, which browsers do not.
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Several threads use it.
            flags=ImageCms.Flags.NOCACHE,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _NO_PROFILE
    colours = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS), -1).reshape(1, -1, 3)
    change = np.abs(_apply(transform, colours).astype(np.int16) - colours).max()
    return _Built(True, None if change <= _MAX_LEVELS_OF_SRGB else transform)


def _apply(transform: ImageCmsTransform, pixels: npt.NDArray[Any]) -> Image:
    """Convert uint8 [height, width, 3], RGB."""
    from PIL import Image as PillowImage

    picture = PillowImage.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(transform.apply(picture), np.uint8)

"""Thumbnails of labelled images for HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import decode
from ffd_runtime.image.preprocess import crop_centre, resize
from ffd_runtime.outputs.html_page import data_uri, encode_image

from .face_data import FaceData, Sample

if TYPE_CHECKING:
    from markupsafe import Markup

JPEG_QUALITY = 80


def embed_thumbnail(data: FaceData, sample: Sample, side: int) -> Markup | None:
    """Return the centre square of an image, `side` pixels wide, as a data URI.

    The result is None if the file cannot be read any more.
    """
    try:
        square = crop_centre(decode(data.read(sample), at_least=side))
    except InputError:
        return None
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return data_uri("jpeg", encode_image(".jpg", resize(square, side), options))

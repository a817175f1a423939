"""Images with an ICC profile are converted to sRGB."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageCms

from ffd_runtime.image.colour_profile import convert_to_srgb
from ffd_runtime.image.decode import decode
from ffd_runtime.image.image_header import read_header

from ..conftest import picture
from .encoded import pillow

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Larger than a chroma block, so that lossy formats keep its colours.
COLOURS = np.zeros((64, 96, 3), np.uint8)
COLOURS[:, :32], COLOURS[:, 32:64], COLOURS[:, 64:] = (200, 40, 90), (30, 160, 60), (120, 110, 230)

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


def exchanged(profile: bytes = SRGB) -> bytes:
    """Exchange the primaries red and blue of a profile."""
    head, red, rest = profile.partition(b"rXYZ")
    assert red
    rest, blue, tail = rest.partition(b"bXYZ")
    if blue:
        return head + b"bXYZ" + rest + b"rXYZ" + tail
    between, blue, before = head.partition(b"bXYZ")
    assert blue
    return between + b"rXYZ" + before + b"bXYZ" + rest


def encode(form: str, profile: bytes, image: Any = COLOURS, **options: Any) -> bytes:
    options = {**LOSSLESS, **LOSSY}.get(form, {}) | options
    return pillow(Pillow.fromarray(image), form, icc_profile=profile, **options)


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
def test_colours_are_those_of_a_viewer(form: str) -> None:
    data = encode(form, exchanged())
    assert read_header(data).profile == exchanged()
    with Pillow.open(io.BytesIO(data)) as opened:
        shown = ImageCms.profileToProfile(
            opened, io.BytesIO(opened.info["icc_profile"]), ImageCms.createProfile("sRGB")
        )
    image = decode(data)[..., ::-1].astype(int)
    assert np.abs(image - np.asarray(shown)).max() <= 1
    # Red and blue are exchanged, which hid generated faces.
    assert np.abs(image - COLOURS[..., ::-1]).max() <= (2 if form in LOSSLESS else 12)


def test_heic_is_converted() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode("HEIF", exchanged(), quality=100, chroma=444)
    plain = encode("HEIF", b"", quality=100, chroma=444)
    assert read_header(data).profile == exchanged()
    changed = decode(data).astype(int)
    assert np.abs(changed - decode(plain)[..., ::-1]).max() <= 4
    assert np.abs(changed - decode(plain)).max() > 60


def test_a_profile_of_several_jpeg_segments_is_joined() -> None:
    profile = exchanged() + bytes(150_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = encode("JPEG", profile)
    assert data.count(b"ICC_PROFILE\0") == 3
    assert read_header(data).profile == profile
    assert np.abs(decode(data).astype(int) - COLOURS).max() <= 12
    # A part is missing.
    cut = data.replace(b"ICC_PROFILE\0\2\3", b"icc_profile\0\2\3")
    assert read_header(cut).profile == b""


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
def test_colours_without_another_profile_stay(form: str) -> None:
    plain = decode(encode(form, b""))
    cmyk = SRGB[:16] + b"CMYK" + SRGB[20:]
    for profile in (SRGB, cmyk, b"no profile", SRGB[:300]):
        assert (decode(encode(form, profile)) == plain).all()


def test_wide_gamut_is_converted_by_its_curves() -> None:
    """A profile with a gamma of 1 makes mid-grey brighter: 255 * 0.5 ** (1 / 2.4) * 1.055 - 14."""
    at = SRGB.index(b"rTRC")
    offset, size = struct.unpack_from(">II", SRGB, at + 4)
    linear = b"curv" + bytes(8)
    profile = SRGB[:offset] + linear.ljust(size, b"\0") + SRGB[offset + size :]
    grey = np.full((8, 8, 3), 128, np.uint8)
    image = decode(encode("PNG", profile, grey))
    assert np.abs(image.astype(int) - 188).max() <= 1


def test_large_images_are_converted_in_strips_by_several_threads() -> None:
    image = picture("red", 700, 300)
    expected = np.asarray(
        ImageCms.profileToProfile(
            Pillow.fromarray(image[..., ::-1]),
            io.BytesIO(exchanged()),
            ImageCms.createProfile("sRGB"),
        )
    )[..., ::-1]
    with ThreadPoolExecutor(4) as pool:
        for converted in pool.map(lambda _: convert_to_srgb(image, exchanged()), range(16)):
            assert np.abs(converted.astype(int) - expected).max() <= 1


def test_a_compressed_profile_cannot_fill_memory() -> None:
    data = encode("PNG", exchanged())
    at = data.index(b"iCCP")
    (length,) = struct.unpack_from(">I", data, at - 4)
    bomb = b"icc\0\0" + zlib.compress(bytes(1 << 28))
    chunk = b"iCCP" + bomb
    chunk = struct.pack(">I", len(bomb)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bombed = data[: at - 4] + chunk + data[at + length + 8 :]
    assert len(read_header(bombed).profile) <= 1 << 20
    assert (decode(bombed) == COLOURS[..., ::-1]).all()


@given(st.integers(0, len(SRGB) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_profile_never_fails(at: int, damage: bytes) -> None:
    profile = SRGB[:at] + damage + SRGB[at + len(damage) :]
    image = convert_to_srgb(COLOURS, profile)
    assert image.shape == COLOURS.shape
    assert image.dtype == np.uint8

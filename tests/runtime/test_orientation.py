"""Images have the orientation that Pillow applies."""

from __future__ import annotations

import io
import struct
import warnings
from functools import cache
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from ffd_runtime.image.decode import decode
from ffd_train.audit.encoding import read_encoding

from ..nightly import examples
from .encoded import pillow
from .tagged import (
    PREFIX,
    Entry,
    block,
    exif_segments,
    in_jpeg,
    in_png,
    in_webp,
    orientation,
    png_chunk,
    raw_profile,
    riff,
    segment,
    tiff,
    tiff_page,
    turned,
    xmp,
    xmp_segment,
)

WIDTH, HEIGHT = 24, 16


def corners(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Return an RGB image with four different quarters, so that all orientations differ."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, width // 2 :] = 255, 0, 0
    image[height // 2 :, : width // 2] = 0, 255, 0
    image[height // 2 :, width // 2 :] = 0, 0, 255
    return image


JPEG = pillow(Pillow.fromarray(corners()), "JPEG", quality=95, subsampling=0)
PNG = pillow(Pillow.fromarray(corners()), "PNG")
WEBP = pillow(Pillow.fromarray(corners()), "WEBP", lossless=True)
STRIP = corners().tobytes()


def shown_by_pillow(data: bytes) -> Any:
    """Return the image as Pillow displays it, in BGR."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Pillow.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]


def assert_same(data: bytes) -> None:
    expected, image = shown_by_pillow(data), decode(data)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 8


def assert_turned(data: bytes, value: int, pillow_reads_it: bool = True) -> None:
    """Check that ffd and Pillow apply this orientation."""
    if pillow_reads_it:
        assert_same(data)
    plain = corners()[..., ::-1]
    shown = {
        1: plain,
        3: cv2.rotate(plain, cv2.ROTATE_180),
        6: cv2.rotate(plain, cv2.ROTATE_90_CLOCKWISE),
        8: cv2.rotate(plain, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }[value]
    image = decode(data)
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 8


def others(count: int, first: int = 0x9C9B) -> list[Entry]:
    return [Entry(first + number, 3, 1, b"\0\1") for number in range(count)]


LONG_BLOCK = block(
    [Entry(271, 2, 90_000, b"x" * 90_000), orientation(6), Entry(305, 2, 6, b"maker\0")]
)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([*exif_segments(turned(6)), segment(0xE1, PREFIX + block(others(1)))], 6),
        ([*exif_segments(turned(6)), segment(0xE1, PREFIX + b"garbage" * 9)], 6),
        ([*exif_segments(turned(6)), segment(0xE1, PREFIX)], 6),
        ([*exif_segments(turned(6)), *exif_segments(turned(3))], 6),
        ([*exif_segments(block(others(1))), *exif_segments(turned(3))], 1),
        (exif_segments(LONG_BLOCK), 6),
        (exif_segments(turned(6, gap=60_000)), 6),
        (exif_segments(turned(6, gap=200_000)), 6),
        (exif_segments(block([*others(64), orientation(6)])), 6),
        (exif_segments(block([*others(3000), orientation(6)])), 6),
        (exif_segments(block([orientation(6, kind=4)])), 6),
        (exif_segments(block([orientation(6, "<", kind=4)], "<")), 6),
        (exif_segments(block([orientation(6, kind=1)])), 1),
        (exif_segments(block([orientation(9)])), 1),
        (exif_segments(PREFIX + turned(6)), 6),
        ([xmp_segment(xmp(8))], 8),
        ([xmp_segment(xmp(8, attribute=False))], 8),
        ([xmp_segment(xmp(8)), *exif_segments(turned(1))], 1),
        ([*exif_segments(block(others(1))), xmp_segment(xmp(8))], 8),
        ([segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + xmp(8))], 1),
    ],
)
def test_the_first_valid_exif_block_of_a_jpeg_is_used(segments: list[bytes], expected: int) -> None:
    data = in_jpeg(JPEG, *segments)
    assert_turned(data, expected)
    encoding = read_encoding(data)
    turned_size = (HEIGHT, WIDTH) if expected > 4 else (WIDTH, HEIGHT)
    assert (encoding.width, encoding.height) == turned_size


def test_an_invalid_exif_block_does_not_hide_the_next() -> None:
    # Depending on the density in JFIF, Pillow refuses the first block or does not rotate.
    data = in_jpeg(JPEG, segment(0xE1, PREFIX + b"garbage" * 9), *exif_segments(turned(6)))
    assert decode(data).shape == (WIDTH, HEIGHT, 3)


def test_a_stereo_image_is_rotated_by_its_first_exif_block() -> None:
    buffer = io.BytesIO()
    left, right = Pillow.fromarray(corners()), Pillow.fromarray(255 - corners())
    exif = Pillow.Exif()
    exif[0x0112] = 6
    left.save(
        buffer, "MPO", save_all=True, append_images=[right], exif=exif, quality=95, subsampling=0
    )
    assert_turned(buffer.getvalue(), 6)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"eXIf", turned(6)),
        png_chunk(b"eXIf", PREFIX + turned(6)),
        png_chunk(b"eXIf", turned(6, gap=70_000)),
        raw_profile(PREFIX + turned(6)),
        raw_profile(turned(6), b"tEXt"),
        raw_profile(PREFIX + turned(6), b"iTXt"),
        png_chunk(b"tEXt", b"exif\0" + PREFIX + turned(6)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
    ],
)
def test_exif_is_read_from_every_kind_of_png_chunk(chunk: bytes, late: bool) -> None:
    assert_turned(in_png(PNG, chunk, late=late), 6)


def test_a_chunk_name_in_png_data_is_ignored() -> None:
    assert_turned(in_png(PNG, png_chunk(b"tEXt", b"Comment\0eXIf" + turned(6))), 1)
    assert_turned(in_png(PNG, png_chunk(b"eXIf", turned(6)), raw_profile(turned(3))), 6)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"EXIF", turned(6))), 6),
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"EXIF", PREFIX + turned(6))), 6),
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"EXIF", turned(6, gap=9000))), 6),
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"XMP ", xmp(6))), 6),
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"junk", b"EXIF" + turned(6))), 1),
        (in_webp(WEBP, (WIDTH, HEIGHT), (b"EXIF", turned(6)), flags=0), 1),
        (riff((WEBP[12:16], WEBP[20:]), (b"EXIF", turned(6))), 1),
    ],
)
def test_exif_is_read_from_every_kind_of_webp(data: bytes, expected: int) -> None:
    assert_turned(data, expected)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", [3, 4])
def test_a_tiff_is_rotated_once(order: str, big: bool, kind: int) -> None:
    page = tiff_page(WIDTH, HEIGHT, order, orientation(6, order, kind))
    # Pillow does not support big-endian BigTIFF.
    assert_turned(tiff([page], [STRIP], order, big), 6, not (big and order == ">"))


def test_a_tiff_is_rotated_by_xmp() -> None:
    packet = xmp(6)
    page = tiff_page(WIDTH, HEIGHT, "<", Entry(700, 1, len(packet), packet))
    assert_turned(tiff([page], [STRIP]), 6)


def test_boxes_of_an_avif_precede_exif() -> None:
    options: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4"}
    plain = pillow(Pillow.fromarray(corners()), "AVIF", **options)
    told = pillow(Pillow.fromarray(corners()), "AVIF", xmp=xmp(6), **options)
    exif = Pillow.Exif()
    exif[0x0112] = 8
    turned_ = pillow(Pillow.fromarray(corners()), "AVIF", exif=exif, xmp=xmp(6), **options)
    for data, expected in ((plain, 1), (told, 6), (turned_, 8)):
        assert_turned(data, expected)


# Other entries of a directory.
ENTRIES = st.builds(
    lambda tag, kind, value: Entry(tag, kind, len(value), value),
    st.integers(1, 60_000),
    st.sampled_from([1, 2, 3, 7, 99]),
    st.binary(min_size=1, max_size=9),
)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, list[Entry], bytes]:
    """Draw a byte order, entries, and their EXIF block, complete or damaged."""
    order = draw(st.sampled_from("<>"))
    entries = draw(st.lists(ENTRIES, max_size=4))
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16]))
        value = draw(st.integers(0, 9))
        entry = orientation(value, order, kind, draw(st.sampled_from([1, 1, 1, 2, 3])))
        entries.insert(draw(st.integers(0, len(entries))), entry)
    if draw(st.booleans()):
        entries = [*others(70), *entries]
    # An entry of 1 byte has no value of a 2-byte type; struct refuses it in Pillow, too.
    entries = [one for one in entries if one.kind != 3 or len(one.value) == 2 * one.count]
    content = block(entries, order, draw(st.sampled_from([0, 2, 300, 5000, 66_000])))
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "changed"]))
    if damage == "cut":
        content = content[: draw(st.integers(8, len(content)))]
    elif damage == "changed":
        changed = bytearray(content)
        at = draw(st.integers(8, len(content) - 1))
        changed[at] = draw(st.integers(0, 255))
        content = bytes(changed)
    return order, entries, content


@cache
def encoded(container: str, width: int, height: int, progressive: bool = False) -> bytes:
    image = Pillow.fromarray(corners(width, height))
    if container == "jpeg":
        return pillow(image, "JPEG", quality=95, subsampling=0, progressive=progressive)
    return pillow(image, container.upper(), **({"lossless": True} if container == "webp" else {}))


def hold(
    container: str, order: str, entries: list[Entry], content: bytes, data: st.DataObject
) -> bytes:
    """Draw an image with a block in one of the places that its container allows."""
    width, height = size = data.draw(st.sampled_from([(24, 16), (16, 24), (17, 3), (2, 31)]))
    prefix = data.draw(st.sampled_from([b"", PREFIX]))
    packet = data.draw(st.sampled_from([b"", xmp(8), xmp(0, attribute=False), xmp("x")]))
    if container == "jpeg":
        image = encoded("jpeg", *size, data.draw(st.booleans()))
        segments = exif_segments(prefix + content, data.draw(st.sampled_from([3000, 65_000])))
        more = data.draw(
            st.sampled_from([[], exif_segments(turned(3)), [segment(0xE1, PREFIX + b"garbage")]])
        )
        about = [xmp_segment(packet)] if packet else []
        return in_jpeg(image, *about, *segments, *more)
    if container == "png":
        kind = data.draw(st.sampled_from([b"eXIf", b"tEXt", b"zTXt", b"iTXt"]))
        own = png_chunk(kind, prefix + content) if kind == b"eXIf" else raw_profile(content, kind)
        text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        return in_png(encoded("png", *size), own, text, late=data.draw(st.booleans()))
    if container == "webp":
        flags = data.draw(st.sampled_from([0x0C, 0x0C, 0x08, 0x04, 0]))
        chunks = [(b"EXIF", prefix + content), (b"XMP ", packet)]
        return in_webp(encoded("webp", *size), size, *chunks, flags=flags)
    # The directory of a TIFF is its EXIF block.
    described = [Entry(700, 1, len(packet), packet)] if packet else []
    wanted = [one for one in entries if one.tag == 274 or one.tag > 33_000]
    page = tiff_page(width, height, order, *described, *wanted)
    return tiff([page], [corners(*size).tobytes()], order, data.draw(st.booleans()))


@settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["jpeg", "png", "webp", "tiff"]), blocks(), st.data())
def test_orientation_agrees_with_pillow(
    container: str, made: tuple[str, list[Entry], bytes], data: st.DataObject
) -> None:
    file = hold(container, *made, data)
    try:
        shown = shown_by_pillow(file)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        # There is no reference for a file that Pillow refuses.
        assume(False)
    image = decode(file)
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 8

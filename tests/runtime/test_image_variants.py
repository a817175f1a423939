"""Less common variants of the formats are decoded as Pillow shows them, or named."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import decode

from .encoded import BGR, HEIGHT, WIDTH, pillow
from .tagged import Entry, png_chunk, tiff, tiff_page

ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
COLOURS = np.dstack([BGR[..., ::-1], ALPHA])


def shown_by_pillow(data: bytes) -> Any:
    """Return BGR, with white behind transparent parts."""
    with Pillow.open(io.BytesIO(data)) as image:
        colours = image.convert("RGBA")
    white = Pillow.new("RGBA", colours.size, "white")
    return np.asarray(Pillow.alpha_composite(white, colours).convert("RGB"))[..., ::-1]


def assert_same(data: bytes) -> None:
    assert np.abs(decode(data).astype(int) - shown_by_pillow(data)).max() <= 2


def error_of(data: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(data)
    return caught.value


def bmp_with_alpha(header_size: int) -> bytes:
    pixels = np.ascontiguousarray(COLOURS[::-1, :, [2, 1, 0, 3]]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    size = struct.pack("<IiiHHII", header_size, WIDTH, HEIGHT, 1, 32, 3, len(pixels))
    header = (size + bytes(16) + masks).ljust(header_size, b"\0")
    offset = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + header + pixels


def test_transparent_parts_of_a_gif_are_white() -> None:
    pixels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8) // 64
    image = Pillow.fromarray(pixels, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    for colour in range(4):
        assert_same(pillow(image, "GIF", transparency=colour))
        assert_same(pillow(image, "GIF", transparency=colour, save_all=True, append_images=[image]))
    assert_same(pillow(image, "GIF"))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_a_grey_png_is_white(depth: int) -> None:
    levels = 1 << depth
    transparent = levels // 3
    samples = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 257 % levels
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.astype(np.uint8).reshape(HEIGHT, -1), axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", transparent)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    image = decode(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    expected = samples * 255 // (levels - 1)
    assert (samples == transparent).any()
    expected[samples == transparent] = 255
    assert np.abs(image.astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("header_size", [56, 108, 124])
def test_transparent_parts_of_a_bmp_are_white(header_size: int) -> None:
    assert_same(bmp_with_alpha(header_size))


@pytest.mark.parametrize(
    "masks",
    [
        (0xFF000000, 0xFF0000, 0xFF00),
        (0xFF, 0xFF00, 0xFF0000),
        (0x3FF00000, 0xFFC00, 0x3FF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xF00, 0xF0, 0xF, 0xF000),
        (0xF800, 0x7C0, 0x3E, 1),
    ],
)
@pytest.mark.parametrize("compression", [3, 6])
@pytest.mark.parametrize("up", [1, -1])
def test_a_bmp_has_any_bit_masks(masks: tuple[int, ...], compression: int, up: int) -> None:
    if len(masks) == 3 and compression == 6:
        pytest.skip("needs a mask of alpha")
    bits = 32 if max(masks) >> 16 else 16
    pixels = np.zeros((HEIGHT, WIDTH), np.uint32)
    shown = np.zeros((HEIGHT, WIDTH, 4))
    shown[..., 3] = 1
    for channel, mask in enumerate(masks):
        lowest = mask & -mask
        values = COLOURS[..., channel].astype(np.uint32) * (mask // lowest) // 255
        pixels |= values * np.uint32(lowest)
        shown[..., channel] = values / (mask // lowest)
    # Rows of 40 pixels of 16 bits need no padding.
    body = pixels[::-up].astype(f"<u{bits // 8}").tobytes()
    size = 40 if compression == 6 else 56
    fields = (size, WIDTH, up * HEIGHT, 1, bits, compression, len(body), 0, 0, 0, 0)
    header = struct.pack("<IiiHHIIiiII", *fields)
    header += struct.pack(f"<{len(masks)}I", *masks).ljust(16, b"\0")
    data = b"BM" + struct.pack("<IHHI", 14 + len(header + body), 0, 0, 14 + len(header))
    expected = shown[..., 2::-1] * shown[..., 3:] + (1 - shown[..., 3:])
    image = decode(data + header + body)
    assert np.abs(image - expected * 255).max() < 10
    assert error_of(data + header[:40] + struct.pack("<4I", 5, 2, 8, 0) + body).code == "corrupt"


def test_an_animated_png_shows_its_default_image() -> None:
    frames = [Pillow.fromarray(255 - BGR), Pillow.fromarray(BGR // 2)]
    image = Pillow.fromarray(BGR[..., ::-1])
    data = pillow(image, save_all=True, default_image=True, append_images=frames)
    assert (decode(data) == BGR).all()
    data = pillow(image, save_all=True, append_images=frames)
    assert (decode(data) == BGR).all()


def test_a_gif_is_whole_if_all_its_pixels_are() -> None:
    data = pillow(Pillow.fromarray(BGR[..., ::-1]), "GIF")
    shown = decode(data)
    # The trailer and the terminator of the blocks.
    for cut in (1, 2):
        assert (decode(data[:-cut]) == shown).all()
    for cut in (9, len(data) // 8):
        assert error_of(data[:-cut]).code == "truncated"


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("maximum", [1, 100, 255, 1023, 65535])
def test_samples_of_a_pnm_are_scaled_by_its_maximum(kind: int, maximum: int) -> None:
    levels = np.linspace(0, maximum, WIDTH).round().astype(np.uint16)
    samples = np.tile(levels.repeat(3 if kind in (3, 6) else 1), (HEIGHT, 1))
    header = f"P{kind}\n# made by a test\n{WIDTH} {HEIGHT}\n{maximum}\n".encode()
    if kind in (2, 3):
        body = " ".join(map(str, samples.ravel())).encode()
    else:
        body = samples.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    expected = levels[None, :, None] * (255 / maximum)
    assert np.abs(decode(header + body) - expected).max() <= 1


def with_channels(count: int, *more: Entry) -> bytes:
    bits = Entry(258, 3, count, struct.pack(f"<{count}H", *[8] * count))
    size = Entry(279, 4, 1, struct.pack("<I", WIDTH * HEIGHT * count))
    samples = Entry(277, 3, 1, struct.pack("<H", count))
    return tiff([tiff_page(WIDTH, HEIGHT, "<", bits, size, samples, *more)], [bytes(8 << 10)])


def test_channels_that_opencv_drops_or_converts_wrongly_are_named() -> None:
    image = Pillow.fromarray(COLOURS)
    lab = Entry(262, 3, 1, b"\x08\0")
    inks = Entry(262, 3, 1, b"\x05\0")
    alpha = Entry(338, 3, 1, b"\2\0")
    for data, words in (
        (pillow(image.convert("LA"), "TIFF"), "grey with transparent parts"),
        (with_channels(3, lab), "its colours are CIELAB"),
        (with_channels(5, inks, alpha), "it has 5 channels"),
    ):
        error = error_of(data)
        assert (error.code, words in error.message) == ("unsupported", True), error


# Pillow does not read 16-bit files with 999, CorelDRAW's value for alpha.
@pytest.mark.parametrize(
    ("bits", "meaning"),
    [*((bits, meaning) for bits in (8, 16) for meaning in (None, 0, 1, 2)), (8, 999)],
)
def test_the_fourth_channel_of_a_tiff_is_that_of_pillow(bits: int, meaning: int | None) -> None:
    colours = COLOURS.astype(np.uint16)
    if meaning == 1:
        colours[..., :3] = colours[..., :3] * colours[..., 3:] // 255
    pixels = (colours * 257).astype("<u2") if bits == 16 else colours.astype(np.uint8)
    entries = [
        Entry(258, 3, 4, struct.pack("<4H", *[bits] * 4)),
        Entry(277, 3, 1, b"\4\0"),
        Entry(279, 4, 1, struct.pack("<I", pixels.nbytes)),
    ]
    if meaning is not None:
        entries.append(Entry(338, 3, 1, struct.pack("<H", meaning)))
    assert_same(tiff([tiff_page(WIDTH, HEIGHT, "<", *entries)], [pixels.tobytes()]))


def test_a_tiff_without_a_directory_is_corrupt() -> None:
    for order in (b"II*\0", b"MM\0*"):
        error = error_of(order + bytes(60))
        assert (error.code, error.message) == ("corrupt", "broken TIFF: it contains no image")


def test_an_avif_without_a_brand_of_avif_is_read() -> None:
    data = pillow(form="AVIF")
    size = int.from_bytes(data[:4], "big")
    brands = b"mif1" + data[12:16] + (b"miafmif1" * 4)[: size - 16]
    assert (decode(data[:8] + brands + data[size:]) == decode(data)).all()


def test_a_tga_is_not_an_icon() -> None:
    assert "a TGA file" in error_of(pillow(form="TGA")).message
    assert "an icon" in error_of(pillow(form="ICO")).message


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_that_is_cut_is_not_classified_by_another_image(order: str) -> None:
    reduced = Entry(254, 4, 1, struct.pack(order + "I", 1))
    small, full = tiff_page(8, 6, order, reduced), tiff_page(WIDTH, HEIGHT, order)
    strips = [bytes(8 * 6 * 3), BGR[..., ::-1].tobytes()]
    data = tiff([small, full], strips, order)
    assert (decode(data) == BGR).all()
    # The directories are at the end: each of 2 bytes, 12 for each entry, 4, and its values.
    ends = len(data) - (2 + 12 * len(full) + 4 + 6)
    for size in range(ends - 8, len(data) - 6):
        assert error_of(data[:size]).code == "truncated"


def test_a_tiff_without_its_colours_is_truncated() -> None:
    image = Pillow.fromarray(BGR).convert("P")
    data = pillow(image, "TIFF", compression="tiff_lzw")
    for cut in (10, 500):
        assert error_of(data[:-cut]).code == "truncated"


@pytest.mark.parametrize("bits", [2, 4, 10, 12])
@pytest.mark.parametrize("photometric", [1, 2])
def test_a_tiff_with_an_unusual_depth_is_unsupported(bits: int, photometric: int) -> None:
    samples = 3 if photometric == 2 else 1
    size = (WIDTH * samples * bits + 7) // 8 * HEIGHT
    depth = Entry(258, 3, samples, struct.pack(f"<{samples}H", *[bits] * samples))
    more = (depth, Entry(279, 4, 1, struct.pack("<I", size)))
    page = tiff_page(WIDTH, HEIGHT, "<", *more, photometric=photometric)
    error = error_of(tiff([page], [bytes(size)]))
    assert (error.code, f"{bits}-bit numbers" in error.message) == ("unsupported", True)


@pytest.mark.parametrize(("bits", "ink_set"), [(16, 1), (8, 2)])
def test_a_tiff_with_unusual_inks_is_unsupported(bits: int, ink_set: int) -> None:
    size = WIDTH * HEIGHT * bits // 2
    more = (
        Entry(258, 3, 4, struct.pack("<4H", *[bits] * 4)),
        Entry(277, 3, 1, struct.pack("<H", 4)),
        Entry(279, 4, 1, struct.pack("<I", size)),
        Entry(332, 3, 1, struct.pack("<H", ink_set)),
    )
    error = error_of(tiff([tiff_page(WIDTH, HEIGHT, "<", *more, photometric=5)], [bytes(size)]))
    assert (error.code, "inks" in error.message) == ("unsupported", True)


def test_a_jpeg_with_its_height_at_its_end_is_unsupported() -> None:
    data = pillow(form="JPEG")
    at = data.find(b"\xff\xc0") + 5
    data = data[:at] + bytes(2) + data[at + 2 :]
    assert error_of(data).code == "corrupt"
    height = b"\xff\xdc" + struct.pack(">HH", 4, HEIGHT)
    assert error_of(data[:-2] + height + data[-2:]).code == "unsupported"


def test_a_png_of_ios_is_unsupported() -> None:
    data = pillow()
    chunk = png_chunk(b"CgBI", struct.pack(">I", 0x50002006))
    error = error_of(data[:8] + chunk + data[8:])
    assert (error.code, "iOS" in error.message) == ("unsupported", True)
    assert error_of(data[:8] + png_chunk(b"teXt", bytes(20)) + data[8:]).code == "corrupt"

"""Colours that a file describes by numbers become those that a browser shows."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageCms

from ffd_runtime.image.decode import decode
from ffd_runtime.image.formats.icc import SRGB, profile_of_codes, profile_of_gamma
from ffd_runtime.image.image_header import read_header

from .encoded import pillow
from .test_colour_profile import exchanged
from .test_stream_video import hlg_signal, pq_signal

# A patch, as RGB, and with red and blue exchanged.
SIDE = 24
COLOUR = (200, 60, 30)
PATCH = np.full((SIDE, SIDE, 3), COLOUR, np.uint8)
EXCHANGED = SRGB[:2] + SRGB[6:8] + SRGB[4:6] + SRGB[2:4]


def chunk(kind: bytes, content: bytes = b"", damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + content) ^ damage
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def points(values: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def codes(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, matrix, full]))


def icc(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))


SAMPLES_SRGB = chunk(b"sRGB", b"\0")
USUAL = gamma(1 / 2.2)
NUMBERS = USUAL + points(EXCHANGED)


def png(chunks: bytes, late: bytes = b"") -> bytes:
    plain = pillow(Pillow.fromarray(PATCH))
    at = plain.index(b"IDAT") - 4
    end = plain.index(b"IEND") - 4
    return plain[:at] + chunks + plain[at:end] + late + plain[end:]


def avif(primaries: int, transfer: int) -> bytes:
    data = pillow(Pillow.fromarray(PATCH), "AVIF", quality=100, subsampling="4:4:4")
    head, _, tail = data.partition(b"nclx")
    return head + b"nclx" + struct.pack(">HH", primaries, transfer) + tail[4:]


def bmp(profile: bytes, kind: bytes = b"DEBM", size: int = 124) -> bytes:
    pixels = PATCH[..., ::-1].tobytes()
    header = struct.pack("<IiiHHI20x16x", size, SIDE, SIDE, 1, 24, 0) + kind + bytes(48)
    if size == 124:
        header += struct.pack("<4I", 4, size + len(pixels), len(profile), 0)
    start = 14 + len(header)
    total = start + len(pixels) + len(profile)
    return b"BM" + struct.pack("<IHHI", total, 0, 0, start) + header + pixels + profile


# Files that a viewer shows with red and blue exchanged, which hid a generated face.
HIDDEN = {
    "chromaticities": png(NUMBERS),
    "chromaticities first": png(points(EXCHANGED) + USUAL),
    "of two, the first": png(NUMBERS + gamma(1) + points(SRGB)),
    "after a damaged profile": png(icc(b"no profile") + NUMBERS),
    "after damaged data": png(chunk(b"iCCP", b"name\0\0no zlib stream") + NUMBERS),
    "after a grey profile": png(icc(exchanged()[:16] + b"GRAY" + exchanged()[20:]) + NUMBERS),
    "after unspecified codes": png(codes(2, 2) + NUMBERS),
    "after codes of video": png(codes(1, 13, full=0) + NUMBERS),
    "a profile before codes of video": png(codes(1, 13, full=0) + icc(exchanged())),
    "a profile and sRGB": png(SAMPLES_SRGB + icc(exchanged())),
    "bmp": bmp(exchanged()),
}
# Files with numbers that viewers ignore.
PLAIN = {
    "chromaticities without gamma": png(points(EXCHANGED)),
    "a gamma of 0": png(gamma(0) + points(EXCHANGED)),
    "sRGB before": png(SAMPLES_SRGB + NUMBERS),
    "sRGB after": png(NUMBERS + SAMPLES_SRGB),
    "codes of sRGB": png(codes(1, 13) + NUMBERS + icc(exchanged())),
    "after the image": png(b"", late=NUMBERS),
    "a wrong checksum": png(chunk(b"gAMA", struct.pack(">I", 45455), damage=1) + points(EXCHANGED)),
    "a profile with a wrong checksum": png(
        chunk(b"iCCP", b"name\0\0" + zlib.compress(exchanged()), damage=1)
    ),
    "primaries on a line": png(gamma(1) + points((*SRGB[:4], *SRGB[2:4], *SRGB[6:]))),
    "the usual gamma": png(USUAL),
    "unspecified codes": avif(2, 2),
    "video": avif(1, 1),
    "bmp of version 4": bmp(exchanged(), size=108),
    "bmp of sRGB": bmp(exchanged(), b"BGRs"),
}


def with_tag(profile: bytes, name: bytes, content: bytes) -> bytes:
    """Add a tag to an ICC profile, whose other tags are kept."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = []
    for at in range(132, 132 + 12 * count, 12):
        tag, begin, size = struct.unpack_from(">4sII", profile, at)
        tags.append((tag, profile[begin : begin + size]))
    return join_tags(profile[:128], [*tags, (name, content)])


def join_tags(header: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    index, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        index += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    return struct.pack(">I", len(header + index + body)) + header[4:] + index + body


def elements(content: bytes, count: int) -> bytes:
    """Return a tag of float numbers that lists the same content several times."""
    head = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, count)
    place = struct.pack(">II", len(head) + 8 * count, len(content))
    return head + place * count + content


def table(side: int) -> bytes:
    """Return a table from RGB to Lab, in 16 bits, that exchanges red and blue roughly."""
    levels = np.linspace(0, 1, side)
    red, green, blue = np.meshgrid(levels, levels, levels, indexing="ij")
    lightness = 0xFF00 * (0.3 + 0.4 * (blue + 2 * green + red) / 4)
    a, b = 0x8000 + 0x2000 * (blue - green), 0x8000 + 0x2000 * (green - red)
    entries = np.stack([lightness, a, b], -1).astype(">u2").tobytes()
    matrix = struct.pack(">9i", *np.eye(3, dtype=int).ravel() * 0x10000)
    curves = struct.pack(">2H", 0, 65535) * 3
    head = b"mft2" + bytes(4) + bytes([3, 3, side, 0]) + matrix + struct.pack(">2H", 2, 2)
    return head + curves + entries + curves


def in_jpeg(*parts: tuple[int, int, bytes]) -> bytes:
    """Return a JPEG with parts of a profile, each with its number and their count."""
    plain = pillow(Pillow.fromarray(PATCH), "JPEG", quality=100, subsampling=0)
    contents = [b"ICC_PROFILE\0" + bytes([number, of]) + part for number, of, part in parts]
    segments = [b"\xff\xe2" + struct.pack(">H", len(one) + 2) + one for one in contents]
    return plain[:2] + b"".join(segments) + plain[2:]


DARK, LIGHT = profile_of_gamma(8), profile_of_gamma(1)
A, B = LIGHT[:3000], LIGHT[3000:]
LAB = LIGHT[:20] + b"Lab " + LIGHT[24:]
PACKED = zlib.compress(DARK)
# Float numbers that exchange red and blue. The columns are the primaries of sRGB.
MATRIX = b"matf" + bytes(4) + struct.pack(">HH", 3, 3)
MATRIX += struct.pack(
    ">12f", *(0.1431, 0.3851, 0.4361, 0.0606, 0.7169, 0.2225, 0.7141, 0.0971, 0.0139), *(0, 0, 0)
)
CMYK = Pillow.fromarray(PATCH).convert("CMYK")
# Files of which viewers ignore a profile or a part of it, and the same files without that.
IGNORED = {
    "of RGB in CMYK": (pillow(CMYK, "JPEG", icc_profile=DARK), pillow(CMYK, "JPEG")),
    "two parts of one number": (in_jpeg((1, 2, A), (1, 2, DARK), (2, 2, B)), in_jpeg()),
    "parts that disagree": (in_jpeg((1, 2, A), (2, 9, B)), in_jpeg()),
    "a whole one after a part": (in_jpeg((1, 2, A), (1, 1, DARK), (2, 2, B)), in_jpeg()),
    "more parts than can be numbered": (in_jpeg(*[(1, 2, A)] * 256), in_jpeg()),
    "a part that is absent": (in_jpeg((1, 3, A), (2, 3, B)), in_jpeg()),
    "other parts after a whole one": (
        in_jpeg((1, 1, LIGHT), (1, 1, DARK), (2, 2, DARK)),
        in_jpeg((1, 1, LIGHT)),
    ),
    "parts in another order": (in_jpeg((2, 2, B), (1, 2, A)), in_jpeg((1, 1, LIGHT))),
    "compressed by another method": (png(chunk(b"iCCP", b"name\0\7" + PACKED)), png(b"")),
    "cut": (png(chunk(b"iCCP", b"name\0\0" + PACKED[:-20])), png(b"")),
    "float numbers": (
        png(icc(with_tag(profile_of_gamma(2), b"D2B0", elements(MATRIX, 1)))),
        png(icc(profile_of_gamma(2))),
    ),
}
# Files whose profile is a table, of up to 1.4 MB.
TABLES = {
    "large": png(icc(with_tag(LAB, b"A2B0", table(61)))),
    "of the second intent": png(icc(with_tag(LAB, b"A2B1", table(33)))),
    "of two intents": png(icc(with_tag(with_tag(LAB, b"A2B1", table(2)), b"A2B0", table(33)))),
}


def shown(data: bytes) -> tuple[int, ...]:
    """Return the RGB of the middle of an image."""
    return tuple(int(level) for level in decode(data)[SIDE // 2, SIDE // 2, ::-1])


def distance(one: Any, other: Any) -> int:
    return int(np.abs(np.subtract(one, other, dtype=int)).max())


@pytest.mark.parametrize("name", HIDDEN)
def test_exchanged_colours_are_those_of_a_viewer(name: str) -> None:
    # With a gamma of 2.2 instead of the curve of sRGB, dark levels differ.
    assert distance(shown(HIDDEN[name]), COLOUR[::-1]) <= 8


@pytest.mark.parametrize("name", PLAIN)
def test_numbers_that_viewers_ignore_change_nothing(name: str) -> None:
    assert distance(shown(PLAIN[name]), COLOUR) <= 1


@pytest.mark.parametrize("name", IGNORED)
def test_profiles_that_viewers_ignore_change_nothing(name: str) -> None:
    data, plain = IGNORED[name]
    assert shown(data) == shown(plain)


def test_an_unspecified_code_is_that_of_srgb() -> None:
    assert shown(avif(12, 2)) == shown(avif(12, 13)) != shown(avif(1, 13))
    assert shown(avif(2, 8)) == shown(avif(1, 8)) != shown(avif(1, 13))


def test_tables_are_applied() -> None:
    large, second, both = (shown(data) for data in TABLES.values())
    assert distance(large, second) <= 4
    assert second == both
    assert large[2] > large[0]


@pytest.mark.parametrize(
    "content",
    [MATRIX, b"clut" + bytes(4) + struct.pack(">HH", 3, 3) + bytes([33] * 3) + bytes(13)],
    ids=["matrix", "table"],
)
def test_float_numbers_are_not_read(content: bytes) -> None:
    """Each mention of a table takes memory: 6,000 of them took a minute and 7 gigabytes."""
    profile = with_tag(LIGHT, b"D2B0", elements(content + bytes(33**3 * 12), 1001))
    data = png(icc(profile))
    assert shown(data) == shown(png(icc(LIGHT)))


def test_rounded_numbers_of_srgb_change_nothing() -> None:
    """Browsers use the gamma, which makes dark levels a little darker."""
    rounded = (0.313, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    assert shown(png(gamma(0.45) + points(rounded))) == COLOUR


def test_a_profile_wins_over_codes_of_an_avif() -> None:
    data = pillow(
        Pillow.fromarray(PATCH),
        "AVIF",
        quality=100,
        subsampling="4:4:4",
        icc_profile=exchanged(),
    )
    at = data.index(b"nclx")
    linear = data[: at + 4] + struct.pack(">HH", 1, 8) + data[at + 8 :]
    assert distance(shown(linear), COLOUR[::-1]) <= 2


@pytest.mark.parametrize(("transfer", "signal"), [(16, pq_signal), (18, hlg_signal)])
@pytest.mark.parametrize("level", [32, 64, 128, 192, 255])
def test_hdr_is_that_of_videos(transfer: int, signal: Callable[[float], float], level: int) -> None:
    """Diffuse white, 203 cd/m2, becomes white, and greys keep their sRGB value."""
    linear = ((level / 255 + 0.055) / 1.055) ** 2.4
    grey = np.full((SIDE, SIDE, 3), round(255 * signal(203 * linear)), np.uint8)
    plain = pillow(Pillow.fromarray(grey))
    at = plain.index(b"IDAT") - 4
    assert distance(shown(plain[:at] + codes(1, transfer) + plain[at:]), (level,) * 3) <= 4


def test_a_wide_gamut_is_that_of_littlecms() -> None:
    """Display P3 red is outside sRGB, and white stays white."""
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_of_codes(12, 13)))
    assert profile.profile.is_matrix_shaper
    converted = ImageCms.profileToProfile(
        Pillow.fromarray(white), profile, ImageCms.createProfile("sRGB")
    )
    assert distance(np.asarray(converted), white) <= 1
    # Known values of Display P3, adapted to D50.
    red, green = profile.profile.red_primary, profile.profile.green_primary
    assert red
    assert green
    assert np.allclose(red[0], (0.5151, 0.2412, -0.0011), atol=5e-4)
    assert np.allclose(green[0], (0.2920, 0.6922, 0.0419), atol=5e-4)


@given(
    st.integers(1, (1 << 32) - 1),
    st.lists(st.integers(-5, 5) | st.integers(-(1 << 31), (1 << 31) - 1), min_size=8, max_size=8),
)
def test_any_numbers_give_a_profile_or_none(gamma: int, values: list[int]) -> None:
    exponent = 100_000 / gamma
    if profile := profile_of_gamma(exponent, tuple(value / 100_000 for value in values)):
        assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "RGB "


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_any_codes_give_a_profile_or_none(primaries: int, transfer: int) -> None:
    assert isinstance(profile_of_codes(primaries, transfer), bytes)


def test_all_known_codes_have_a_valid_profile() -> None:
    for primaries, transfer in itertools.product(range(24), range(19)):
        if profile := profile_of_codes(primaries, transfer):
            assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.is_matrix_shaper


@pytest.mark.parametrize("length", [0, 3, 5, 31, 33])
def test_chunks_of_a_wrong_length_are_ignored(length: int) -> None:
    for kind in (b"gAMA", b"cHRM", b"cICP", b"iCCP"):
        assert distance(shown(png(chunk(kind, b"\1" * length))), COLOUR) <= 1
    assert read_header(png(USUAL + chunk(b"cHRM", b"\1" * length))).other_profile == b""


def test_a_bmp_profile_outside_the_file_is_ignored() -> None:
    data = bytearray(bmp(b""))
    struct.pack_into("<II", data, 126, 0xFFFFFFF0, 0xFFFFFFFF)
    assert read_header(bytes(data)).profile == b""
    assert shown(bytes(data)) == COLOUR

"""An incomplete image is an error; an image that lacks only its end marker is not."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import decode
from ffd_runtime.image.decoder_messages import DecoderMessages, messages
from ffd_runtime.image.formats import bmff, tiff, tiff_blocks
from ffd_runtime.image.formats.exif import Directory
from ffd_runtime.image.formats.jpeg import MAX_SCANS
from ffd_runtime.image.image_header import read_header

from ..nightly import examples
from .encoded import pillow
from .tagged import in_jpeg, in_png, png_chunk, segment

captured = pytest.mark.skipif(
    not messages.available(), reason="needs glibc, whose stderr a program may set"
)


def noisy(width: int = 96, height: int = 80) -> Any:
    rng = np.random.default_rng(7)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Pillow.fromarray(small).resize((width, height), Pillow.Resampling.BICUBIC)


JPEGS = {
    "baseline": pillow(noisy(), "JPEG", quality=90),
    "progressive": pillow(noisy(), "JPEG", quality=90, progressive=True),
    "restarts": pillow(noisy(), "JPEG", quality=90, restart_marker_blocks=4),
    "grey": pillow(noisy().convert("L"), "JPEG", quality=90),
}


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, **options)
    return caught.value.code


def scan_of(data: bytes) -> int:
    """Return the offset of the data of the last scan."""
    at = data.rfind(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


@captured
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_part_of_its_data_is_truncated(name: str, share: float) -> None:
    data = JPEGS[name]
    begin = scan_of(data)
    cut = data[: begin + int((len(data) - begin) * share)]
    assert code_of(cut) == "truncated"
    assert code_of(cut + b"\xff\xd9") == "truncated"
    assert code_of(cut + b"\xff\xd9", at_least=10) == "truncated"


@captured
@pytest.mark.parametrize("name", ["baseline", "restarts", "grey"])
def test_missing_data_inside_a_jpeg_is_reported(name: str) -> None:
    data = JPEGS[name]
    begin = scan_of(data)
    middle = begin + (len(data) - begin) // 2
    assert code_of(data[:begin] + data[middle:]) in ("truncated", "corrupt")


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_only_its_end_marker_is_complete(name: str) -> None:
    data = JPEGS[name]
    for lacking in (data[:-2], data[:-1]):
        assert (decode(lacking) == decode(data)).all()
        assert (decode(lacking, at_least=10) == decode(data, at_least=10)).all()


@captured
def test_padding_in_a_jpeg_is_ignored() -> None:
    data = JPEGS["baseline"]
    for padding in (b"\0", b"\1\2\3", b"\0" * 5000):
        assert (decode(data[:-2] + padding + data[-2:]) == decode(data)).all()
    # A repeated part shifts all later data.
    begin = scan_of(data)
    middle = begin + (len(data) - begin) // 2
    assert code_of(data[:middle] + data[begin:]) == "corrupt"


def test_a_plain_grey_image_is_complete() -> None:
    grey = Pillow.new("RGB", (64, 64), (128, 128, 128))
    assert (decode(pillow(grey, "JPEG")) == 128).all()


WARNINGS: dict[str, bytes] = {
    "cut": JPEGS["baseline"][:-400] + b"\xff\xd9",
    "padded": JPEGS["baseline"][:-2] + b"\0" + b"\xff\xd9",
    "profile": in_png(pillow(noisy()), png_chunk(b"iCCP", b"x\0\0bad")),
    "crc": in_png(pillow(noisy()), png_chunk(b"tEXt", b"Comment\0x")[:-1] + b"?"),
}
QUIET = """
import sys
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.core.errors import InputError
import ctypes
for path in sys.argv[1:]:
    try:
        decode(read_file(path))
    except InputError as error:
        print(path, error.code)
libc = ctypes.CDLL(None)
libc.perror(b"after")
"""


@captured
def test_decoders_write_nothing_to_stderr(tmp_path: Path) -> None:
    paths = []
    for name, data in WARNINGS.items():
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", QUIET, *paths], capture_output=True, text=True)
    assert done.stdout == f"{paths[0]} truncated\n"
    # Messages of other code are still printed.
    assert done.stderr.startswith("after:")
    assert len(done.stderr.splitlines()) == 1


@captured
def test_threads_do_not_receive_each_others_warnings() -> None:
    files = [JPEGS["baseline"], WARNINGS["cut"], JPEGS["progressive"], WARNINGS["padded"]] * 30

    def outcome(data: bytes) -> str:
        try:
            decode(data)
        except InputError as error:
            return error.code
        return "whole"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files)) == ["whole", "truncated", "whole", "whole"] * 30


@captured
def test_a_forked_process_still_reports_damage(tmp_path: Path) -> None:
    own = DecoderMessages()
    file = tmp_path / "result"

    def decode_in_child() -> str:
        child = os.fork()
        if child == 0:
            try:
                file.write_text(code_of(WARNINGS["cut"]))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return file.read_text()

    assert own.run(decode_in_child, lambda result, text: False)[0] == "truncated"


def test_without_glibc_a_jpeg_needs_its_end_marker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(messages), "available", lambda self: False)
    assert decode(JPEGS["baseline"]).shape == (80, 96, 3)
    assert code_of(JPEGS["baseline"][:-2]) == "truncated"


def bmp(bits: int, width: int = 31, height: int = 7) -> bytes:
    image = noisy().resize((width, height))
    return pillow(image if bits == 24 else image.convert("L"), "BMP")


@pytest.mark.parametrize("bits", [8, 24])
def test_a_bmp_without_its_last_padding_is_complete(bits: int) -> None:
    for width in (29, 30, 31, 32):
        data = bmp(bits, width)
        padding = -width * bits // 8 % 4
        assert (decode(data[: len(data) - padding]) == decode(data)).all()
        assert code_of(data[: len(data) - padding - 1]) == "truncated"


def animated(form: str, **options: Any) -> bytes:
    frames = [noisy(), Pillow.fromarray(255 - np.asarray(noisy()))]
    return pillow(frames[0], form, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})]
)
def test_an_animation_truncated_in_its_second_frame_is_decoded(form: str, options: Any) -> None:
    data = animated(form, **options)
    shown = decode(data)
    for cut in (data[:-1], data[:-30], data[: len(data) * 3 // 4]):
        assert (decode(cut) == shown).all()
    assert code_of(data[: len(data) // 4]) in ("truncated", "corrupt")


def test_a_gif_without_its_trailer_is_complete() -> None:
    data = pillow(noisy(), "GIF")
    assert (decode(data[:-1]) == decode(data)).all()


@pytest.mark.parametrize("behind", [1, 70_000, 300_000])
def test_data_after_a_png_is_ignored(behind: int) -> None:
    data = pillow(noisy())
    assert (decode(data + b"\0" * behind) == decode(data)).all()


def test_a_png_without_only_its_end_chunk_is_complete() -> None:
    data = pillow(noisy())
    for cut in (data[:-12], data[:-5], data[:-1]):
        assert (decode(cut) == decode(data)).all()
    assert code_of(data[:-20]) == "truncated"
    assert code_of(in_png(data[:-40] + data[-12:])) in ("truncated", "corrupt")


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_png_that_ends_in_the_checksum_of_its_image_is_complete(size: int) -> None:
    whole = pillow(noisy())
    begin = whole.find(b"IDAT") - 4
    image = whole[begin + 8 : -16]
    chunks = [png_chunk(b"IDAT", image[at : at + size]) for at in range(0, len(image), size)]
    data = whole[:begin] + b"".join(chunks)
    for missing in range(5):
        assert (decode(data[: len(data) - missing]) == decode(whole)).all()
    assert code_of(data[:-5]) == "truncated"
    assert code_of(data[:-1] + bytes([data[-1] ^ 1])) == "corrupt"


def test_a_webp_truncated_after_its_image_is_complete() -> None:
    exif = Pillow.Exif()
    exif[0x010E] = "described at length " * 20
    data = pillow(noisy(), "WEBP", lossless=True, exif=exif)
    assert (decode(data[:-100]) == decode(data)).all()


def scans(count: int, width: int = 64) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    data = pillow(Pillow.new("RGB", (width, width), (90, 80, 200)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[: -2 - len(last)] + last * (count - 9) + data[-2:]


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    assert read_header(scans(MAX_SCANS)).scans == MAX_SCANS
    decode(scans(MAX_SCANS))
    with pytest.raises(InputError, match="in more than 500 scans, which takes too long") as caught:
        decode(scans(MAX_SCANS + 1))
    assert caught.value.code == "too_large"


def test_scans_of_a_large_jpeg_are_limited_by_their_samples() -> None:
    data = scans(400)
    at = data.find(b"\xff\xc2")
    large = data[: at + 5] + struct.pack(">HH", 8000, 8000) + data[at + 9 :]
    with pytest.raises(InputError, match="8000x8000 pixels in 400 scans") as caught:
        decode(large)
    assert caught.value.code == "too_large"


def test_a_progressive_jpeg_of_the_largest_size_is_accepted() -> None:
    for subsampling in (0, 2):
        data = pillow(noisy(), "JPEG", progressive=True, subsampling=subsampling)
        at = data.find(b"\xff\xc2")
        large = data[: at + 5] + struct.pack(">HH", 11585, 11585) + data[at + 9 :]
        header = read_header(large)
        assert header.scanned <= 16 * header.width * header.height


def test_a_png_with_more_data_than_its_image_is_refused() -> None:
    # libpng decompresses all of it, which takes a second for each gigabyte.
    whole = pillow(noisy())
    begin = whole.find(b"IDAT") - 4
    pixels = zlib.decompress(whole[begin + 8 : -16])
    stored = zlib.compressobj(0)
    data = png_chunk(b"IDAT", stored.compress(pixels) + stored.flush())
    assert (decode(whole[:begin] + data + whole[-12:]) == decode(whole)).all()
    more = zlib.compress(pixels + bytes(1 << 27))
    assert len(more) > 2 * len(pixels)
    assert code_of(whole[:begin] + png_chunk(b"IDAT", more) + whole[-12:]) == "too_large"


def test_texts_of_a_png_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffd_runtime.image.formats.png._MAX_TEXTS_BYTES", 1000)
    long = png_chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(1000)))
    turned = png_chunk(b"tEXt", b"XML:com.adobe.xmp\0" + b'tiff:Orientation="6"')
    assert read_header(in_png(pillow(), turned)).orientation == 6
    assert read_header(in_png(pillow(), long, turned)).orientation == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_file_with_too_many_parts_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading the allowed number takes a second.
    monkeypatch.setattr(f"ffd_runtime.image.formats.{form.lower()}.MAX_PARTS", 1000)
    part = {
        "JPEG": segment(0xFE, b""),
        "PNG": png_chunk(b"teSt", b""),
        "GIF": b"\x21\xfe\0",
        "WEBP": b"junk\0\0\0\0",
    }[form]
    data = pillow(noisy(), form, **({"lossless": True} if form == "WEBP" else {}))
    at = {"JPEG": 2, "PNG": 33, "GIF": 13 + (3 << (data[10] & 7) + 1), "WEBP": 12}[form]
    many = bytearray(data[:at] + part * 1001 + data[at:])
    if form == "WEBP":
        many[4:8] = struct.pack("<I", len(many) - 8)
    assert code_of(bytes(many)) == "corrupt"


@captured
@settings(deadline=None, max_examples=examples(50))
@given(st.sampled_from(sorted(JPEGS)), st.data())
def test_half_a_jpeg_never_has_a_verdict(name: str, data: st.DataObject) -> None:
    whole = JPEGS[name]
    begin = whole.find(b"\xff\xda")
    begin += 2 + int.from_bytes(whole[begin + 2 : begin + 4], "big")
    cut = whole[: data.draw(st.integers(begin, len(whole) - 3))]
    end = data.draw(st.sampled_from([b"", b"\xff\xd9", b"\xff\xd9" + whole]))
    try:
        image = decode(cut + end)
    except InputError as error:
        assert error.code in ("truncated", "corrupt")
    else:
        # Only padding bits of the last byte may be missing.
        reference = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(image.astype(int) - reference).mean() < 8


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_progressive_jpeg_without_later_scans_is_truncated(end: bytes) -> None:
    whole = JPEGS["progressive"]
    scans = [match.start() for match in re.finditer(b"\xff\xda", whole)]
    assert len(scans) > 5
    for scan in scans[1:]:
        tables = whole.rfind(b"\xff\xc4", 0, scan)
        for cut in (scan, tables):
            with pytest.raises(InputError, match="lacks scans") as caught:
                decode(whole[:cut] + end)
            assert caught.value.code == "truncated"
    assert decode(whole).shape


def test_a_jpeg_inside_a_jpeg_does_not_end_it() -> None:
    thumbnail = JPEGS["baseline"]
    data = in_jpeg(JPEGS["grey"], segment(0xE2, thumbnail))
    assert (decode(data) == decode(JPEGS["grey"])).all()


@captured
@pytest.mark.parametrize("tail", [b"", JPEGS["grey"]])
def test_zeros_instead_of_restart_intervals_are_no_padding(tail: bytes) -> None:
    data = JPEGS["restarts"]
    begin = scan_of(data)
    for share in (0.1, 0.5, 0.9):
        cut = begin + int((len(data) - begin) * share)
        zeros = bytes(len(data) - 2 - cut)
        assert code_of(data[:cut] + zeros + b"\xff\xd9" + tail) in ("truncated", "corrupt")
    for padding in (bytes(5000), b"\xff" * 300):
        assert (decode(data[:-2] + padding + data[-2:] + tail) == decode(data)).all()


@captured
@pytest.mark.parametrize("quality", [75, 90, 98])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("detailed", [False, True])
def test_zeros_at_the_end_of_a_jpeg_are_no_image(
    quality: int, optimize: bool, detailed: bool
) -> None:
    # A file whose copy stopped, in space that was allocated before.
    image = noisy(512, 384)
    if not detailed:
        image = image.resize((8, 6)).resize((512, 384))
    whole = pillow(image, "JPEG", quality=quality, optimize=optimize)
    assert decode(whole).shape == (384, 512, 3)
    begin = scan_of(whole)
    for share in (0.3, 0.6, 0.9):
        cut = begin + int((len(whole) - begin) * share)
        for end in (b"", b"\xff\xd9"):
            zeros = bytes(len(whole) - cut - len(end))
            assert code_of(whole[:cut] + zeros + end) in ("truncated", "corrupt")


@captured
def test_zeros_within_a_jpeg_are_reported() -> None:
    for name, size in (("baseline", 100), ("grey", 100), ("progressive", 200)):
        whole = JPEGS[name]
        first = whole.find(b"\xff\xda") + 20
        for share in (0.2, 0.4):
            begin = first + int((len(whole) - first) * share)
            damaged = whole[:begin] + bytes(size) + whole[begin + size :]
            assert code_of(damaged) in ("truncated", "corrupt"), (name, share)


@captured
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_plain_part_of_a_jpeg_may_be_zeros(progressive: bool, optimize: bool) -> None:
    image = Pillow.new("RGB", (2048, 2048), "white")
    image.paste(noisy(), (0, 0))
    gradient = Pillow.linear_gradient("L").resize((2048, 2048))
    for one in (image, gradient, gradient.rotate(90)):
        data = pillow(one, "JPEG", progressive=progressive, optimize=optimize)
        assert decode(data).shape == (2048, 2048, 3)


TIFFS = [
    *((form, {}) for form in ("tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")),
    *((form, {278: 16}) for form in ("tiff_lzw", "tiff_adobe_deflate", "packbits")),
    *((form, {317: 2}) for form in ("tiff_lzw", "tiff_adobe_deflate")),
    *(("jpeg", {278: rows}) for rows in (16, 80)),
]


def damaged(data: bytes, begin: int, size: int, value: str) -> bytes:
    rng = np.random.default_rng(begin)
    new = {"zeros": bytes(size), "ones": b"\xff" * size, "noise": rng.bytes(size)}[value]
    return data[:begin] + new + data[begin + size :]


@captured
@pytest.mark.parametrize(("compression", "tags"), TIFFS)
@pytest.mark.parametrize("value", ["zeros", "ones", "noise"])
def test_damage_in_a_compressed_tiff_is_reported(compression: str, tags: Any, value: str) -> None:
    if (compression, value) == ("jpeg", "noise"):
        pytest.skip("noise may be valid Huffman codes")
    data = pillow(noisy(), "TIFF", compression=compression, tiffinfo=tags)
    decode(data)
    # Pillow writes the data before the directory.
    (end,) = struct.unpack_from("<I", data, 4)
    for share in (0.2, 0.5, 0.8):
        begin = 8 + round(share * (end - 208))
        assert code_of(damaged(data, begin, 200, value)) in ("corrupt", "truncated")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "I;16"])
def test_a_valid_tiff_is_not_damaged(compression: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    for width, height in ((1, 1), (7, 5), (90, 131)):
        for image in (
            Pillow.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)),
            Pillow.new("RGB", (width, height), "red"),
        ):
            shown = image if mode == "I;16" else image.convert(mode)
            if mode == "I;16":
                shown = Pillow.fromarray(np.asarray(image.convert("L"), np.uint16) * np.uint16(257))
            for tags in ({}, {278: 3}, {317: 1 if mode == "1" else 2}):
                data = pillow(shown, "TIFF", compression=compression, tiffinfo=tags)
                assert tiff_blocks.find_damage(data) is None, (width, height, tags)


def tiff_of(block: bytes, width: int, height: int) -> bytes:
    """Return a TIFF whose only strip is a whole JPEG."""
    entries = [(256, width), (257, height), (258, 8), (259, 7), (262, 6), (273, 8), (277, 3)]
    entries += [(278, height), (279, len(block))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(block))
    return head + block + struct.pack("<H", len(entries)) + directory + bytes(4)


@captured
def test_jpeg_blocks_of_a_tiff_have_the_limits_of_a_jpeg() -> None:
    decode(tiff_of(scans(12), 64, 64))
    assert code_of(tiff_of(scans(MAX_SCANS + 1), 64, 64)) == "too_large"
    assert code_of(tiff_of(b"\0" + scans(12)[1:], 64, 64)) == "corrupt"


def test_a_strip_that_is_too_short_is_reported() -> None:
    data = bytearray(pillow(noisy(), "TIFF", compression="raw"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at) == (279,):
            struct.pack_into("<HII", data, at + 2, 4, 1, 100)
    assert code_of(bytes(data)) == "corrupt"


def deflated(width: int, height: int, places: int, size: int | None = None) -> bytes:
    """Return a grey TIFF with strips of one row, which all have the same data."""
    strip = zlib.compress(bytes(width))
    values = (8, len(strip) if size is None else size)
    lists = b"".join(struct.pack("<I", value) * places for value in values)
    entries = [(256, 1, width), (257, 1, height), (258, 1, 8), (259, 1, 8), (262, 1, 1)]
    entries += [(273, places, 1000), (278, 1, 1), (279, places, 1000 + 4 * places)]
    directory = b"".join(struct.pack("<HHII", tag, 4, *rest) for tag, *rest in entries)
    begin = 1000 + len(lists)
    head = b"II*\0" + struct.pack("<I", begin) + strip
    body = head.ljust(1000, b"\0") + lists
    return body + struct.pack("<H", len(entries)) + directory + bytes(4)


@pytest.mark.parametrize("places", [8, 20_000])
def test_only_the_strips_of_the_image_are_inflated(
    places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inflated: list[int] = []
    real = tiff_blocks._inflates

    def count(block: Any, *rest: Any) -> bool:
        inflated.append(block.size)
        return real(block, *rest)

    monkeypatch.setattr(tiff_blocks, "_inflates", count)
    assert tiff_blocks.find_damage(deflated(100, 8, places)) is None
    assert inflated == [100] * 8


def test_strips_that_overlap_are_reported() -> None:
    # Each strip is the whole file, which each would read.
    data = deflated(4, 5000, 5000)
    assert decode(data).shape == (5000, 4, 3)
    with pytest.raises(InputError, match="its strips or tiles overlap") as caught:
        decode(deflated(4, 5000, 5000, len(data) - 8))
    assert caught.value.code == "corrupt"


def test_a_strip_is_inflated_little_beyond_its_size() -> None:
    tracemalloc.start()
    try:
        bomb = tiff_blocks._Block(zlib.compress(bytes(1 << 25)), 100)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        assert tiff_blocks._inflates(bomb, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1 << 20


def test_jpeg_blocks_of_a_tiff_have_the_limits_of_its_image() -> None:
    block = bytearray(scans(12))
    at = block.find(b"\xff\xc2")
    block[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    assert code_of(tiff_of(bytes(block), 64, 64)) == "too_large"


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def avif_with(*places: bytes) -> bytes:
    """Return the boxes of an AVIF whose first item has EXIF, with these `iloc` boxes."""
    size = box(b"ispe", struct.pack(">III", 0, 4, 3))
    kinds = [
        struct.pack(">IHH4s", 2 << 24, number, 0, kind)
        for number, kind in enumerate((b"av01", b"Exif"), 1)
    ]
    meta = box(
        b"meta",
        bytes(4),
        box(b"pitm", bytes(4), struct.pack(">H", 1)),
        box(b"iinf", struct.pack(">IH", 0, 2), *(box(b"infe", kind) for kind in kinds)),
        box(b"iprp", box(b"ipco", size), box(b"ipma", struct.pack(">IIHBB", 0, 1, 1, 1, 1))),
        *places,
    )
    return box(b"ftyp", b"avif", bytes(4), b"avif") + meta


def iloc(sizes: int, extents: bytes, count: int) -> bytes:
    """Return the places of the EXIF item."""
    return box(b"iloc", struct.pack(">IBBHHHH", 0, sizes, 0, 1, 2, 0, count), extents)


def test_extents_of_an_avif_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = struct.pack(">HH", 0, 8)
    assert read_header(avif_with(iloc(0x22, pair * 9, 9))).width == 4
    assert read_header(avif_with(iloc(0, b"", 1))).width == 4
    monkeypatch.setattr("ffd_runtime.image.formats.bmff.MAX_PARTS", 10)
    for places in (iloc(0, b"", 2), iloc(0, b"", 65_535), iloc(0x22, pair * 11, 11)):
        with pytest.raises(InputError, match="too many extents") as caught:
            read_header(avif_with(places))
        assert caught.value.code == "corrupt"


def test_the_boxes_of_an_avif_do_not_share_their_content() -> None:
    pair = struct.pack(">HH", 0, 8)
    with pytest.raises(InputError, match="the box iloc twice"):
        read_header(avif_with(iloc(0x22, pair, 1), iloc(0x22, pair, 1)))
    # A box reads nothing after its end.
    with pytest.raises(InputError, match="header ends early"):
        read_header(avif_with(iloc(0x22, pair, 2), box(b"free", bytes(100))))


def test_an_item_larger_than_its_file_is_corrupt() -> None:
    whole = struct.pack(">HH", 0, 200)
    assert read_header(avif_with(iloc(0x22, whole, 1), box(b"free", bytes(200)))).width == 4
    with pytest.raises(InputError, match="the places of its parts overlap") as caught:
        read_header(avif_with(iloc(0x22, whole * 50, 50), box(b"free", bytes(200))))
    assert caught.value.code == "corrupt"


def test_hevc_items_that_overlap_are_reported() -> None:
    config = box(b"hvcC", bytes(21) + b"\3")
    numbers = range(1, 41)
    infe = [box(b"infe", struct.pack(">IHH4s", 2 << 24, one, 0, b"hvc1")) for one in numbers]
    ipma = b"".join(struct.pack(">HBB", one, 1, 1) for one in numbers)

    def heif_with(spread: int) -> bytes:
        # Each item is one unit, from a place with a length of 1,000 bytes.
        places = [
            struct.pack(">HHHHH", one, 0, 1, 2000 + one % spread * 4, 1004) for one in numbers
        ]
        meta = box(
            b"meta",
            bytes(4),
            box(b"iinf", struct.pack(">IH", 0, len(infe)), *infe),
            box(b"iprp", box(b"ipco", config), box(b"ipma", struct.pack(">II", 0, 40), ipma)),
            box(b"iloc", struct.pack(">IBBH", 0, 0x22, 0, 40), *places),
        )
        units = struct.pack(">I", 1000) * 300
        return (box(b"ftyp", b"heic", bytes(4), b"heic") + meta).ljust(2000, b"\1") + units

    # Tiles with the same place are read once.
    assert "overlap" not in (bmff.find_damage(heif_with(1)) or "")
    assert "overlap" in (bmff.find_damage(heif_with(40)) or "")


def directories(pages: list[list[tuple[int, int, int]]], size: int) -> bytes:
    """Return a chain of directories, each an LONG entry (tag, count, value) with padding tags."""
    step = 2 + 12 * size + 4
    parts = [b"II*\0", struct.pack("<I", 8)]
    for number, page in enumerate(pages):
        padding = [(1000 + tag, 1, 0) for tag in range(size - len(page))]
        entries = [struct.pack("<HHII", tag, 4, *rest) for tag, *rest in [*page, *padding]]
        after = 8 + step * (number + 1) if number + 1 < len(pages) else 0
        parts += [struct.pack("<H", size), *entries, struct.pack("<I", after)]
    return b"".join(parts)


def test_entries_of_all_directories_of_a_tiff_are_limited() -> None:
    small = [(254, 1, 1), (256, 1, 4), (257, 1, 3)]
    assert read_header(directories([small] * 20, 1000)).width == 4
    with pytest.raises(InputError, match="too many entries") as caught:
        read_header(directories([small] * 50, 3000))
    assert caught.value.code == "corrupt"


def test_thumbnails_of_a_tiff_are_not_kept() -> None:
    sizes = [5, 9, 3] * 30
    small = [[(254, 1, 1), (256, 1, size), (257, 1, 3)] for size in sizes]
    small.insert(0, [(254, 1, 4), (256, 1, 20), (257, 1, 20)])
    data = directories(small, 1000)
    tracemalloc.start()
    try:
        page = tiff.find_page(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The largest that is not a mask. A directory takes 400 kB.
    assert page.area == 27
    assert peak < 3 << 20


def test_the_first_of_many_values_is_read_alone() -> None:
    directory = Directory("<", {277: (4, memoryview(b"\3\0\0\0" * 500_000))})
    tracemalloc.start()
    try:
        assert directory.number(277, 1) == 3
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 16


@pytest.mark.parametrize("form", ["HEIF", "WEBP"])
def test_zeros_instead_of_image_data_are_reported(form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = pillow(noisy(480, 320), form, quality=90)
    decode(data)
    for share in (0.3, 0.6):
        begin = round(share * len(data))
        assert code_of(damaged(data, begin, 600, "zeros")) == "corrupt"


@captured
def test_an_interrupted_wait_does_not_block_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may raise while a thread waits to decode alone."""
    own = DecoderMessages()
    assert own.available()

    def interrupt() -> None:
        raise TimeoutError("deadline")

    with own._decoding(False), monkeypatch.context() as patch:
        patch.setattr(own._changed, "wait", interrupt)
        with pytest.raises(TimeoutError, match="deadline"), own._decoding(True):
            pass
    assert own.run(lambda: 7, lambda *_: False) == (7, "")

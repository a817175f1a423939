"""Select the image of a file, and name unsupported files."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from ffd_runtime.core.errors import InputError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.image.decode import decode
from ffd_runtime.image.image_header import read_header

from .encoded import BGR, FORMATS, HEIGHT, WIDTH, pillow
from .tagged import Entry, orientation, tiff, tiff_page

RGB = BGR[..., ::-1]


def error_of(data: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        decode(data)
    return caught.value


def short(tag: int, value: int, order: str) -> Entry:
    return Entry(tag, 3, 1, value.to_bytes(2, "little" if order == "<" else "big"))


def long(tag: int, value: int, order: str) -> Entry:
    return Entry(tag, 4, 1, value.to_bytes(4, "little" if order == "<" else "big"))


CHILDREN = Entry(330, 4, 1, b"")
THUMBNAIL = np.full((6, 8, 3), 9, np.uint8)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("children", [False, True])
@pytest.mark.parametrize("reduced", [254, 255])
def test_the_full_image_after_a_thumbnail_is_classified(
    order: str, big: bool, children: bool, reduced: int
) -> None:
    mark = long(254, 1, order) if reduced == 254 else short(255, 2, order)
    first = tiff_page(8, 6, order, mark, *([CHILDREN] if children else []))
    full = tiff_page(WIDTH, HEIGHT, order, long(254, 0, order))
    data = tiff([first, full], [THUMBNAIL.tobytes(), RGB.tobytes()], order, big)
    assert (decode(data) == BGR).all()
    header = read_header(data)
    assert (header.width, header.height) == (WIDTH, HEIGHT)


def test_previews_and_masks_are_skipped() -> None:
    order = "<"
    first = tiff_page(8, 6, order, long(254, 1, order))
    mask = tiff_page(8, 6, order, long(254, 4, order))
    full = tiff_page(WIDTH, HEIGHT, order)
    strips = [THUMBNAIL.tobytes(), THUMBNAIL.tobytes(), RGB.tobytes()]
    assert (decode(tiff([first, mask, full], strips)) == BGR).all()


def test_a_child_has_the_orientation_of_its_parent() -> None:
    order = "<"
    first = tiff_page(8, 6, order, long(254, 1, order), CHILDREN, orientation(3, order))
    full = tiff_page(WIDTH, HEIGHT, order, long(254, 0, order))
    strips = [THUMBNAIL.tobytes(), RGB.tobytes()]
    assert (decode(tiff([first, full], strips)) == BGR[::-1, ::-1]).all()
    own = tiff_page(WIDTH, HEIGHT, order, long(254, 0, order), orientation(2, order))
    assert (decode(tiff([first, own], strips)) == BGR[:, ::-1]).all()


def test_the_first_of_several_pages_is_classified() -> None:
    pages = [tiff_page(WIDTH, HEIGHT), tiff_page(8, 6)]
    assert (decode(tiff(pages, [RGB.tobytes(), THUMBNAIL.tobytes()])) == BGR).all()


def test_a_tiff_of_thumbnails_only_shows_the_largest() -> None:
    order = "<"
    pages = [
        tiff_page(8, 6, order, long(254, 1, order)),
        tiff_page(WIDTH, HEIGHT, order, long(254, 1, order)),
    ]
    assert (decode(tiff(pages, [THUMBNAIL.tobytes(), RGB.tobytes()])) == BGR).all()


def test_cyclic_directories_are_read_once() -> None:
    data = bytearray(tiff([tiff_page(8, 6, "<", long(254, 1, "<"))], [THUMBNAIL.tobytes()]))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    data[first + 2 + 12 * count :][:4] = data[4:8]
    assert (decode(bytes(data)) == 9).all()


def test_a_tiff_with_strips_beyond_its_end_is_truncated() -> None:
    data = tiff([tiff_page(WIDTH, HEIGHT, "<", long(279, 1 << 20, "<"))], [RGB.tobytes()])
    assert error_of(data).code == "truncated"


def test_raw_data_of_cameras_is_unsupported() -> None:
    order = "<"
    first = tiff_page(8, 6, order, long(254, 1, order), CHILDREN)
    raw = tiff_page(WIDTH, HEIGHT, order, long(254, 0, order), photometric=32803)
    error = error_of(tiff([first, raw], [THUMBNAIL.tobytes(), RGB[..., 0].tobytes()]))
    assert error.code == "unsupported"
    assert "raw sensor data (a colour filter array): develop it to JPEG or PNG" in error.message


@pytest.mark.parametrize(
    ("compression", "name"), [("zstd", "Zstandard"), ("lzma", "LZMA"), ("webp", "WebP")]
)
def test_an_unsupported_compression_is_named(compression: str, name: str) -> None:
    try:
        data = pillow(form="TIFF", compression=compression)
    except (OSError, RuntimeError):
        pytest.skip(f"Pillow's libtiff does not write {name}")
    try:
        # The OpenCV of a system may support it.
        assert (decode(data) == BGR).all()
    except InputError as error:
        assert error.code == "unsupported"
        assert f"compressed with {name}: save it as PNG, or as TIFF with LZW" in error.message


@pytest.mark.parametrize("mode", ["F", "I"])
def test_tiff_samples_of_unknown_range_are_unsupported(mode: str) -> None:
    error = error_of(pillow(Pillow.new(mode, (8, 6), 1), "TIFF"))
    assert error.code == "unsupported"
    assert "save it with 8 or 16 bits a sample" in error.message


JXL = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (JXL, "unsupported", "a JPEG XL image"),
        (b"\xff\x0a\xfa\x1f", "unsupported", "a JPEG XL image"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "unsupported", "camera raw data"),
        (LFS, "not_an_image", "a Git LFS pointer instead of the file: run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s9--0.jpg\n", "not_an_image", "run `git annex get`"),
        (b"data:image/jpeg;base64,/9j/4AAQ", "not_an_image", "decode its base64 text"),
        (b'\xef\xbb\xbf{\n "error": {"code": 403}}', "not_an_image", "a text in JSON"),
        (b"\x1f\x8b\x08\0\0\0", "not_an_image", "a gzip file without a readable tar: unpack it"),
        (b"BZh91AY&SY\0", "not_an_image", "a bzip2 file without a readable tar: unpack it"),
        (b"\x28\xb5\x2f\xfd\4", "not_an_image", "a Zstandard file"),
        (b"7z\xbc\xaf\x27\x1c\0", "not_an_image", "a 7z file"),
        (b"Rar!\x1a\x07\1\0", "not_an_image", "a RAR file"),
        (b"<!DOCTYPE html><html>", "not_an_image", "an HTML page"),
        (b"\n <!-- x -->\n<HTML lang=en>", "not_an_image", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "not_an_image", "an HTML page"),
        ("\ufeff<html>".encode("utf-16-le"), "not_an_image", "an HTML page"),
        (b'<?xml version="1.0"?><!DOCTYPE html>', "not_an_image", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "not_an_image", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>", "not_an_image", "an error message in XML"),
        (b"%PDF-1.7", "not_an_image", "a PDF document"),
        (b"8BPS\0\1", "not_an_image", "a Photoshop document"),
        (
            b"\0\0\0\x18ftypmp42",
            "not_an_image",
            "instead of an image: classify videos in a separate run",
        ),
        (b"P7\nWIDTH 4\n", "not_an_image", "a PAM or PFM file"),
        (b"qoif\0\0\0\4", "not_an_image", "a QOI file"),
        (b"IIU\0\x18\0", "not_an_image", "camera raw data"),
        (b"ID3\4\0", "not_an_image", "a video or audio file"),
        (b"plain", "not_an_image", "not an image in a format that ffd reads"),
    ],
)
def test_other_files_are_named_in_the_error(data: bytes, code: str, message: str) -> None:
    for whole in (data, data + b" " * 500):
        error = error_of(whole)
        assert error.code == code
        assert message in error.message
        assert "\n" not in error.message


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_with_more_than_8_bits_is_unsupported(bits: int) -> None:
    data = bytearray(FORMATS["jpeg"])
    data[data.find(b"\xff\xc0") + 4] = bits
    error = error_of(bytes(data))
    assert (error.code, f"a {bits}-bit JPEG" in error.message) == ("unsupported", True)


def with_brands(data: bytes, major: bytes, *compatible: bytes) -> bytes:
    """Return the same image with other brands, at the same offsets."""
    size = int.from_bytes(data[:4], "big")
    names = [*compatible, *[compatible[-1]] * ((size - 16) // 4)][: (size - 16) // 4]
    return data[:8] + major + data[12:16] + b"".join(names) + data[size:]


@pytest.mark.parametrize("major", [b"avif", b"mif1", b"miaf", b"MA1B"])
def test_an_avif_is_recognised_by_any_of_its_brands(major: bytes) -> None:
    data = with_brands(FORMATS["avif"], major, b"avif", b"mif1", b"miaf")
    assert read_header(data).format == "avif"
    assert (decode(data) == decode(FORMATS["avif"])).all()


def test_an_animated_avif_gives_its_first_image() -> None:
    frames = [Pillow.fromarray(RGB), Pillow.fromarray(255 - RGB)]
    data = pillow(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=95)
    assert data[8:12] == b"avis"
    assert np.abs(decode(data).astype(int) - BGR).mean() < 20


def test_a_video_in_the_same_container_is_not_an_image() -> None:
    assert error_of(with_brands(FORMATS["avif"], b"isom", b"mp42")).code == "not_an_image"


@pytest.mark.parametrize("form", ["avif", "gif"])
@pytest.mark.parametrize("listed", ["    AVIF:   NO\n    GIF:   NO\n", "    JPEG:   YES\n"])
def test_a_format_without_support_in_opencv_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, form: str, listed: str
) -> None:
    monkeypatch.setattr("cv2.getBuildInformation", lambda: f"  Media I/O:\n{listed}")
    monkeypatch.setattr("cv2.imdecode", lambda data, flags: None)
    error = error_of(FORMATS[form])
    assert error.code == "unsupported"
    assert "install opencv-python 4.12 or later, or convert it" in error.message


def heic(value: int = 1, mode: str = "RGB") -> bytes:
    """Return a HEIC as phones write it, with rotation in the boxes of the container."""
    heif: Any = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    image = Pillow.fromarray(np.ascontiguousarray(RGB)).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    exif = Pillow.Exif()
    exif[0x0112] = value
    image.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=-1, chroma=444)
    return buffer.getvalue()


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_a_heic_is_read(brand: bytes) -> None:
    data = with_brands(heic(), brand, b"mif1", b"heic", b"miaf")
    header = read_header(data)
    assert (header.format, header.width, header.height) == ("heif", WIDTH, HEIGHT)
    assert np.abs(decode(data).astype(int) - BGR).mean() < 8


@pytest.mark.parametrize("value", range(1, 9))
def test_a_heic_has_the_orientation_of_pillow_heif(value: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    data = heic(value)
    shown = np.asarray(pillow_heif.open_heif(data, bgr_mode=True))
    image = decode(data)
    assert image.shape == shown.shape
    assert (image == shown).all()


def test_a_transparent_or_grey_heic_is_read() -> None:
    expected = (BGR * 128.0 + 255 * 127.0) / 255
    assert np.abs(decode(heic(mode="RGBA")) - expected).mean() < 8
    grey = decode(heic(mode="L"))
    assert grey.shape == (HEIGHT, WIDTH, 3)
    assert (grey == grey[..., :1]).all()


def test_a_damaged_or_large_heic_is_refused() -> None:
    data = heic()
    for cut in (data[:-10], data[: len(data) // 2], data[:60]):
        assert error_of(cut).code in ("truncated", "corrupt")
    damaged = data[:-40] + b"\xff" * 40
    with pytest.raises(InputError) as caught:
        decode(data, max_pixels=WIDTH * HEIGHT - 1)
    assert caught.value.code == "too_large"
    try:
        decode(damaged)
    except InputError as error:
        assert error.code in ("truncated", "corrupt")


def test_the_error_for_a_heic_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = error_of(data)
    assert error.code == "unsupported"
    assert error.message == (
        f"a HEIC image: {install_hint('heif')} to read it, or convert it to JPEG"
    )

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.image_header import ImageHeader, read_header

from .encoded import FORMATS, HEIGHT, WIDTH, pillow, rgba


@pytest.mark.parametrize("name", FORMATS)
def test_size_and_format_are_read(name: str) -> None:
    header = read_header(FORMATS[name])
    assert (header.width, header.height) == (WIDTH, HEIGHT)
    assert header.complete
    assert header.format in (
        name.split("-")[0],
        {"progressive": "jpeg", "bigtiff": "tiff"}.get(name),
    )


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "webp", "webp-lossless", "bmp"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_ends_early_is_recognised(name: str, share: float) -> None:
    data = FORMATS[name]
    assert not read_header(data[: int(len(data) * share)]).complete


def test_a_thumbnail_does_not_end_a_jpeg() -> None:
    thumbnail = FORMATS["jpeg"]
    whole = pillow(form="JPEG", exif=b"Exif\0\0" + thumbnail)
    assert read_header(whole).complete
    assert not read_header(whole[:-40]).complete


def test_data_after_a_jpeg_is_ignored() -> None:
    assert read_header(FORMATS["jpeg"] + b"\0" * 5000 + b"trailer").complete


def test_stray_bytes_between_markers_are_skipped() -> None:
    data = FORMATS["jpeg"]
    length = int.from_bytes(data[4:6], "big")
    stray = data[: 4 + length] + b"\0\0" + data[4 + length :]
    assert read_header(stray) == read_header(data)


def test_alpha_is_in_the_header() -> None:
    assert read_header(pillow(rgba())).alpha
    assert read_header(pillow(rgba(), "WEBP")).alpha
    assert read_header(pillow(rgba().quantize(8), transparency=0)).alpha
    assert not read_header(FORMATS["png"]).alpha


@pytest.mark.parametrize(
    "data",
    [
        b"plain text",
        b"\0" * 100,
        b"%PDF-1.7",
        b"\x7fELF",
        b"BA",
        b"BM is how this text begins, no more",
        b"P1 is a text",
        b"P6\n# comment\n",
    ],
)
def test_other_files_are_not_images(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        read_header(data)
    assert caught.value.code == "not_an_image"


def test_only_the_start_of_a_file_is_searched_for_a_pnm_header() -> None:
    data = b"P5" + b"\n" * (1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read_header(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == "not_an_image"
    assert peak < len(data)
    assert read_header(b"P5" + b"\n" * 4000 + b"4 3 255\n" + bytes(12)).width == 4


def test_an_empty_file_is_reported() -> None:
    with pytest.raises(InputError) as caught:
        read_header(b"")
    assert caught.value.code == "empty"


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_any_damage_gives_a_header_or_an_input_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FORMATS[name])
    for position in data.draw(st.lists(st.integers(0, min(len(damaged), 400) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        header = read_header(cut)
    except InputError as error:
        assert error.code in ("empty", "not_an_image", "truncated", "corrupt")
    else:
        assert isinstance(header, ImageHeader)
        assert header.width > 0
        assert header.height > 0

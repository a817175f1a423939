from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from ffd_runtime.core.errors import InputError
from ffd_runtime.image import decode as decode_module
from ffd_runtime.image.decode import MAX_FILE_BYTES, decode, read_file, to_bgr
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model.card import PreprocessSpec

from ..nightly import examples
from .encoded import BGR, FORMATS, HEIGHT, WIDTH, opencv, pillow, rgba


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        decode(data, **options)
    return caught.value.code


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("webp-alpha", "gif")])
def test_every_format_gives_the_same_image(name: str) -> None:
    image = decode(FORMATS[name])
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert abs(image.astype(int).mean((0, 1)) - BGR.mean((0, 1))).max() < 6


# Format, mode and options of files with an orientation.
TURNED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 100, "subsampling": 0}),
    "png": ("PNG", "RGB", {}),
    "png-alpha": ("PNG", "RGBA", {}),
    "webp": ("WEBP", "RGB", {"lossless": True}),
    "webp-alpha": ("WEBP", "RGBA", {"lossless": True}),
    "avif": ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}),
    "avif-alpha": ("AVIF", "RGBA", {"quality": 100, "subsampling": "4:4:4"}),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", TURNED)
def test_orientation_is_applied(name: str, orientation: int) -> None:
    form, mode, options = TURNED[name]
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    coloured = Pillow.fromarray(BGR[..., ::-1]).convert(mode)
    if mode == "RGBA":
        # Slightly transparent, so that no encoder drops the channel.
        coloured.putalpha(254)
    data = pillow(coloured, form, exif=exif, **options)
    shown = {
        1: BGR,
        2: cv2.flip(BGR, 1),
        3: cv2.rotate(BGR, cv2.ROTATE_180),
        4: cv2.flip(BGR, 0),
        5: cv2.transpose(BGR),
        6: cv2.rotate(BGR, cv2.ROTATE_90_CLOCKWISE),
        7: cv2.flip(cv2.transpose(BGR), -1),
        8: cv2.rotate(BGR, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }[orientation]
    image = decode(data)
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 8


def test_jpeg_2000_is_refused() -> None:
    assert code_of(pillow(form="JPEG2000")) == "not_an_image"


def test_grey_becomes_three_equal_channels() -> None:
    image = decode(pillow(Pillow.fromarray(BGR[..., 0])))
    assert (image == BGR[..., :1]).all()


def test_sixteen_bits_become_eight() -> None:
    image = decode(opencv(".png", BGR.astype(np.uint16) * 257))
    assert (image == BGR).all()


def test_cmyk_is_converted() -> None:
    cmyk = Pillow.fromarray(BGR[..., ::-1]).convert("CMYK")
    image = decode(pillow(cmyk, "JPEG", quality=95))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image.astype(int).mean((0, 1)) - BGR.mean((0, 1))).max() < 12


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_parts_are_blended_with_white(form: str) -> None:
    image = decode(pillow(rgba(), form, **({"lossless": True} if form == "WEBP" else {})))
    assert (image[5, 5] == (0, 0, 255)).all()
    assert (image[5, -5] == 255).all()


def test_alpha_blends_the_same_in_every_format() -> None:
    colours = Pillow.fromarray(BGR[..., ::-1]).convert("RGBA")
    colours.putalpha(128)
    expected = (BGR * 128.0 + 255 * 127.0) / 255
    for form in ("PNG", "WEBP", "TIFF"):
        image = decode(pillow(colours, form, **({"lossless": True} if form == "WEBP" else {})))
        assert np.abs(image - expected).max() < 2, form


@pytest.mark.parametrize("depth", [8, 10, 12])
def test_avif_of_any_depth_is_blended(depth: int) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, ::2] = 128
    levels: Any = np.dstack([BGR, alpha]).astype(np.uint16 if depth > 8 else np.uint8)
    options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100]
    ok, data = cv2.imencode(".avif", levels << (depth - 8), options)
    assert ok
    image = decode(data.tobytes())
    assert np.abs(image[:, 1::2].astype(int) - BGR[:, 1::2]).mean() < 20
    assert image[:, ::2].mean() > image[:, 1::2].mean() + 40


def test_blending_a_large_image_needs_little_memory() -> None:
    import tracemalloc

    from ffd_runtime.image.decode import _on_white

    image = np.zeros((2000, 2000, 4), np.uint8)
    tracemalloc.start()
    _on_white(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes


DECODED_16_BITS = """
import resource, sys
from ffd_runtime.image.decode import decode, read_file
data = read_file(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_decoding_16_bits_with_alpha_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(opencv(".png", np.zeros((2000, 2000, 4), np.uint16)))
    done = subprocess.run(
        [sys.executable, "-c", DECODED_16_BITS, str(path)], capture_output=True, text=True
    )
    # The decoded image and a copy in 8 bits, of 8 and 4 bytes for each pixel.
    assert int(done.stdout) << 10 < 13.5 * 2000 * 2000, done


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = opencv(".png", np.zeros((60, 60, 3), np.uint8)), opencv(".png")
    reduced = opencv(".jpg", np.zeros((640, 640, 3), np.uint8))
    running: list[bool] = []
    real = cv2.imdecode

    def imdecode(*arguments: Any) -> Any:
        running.append(decode_module._decoding_large.locked())
        return real(*arguments)

    monkeypatch.setattr(decode_module, "MAX_PARALLEL_PIXELS", WIDTH * HEIGHT)
    monkeypatch.setattr(cv2, "imdecode", imdecode)
    decode(large)
    decode(small)
    decode(reduced, at_least=80)
    decode(reduced)
    assert running == [True, False, False, True]
    assert not decode_module._decoding_large.locked()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_of_unknown_range_are_unsupported(kind: type, channels: int) -> None:
    array: Any = np.zeros((8, 9, channels), kind)
    try:
        data = opencv(".tiff", array)
    except (cv2.error, AssertionError):
        pytest.skip("OpenCV does not write such a file")
    with pytest.raises(InputError, match="32-bit .* numbers: save it with 8 or 16") as caught:
        decode(data)
    assert caught.value.code == "unsupported"


def test_a_palette_with_transparency_is_blended() -> None:
    colours = Pillow.fromarray(np.repeat([[0, 1]], 20, 0).astype(np.uint8).repeat(10, 1))
    colours = colours.convert("P")
    colours.putpalette([0, 0, 0, 255, 0, 0])
    image = decode(pillow(colours, transparency=0))
    assert (image[5, 2] == 255).all()
    assert (image[5, -2] == (0, 0, 255)).all()


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "webp", "bmp", "tiff", "avif"])
def test_half_a_file_is_truncated(name: str) -> None:
    data = FORMATS[name]
    assert code_of(data[: len(data) // 2]) in ("truncated", "corrupt")


def test_a_decompression_bomb_is_refused_before_decoding() -> None:
    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b""))
    )
    assert code_of(b"\x89PNG\r\n\x1a\n" + chunks) == "too_large"


def test_the_pixel_limit_can_be_set() -> None:
    assert code_of(FORMATS["jpeg"], max_pixels=WIDTH * HEIGHT - 1) == "too_large"
    assert decode(FORMATS["jpeg"], max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)


def test_an_image_may_have_one_pixel() -> None:
    assert decode(pillow(Pillow.new("RGB", (1, 1), (9, 8, 7)))).tolist() == [[[7, 8, 9]]]


@settings(deadline=None, max_examples=examples(300))
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_any_damage_gives_an_image_or_an_input_error(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FORMATS[name])
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        image = decode(cut, max_pixels=1_000_000)
    except InputError as error:
        assert error.code in InputError.CODES
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    huge = tmp_path / "huge.jpg"
    huge.touch()
    os.truncate(huge, MAX_FILE_BYTES + 1)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    broken = tmp_path / "broken"
    broken.symlink_to(tmp_path / "nowhere")
    for path, code in (
        (pipe, "not_a_file"),
        (tmp_path, "not_a_file"),
        (huge, "too_large"),
        (loop, "link_loop"),
        (broken, "not_found"),
        (tmp_path / "absent", "not_found"),
        (tmp_path / ("x" * 300), "not_found"),
        ("a\0b", "not_found"),
    ):
        with pytest.raises(InputError) as caught:
            read_file(path)
        assert caught.value.code == code


def test_arrays_become_bgr() -> None:
    assert (to_bgr(BGR) == BGR).all()
    assert (to_bgr(BGR[..., 0])[..., 1] == BGR[..., 0]).all()
    assert (to_bgr(BGR[..., :1])[..., 1] == BGR[..., 0]).all()
    assert (to_bgr(BGR.astype(np.uint16) << 8) == BGR).all()
    transparent = np.dstack([BGR, np.zeros_like(BGR[..., 0])])
    assert (to_bgr(transparent) == 255).all()
    for wrong in (
        BGR.astype(float),
        BGR[None],
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((2, 2, 2), np.uint8),
    ):
        with pytest.raises(ValueError, match="image must"):
            to_bgr(wrong)


def large_jpeg(width: int, height: int, **options: Any) -> bytes:
    """A smooth image, which a reduced decode shows as well as a full one."""
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (height // 64, width // 64, 3), np.uint8)
    return pillow(
        Pillow.fromarray(small).resize((width, height), Pillow.Resampling.BICUBIC),
        "JPEG",
        quality=92,
        **options,
    )


@pytest.mark.parametrize(
    ("side", "factor"), [(1195, 1), (1196, 2), (2391, 2), (2392, 4), (4783, 4), (4784, 8)]
)
def test_a_reduced_jpeg_keeps_the_required_pixels(side: int, factor: int) -> None:
    data = large_jpeg(side, side + 300)
    image = decode(data, at_least=598)
    assert image.shape == (-(-(side + 300) // factor), -(-side // factor), 3)
    assert min(image.shape[:2]) >= 598
    assert decode(data).shape == (side + 300, side, 3)


def test_a_reduced_decode_shows_the_same_image() -> None:
    for orientation in (1, 6):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        data = large_jpeg(2000, 1400, exif=exif)
        whole = preprocess(decode(data), PreprocessSpec())
        reduced = preprocess(decode(data, at_least=598), PreprocessSpec())
        assert np.abs(whole.astype(int) - reduced).mean() < 1.5


def test_only_jpegs_are_reduced() -> None:
    data = pillow(Pillow.new("RGB", (1300, 1300)), "PNG")
    assert decode(data, at_least=100).shape == (1300, 1300, 3)


SQUEEZED = """
import resource, sys
import cv2, numpy as np
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.core.errors import InputError
cv2.setNumThreads(1)
image = cv2.imencode(".png", np.zeros((6000, 6000, 3), np.uint8))[1].tobytes()
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
assert len(read_file(sys.argv[1])) == 5
try:
    decode(image)
except InputError as error:
    print(error.code, error.message)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_low_memory_is_not_reported_as_damage(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    done = subprocess.run(
        [sys.executable, "-c", SQUEEZED, str(tmp_path / "small")], capture_output=True, text=True
    )
    assert done.stdout == "too_large not enough memory to decode it\n", done.stderr

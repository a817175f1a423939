"""ffd-run gives a valid file of any format the verdict of the same image saved as PNG."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image as Pillow
from PIL import ImageOps, features

from ffd_runtime.cli.run import main

from ..models import CARD, save_sided_model
from ..nightly import repeat
from .in_process import invoke

# At least three files of each format by day.
FILES = repeat(150, 300)
# Largest |Δp|. Decoders may round chroma and inverse transforms differently.
LOSSY = 0.02
LOSSLESS = 2e-6

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Kind:
    """A file format.

    Attributes:
        ending: suffix of the file name.
        encode: encodes an image, uint8 [height, width, 3], RGB.
        tolerance: largest |Δp|.
        show: decodes the file as a viewer shows it, RGB; None for Pillow's result.
    """

    ending: str
    encode: Callable[[Pixels], bytes]
    tolerance: float = LOSSLESS
    show: Callable[[bytes], Pixels] | None = None


def pillow(pixels: Pixels, form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def turned(pixels: Pixels, form: str, orientation: int, **options: Any) -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return pillow(pixels, form, exif=exif.tobytes(), **options)


def transparent(pixels: Pixels, form: str, **options: Any) -> bytes:
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[: len(alpha) // 4] = np.linspace(0, 255, pixels.shape[1]).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(np.dstack([pixels, alpha])).save(file, form, **options)
    return file.getvalue()


def opencv(pixels: Pixels, ending: str, bits: int = 8, *options: int) -> bytes:
    bgr: Any = np.ascontiguousarray(pixels[..., ::-1])
    if bits == 16:
        bgr = bgr.astype(np.uint16) * 257
    done, data = cv2.imencode(ending, bgr, options)
    assert done
    return data.tobytes()


def seen(data: bytes) -> Pixels:
    """Decode with Pillow, apply the EXIF orientation, and put transparent parts on white."""
    image = ImageOps.exif_transpose(Pillow.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, "white")
        image = Pillow.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def seen_by_opencv(data: bytes) -> Pixels:
    """Decode the upper 8 of 16 bits, which Pillow does not support for colour."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image[..., ::-1], np.uint8)


def reads(data: bytes) -> bool:
    """Return whether OpenCV was built with a decoder for a file."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def cut_animation(pixels: Pixels) -> bytes:
    """Encode a GIF and truncate it in its second frame."""
    frames = [Pillow.fromarray(frame).convert("P") for frame in (pixels, pixels[::-1])]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    first = pillow(pixels, "GIF", mode="P")
    return file.getvalue()[: (len(first) + len(file.getvalue())) // 2]


def transparent_gif(pixels: Pixels) -> bytes:
    """A GIF whose most frequent colour is transparent."""
    histogram = Pillow.fromarray(pixels).convert("P").histogram()
    return pillow(pixels, "GIF", mode="P", transparency=histogram.index(max(histogram)))


def animated_png(pixels: Pixels) -> bytes:
    """An animation that does not contain the default image."""
    frames = [Pillow.fromarray(255 - pixels)]
    return pillow(pixels, "PNG", save_all=True, default_image=True, append_images=frames)


def ppm_of_7_bits(pixels: Pixels) -> bytes:
    height, width = pixels.shape[:2]
    return f"P6 {width} {height} 127\n".encode() + (pixels >> 1).tobytes()


def heic(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Pillow.fromarray(pixels)).save(file, quality=95)
    return file.getvalue()


def seen_in_heic(data: bytes) -> Pixels:
    return np.asarray(pillow_heif.open_heif(data, convert_hdr_to_8bit=True).to_pillow())


# A new file format is one line here.
KINDS = {
    "jpeg": Kind(".jpg", partial(pillow, form="JPEG", quality=95), LOSSY),
    "jpeg-420": Kind(".jpeg", partial(pillow, form="JPEG", quality=80, subsampling=2), LOSSY),
    "jpeg-progressive": Kind(".jpg", partial(pillow, form="JPEG", progressive=True), LOSSY),
    "jpeg-restarts": Kind(".JPG", partial(pillow, form="JPEG", restart_marker_rows=1), LOSSY),
    "jpeg-cmyk": Kind(".jpg", partial(pillow, form="JPEG", mode="CMYK", quality=95), LOSSY),
    "jpeg-grey": Kind(".jpg", partial(pillow, form="JPEG", mode="L"), LOSSY),
    **{
        f"jpeg-turned-{turn}": Kind(".jpg", partial(turned, form="JPEG", orientation=turn), LOSSY)
        for turn in range(2, 9)
    },
    "jpeg-without-end": Kind(
        ".jpg", lambda p: pillow(p, "JPEG")[:-2], LOSSY, lambda data: seen(data + b"\xff\xd9")
    ),
    "png": Kind(".png", partial(pillow, form="PNG")),
    "png-with-tail": Kind(".png", lambda p: pillow(p, "PNG") + bytes(100_000)),
    "png-16": Kind(".png", partial(opencv, ending=".png", bits=16), show=seen_by_opencv),
    "png-grey": Kind(".png", partial(pillow, form="PNG", mode="L")),
    "png-grey-alpha": Kind(".png", partial(pillow, form="PNG", mode="LA")),
    "png-palette": Kind(".png", partial(pillow, form="PNG", mode="P")),
    "png-alpha": Kind(".png", partial(transparent, form="PNG"), LOSSY),
    "png-turned": Kind(".png", partial(turned, form="PNG", orientation=6)),
    "webp": Kind(".webp", partial(pillow, form="WEBP", quality=90), LOSSY),
    "webp-lossless": Kind(".webp", partial(pillow, form="WEBP", lossless=True)),
    "webp-alpha": Kind(".webp", partial(transparent, form="WEBP", lossless=True), LOSSY),
    "webp-turned": Kind(".webp", partial(turned, form="WEBP", orientation=8, lossless=True)),
    "bmp": Kind(".bmp", partial(pillow, form="BMP")),
    "bmp-palette": Kind(".dib", partial(pillow, form="BMP", mode="P")),
    "tiff": Kind(".tif", partial(pillow, form="TIFF")),
    "tiff-lzw": Kind(".tiff", partial(pillow, form="TIFF", compression="tiff_lzw")),
    "tiff-grey": Kind(".tif", partial(pillow, form="TIFF", mode="L")),
    "gif": Kind(".gif", partial(pillow, form="GIF", mode="P")),
    "gif-cut": Kind(".gif", cut_animation),
    "gif-transparent": Kind(".gif", transparent_gif),
    "png-animated": Kind(".png", animated_png),
    "heic": Kind(".heic", heic, LOSSY, seen_in_heic),
    "ppm": Kind(".ppm", partial(pillow, form="PPM")),
    "pgm": Kind(".pgm", partial(pillow, form="PPM", mode="L")),
    "ppm-127": Kind(".ppm", ppm_of_7_bits, LOSSY),
}
ANIMATIONS = ("gif-cut", "png-animated")
if features.check("avif") and reads(pillow(np.zeros((16, 16, 3), np.uint8), "AVIF")):
    KINDS["avif"] = Kind(".avif", partial(pillow, form="AVIF", quality=90), LOSSY)
    KINDS["avif-mif1"] = Kind(
        ".avif",
        lambda p: pillow(p, "AVIF", quality=90).replace(b"ftypavif", b"ftypmif1", 1),
        LOSSY,
        lambda data: seen(data.replace(b"ftypmif1", b"ftypavif", 1)),
    )


def portrait(number: int) -> Pixels:
    """Draw a smooth ellipse, like a head, on a smooth background, RGB.

    Images have different sizes. The difference of red and blue changes from side to side, and is so
    small that scores are neither 0 nor 1.
    """
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(40, 120, 2))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    head = np.exp(-(((x / rng.uniform(0.4, 0.7)) ** 2 + (y / rng.uniform(0.5, 0.8)) ** 2) ** 2))
    wall = np.sin(rng.uniform(1, 3) * x + rng.uniform(0, 6)) * np.cos(2 * y)
    light = 120 + 50 * head + 20 * wall
    tint = rng.uniform(-5, 5) + 8 * x - 6 * y
    image = np.dstack([light + tint, light, light - tint])
    return image.clip(0, 255).round().astype(np.uint8)


def run(folder: Path, model: Path) -> list[dict[str, Any]]:
    done = invoke(main, "ffd-run", folder, "--model", model, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_mixed_files_have_the_verdicts_of_their_png_copies(tmp_path: Path) -> None:
    model = save_sided_model(tmp_path / "sided.onnx")
    mixed, plain = tmp_path / "mixed", tmp_path / "plain"
    mixed.mkdir()
    plain.mkdir()
    names = list(islice(cycle(KINDS), FILES))
    for number, name in enumerate(names):
        kind = KINDS[name]
        data = kind.encode(portrait(number))
        (mixed / f"{number:03}-{name}{kind.ending}").write_bytes(data)
        Pillow.fromarray((kind.show or seen)(data)).save(plain / f"{number:03}.png")
    rows, expected = run(mixed, model), run(plain, model)
    assert len(rows) == len(expected) == FILES
    assert {row["label"] for row in expected} == {"generated", "groundtruth", "unsure"}
    for name, row, want in zip(names, rows, expected, strict=True):
        assert row["error"] is None, (name, row)
        far = abs(row["score"] - want["score"])
        assert far <= KINDS[name].tolerance, (name, row["score"], want["score"])
        if name in ANIMATIONS and want["label"] == "groundtruth":
            assert (row["label"], row["reason"]) == ("unsure", "animation"), name
            continue
        edge = min(abs(want["score"] - score) for score in CARD.unsure)
        assert row["label"] == want["label"] or edge <= far, (name, row["score"], want["score"])

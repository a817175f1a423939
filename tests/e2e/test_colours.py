"""Colours are those that a real browser shows."""

from __future__ import annotations

import base64
from pathlib import Path

from ffd_runtime.image.formats.icc import SRGB

from ..runtime.test_colour_codes import (
    HIDDEN,
    IGNORED,
    PLAIN,
    TABLES,
    USUAL,
    avif,
    codes,
    distance,
    gamma,
    png,
    points,
    shown,
)
from .browser import Browser

PRIMARIES = (1, 4, 5, 6, 7, 9, 10, 11, 12, 22)
CURVES = (4, 5, 7, 8, 17)
# Files that need the whole conversion.
CONVERTED = {
    **{f"gamma {value}": png(gamma(value)) for value in (0.01, 0.3, 0.5, 1, 2, 10)},
    "white": png(USUAL + points((0.44757, 0.40745, *SRGB[2:]))),
    **{f"png {one}/13": png(codes(one, 13)) for one in PRIMARIES},
    **{f"png 1/{one}": png(codes(1, one)) for one in CURVES},
    **{f"avif {one}/13": avif(one, 13) for one in PRIMARIES},
    **{f"avif 1/{one}": avif(1, one) for one in CURVES},
    "avif 12/1": avif(12, 1),
    # One of two codes is unspecified.
    **{f"avif {one}/{other}": avif(one, other) for one, other in ((12, 2), (2, 4), (2, 8))},
    **TABLES,
    **{name: data for name, (data, _) in IGNORED.items()},
    # Beyond white, where HDR is clipped. Chromium shows darker HDR colours darker.
    "png 9/16": png(codes(9, 16)),
}
READ_COLOURS = """
const read = async address => {
  const image = new Image();
  image.src = address;
  await image.decode();
  const context = document.createElement("canvas").getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(12, 12, 1, 1).data.slice(0, 3)];
};
return Promise.all(%r.map(read));
"""


def test_a_browser_shows_the_same_colours(browser: Browser, tmp_path: Path) -> None:
    files = {**HIDDEN, **PLAIN, **CONVERTED}
    types = {b"\x89P": "png", b"BM": "bmp", b"\xff\xd8": "jpeg"}
    addresses = [
        f"data:image/{types.get(data[:2], 'avif')};base64,{base64.b64encode(data).decode()}"
        for data in files.values()
    ]
    (tmp_path / "page.html").write_text("<!doctype html>")
    browser.open(tmp_path / "page.html", 800, "light")
    colours = browser.evaluate(READ_COLOURS % addresses)
    pairs = {
        name: (shown(files[name]), tuple(colour))
        for name, colour in zip(files, colours, strict=True)
    }
    assert {name: pair for name, pair in pairs.items() if distance(*pair) > 2} == {}

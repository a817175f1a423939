"""The recipe of augmentation: what may happen to a training picture, how often and how much.

A recipe is read from TOML (`recipe.toml` is the default), is kept in a run's settings, and draws
from an explicit random generator, so that (seed, epoch, draw) repeats a picture exactly.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ffd_runtime.core.errors import DataError
from ffd_runtime.image.decode import Image

from . import launder
from .pseudo_fake import imitate_generator

Range = tuple[float, float]
Generator = np.random.Generator

# The table that holds what only some pictures go through.
LAUNDERING = "laundering"
# The table that turns photographs into pseudo-fakes, which are of the class generated.
PSEUDO_FAKE = "pseudo_fake"


@dataclass(frozen=True)
class Change:
    """One line of a recipe.

    Attributes:
        name: key of `CHANGES`, or `PSEUDO_FAKE`.
        probability: 0 to 1.
        ranges: low and high of each of the change's values, in the order of its parameters.
    """

    name: str
    probability: float
    ranges: tuple[Range, ...] = ()

    def __call__(self, image: Image, rng: Generator) -> Image:
        """The image, changed or not."""
        if rng.random() >= self.probability:
            return image
        return _FUNCTIONS[self.name](image, rng, *self.ranges)


@dataclass(frozen=True)
class Recipe:
    """What may happen to a training picture, in order.

    Attributes:
        changes: to any picture.
        laundered: share of the pictures that then go through `laundering`.
        laundering: what may happen to those.
        pseudo_fake: what turns a photograph into a pseudo-fake, before the rest; None for nothing.

    Example:
        >>> recipe = Recipe.default()
        >>> image = recipe(np.zeros((64, 64, 3), np.uint8), np.random.default_rng((0, 1, 2)))
    """

    changes: tuple[Change, ...] = ()
    laundered: float = 0.0
    laundering: tuple[Change, ...] = ()
    pseudo_fake: Change | None = None

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Augment one picture.

        Args:
            image: uint8 [H, W, 3], BGR; not changed.
            rng: the only source of chance.

        Returns:
            uint8 [h, w, 3], BGR, C-contiguous; of another size after a crop or a screenshot.
        """
        for change in self.changes:
            image = change(image, rng)
        if rng.random() < self.laundered:
            for change in self.laundering:
                image = change(image, rng)
        return np.ascontiguousarray(image)

    def fake(self, photograph: Image, rng: Generator) -> Image | None:
        """A pseudo-fake of a photograph, to be labelled generated; None to leave it as it is.

        Args:
            photograph: uint8 [H, W, 3], BGR; not changed.
            rng: the only source of chance; untouched by a recipe without pseudo-fakes.
        """
        if self.pseudo_fake is None:
            return None
        made = self.pseudo_fake(photograph, rng)
        return None if made is photograph else made

    @classmethod
    def default(cls) -> Recipe:
        """The one that ffd-train uses unless it is given another."""
        return cls.packaged("recipe")

    @classmethod
    def packaged(cls, name: str) -> Recipe:
        """One of those that stand beside this module; `name` of its file, without `.toml`."""
        return _packaged(name)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe from a TOML file.

        Raises:
            DataError: it cannot be read, or is no recipe; the message names the table.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise DataError(f"recipe {path}: {reason}") from None
        except DataError as error:
            raise DataError(f"recipe {path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe from TOML; errors as `load`."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"this is no TOML: {error}") from None
        return cls.from_tables(tables)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Recipe:
        """A recipe from the tables that TOML or `to_tables` gives; errors as `load`."""
        laundering = dict(_require_table(LAUNDERING, tables.get(LAUNDERING, {"probability": 0.0})))
        share = _probability(LAUNDERING, laundering)
        del laundering["probability"]
        special = (LAUNDERING, PSEUDO_FAKE)
        changes = {name: table for name, table in tables.items() if name not in special}
        fake = tables.get(PSEUDO_FAKE)
        return cls(
            tuple(_change(name, name, table) for name, table in changes.items()),
            share,
            tuple(_change(f"{LAUNDERING}.{n}", n, table) for n, table in laundering.items()),
            None if fake is None else _parse_change(PSEUDO_FAKE, PSEUDO_FAKE, fake),
        )

    def to_tables(self) -> dict[str, Any]:
        """As `from_tables` reads it; JSON can hold it."""
        fake = {} if self.pseudo_fake is None else {PSEUDO_FAKE: _table(self.pseudo_fake)}
        return {
            **fake,
            **{change.name: _table(change) for change in self.changes},
            LAUNDERING: {
                "probability": self.laundered,
                **{change.name: _table(change) for change in self.laundering},
            },
        }


@cache
def _packaged(name: str) -> Recipe:
    text = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return Recipe.parse(text)


def _change(where: str, name: str, table: Any) -> Change:
    if name not in CHANGES:
        raise DataError(f"[{where}] is unknown: use {', '.join(CHANGES)}")
    return _parse_change(where, name, table)


def _parse_change(where: str, name: str, table: Any) -> Change:
    table = dict(_require_table(where, table))
    probability = _probability(where, table)
    del table["probability"]
    wanted = list(inspect.signature(_FUNCTIONS[name]).parameters)[2:]
    if sorted(table) != sorted(wanted):
        raise DataError(f"[{where}] needs {', '.join(['probability', *wanted])}, and no more")
    return Change(name, probability, tuple(_range(where, key, table[key]) for key in wanted))


def _require_table(where: str, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise DataError(f"[{where}] must be a table with a probability")
    return table


def _probability(where: str, table: Mapping[str, Any]) -> float:
    value = table.get("probability")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"[{where}] needs a probability from 0 to 1")
    return float(value)


def _range(where: str, key: str, value: Any) -> Range:
    least, most = LIMITS[key]
    if not isinstance(value, list) or [type(end) in (int, float) for end in value] != [True] * 2:
        raise DataError(f"[{where}] {key} must be [low, high]") from None
    low, high = value
    if not least <= low <= high <= most:
        raise DataError(f"[{where}] {key} must be [low, high] within {least:g} and {most:g}")
    return float(low), float(high)


def _table(change: Change) -> dict[str, Any]:
    wanted = list(inspect.signature(_FUNCTIONS[change.name]).parameters)[2:]
    ranges = {key: list(ends) for key, ends in zip(wanted, change.ranges, strict=True)}
    return {"probability": change.probability, **ranges}


def crop(image: Image, rng: Generator, side: Range) -> Image:
    """A square part; its side as a fraction of the picture's shorter one."""
    height, width = image.shape[:2]
    length = max(1, round(min(height, width) * rng.uniform(*side)))
    top = int(rng.integers(0, height - length + 1))
    left = int(rng.integers(0, width - length + 1))
    return image[top : top + length, left : left + length]


def horizontal_flip(image: Image, rng: Generator) -> Image:
    """Left becomes right."""
    return image[:, ::-1]


def vertical_flip(image: Image, rng: Generator) -> Image:
    """Up becomes down."""
    return image[::-1]


def jitter(
    image: Image,
    rng: Generator,
    brightness: Range,
    contrast: Range,
    balance: Range,
    saturation: Range,
) -> Image:
    """Brightness (levels added), contrast around the middle, balance of channels, saturation."""
    gain = rng.uniform(*contrast) * rng.uniform(*balance, size=3)
    levels = (np.arange(256)[:, None] - 128) * gain + 128 + rng.uniform(*brightness)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[None]
    coloured = cv2.LUT(np.ascontiguousarray(image), table)
    grey = cv2.cvtColor(cv2.cvtColor(coloured, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    colour = rng.uniform(*saturation)
    return np.asarray(cv2.addWeighted(coloured, colour, grey, 1 - colour, 0), np.uint8)


def gamma(image: Image, rng: Generator, exponent: Range) -> Image:
    """Levels to a power."""
    return launder.gamma(np.ascontiguousarray(image), rng.uniform(*exponent))


def blur(image: Image, rng: Generator, sigma: Range) -> Image:
    """Gaussian blur; sigma in pixels."""
    return launder.blur(np.ascontiguousarray(image), rng.uniform(*sigma))


def noise(image: Image, rng: Generator, deviation: Range) -> Image:
    """Gaussian noise; deviation in levels."""
    return launder.noise(image, rng.uniform(*deviation), rng)


def rescale(image: Image, rng: Generator, factor: Range) -> Image:
    """Down by one kernel; up again by another, or left small."""
    kernels = list(launder.KERNELS)
    down = kernels[int(rng.integers(len(kernels)))]
    up = [*kernels, None][int(rng.integers(len(kernels) + 1))]
    return launder.rescale(np.ascontiguousarray(image), rng.uniform(*factor), down, up)


def resize(image: Image, rng: Generator, pixels: Range) -> Image:
    """Resize the shorter side to a length in pixels, drawn evenly on a logarithmic scale.

    Data sets store each source at a side of its own, which a network can learn instead of the face.
    """
    kernels = list(launder.KERNELS)
    kernel = kernels[int(rng.integers(len(kernels)))]
    side = float(np.exp(rng.uniform(*np.log(pixels))))
    factor = side / min(image.shape[:2])
    return launder.rescale(np.ascontiguousarray(image), factor, kernel, None)


def screenshot(image: Image, rng: Generator, zoom: Range, border: Range, quality: Range) -> Image:
    """Zoomed, in a frame of one colour, compressed."""
    above, below, left, right = rng.uniform(*border, size=4).tolist()
    if max(image.shape[:2]) * zoom[1] * (1 + 2 * border[1]) > launder.LONGEST["jpeg"]:
        return image
    # Viewers are dark or light far more often than coloured.
    grey = int(rng.choice((0, 18, 32, 240, 255)))
    return launder.screenshot(
        np.ascontiguousarray(image),
        rng.uniform(*zoom),
        (above, below, left, right),
        (grey, grey, grey),
        _whole(rng, quality),
    )


def jpeg(image: Image, rng: Generator, quality: Range) -> Image:
    """JPEG by OpenCV or Pillow; Pillow's with any subsampling."""
    drawn = _whole(rng, quality)
    if max(image.shape[:2]) > launder.LONGEST["jpeg"]:
        return image
    image = np.ascontiguousarray(image)
    if rng.random() < 0.5:
        return launder.jpeg(image, drawn)
    subsampling = ("4:4:4", "4:2:2", "4:2:0")[int(rng.integers(3))]
    return launder.jpeg_by_pillow(image, drawn, subsampling)


def webp(image: Image, rng: Generator, quality: Range) -> Image:
    """Lossy WebP."""
    if max(image.shape[:2]) > launder.LONGEST["webp"]:
        return image
    return launder.webp(np.ascontiguousarray(image), _whole(rng, quality))


def _whole(rng: Generator, ends: Range) -> int:
    return int(rng.integers(round(ends[0]), round(ends[1]) + 1))


# What a recipe may name; parameters after the generator are the ranges it must give.
CHANGES: dict[str, Callable[..., Image]] = {
    function.__name__: function
    for function in (
        crop,
        horizontal_flip,
        vertical_flip,
        jitter,
        gamma,
        blur,
        rescale,
        resize,
        noise,
        screenshot,
        jpeg,
        webp,
    )
}

_FUNCTIONS: dict[str, Callable[..., Image]] = {**CHANGES, PSEUDO_FAKE: imitate_generator}

# Of every range, by its name.
LIMITS: dict[str, Range] = {
    "side": (0.05, 1.0),
    "brightness": (-255.0, 255.0),
    "contrast": (0.0, 10.0),
    "balance": (0.0, 10.0),
    "saturation": (0.0, 10.0),
    "exponent": (0.05, 20.0),
    "sigma": (0.01, 100.0),
    "deviation": (0.0, 255.0),
    "factor": (0.01, 1.0),
    "pixels": (8.0, 4096.0),
    "zoom": (0.05, 8.0),
    "border": (0.0, 2.0),
    "quality": (1.0, 100.0),
    "stride": (2.0, 32.0),
    "detail": (0.0, 1.0),
}

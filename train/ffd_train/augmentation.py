"""The augmentation pipeline: random changes to training images, read from a TOML recipe.

`recipe.toml` is the default. A run stores its pipeline in its settings. All random numbers come
from an explicit generator, so that (seed, epoch, draw) reproduces an image exactly.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import cv2
import numpy as np

from ffd_runtime.core.errors import DataError
from ffd_runtime.image.decode import Image

from . import launder
from .pseudo_fake import Range, imitate_generator

# The annotation of a parameter holds the lowest and highest valid value.
Factor = Annotated[Range, 0, 10]
Quality = Annotated[Range, 1, 100]
Generator = np.random.Generator

# The table of augmentations that apply only to a share of the images.
LAUNDERING = "laundering"
# The table of the augmentation that turns photographs into pseudo-fakes, labelled generated.
PSEUDO_FAKE = "pseudo_fake"


@dataclass(frozen=True)
class Augmentation:
    """One augmentation with its probability and ranges.

    Attributes:
        name: key of `AUGMENTATIONS`, or `PSEUDO_FAKE`.
        probability: probability of applying it, 0 to 1.
        ranges: (low, high) of each parameter, in the order of the function's parameters.
    """

    name: str
    probability: float
    ranges: tuple[Range, ...] = ()

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Apply the augmentation with its probability; otherwise return the same image."""
        if rng.random() >= self.probability:
            return image
        return _find_function(self.name)(image, rng, *self.ranges)


@dataclass(frozen=True)
class AugmentationPipeline:
    """A sequence of random augmentations.

    Attributes:
        augmentations: augmentations of all images, in order.
        laundering_share: share of the images to which `laundering` is applied afterwards.
        laundering: augmentations of this share.
        pseudo_fake: turns photographs into pseudo-fakes before the rest; None to disable.

    Example:
        >>> pipeline = AugmentationPipeline.default()
        >>> image = pipeline(np.zeros((64, 64, 3), np.uint8), np.random.default_rng((0, 1, 2)))
    """

    augmentations: tuple[Augmentation, ...] = ()
    laundering_share: float = 0.0
    laundering: tuple[Augmentation, ...] = ()
    pseudo_fake: Augmentation | None = None

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Augment one image.

        Args:
            image: uint8 [H, W, 3], BGR; not modified.
            rng: source of all random numbers.

        Returns:
            uint8 [h, w, 3], BGR, C-contiguous. Crops, resizing and screenshots change the size.
        """
        for change in self.augmentations:
            image = change(image, rng)
        if rng.random() < self.laundering_share:
            for change in self.laundering:
                image = change(image, rng)
        return np.ascontiguousarray(image)

    def fake(self, photograph: Image, rng: Generator) -> Image | None:
        """Make a pseudo-fake of a photograph with the probability of `pseudo_fake`.

        Args:
            photograph: uint8 [H, W, 3], BGR; not modified.
            rng: source of all random numbers; not advanced if pseudo-fakes are disabled.

        Returns:
            uint8 [H, W, 3], BGR, to be labelled generated; None to keep the photograph.
        """
        if self.pseudo_fake is None:
            return None
        made = self.pseudo_fake(photograph, rng)
        return None if made is photograph else made

    @classmethod
    def default(cls) -> AugmentationPipeline:
        """Return the default pipeline of ffd-train."""
        return cls.packaged("recipe")

    @classmethod
    @cache
    def packaged(cls, name: str) -> AugmentationPipeline:
        """Load a pipeline of this package by its file name without `.toml`."""
        text = files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
        return cls.parse(text)

    @classmethod
    def load(cls, path: Path) -> AugmentationPipeline:
        """Load a pipeline from a TOML file.

        Raises:
            DataError: the file cannot be read or is invalid; the message names the table.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise DataError(f"recipe {path}: {reason}") from None
        except DataError as error:
            raise DataError(f"recipe {path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> AugmentationPipeline:
        """Parse a pipeline from TOML; raises like `load`."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise DataError(f"invalid TOML: {error}") from None
        return cls.from_tables(tables)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> AugmentationPipeline:
        """Build a pipeline from the tables of a TOML file or of `to_tables`; raises like `load`."""
        share, laundering = _split(LAUNDERING, tables.get(LAUNDERING, {"probability": 0.0}))
        special = (LAUNDERING, PSEUDO_FAKE)
        augmentations = {name: table for name, table in tables.items() if name not in special}
        fake = tables.get(PSEUDO_FAKE)
        return cls(
            tuple(_parse_known(name, name, table) for name, table in augmentations.items()),
            share,
            tuple(_parse_known(f"{LAUNDERING}.{n}", n, table) for n, table in laundering.items()),
            None if fake is None else _parse_augmentation(PSEUDO_FAKE, PSEUDO_FAKE, fake),
        )

    def to_tables(self) -> dict[str, Any]:
        """Return tables for `from_tables`, as JSON types."""
        fake = {} if self.pseudo_fake is None else {PSEUDO_FAKE: _table(self.pseudo_fake)}
        return {
            **fake,
            **{change.name: _table(change) for change in self.augmentations},
            LAUNDERING: {
                "probability": self.laundering_share,
                **{change.name: _table(change) for change in self.laundering},
            },
        }


def _parse_known(where: str, name: str, table: Any) -> Augmentation:
    if name not in AUGMENTATIONS:
        raise DataError(f"[{where}] is unknown: use {', '.join(AUGMENTATIONS)}")
    return _parse_augmentation(where, name, table)


def _parse_augmentation(where: str, name: str, table: Any) -> Augmentation:
    probability, table = _split(where, table)
    limits = _find_limits(name)
    if table.keys() != limits.keys():
        raise DataError(
            f"[{where}] needs exactly these keys: {', '.join(['probability', *limits])}"
        )
    ranges = (_range(where, key, table[key], limits[key]) for key in limits)
    return Augmentation(name, probability, tuple(ranges))


def _split(where: str, table: Any) -> tuple[float, dict[str, Any]]:
    """Separate the probability from the other keys of a table."""
    if not isinstance(table, Mapping):
        raise DataError(f"[{where}] must be a table with a probability")
    others = dict(table)
    value = others.pop("probability", None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"[{where}] needs a probability from 0 to 1")
    return float(value), others


def _range(where: str, key: str, value: Any, limits: Range) -> Range:
    least, most = limits
    if not isinstance(value, list) or [type(end) in (int, float) for end in value] != [True] * 2:
        raise DataError(f"[{where}] {key} must be [low, high]") from None
    low, high = value
    if not least <= low <= high <= most:
        raise DataError(f"[{where}] {key} must be [low, high] within {least:g} and {most:g}")
    return float(low), float(high)


def _table(change: Augmentation) -> dict[str, Any]:
    pairs = zip(_find_limits(change.name), change.ranges, strict=True)
    return {"probability": change.probability, **{key: list(ends) for key, ends in pairs}}


def crop(image: Image, rng: Generator, side: Annotated[Range, 0.05, 1]) -> Image:
    """Crop a random square; `side` is a fraction of the shorter side."""
    height, width = image.shape[:2]
    length = max(1, round(min(height, width) * rng.uniform(*side)))
    top = int(rng.integers(0, height - length + 1))
    left = int(rng.integers(0, width - length + 1))
    return image[top : top + length, left : left + length]


def horizontal_flip(image: Image, rng: Generator) -> Image:
    """Mirror left and right."""
    return image[:, ::-1]


def vertical_flip(image: Image, rng: Generator) -> Image:
    """Mirror top and bottom."""
    return image[::-1]


def jitter(
    image: Image,
    rng: Generator,
    brightness: Annotated[Range, -255, 255],
    contrast: Factor,
    balance: Factor,
    saturation: Factor,
) -> Image:
    """Change brightness (in levels), contrast, channel balance and saturation (as factors)."""
    gain = rng.uniform(*contrast) * rng.uniform(*balance, size=3)
    levels = (np.arange(256)[:, None] - 128) * gain + 128 + rng.uniform(*brightness)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[None]
    coloured = cv2.LUT(np.ascontiguousarray(image), table)
    grey = cv2.cvtColor(cv2.cvtColor(coloured, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    colour = rng.uniform(*saturation)
    return np.asarray(cv2.addWeighted(coloured, colour, grey, 1 - colour, 0), np.uint8)


def gamma(image: Image, rng: Generator, exponent: Annotated[Range, 0.05, 20]) -> Image:
    """Apply a gamma curve."""
    return launder.gamma(np.ascontiguousarray(image), rng.uniform(*exponent))


def blur(image: Image, rng: Generator, sigma: Annotated[Range, 0.01, 100]) -> Image:
    """Blur with a Gaussian; sigma in pixels."""
    return launder.blur(np.ascontiguousarray(image), rng.uniform(*sigma))


def noise(image: Image, rng: Generator, deviation: Annotated[Range, 0, 255]) -> Image:
    """Add Gaussian noise; deviation in levels."""
    return launder.noise(image, rng.uniform(*deviation), rng)


def rescale(image: Image, rng: Generator, factor: Annotated[Range, 0.01, 1]) -> Image:
    """Scale down with a random kernel, then up with another or not at all."""
    kernels = list(launder.KERNELS)
    down = kernels[int(rng.integers(len(kernels)))]
    up = [*kernels, None][int(rng.integers(len(kernels) + 1))]
    return launder.rescale(np.ascontiguousarray(image), rng.uniform(*factor), down, up)


def resize(image: Image, rng: Generator, pixels: Annotated[Range, 8, 4096]) -> Image:
    """Resize the shorter side to a random length in pixels, log-uniform.

    Otherwise a network may learn the size at which a data set stores each source.
    """
    kernels = list(launder.KERNELS)
    kernel = kernels[int(rng.integers(len(kernels)))]
    side = float(np.exp(rng.uniform(*np.log(pixels))))
    factor = side / min(image.shape[:2])
    return launder.rescale(np.ascontiguousarray(image), factor, kernel, None)


def screenshot(
    image: Image,
    rng: Generator,
    zoom: Annotated[Range, 0.05, 8],
    border: Annotated[Range, 0, 2],
    quality: Quality,
) -> Image:
    """Imitate a screenshot: zoom, add a border of one colour, compress."""
    above, below, left, right = rng.uniform(*border, size=4).tolist()
    if max(image.shape[:2]) * zoom[1] * (1 + 2 * border[1]) > launder.MAX_SIDE_PIXELS["jpeg"]:
        return image
    # Most image viewers have a grey background.
    grey = int(rng.choice((0, 18, 32, 240, 255)))
    return launder.screenshot(
        np.ascontiguousarray(image),
        rng.uniform(*zoom),
        (above, below, left, right),
        (grey, grey, grey),
        _draw_integer(rng, quality),
    )


def jpeg(image: Image, rng: Generator, quality: Quality) -> Image:
    """Compress as JPEG with OpenCV, or with Pillow and a random chroma subsampling."""
    drawn = _draw_integer(rng, quality)
    if max(image.shape[:2]) > launder.MAX_SIDE_PIXELS["jpeg"]:
        return image
    image = np.ascontiguousarray(image)
    if rng.random() < 0.5:
        return launder.jpeg(image, drawn)
    subsampling = ("4:4:4", "4:2:2", "4:2:0")[int(rng.integers(3))]
    return launder.jpeg_by_pillow(image, drawn, subsampling)


def webp(image: Image, rng: Generator, quality: Quality) -> Image:
    """Compress as lossy WebP."""
    if max(image.shape[:2]) > launder.MAX_SIDE_PIXELS["webp"]:
        return image
    return launder.webp(np.ascontiguousarray(image), _draw_integer(rng, quality))


def _draw_integer(rng: Generator, ends: Range) -> int:
    return int(rng.integers(round(ends[0]), round(ends[1]) + 1))


# All augmentations by name. A recipe gives a range for each annotated parameter.
AUGMENTATIONS: dict[str, Callable[..., Image]] = {
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


def _find_function(name: str) -> Callable[..., Image]:
    return imitate_generator if name == PSEUDO_FAKE else AUGMENTATIONS[name]


@cache
def _find_limits(name: str) -> dict[str, Range]:
    """Return the lowest and highest valid value of each range of an augmentation."""
    hints = get_type_hints(_find_function(name), include_extras=True)
    return {key: of.__metadata__ for key, of in hints.items() if hasattr(of, "__metadata__")}

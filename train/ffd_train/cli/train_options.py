"""The settings that the options of ffd-train give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..augmentation import AugmentationPipeline
    from ..settings import Settings


def complete_settings(settings: Settings) -> Settings:
    """Check the settings of a new run, and make its paths absolute.

    Raises:
        UsageError: options contradict each other.
    """
    crop, sizes = settings.crop, settings.sizes
    if sizes and not crop:
        raise click.UsageError("--sizes needs --crop: the images of a batch have one size")
    if sizes and not (crop or 0) <= sizes[0] <= sizes[1]:
        raise click.UsageError(f"--sizes LOW HIGH: --crop ({crop}) <= LOW <= HIGH")
    _require_divisible(settings.batch, settings.accumulate)
    weights, teacher = (
        value if value in ("imagenet", "none", "") else str(Path(value).absolute())
        for value in (settings.weights, settings.teacher)
    )
    return replace(settings, weights=weights, teacher=teacher)


def load_recipe(text: str | None) -> AugmentationPipeline | None:
    """Return the augmentation pipeline of `--recipe`.

    Raises:
        DataError: the recipe is invalid.
    """
    from ..augmentation import AugmentationPipeline

    if text == "none":
        return None
    if text in ("light", "varied"):
        return AugmentationPipeline.packaged(text)
    return AugmentationPipeline.load(Path(text)) if text else AugmentationPipeline.default()


def _require_divisible(batch: int, accumulation_steps: int) -> None:
    from ..world import World

    count = World.from_environment().size * accumulation_steps
    if batch < 2 * count:
        raise click.UsageError(
            f"--batch {batch} is too small for {count} micro-batches of two images: use at least "
            f"--batch {2 * count}"
        )
    if batch % count:
        nearest = (batch + count // 2) // count * count
        raise click.UsageError(
            f"--batch {batch} cannot be divided evenly into {count} micro-batches: use --batch "
            f"{nearest}"
        )

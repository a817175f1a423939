"""The options of ffd-train, and the settings that they give."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..augmentation import AugmentationPipeline
    from ..settings import Settings
    from ..stage import Stage


@dataclass(frozen=True)
class TrainOptions:
    """The options of ffd-train that become settings of a run, under the same names."""

    network: str
    weights: str
    stages: tuple[Stage, ...]
    optimizer: str
    schedule: str
    weight_decay: float
    batch: int
    accumulate: int
    crop: int | None
    sizes: tuple[int, int] | None
    recipe: str | None
    balance: str
    label_smoothing: float
    ema: float
    keep: str
    clip: float
    teacher: str
    teacher_weight: float
    leave_out: tuple[str, ...]
    false_alarms: float
    precision: str
    seed: int
    device: str
    workers: int | None
    compile: bool

    def to_settings(self, data: Path) -> Settings:
        """Return the settings of a new run.

        Raises:
            UsageError: options contradict each other.
            DataError: the augmentation recipe is invalid.
        """
        from ..settings import Settings

        _require_sizes(self.crop, self.sizes)
        _require_divisible(self.batch, self.accumulate)
        # Not asdict: it would turn the stages into dictionaries.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["recipe"] = _load_recipe(self.recipe)
        for name in ("weights", "teacher"):
            if values[name] not in ("imagenet", "none", ""):
                values[name] = str(Path(values[name]).absolute())
        return Settings(data=str(data.absolute()), **values)


def _require_sizes(crop: int | None, sizes: tuple[int, int] | None) -> None:
    if sizes and not crop:
        raise click.UsageError("--sizes needs --crop: the images of a batch have one size")
    if sizes and not (crop or 0) <= sizes[0] <= sizes[1]:
        raise click.UsageError(f"--sizes LOW HIGH: --crop ({crop}) <= LOW <= HIGH")


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


def _load_recipe(text: str | None) -> AugmentationPipeline | None:
    from ..augmentation import AugmentationPipeline

    if text == "none":
        return None
    if text in ("light", "varied"):
        return AugmentationPipeline.packaged(text)
    return AugmentationPipeline.load(Path(text)) if text else AugmentationPipeline.default()

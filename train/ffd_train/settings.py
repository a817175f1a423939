"""The settings of a run, and the device they select."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from ffd_runtime.core.errors import DataError, ModelError

from .augmentation import AugmentationPipeline
from .stage import ARTICLE, Stage


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run's result, except the images.

    The fields are the options of ffd-train, under the same names.

    Attributes:
        data: absolute path of the data set; export and evaluation read it.
        crop: side of random training crops, in pixels; None trains on whole images.
        sizes: range of the image's side before the crop, in pixels; None for the network's side.
        recipe: augmentation pipeline; None for no augmentation.
        workers: data loading processes; None for one per core.
    """

    data: str = ""
    network: str = "resnext101_32x8d"
    weights: str = "imagenet"
    stages: tuple[Stage, ...] = ARTICLE
    optimizer: str = "sgd"
    schedule: str = "cosine"
    weight_decay: float = 0.0
    batch: int = 32
    accumulate: int = 1
    crop: int | None = None
    sizes: tuple[int, int] | None = None
    recipe: AugmentationPipeline | None = field(default_factory=AugmentationPipeline.default)
    balance: str = "source"
    label_smoothing: float = 0.05
    ema: float = 0.999
    keep: str = "best"
    clip: float = 1.0
    teacher: tuple[str, ...] = ()
    teacher_weight: float = 0.5
    leave_out: tuple[str, ...] = ()
    false_alarms: float = 0.01
    precision: str = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    compile: bool = False

    def micro_batch(self, world_size: int) -> int:
        """Return the number of images that a process computes at once."""
        return self.batch // (world_size * self.accumulate)

    def to_json(self) -> str:
        """Return the text of `settings.json`."""
        recipe = self.recipe.to_tables() if self.recipe else None
        own = {"stages": [str(s) for s in self.stages], "recipe": recipe}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, **own}, indent=2)

    @classmethod
    def from_json(cls, text: str, **changes: Any) -> Settings:
        """Parse `settings.json`.

        Args:
            text: text of the file.
            changes: fields to override.

        Raises:
            DataError: the text is invalid, or from an incompatible version.
        """
        try:
            values = json.loads(text)
            teacher = values["teacher"]
            if isinstance(teacher, str):  # earlier versions wrote one path
                teacher = [teacher] if teacher else []
            own = {
                "stages": tuple(Stage.parse(s) for s in values["stages"]),
                "recipe": AugmentationPipeline.from_tables(values["recipe"])
                if values["recipe"]
                else None,
                "sizes": tuple(values["sizes"]) if values["sizes"] else None,
                "leave_out": tuple(values["leave_out"]),
                "teacher": tuple(teacher),
            }
            return cls(**{**values, **own, **changes})
        except (ValueError, TypeError, KeyError, DataError) as error:
            raise DataError(f"invalid settings.json: {error}") from None


def choose_device(settings: Settings) -> tuple[str, Any]:
    """Return Lightning's accelerator and precision for the settings.

    Raises:
        ModelError: CUDA is requested and unavailable, or float16 is requested on a CPU.
    """
    import torch

    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise ModelError(
            "--device cuda: PyTorch finds no GPU: install its CUDA build, or use --device cpu"
        )
    accelerator = "cuda" if cuda and settings.device != "cpu" else "cpu"
    if settings.precision == "auto":
        if accelerator == "cpu":
            return accelerator, "32-true"
        # GPUs before Ampere (T4, V100) only emulate bfloat16, but have float16 tensor cores.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return accelerator, "bf16-mixed" if native else "16-mixed"
    if settings.precision == "16" and accelerator == "cpu":
        raise ModelError("--precision 16 needs a GPU: use bf16 or 32 on a CPU")
    return accelerator, {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[
        settings.precision
    ]

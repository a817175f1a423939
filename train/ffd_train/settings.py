"""The settings of a run, and the device that they lead to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ffd_runtime.errors import DataError, ModelError

from .stages import ARTICLE, Stage


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a run turns out, apart from the images themselves.

    Attributes:
        data: folder of the data set, absolute, so that export and evaluation find it again.
        network: key of `NETWORKS`.
        weights: `imagenet`, `none` or a file.
        stages: in order.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        schedule: `constant`, or `one-cycle` within each stage, a step a batch.
        weight_decay: of the optimizer.
        batch: images a step.
        crop: side of random training crops in pixels; None trains on whole images.
        augment: False to train on images as they are.
        precision: `auto` (bfloat16 or float16 on a GPU that has it, else float32), `32`, `bf16`
            (also on a CPU) or `16`.
        seed: of everything random.
        device: `auto`, `cpu` or `cuda`.
        workers: processes that load data; None for one a core, at most 8.
    """

    data: str = ""
    network: str = "resnext101_32x8d"
    weights: str = "imagenet"
    stages: tuple[Stage, ...] = ARTICLE
    optimizer: str = "sgd"
    schedule: str = "constant"
    weight_decay: float = 0.0
    batch: int = 32
    crop: int | None = None
    augment: bool = True
    precision: str = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int | None = None

    def to_json(self) -> str:
        """As `settings.json` in a run's folder."""
        return json.dumps({**asdict(self), "stages": [str(s) for s in self.stages]}, indent=2)

    @classmethod
    def from_json(cls, text: str, **changes: Any) -> Settings:
        """Read `settings.json`.

        Args:
            text: of the file.
            changes: fields to set anew.

        Raises:
            DataError: it was written by another version or by hand.
        """
        try:
            values = json.loads(text)
            stages = tuple(Stage.parse(s) for s in values["stages"])
            return cls(**{**values, "stages": stages, **changes})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"settings.json cannot be used: {error}") from None


def choose_device(settings: Settings) -> tuple[str, Any]:
    """Lightning's accelerator and precision for the settings.

    Raises:
        ModelError: CUDA was asked for and is not there, or float16 on a CPU.
    """
    import torch

    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise ModelError("--device cuda: PyTorch sees no CUDA device here (is it a CPU build?)")
    accelerator = "cuda" if cuda and settings.device != "cpu" else "cpu"
    if settings.precision == "auto":
        if accelerator == "cpu":
            return accelerator, "32-true"
        return accelerator, "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if settings.precision == "16" and accelerator == "cpu":
        raise ModelError("--precision 16 needs a GPU: use bf16 or 32 on a CPU")
    return accelerator, {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[
        settings.precision
    ]

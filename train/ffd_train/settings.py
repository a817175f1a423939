"""The settings of a run, and the device that they lead to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from ffd_runtime.core.errors import DataError, ModelError

from .augmentation import Recipe
from .stage import ARTICLE, Stage


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a run turns out, apart from the images themselves.

    Attributes:
        data: folder of the data set, absolute, so that export and evaluation find it again.
        network: key of `NETWORKS`.
        weights: `imagenet`, `none` or a file.
        stages: in order.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        schedule: of the learning rate within each stage, a step a batch: `cosine` (from its start
            to 0), `one-cycle` or `constant`.
        weight_decay: of the optimizer.
        batch: images a step, over all processes.
        accumulate: parts that a process takes its share of a batch in; what is trained is the
            same, but for BatchNorm, in less memory.
        crop: side of random training crops in pixels; None trains on whole images.
        sizes: side of the whole training image that crops are taken of, from low to high; None for
            the network's own.
        recipe: of augmentation; None to train on images as they are.
        balance: how samples are drawn; one of `sampling.BALANCES`.
        label_smoothing: share of the target that is spread over both classes (Szegedy et al.,
            2016).
        ema: decay of the weights' exponential moving average, which is what is validated and kept;
            0 for the weights themselves.
        keep: the epoch that is kept: `best` on validation, by AUC; or `last`, where the learning
            rate ends at 0 and augmentation makes the network better at what clean validation images
            do not show.
        clip: of the gradient's norm; 0 for none.
        teacher: checkpoint of a network to distil, "" for none.
        teacher_weight: share of the loss that is the distance to the teacher.
        leave_out: sources that are neither trained on nor validated on, to be tested on.
        false_alarms: share of each source's photographs that the threshold lets be called
            generated, on validation.
        precision: `auto` (on a GPU bfloat16 where its hardware computes it, else float16; float32
            on a CPU), `32`, `bf16` (also on a CPU) or `16`.
        seed: of everything random.
        device: `auto`, `cpu` or `cuda`.
        workers: processes that load data; None for one a core.
        compile: compile the network with `torch.compile`.
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
    recipe: Recipe | None = field(default_factory=Recipe.default)
    balance: str = "source"
    label_smoothing: float = 0.05
    ema: float = 0.999
    keep: str = "best"
    clip: float = 1.0
    teacher: str = ""
    teacher_weight: float = 0.5
    leave_out: tuple[str, ...] = ()
    false_alarms: float = 0.01
    precision: str = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    compile: bool = False

    def part(self, processes: int) -> int:
        """Images that a process takes at once."""
        return self.batch // (processes * self.accumulate)

    def to_json(self) -> str:
        """As `settings.json` in a run's folder."""
        recipe = self.recipe.to_tables() if self.recipe else None
        own = {"stages": [str(s) for s in self.stages], "recipe": recipe}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, **own}, indent=2)

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
            own = {
                "stages": tuple(Stage.parse(s) for s in values["stages"]),
                "recipe": Recipe.from_tables(values["recipe"]) if values["recipe"] else None,
                "sizes": tuple(values["sizes"]) if values["sizes"] else None,
                "leave_out": tuple(values["leave_out"]),
            }
            return cls(**{**values, **own, **changes})
        except (ValueError, TypeError, KeyError, DataError) as error:
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
        # GPUs before Ampere (T4, V100) emulate bfloat16 and have float16 tensor cores.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return accelerator, "bf16-mixed" if native else "16-mixed"
    if settings.precision == "16" and accelerator == "cpu":
        raise ModelError("--precision 16 needs a GPU: use bf16 or 32 on a CPU")
    return accelerator, {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[
        settings.precision
    ]

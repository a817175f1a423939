"""What a run leaves in its folder, and how it is found again after a kill."""

from __future__ import annotations

import csv
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ffd_runtime.card import ModelCard
from ffd_runtime.errors import DataError, ModelError, OutputError

from .checkpoint import save_checkpoint
from .data import FaceData, write_manifest
from .module import StagedTraining
from .settings import Settings
from .stages import Stage

BEST = "best.safetensors"
RESUME = "resume.ckpt"
SETTINGS = "settings.json"
METRICS = "metrics.csv"
MANIFEST = "manifest.csv"

# The best epoch so far: validation AUC, and less loss where that is equal.
Best = tuple[float, float]


@dataclass(frozen=True)
class Position:
    """Where a run stands: epochs done in the stage (an index), and the best epoch so far."""

    stage: int = 0
    epoch: int = 0
    best: Best = (-1.0, 0.0)


class SaveRun(Callback):
    """Writes what a run leaves behind: after each epoch its metrics, the best, and a way back."""

    def __init__(self, folder: Path, stage: int, card: ModelCard, best: Best) -> None:
        self.folder = folder
        self.stage = stage
        self.card = card
        self.best = best
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        value = {name: float(v) for name, v in trainer.callback_metrics.items()}
        row = {
            "stage": self.stage + 1,
            "part": module.stage.part,
            "epoch": module.epoch_offset + trainer.current_epoch + 1,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": value["loss_epoch"],
            "train_accuracy": value["accuracy"],
            "val_loss": value["val_loss"],
            "val_accuracy": value["val_accuracy"],
            "val_auc": value["val_auc"],
            "seconds": time.monotonic() - self.started,
        }
        append_metrics(self.folder / METRICS, row)
        if not math.isfinite(value["loss_epoch"] + value["val_loss"]):
            raise ModelError(
                f"the loss is no number any more in epoch {row['epoch']}: lower the learning rate "
                f"or use --precision 32 (best.safetensors holds the best epoch before it)"
            )
        reached = (value["val_auc"], -value["val_loss"])
        if reached > self.best:
            self.best = reached
            save_checkpoint(self.folder / BEST, module.net, self.card)
        partial = self.folder / (RESUME + ".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self.folder / RESUME)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ffd"] = {
            "stage": self.stage,
            "epoch": trainer.current_epoch + 1,
            "best": list(self.best),
        }


def open_folder(folder: Path, settings: Settings, data: FaceData) -> None:
    """Make a run's folder, with its settings and the manifest of its data.

    Raises:
        OutputError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(folder / SETTINGS, settings.to_json() + "\n")
        partial = folder / (MANIFEST + ".partial")
        write_manifest(partial, data)
        os.replace(partial, folder / MANIFEST)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from None


def read_position(path: Path) -> Position:
    """Where the state in a file stands; the beginning, if there is none.

    Raises:
        ModelError: it cannot be read.
    """
    if not path.exists():
        return Position()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["ffd"]
        return Position(state["stage"], state["epoch"], tuple(state["best"]))
    except Exception as error:
        raise ModelError(f"{path} cannot be resumed from: {error}") from None


def require_same_data(card: ModelCard, data: FaceData) -> None:
    """Refuse to go on with other images than a run was started on.

    Raises:
        DataError: they differ.
    """
    if card.provenance.manifest_sha256 != data.manifest_sha256:
        raise DataError(
            f"{data.root} is not what this run was started on (images were added, removed, moved "
            "or changed): restore it, or start a new run"
        )


def epochs_before(stages: tuple[Stage, ...], position: Position) -> int:
    """How many epochs lie behind a position, over all stages."""
    return sum(stage.epochs for stage in stages[: position.stage]) + position.epoch


def append_metrics(path: Path, row: dict[str, object]) -> None:
    """Add an epoch to `metrics.csv`, with a header if it is the first."""
    try:
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def keep_metrics(path: Path, epochs: int) -> None:
    """Drop the epochs that a resumed run is going to repeat."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        _write_whole(path, "".join(lines[: epochs + 1]))


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)

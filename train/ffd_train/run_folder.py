"""The files of a run's folder, and resuming from them."""

from __future__ import annotations

import csv
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ffd_runtime.core.atomic_file import atomic_path, write_output
from ffd_runtime.core.errors import DataError, ModelError, OutputError, os_errors_as
from ffd_runtime.core.text import first_line
from ffd_runtime.model.card import ModelCard

from .checkpoint import save_checkpoint
from .face_data import FaceData, manifest_bytes
from .networks import FaceNet
from .progress import RunProgress
from .settings import Settings
from .stage import Stage
from .staged_training import StagedTraining

BEST = "best.safetensors"
RESUME = "resume.ckpt"
SETTINGS = "settings.json"
METRICS = "metrics.csv"
MANIFEST = "manifest.csv"

# Number of micro-batches between two checks that the loss is finite.
LOSS_CHECK_INTERVAL = 10

# Validation AUC and negative validation loss, compared in this order.
Quality = tuple[float, float]


@dataclass(frozen=True)
class Position:
    """Progress of a run.

    Attributes:
        stage: index of the stage.
        epoch: completed epochs of the stage.
        best: quality of the best epoch so far.
    """

    stage: int = 0
    epoch: int = 0
    best: Quality = (-1.0, 0.0)


@dataclass(eq=False)
class RunCheckpoint(Callback):
    """Write metrics, the checkpoint and the state to resume from after each epoch.

    The checkpoint policy is `best` or `last`. `best` is the quality of the best epoch so far.
    """

    folder: Path
    stage: int
    card: ModelCard
    best: Quality
    progress: RunProgress
    policy: str
    started: float = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Checked rarely: reading the loss synchronises with the GPU.
        if batch_idx % LOSS_CHECK_INTERVAL == 0 and not math.isfinite(float(outputs["loss"])):
            assert isinstance(module, StagedTraining)
            self._stop(module.epoch_offset + trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        value = {name: float(v) for name, v in trainer.callback_metrics.items()}
        row = {
            "stage": self.stage + 1,
            "part": module.stage.part,
            "epoch": module.epoch_offset + trainer.current_epoch + 1,
            "lr": module.rate,
            "train_loss": value["loss"],
            "train_accuracy": value["accuracy"],
            "val_loss": value["val_loss"],
            "val_accuracy": value["val_accuracy"],
            "val_auc": value["val_auc"],
            "seconds": time.monotonic() - self.started,
            "waited": self.progress.waited,
        }
        if not math.isfinite(value["loss"] + value["val_loss"]):
            self._stop(row["epoch"])
        quality = (value["val_auc"], -value["val_loss"])
        save = quality > self.best or self.policy == "last"
        self.best = max(quality, self.best)
        if trainer.is_global_zero:
            append_metrics(self.folder / METRICS, row)
            if save:
                save_checkpoint(self.folder / BEST, module.evaluated_net, self.card)
        self._save_state(trainer)

    def _save_state(self, trainer: L.Trainer) -> None:
        path = self.folder / RESUME
        try:
            # All processes call save_checkpoint, and rank 0 writes.
            with atomic_path(path) if trainer.is_global_zero else nullcontext(path) as draft:
                trainer.save_checkpoint(draft)
        except (OSError, RuntimeError) as error:
            # PyTorch's error often lacks the cause, which usually is a full disk.
            raise OutputError(f"cannot write {path}: {first_line(error)}") from None

    def _stop(self, epoch: Any) -> NoReturn:
        saved = f"{self.folder / BEST} holds the {self.policy} epoch before it"
        if self.best == Position().best:
            saved = "no epoch was completed"
        raise ModelError(
            f"the loss is not finite in epoch {epoch}: lower the learning rate, or use --clip or "
            f"--precision 32 ({saved})"
        )

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ffd"] = {
            "stage": self.stage,
            "epoch": trainer.current_epoch + 1,
            "best": list(self.best),
        }


def require_space(folder: Path, net: FaceNet, settings: Settings) -> None:
    """Check that the disk has room for the run's files; the folder may not exist yet.

    Raises:
        OutputError: the disk is too full for the checkpoint and two states to resume from: the
            previous one and the one being written.
    """
    weights = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    copies = 1 + bool(settings.ema) + (1 if settings.optimizer == "sgd" else 2)
    needed = 2 * weights + 2 * copies * weights
    # Existing files are replaced.
    replaced = (folder / BEST, folder / RESUME)
    needed -= sum(path.stat().st_size for path in replaced if path.is_file())
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{folder} needs {needed / 1e6:,.0f} MB for checkpoints, and {free / 1e6:,.0f} MB are "
            "free: free some space, or choose another disk with --runs"
        )


def open_folder(folder: Path, settings: Settings, data: FaceData) -> None:
    """Create a run's folder with its settings and training manifest.

    Raises:
        OutputError: the folder cannot be written to.
    """
    with os_errors_as(OutputError, f"cannot create {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    write_output(folder / SETTINGS, (settings.to_json() + "\n").encode())
    write_output(folder / MANIFEST, manifest_bytes(data))


def read_position(path: Path) -> Position:
    """Read the position of a saved state; the start of the run if the file does not exist.

    Raises:
        ModelError: the file is invalid.
    """
    if not path.exists():
        return Position()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["ffd"]
        return Position(state["stage"], state["epoch"], tuple(state["best"]))
    except Exception as error:
        raise ModelError(f"cannot resume from {path}: {error}") from None


def require_same_data(folder: Path, card: ModelCard, data: FaceData) -> None:
    """Check that a resumed run has the same images and sources as before.

    Raises:
        DataError: they differ.
    """
    manifest = folder / MANIFEST
    same = card.provenance.manifest_sha256 == data.manifest_sha256
    if not same or (manifest.is_file() and manifest.read_bytes() != manifest_bytes(data)):
        raise DataError(
            f"{data.root} has changed since this run was started (images were added, removed, "
            "moved or changed, or their sources differ): restore it, or start a new run"
        )


def count_epochs_before(stages: tuple[Stage, ...], position: Position) -> int:
    """Count the completed epochs of all stages."""
    return sum(stage.epochs for stage in stages[: position.stage]) + position.epoch


def append_metrics(path: Path, row: dict[str, object]) -> None:
    """Append an epoch to `metrics.csv`, after a header if the file is new."""
    with os_errors_as(OutputError, f"cannot write {path}"), path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def keep_metrics(path: Path, epochs: int) -> None:
    """Remove the epochs that a resumed run will repeat."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_output(path, b"".join(lines[: epochs + 1]))

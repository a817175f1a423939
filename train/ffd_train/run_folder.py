"""What a run leaves in its folder, and how it is found again after a kill."""

from __future__ import annotations

import csv
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ffd_runtime.core.errors import DataError, ModelError, OutputError
from ffd_runtime.model.card import ModelCard

from .checkpoint import save_checkpoint
from .data import FaceData, manifest_bytes
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

# Batches between two looks at the loss.
CHECKED = 10

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

    def __init__(
        self,
        folder: Path,
        stage: int,
        card: ModelCard,
        best: Best,
        progress: RunProgress,
        keep: str,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.stage = stage
        self.card = card
        self.best = best
        self.progress = progress
        self.started = time.monotonic()

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
        # Asked seldom: a GPU must finish its work to answer.
        if batch_idx % CHECKED == 0 and not math.isfinite(float(outputs["loss"])):
            assert isinstance(module, StagedTraining)
            self._stop(module.epoch_offset + trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        value = {name: float(v) for name, v in trainer.callback_metrics.items()}
        row = {
            "stage": self.stage + 1,
            "part": module.stage.part,
            "epoch": module.epoch_offset + trainer.current_epoch + 1,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
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
        reached = (value["val_auc"], -value["val_loss"])
        kept = reached > self.best or self.keep == "last"
        self.best = max(reached, self.best)
        if trainer.is_global_zero:
            append_metrics(self.folder / METRICS, row)
            if kept:
                save_checkpoint(self.folder / BEST, module.judged, self.card)
        self._save_state(trainer)

    def _save_state(self, trainer: L.Trainer) -> None:
        partial = self.folder / (RESUME + ".partial")
        try:
            # By all processes; the first one writes.
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.folder / RESUME)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            # PyTorch's writer knows no reason: a full disk is the likely one.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise OutputError(f"cannot write {self.folder / RESUME}: {reason}") from None

    def _stop(self, epoch: Any) -> NoReturn:
        raise ModelError(
            f"the loss is no number any more in epoch {epoch}: lower the learning rate, use --clip "
            f"or --precision 32 ({self._kept()})"
        )

    def _kept(self) -> str:
        if self.best == Position().best:
            return "no epoch was finished"
        return f"{self.folder / BEST} holds the {self.keep} epoch before it"

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ffd"] = {
            "stage": self.stage,
            "epoch": trainer.current_epoch + 1,
            "best": list(self.best),
        }


def require_space(folder: Path, net: FaceNet, settings: Settings) -> None:
    """Refuse to begin what the disk cannot keep.

    Args:
        folder: of the run; need not exist yet.
        net: what is trained.
        settings: how; they decide how much state there is.

    Raises:
        OutputError: the disk is too full for the best checkpoint and two states to resume from, the
            old one and the one that is being written.
    """
    weights = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    copies = 1 + bool(settings.ema) + (1 if settings.optimizer == "sgd" else 2)
    needed = 2 * weights + 2 * copies * weights
    # What is there already is replaced.
    kept = (folder / BEST, folder / RESUME)
    needed -= sum(path.stat().st_size for path in kept if path.is_file())
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OutputError(
            f"{folder} needs {needed / 1e6:,.0f} MB for checkpoints, and {free / 1e6:,.0f} MB are "
            "free: make room, or choose another disk with --runs"
        )


def open_folder(folder: Path, settings: Settings, data: FaceData) -> None:
    """Make a run's folder, with its settings and the manifest of its data.

    Raises:
        OutputError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / SETTINGS, (settings.to_json() + "\n").encode())
        write_whole(folder / MANIFEST, manifest_bytes(data))
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


def require_same_data(folder: Path, card: ModelCard, data: FaceData) -> None:
    """Refuse to go on with other images, or other sources of them, than a run was started on.

    Raises:
        DataError: they differ.
    """
    kept = folder / MANIFEST
    same = card.provenance.manifest_sha256 == data.manifest_sha256
    if not same or (kept.is_file() and kept.read_bytes() != manifest_bytes(data)):
        raise DataError(
            f"{data.root} is not what this run was started on (images were added, removed, moved "
            "or changed, or are of other sources): restore it, or start a new run"
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
        lines = path.read_bytes().splitlines(keepends=True)
        write_whole(path, b"".join(lines[: epochs + 1]))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None

"""TensorBoard logs of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from .staged_training import StagedTraining

FOLDER = "tensorboard"
# Optimizer steps between two points of a curve.
LOG_INTERVAL_STEPS = 10


class TensorBoard(Callback):
    """Log loss and learning rate by step, and the metrics of each epoch, to `RUN/tensorboard`.

    Args:
        folder: folder of the run.
        epoch: first epoch, counted over all stages; later points of an interrupted run are removed.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._folder = str(folder / FOLDER)
        self._epoch = epoch
        self._loss: Any = 0.0
        self._writer: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The import takes a second.
        from torch.utils.tensorboard import SummaryWriter

        begin = self._epoch * _steps(trainer)
        self._writer = SummaryWriter(self._folder, purge_step=begin)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, micro_batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        if step % LOG_INTERVAL_STEPS:
            return
        # Lightning divides the loss of a micro-batch by their number: the sum is the step's loss.
        self._loss += outputs["loss"]
        if micro_batch + 1 < trainer.accumulate_grad_batches:
            return
        assert isinstance(module, StagedTraining)
        step += (module.epoch_offset + trainer.current_epoch) * _steps(trainer)
        self._writer.add_scalar("step/loss", float(self._loss), step)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._writer.add_scalar("step/lr", rate, step)
        self._loss = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        epoch = module.epoch_offset + trainer.current_epoch + 1
        # Also indexed by step, so that purge_step removes repeated epochs.
        step = epoch * _steps(trainer) - 1
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(f"epoch/{name}", float(value), step)
        self._writer.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self._writer:
            self._writer.close()


def _steps(trainer: L.Trainer) -> int:
    """Return the optimizer steps of an epoch."""
    return int(trainer.num_training_batches) // trainer.accumulate_grad_batches

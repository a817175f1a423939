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

    One instance logs all stages of a run. The first stage removes the later points of an
    interrupted run. `close` ends the log.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder / FOLDER)
        self._loss: Any = 0.0
        # One writer for all stages: TensorBoard can read files of the same second out of order.
        self._writer: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The import takes a second.
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            begin = _epoch(trainer, module) * _steps(trainer)
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
        step += _epoch(trainer, module) * _steps(trainer)
        self._writer.add_scalar("step/loss", float(self._loss), step)
        assert isinstance(module, StagedTraining)
        self._writer.add_scalar("step/lr", module.rate, step)
        self._loss = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Also indexed by step, so that purge_step removes repeated epochs.
        step = (_epoch(trainer, module) + 1) * _steps(trainer) - 1
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(f"epoch/{name}", float(value), step)
        self._writer.flush()

    def close(self) -> None:
        """Write and close the log."""
        if self._writer:
            self._writer.close()


def _epoch(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return the current epoch, counted over all stages."""
    assert isinstance(module, StagedTraining)
    return module.epoch_offset + trainer.current_epoch


def _steps(trainer: L.Trainer) -> int:
    """Return the optimizer steps of an epoch."""
    return int(trainer.num_training_batches) // trainer.accumulate_grad_batches

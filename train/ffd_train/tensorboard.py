"""What TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from .staged_training import StagedTraining

FOLDER = "tensorboard"
# Steps between two points of the curve within an epoch.
EVERY = 10


class TensorBoard(Callback):
    """Writes loss and learning rate by step, and what an epoch came to, into `RUN/tensorboard`.

    Args:
        folder: of the run.
        epoch: that begins, over all stages; what was written of it before a kill is dropped.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        self._folder = str(folder / FOLDER)
        self._epoch = epoch
        self._loss: Any = 0.0
        self._writer: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # It takes a second to import.
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
        at, part = divmod(batch_idx, trainer.accumulate_grad_batches)
        if at % EVERY:
            return
        # Lightning divides a part's loss by the number of parts: their sum is the step's.
        self._loss += outputs["loss"]
        if part + 1 < trainer.accumulate_grad_batches:
            return
        assert isinstance(module, StagedTraining)
        step = (module.epoch_offset + trainer.current_epoch) * _steps(trainer) + at
        self._writer.add_scalar("step/loss", float(self._loss), step)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._writer.add_scalar("step/lr", rate, step)
        self._loss = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        epoch = module.epoch_offset + trainer.current_epoch + 1
        # By step, too, so that what a resumed run repeats is dropped of both.
        step = epoch * _steps(trainer) - 1
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(f"epoch/{name}", float(value), step)
        self._writer.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self._writer:
            self._writer.close()


def _steps(trainer: L.Trainer) -> int:
    """Of the optimizer, in an epoch: the same in however many parts a batch is taken."""
    return int(trainer.num_training_batches) // trainer.accumulate_grad_batches

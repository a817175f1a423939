"""What TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from .module import StagedTraining

FOLDER = "tensorboard"
# Batches between two points of the curve within an epoch.
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
        self._writer: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # It takes a second to import.
        from torch.utils.tensorboard import SummaryWriter

        begin = self._epoch * int(trainer.num_training_batches)
        self._writer = SummaryWriter(self._folder, purge_step=begin)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx % EVERY == 0:
            assert isinstance(module, StagedTraining)
            epoch = module.epoch_offset + trainer.current_epoch
            step = epoch * int(trainer.num_training_batches) + batch_idx
            self._writer.add_scalar("step/loss", float(outputs["loss"]), step)
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._writer.add_scalar("step/lr", rate, step)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        epoch = module.epoch_offset + trainer.current_epoch + 1
        # By step, too, so that what a resumed run repeats is dropped of both.
        step = epoch * int(trainer.num_training_batches) - 1
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(f"epoch/{name}", float(value), step)
        self._writer.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if self._writer:
            self._writer.close()

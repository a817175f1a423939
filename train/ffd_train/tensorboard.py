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
    """

    def __init__(self, folder: Path) -> None:
        # It takes a second to import.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / FOLDER))

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
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(f"epoch/{name}", float(value), epoch)
        self._writer.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._writer.close()

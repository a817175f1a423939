"""Progress of a run: one line per epoch, and on a terminal a bar over all stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .loading import TimedLoader

# Share of time waiting for data above which the user gets a hint.
MAX_DATA_WAIT = 0.25


class RunProgress(Callback):
    """Report the progress of all stages. Use as a context manager.

    Attributes:
        waited: share of the last epoch spent waiting for data, 0 to 1.

    Args:
        say: receives the lines.
        epochs: epochs of all stages.
        done: epochs completed before the run was resumed.
        bar: draw a bar on stderr, and print the lines above it.
    """

    def __init__(self, say: Callable[[str], None], epochs: int, done: int, bar: bool) -> None:
        self._say = say
        self._epoch = done
        self._epochs = epochs
        self._began = 0.0
        self._advised = False
        self.waited = 0.0
        self._bar: Progress | None = None
        if bar:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]} of {task.fields[epochs]}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.3f}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False),
                # Long enough to include validation in the average.
                speed_estimate_period=900,
                transient=True,
            )
            self._task = self._bar.add_task(
                "", total=epochs, completed=done, epoch=done, epochs=epochs, loss=0.0
            )

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, markup=False)
        else:
            self._say(line)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._epoch += 1
        self._began = time.monotonic()
        self.waited = 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx + 1 >= trainer.num_training_batches:
            loader = trainer.train_dataloader
            assert isinstance(loader, TimedLoader)
            self.waited = loader.waited / (time.monotonic() - self._began)
        # Not in every step: reading the loss synchronises with the GPU.
        if self._bar and batch_idx % 10 == 0:
            share = (batch_idx + 1) / max(1, trainer.num_training_batches)
            self._bar.update(
                self._task,
                completed=self._epoch - 1 + share,
                epoch=self._epoch,
                # Lightning divides the loss by the accumulation steps.
                loss=float(outputs["loss"]) * trainer.accumulate_grad_batches,
            )

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        value = trainer.callback_metrics
        if self._bar:
            self._bar.update(self._task, completed=self._epoch)
        self.say(
            f"epoch {self._epoch} of {self._epochs}: "
            f"loss {value['loss']:.4f}, accuracy {value['accuracy']:.4f}; "
            f"val loss {value['val_loss']:.4f}, accuracy {value['val_accuracy']:.4f}, "
            f"AUC {value['val_auc']:.4f}; waited for data {self.waited:.0%} of the time"
        )
        if self.waited > MAX_DATA_WAIT and not self._advised:
            self._advised = True
            self.say(
                "loading is slower than training: pack the data with ffd-data prepare at a smaller "
                "--side, or use a machine with more cores (--workers)"
            )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

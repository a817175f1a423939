"""A stage of training as Lightning runs it: steps, optimizer, and loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from ffd_runtime.model.card import PreprocessSpec

from .data import FaceData, FaceDataset
from .loading import TimedLoader
from .moving_average import MovingAverage
from .networks import FaceNet
from .sampling import Batches, draw_epoch
from .settings import Settings
from .stage import Stage
from .world import Processes

# Softens both outputs where a teacher is imitated (Hinton et al., 2015).
TEACHER_TEMPERATURE = 2.0


class StagedTraining(L.LightningModule):
    """One stage of a network, as Lightning runs it; the next stage is a new one on the same net.

    Args:
        net: what is trained.
        settings: how.
        stage: which part, for how long.
        epoch_offset: epochs of the stages before.
        teacher: in evaluation mode; None for none.
    """

    def __init__(
        self,
        net: FaceNet,
        settings: Settings,
        stage: Stage,
        epoch_offset: int,
        teacher: FaceNet | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.stage = stage
        self.epoch_offset = epoch_offset
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        # Validation of their arguments would wait for the device in every step.
        self.accuracy = BinaryAccuracy(validate_args=False)
        self.val_accuracy = BinaryAccuracy(validate_args=False)
        self.val_auc = BinaryAUROC(validate_args=False)
        net.train_from(stage.part)
        self.average = MovingAverage(net, settings.ema) if settings.ema else None
        # Lists keep these out of the state that is saved: it has the network's plain names.
        self._teacher = [teacher] if teacher else []
        self._run_student = [_prepare(net, settings)]
        self._run_teacher = [_prepare(teacher, settings) for teacher in self._teacher]

    @property
    def judged(self) -> FaceNet:
        """What is validated and kept: the average where there is one, else the network."""
        if self.average is None:
            return self.net
        return self.average.module

    def end_stage(self) -> None:
        """The next stage goes on from what was judged."""
        if self.average is not None:
            self.net.load_state_dict(self.judged.state_dict())

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Dropout draws from the global generator: seeded by epoch, a resumed run draws the same.
        epoch = self.epoch_offset + self.current_epoch
        torch.manual_seed(self.settings.seed * 100_003 + epoch + 7_919 * self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self._run_student[0](images)
        loss: Tensor = self.loss(logits, labels)
        for run_teacher in self._run_teacher:
            with torch.no_grad():
                aim = run_teacher(images)
            weight = self.settings.teacher_weight
            loss = (1 - weight) * loss + weight * distance(logits, aim, TEACHER_TEMPERATURE)
        self.accuracy.update(logits.argmin(1), 1 - labels)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None and (batch_idx + 1) % self.settings.accumulate == 0:
            self.average.update(self.net)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.judged(images).float()
        generated = 1 - labels
        # In float64 confident scores stay apart, where float32 would make them all 1.
        scores = logits.double().softmax(1)[:, 0]
        self.val_accuracy.update(scores, generated)
        self.val_auc.update(scores, generated)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), sync_dist=True)
        self.log("val_accuracy", self.val_accuracy)
        self.log("val_auc", self.val_auc)

    def configure_optimizers(self) -> Any:
        s, stage = self.settings, self.stage
        trained = [p for p in self.net.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if s.optimizer == "sgd":
            optimizer = torch.optim.SGD(trained, stage.lr, 0.9, weight_decay=s.weight_decay)
        else:
            optimizer = torch.optim.AdamW(trained, stage.lr, weight_decay=s.weight_decay)
        if s.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if s.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def distance(logits: Tensor, aim: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from a teacher's softened output (Hinton et al., 2015).

    Args:
        logits: [N, 2], of the network that learns.
        aim: [N, 2], the teacher's.
        temperature: divides both; the result is multiplied by its square, as gradients shrink so.
    """
    return temperature**2 * nn.functional.kl_div(
        (logits.float() / temperature).log_softmax(1),
        (aim.float() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def _prepare(net: FaceNet, settings: Settings) -> Callable[[Tensor], Tensor]:
    """The network as a step calls it; with `compile`, compiled by its first step."""
    return torch.compile(net, dynamic=False) if settings.compile else net


class FaceBatches(L.LightningDataModule):
    """Loaders of one stage; a new one each epoch, so that each epoch has its own seed."""

    def __init__(
        self, data: FaceData, settings: Settings, epoch_offset: int, processes: Processes
    ) -> None:
        super().__init__()
        self.data = data
        self.settings = settings
        self.epoch_offset = epoch_offset
        self.processes = processes

    def train_dataloader(self) -> TimedLoader:
        s, own = self.settings, self.processes
        assert self.trainer is not None
        epoch = self.epoch_offset + self.trainer.current_epoch
        samples = self.data.split("train")
        dataset = FaceDataset(
            self.data, samples, PreprocessSpec(), s.recipe, s.crop, s.sizes, s.seed, epoch
        )
        order = draw_epoch(samples, s.balance, s.seed, epoch)
        batches = Batches(order, s.batch, s.accumulate, own.rank, own.count)
        return TimedLoader(dataset, s.workers, batch_sampler=batches)

    def val_dataloader(self) -> TimedLoader:
        own = self.processes
        samples = self.data.split("val")[own.rank :: own.count]
        dataset = FaceDataset(self.data, samples, PreprocessSpec())
        part = self.settings.part(own.count)
        return TimedLoader(dataset, self.settings.workers, batch_size=part)

"""The Lightning modules of one training stage: steps, optimizer and data loaders."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import PreprocessSpec

from .dataset import FaceDataset, TrainingView
from .face_data import FaceData
from .loading import TimedLoader
from .moving_average import MovingAverage
from .networks import FaceNet
from .sampling import MicroBatchSampler, draw_epoch
from .settings import Settings
from .stage import Stage
from .world import World

# Softens the outputs of student and teacher (Hinton et al., 2015).
DISTILLATION_TEMPERATURE = 2.0


class StagedTraining(L.LightningModule):
    """One stage of training. Each stage is a new module on the same network.

    Args:
        net: network to train.
        settings: settings of the run.
        stage: the stage.
        epoch_offset: epochs of the earlier stages.
        teacher: teacher in evaluation mode; None for no distillation.

    Attributes:
        rate: learning rate of the last optimizer step.
    """

    def __init__(
        self,
        net: FaceNet,
        settings: Settings,
        stage: Stage,
        epoch_offset: int,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.stage = stage
        self.epoch_offset = epoch_offset
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        # Argument validation would synchronise with the device in every step.
        self.accuracy = BinaryAccuracy(validate_args=False)
        self.val_accuracy = BinaryAccuracy(validate_args=False)
        self.val_auc = BinaryAUROC(validate_args=False)
        # Lightning's mean over processes truncates the number of images. NaN must stay NaN, which
        # MeanMetric ignores by default.
        self.val_loss = MeanMetric(nan_strategy=math.nan)
        self.rate = stage.lr
        net.train_from(stage.part)
        self.average = MovingAverage(net, settings.ema) if settings.ema else None
        # Lists keep these out of the saved state dict.
        self._teacher = [teacher] if teacher else []
        self._run_student = [_compile(net, settings)]
        self._run_teacher = [_compile(teacher, settings) for teacher in self._teacher]

    @property
    def evaluated_net(self) -> FaceNet:
        """The network to validate and save: the moving average if enabled."""
        if self.average is None:
            return self.net
        return self.average.module

    def end_stage(self) -> None:
        """Copy the moving average into the network, for the next stage to start from."""
        if self.average is not None:
            self.net.load_state_dict(self.evaluated_net.state_dict())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["teacher"] = self._hash_teacher()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("teacher", now := self._hash_teacher()) != now:
            raise ModelError(
                "--teacher has changed since this run began: restore it, or start a new run"
            )

    def _hash_teacher(self) -> str:
        """Return a digest of the teacher's weights; empty without a teacher."""
        digest = hashlib.sha256()
        for teacher in self._teacher:
            for tensor in teacher.state_dict().values():
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest() if self._teacher else ""

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        # Dropout uses the global generator. Seeding it each epoch makes resumed runs reproducible.
        epoch = self.epoch_offset + self.current_epoch
        torch.manual_seed(self.settings.seed * 100_003 + epoch + 7_919 * self.global_rank)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # After the batch, the optimizer has the rate of the next one.
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self._run_student[0](images)
        loss: Tensor = self.loss(logits, labels)
        for run_teacher in self._run_teacher:
            with torch.no_grad():
                target = run_teacher(images)
            weight = self.settings.teacher_weight
            distance = distillation_loss(logits, target, DISTILLATION_TEMPERATURE)
            loss = (1 - weight) * loss + weight * distance
        self.accuracy.update(logits.argmin(1), 1 - labels)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None and (batch_idx + 1) % self.settings.accumulate == 0:
            self.average.update(self.net)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.evaluated_net(images).float()
        generated = 1 - labels
        # float32 would round all confident scores to 1; float64 keeps their order.
        scores = logits.double().softmax(1)[:, 0]
        self.val_accuracy.update(scores, generated)
        self.val_auc.update(scores, generated)
        self.val_loss.update(nn.functional.cross_entropy(logits, labels), len(labels))
        self.log("val_loss", self.val_loss)
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
        steps = int(self.trainer.estimated_stepping_batches)
        # One-cycle with one step has only its final rate, 4e-6 of the peak.
        if s.schedule == "constant" or steps < 2:
            return optimizer
        schedule: torch.optim.lr_scheduler.LRScheduler
        if s.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def distillation_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened output (Hinton et al., 2015).

    Args:
        logits: [N, 2], logits of the student.
        target: [N, 2], logits of the teacher.
        temperature: divides both logits. The result is multiplied by its square, which restores
            the scale of the gradients.
    """
    return temperature**2 * nn.functional.kl_div(
        (logits.float() / temperature).log_softmax(1),
        (target.float() / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )


def _compile(net: nn.Module, settings: Settings) -> Callable[[Tensor], Tensor]:
    """Return the network as a step calls it; with `compile`, the first step compiles it."""
    return torch.compile(net, dynamic=False) if settings.compile else net


class FaceDataModule(L.LightningDataModule):
    """Data loaders of one stage. Each epoch has a new one, with its own seed."""

    def __init__(self, data: FaceData, settings: Settings, epoch_offset: int, world: World) -> None:
        super().__init__()
        self.data = data
        self.settings = settings
        self.epoch_offset = epoch_offset
        self.world = world

    def train_dataloader(self) -> TimedLoader:
        s = self.settings
        assert self.trainer is not None
        epoch = self.epoch_offset + self.trainer.current_epoch
        samples = self.data.split("train")
        view = TrainingView(s.recipe, s.crop, s.sizes, s.seed, epoch)
        dataset = FaceDataset(self.data, samples, PreprocessSpec(), view)
        order = draw_epoch(samples, s.balance, s.seed, epoch)
        batches = MicroBatchSampler(order, s.batch, s.accumulate, self.world.rank, self.world.size)
        return TimedLoader(dataset, s.workers, batch_sampler=batches)

    def val_dataloader(self) -> TimedLoader:
        world = self.world
        samples = self.data.split("val")[world.rank :: world.size]
        dataset = FaceDataset(self.data, samples, PreprocessSpec())
        micro_batch = self.settings.micro_batch(world.size)
        return TimedLoader(dataset, self.settings.workers, batch_size=micro_batch)

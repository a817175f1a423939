"""A stage of training as Lightning runs it: steps, optimizer, and loaders."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from ffd_runtime.card import PreprocessSpec

from .augment import Augmentation
from .data import FaceData, FaceDataset, Shuffled
from .networks import FaceNet
from .settings import Settings
from .stages import Stage


class StagedTraining(L.LightningModule):
    """One stage of a network, as Lightning runs it; the next stage is a new one on the same net."""

    def __init__(self, net: FaceNet, settings: Settings, stage: Stage, epoch_offset: int) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.stage = stage
        self.epoch_offset = epoch_offset
        self.loss = nn.CrossEntropyLoss()
        self.accuracy = BinaryAccuracy()
        self.val_accuracy = BinaryAccuracy()
        self.val_auc = BinaryAUROC()
        net.train_from(stage.part)

    def on_train_epoch_start(self) -> None:
        # Dropout draws from the global generator: seeded by epoch, a resumed run draws the same.
        torch.manual_seed(self.settings.seed * 100_003 + self.epoch_offset + self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        self.accuracy.update(logits.argmin(1), 1 - labels)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = self.net(images).float()
        generated = 1 - labels
        # In float64 confident scores stay apart, where float32 would make them all 1.
        scores = logits.double().softmax(1)[:, 0]
        self.val_accuracy.update(scores, generated)
        self.val_auc.update(scores, generated)
        self.log("val_loss", self.loss(logits, labels), prog_bar=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)
        self.log("val_auc", self.val_auc, prog_bar=True)

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
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class FaceBatches(L.LightningDataModule):
    """Loaders of one stage; a new one each epoch, so that each epoch has its own seed."""

    def __init__(self, data: FaceData, settings: Settings, epoch_offset: int) -> None:
        super().__init__()
        self.data = data
        self.settings = settings
        self.epoch_offset = epoch_offset

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        s = self.settings
        assert self.trainer is not None
        epoch = self.epoch_offset + self.trainer.current_epoch
        dataset = FaceDataset(
            self.data,
            self.data.split("train"),
            PreprocessSpec(),
            Augmentation() if s.augment else None,
            s.crop,
            s.seed,
            epoch,
        )
        order = Shuffled(len(dataset), s.seed, epoch)
        # BatchNorm cannot train on a batch of one, so a last single image is left out.
        single = len(dataset) % s.batch == 1 and len(dataset) > 1
        return self._loader(dataset, sampler=order, drop_last=single)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self._loader(FaceDataset(self.data, self.data.split("val"), PreprocessSpec()))

    def _loader(self, dataset: FaceDataset, **options: Any) -> DataLoader[tuple[Tensor, int]]:
        workers = self.settings.workers
        return DataLoader(
            dataset,
            self.settings.batch,
            num_workers=min(os.cpu_count() or 1, 8) if workers is None else workers,
            worker_init_fn=_init_worker,
            pin_memory=torch.cuda.is_available(),
            # Of its own, so that starting workers draws nothing from what dropout draws from.
            generator=torch.Generator(),
            **options,
        )


def _init_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)

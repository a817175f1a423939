"""Staged training, from a scanned data set to a calibrated checkpoint with its card."""

from __future__ import annotations

import csv
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from ffd_runtime import __version__
from ffd_runtime.card import ModelCard, PreprocessSpec, Provenance
from ffd_runtime.errors import DataError, ModelError, OutputError

from .augment import Augmentation
from .calibrate import calibrate
from .checkpoint import load_card, load_checkpoint, save_checkpoint
from .data import FaceData, FaceDataset, Shuffled, write_manifest
from .metrics import measure
from .networks import FaceNet, build, describe_weights
from .plots import plot_curves
from .predict import predict_logits
from .stages import ARTICLE, Stage

BEST = "best.safetensors"
RESUME = "resume.ckpt"
SETTINGS = "settings.json"
METRICS = "metrics.csv"
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a run turns out, apart from the images themselves.

    Attributes:
        data: folder of the data set, absolute, so that export and evaluation find it again.
        network: key of `NETWORKS`.
        weights: `imagenet`, `none` or a file.
        stages: in order.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        schedule: `constant`, or `one-cycle` within each stage, a step a batch.
        weight_decay: of the optimizer.
        batch: images a step.
        crop: side of random training crops in pixels; None trains on whole images.
        augment: False to train on images as they are.
        precision: `auto` (bfloat16 or float16 on a GPU that has it, else float32), `32`, `bf16`
            (also on a CPU) or `16`.
        seed: of everything random.
        device: `auto`, `cpu` or `cuda`.
        workers: processes that load data; None for one a core, at most 8.
    """

    data: str = ""
    network: str = "resnext101_32x8d"
    weights: str = "imagenet"
    stages: tuple[Stage, ...] = ARTICLE
    optimizer: str = "sgd"
    schedule: str = "constant"
    weight_decay: float = 0.0
    batch: int = 32
    crop: int | None = None
    augment: bool = True
    precision: str = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int | None = None

    def to_json(self) -> str:
        """As `settings.json` in a run's folder."""
        return json.dumps({**asdict(self), "stages": [str(s) for s in self.stages]}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read `settings.json`.

        Raises:
            DataError: it was written by another version or by hand.
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "stages": tuple(Stage.parse(s) for s in values["stages"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{SETTINGS} cannot be used: {error}") from None


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


# The best epoch so far: validation AUC, and less loss where that is equal.
Best = tuple[float, float]


@dataclass(frozen=True)
class Position:
    """Where a run stands: epochs done in the stage (an index), and the best epoch so far."""

    stage: int = 0
    epoch: int = 0
    best: Best = (-1.0, 0.0)


class RunFolder(Callback):
    """Writes what a run leaves behind: after each epoch its metrics, the best, and a way back."""

    def __init__(self, folder: Path, stage: int, card: ModelCard, best: Best) -> None:
        self.folder = folder
        self.stage = stage
        self.card = card
        self.best = best
        self.started = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        value = {name: float(v) for name, v in trainer.callback_metrics.items()}
        row = {
            "stage": self.stage + 1,
            "part": module.stage.part,
            "epoch": module.epoch_offset + trainer.current_epoch + 1,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": value["loss_epoch"],
            "train_accuracy": value["accuracy"],
            "val_loss": value["val_loss"],
            "val_accuracy": value["val_accuracy"],
            "val_auc": value["val_auc"],
            "seconds": time.monotonic() - self.started,
        }
        append_metrics(self.folder / METRICS, row)
        reached = (value["val_auc"], -value["val_loss"])
        if reached > self.best:
            self.best = reached
            save_checkpoint(self.folder / BEST, module.net, self.card)
        partial = self.folder / (RESUME + ".partial")
        trainer.save_checkpoint(partial)
        os.replace(partial, self.folder / RESUME)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ffd"] = {
            "stage": self.stage,
            "epoch": trainer.current_epoch + 1,
            "best": list(self.best),
        }


def train(
    data: FaceData,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ModelCard:
    """Train all stages, then calibrate the best checkpoint on the validation split.

    Args:
        data: with both classes in train and val.
        settings: how.
        folder: of the run; made if needed.
        resume: go on from the folder's last whole epoch.
        progress: draw a progress bar on stderr.
        say: told one line at each step worth one.

    Returns:
        The card of `folder/best.safetensors`.

    Raises:
        FfdError: the weights, the device or the folder cannot be used.
    """
    _silence_lightning()
    L.seed_everything(settings.seed, verbose=False)
    accelerator, precision = choose_device(settings)
    card = ModelCard(
        name=folder.name,
        architecture=settings.network,
        provenance=Provenance(
            version=__version__,
            manifest_sha256=data.manifest_sha256,
            weights=describe_weights(settings.weights),
        ),
    )
    position = _position(folder / RESUME) if resume else Position()
    if resume and (folder / BEST).exists():
        _require_same_data(load_card(folder / BEST), data)
    begun = position != Position()
    net = build(settings.network, "none" if begun else settings.weights)
    net.to(memory_format=torch.channels_last)
    _open_folder(folder, settings, data)
    keep_metrics(folder / METRICS, epochs_before(settings.stages, position))

    for number, stage in enumerate(settings.stages):
        if number < position.stage:
            continue
        offset = sum(s.epochs for s in settings.stages[:number])
        done = position.epoch if number == position.stage else 0
        module = StagedTraining(net, settings, stage, offset)
        if done >= stage.epochs:
            _load_net(module, folder / RESUME)
            continue
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        say(
            f"stage {number + 1} of {len(settings.stages)}: {stage.part}, {trained / 1e6:.1f} M "
            f"parameters, {stage.epochs - done} epochs, lr {stage.lr:g}, {accelerator} {precision}"
        )
        saver = RunFolder(folder, number, card, position.best)
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,
            max_epochs=stage.epochs,
            callbacks=[saver, Announce(say), *([_progress_bar()] if progress else [])],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
        )
        trainer.fit(
            module,
            datamodule=FaceBatches(data, settings, offset),
            ckpt_path=str(folder / RESUME) if done else None,
            weights_only=True if done else None,
        )
        if trainer.interrupted:
            raise KeyboardInterrupt
        position = Position(number + 1, 0, saver.best)
    return finish(data, settings, folder, say)


def finish(
    data: FaceData, settings: Settings, folder: Path, say: Callable[[str], None]
) -> ModelCard:
    """Fit temperature, threshold and unsure band on val, write them into the card, draw plots."""
    net, card = load_checkpoint(folder / BEST)
    samples = data.split("val")
    device = "cuda" if choose_device(settings)[0] == "cuda" else "cpu"
    logits = predict_logits(net.to(device), data, samples, card.preprocess, settings.batch)
    generated = np.array([sample.label == 0 for sample in samples])
    fitted = calibrate(logits, generated)
    card = card.replace(
        temperature=fitted.temperature, threshold=fitted.threshold, unsure=fitted.unsure
    )
    report = measure(logits, [sample.label for sample in samples], card)
    card = card.replace(metrics={"val": report.summary()})
    save_checkpoint(folder / BEST, net.cpu(), card)
    (folder / "card.json").write_text(card.to_json(indent=2) + "\n")
    plot_curves(folder / METRICS, folder / "curves.png")
    say(
        f"best epoch on val: AUC {report.roc_auc:.4f}, accuracy {report.accuracy:.4f}; "
        f"temperature {fitted.temperature:.3f}, threshold {fitted.threshold:.3f}, "
        f"unsure from {fitted.unsure[0]:.3f} to {fitted.unsure[1]:.3f}"
    )
    return card


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


class Announce(Callback):
    """Says one line an epoch, for logs and for people without a progress bar."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, StagedTraining)
        value = trainer.callback_metrics
        self.say(
            f"epoch {module.epoch_offset + trainer.current_epoch + 1}: "
            f"loss {value['loss_epoch']:.4f}, accuracy {value['accuracy']:.4f}; "
            f"val loss {value['val_loss']:.4f}, accuracy {value['val_accuracy']:.4f}, "
            f"AUC {value['val_auc']:.4f}"
        )


def choose_device(settings: Settings) -> tuple[str, Any]:
    """Lightning's accelerator and precision for the settings.

    Raises:
        ModelError: CUDA was asked for and is not there, or float16 on a CPU.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise ModelError("--device cuda: PyTorch sees no CUDA device here (is it a CPU build?)")
    accelerator = "cuda" if cuda and settings.device != "cpu" else "cpu"
    if settings.precision == "auto":
        if accelerator == "cpu":
            return accelerator, "32-true"
        return accelerator, "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if settings.precision == "16" and accelerator == "cpu":
        raise ModelError("--precision 16 needs a GPU: use bf16 or 32 on a CPU")
    return accelerator, {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[
        settings.precision
    ]


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


def _open_folder(folder: Path, settings: Settings, data: FaceData) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(settings.to_json() + "\n")
        write_manifest(folder / MANIFEST, data)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from None


def _require_same_data(card: ModelCard, data: FaceData) -> None:
    if card.provenance.manifest_sha256 != data.manifest_sha256:
        raise DataError(
            f"{data.root} is not what this run was started on (images were added, removed, moved "
            "or changed): restore it, or start a new run"
        )


def keep_metrics(path: Path, epochs: int) -> None:
    """Drop the epochs that a resumed run is going to repeat."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: epochs + 1]))


def _position(path: Path) -> Position:
    if not path.exists():
        return Position()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["ffd"]
        return Position(state["stage"], state["epoch"], tuple(state["best"]))
    except Exception as error:
        raise ModelError(f"{path} cannot be resumed from: {error}") from None


def _load_net(module: StagedTraining, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)


def _progress_bar() -> RichProgressBar:
    return RichProgressBar(console_kwargs={"stderr": True})


def _silence_lightning() -> None:
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

"""Staged training, from a scanned data set to a calibrated checkpoint with its model card."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from scipy.special import expit
from torch import nn

from ffd_runtime import __version__
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.errors import DataError, ModelError
from ffd_runtime.model.card import ModelCard, Provenance

from .allocator import keep_freed_memory
from .calibrate import calibrate
from .checkpoint import load_card, load_checkpoint, save_checkpoint
from .classification_metrics import measure_scores
from .depthwise import use_fast_depthwise
from .face_data import FaceData
from .networks import FaceNet, build, describe_weights, synchronise
from .predict import is_out_of_memory, predict_logits
from .progress import RunProgress
from .run_folder import (
    BEST,
    METRICS,
    RESUME,
    Position,
    RunCheckpoint,
    count_epochs_before,
    keep_metrics,
    open_folder,
    read_position,
    require_same_data,
    require_space,
)
from .sampling import possible_accumulation_steps
from .settings import Settings, choose_device
from .stage import Stage
from .staged_training import FaceDataModule, StagedTraining
from .teachers import load_teacher
from .tensorboard import TensorBoard
from .training_curves import plot_curves
from .world import World


def train(
    data: FaceData,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ModelCard:
    """Train all stages, then calibrate the saved checkpoint on the validation split.

    Under torchrun all processes train together, and rank 0 writes the files. If the GPU memory is
    too small for a micro-batch, training resumes from the last complete epoch with at least twice
    as many gradient accumulation steps.

    Args:
        data: data set with both classes in train and val.
        settings: settings of the run.
        folder: folder of the run; created if needed.
        resume: resume from the last complete epoch in the folder.
        progress: draw a progress bar on stderr.
        say: receives status lines.

    Returns:
        The card of `folder/best.safetensors`; on other ranks than 0 the uncalibrated card.

    Raises:
        FfdError: the weights, the device or the folder cannot be used.
    """
    _silence_lightning()
    world = World.from_environment()
    _require_images(data, world)
    with _cudnn_benchmark():
        while True:
            try:
                card = _train_stages(data, settings, folder, resume, progress, say)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    _explain_compile_error(error, settings)
                    raise
                settings = _increase_accumulation(settings, world)
            _free_gpu_memory()
            say(
                f"out of GPU memory with a batch of {settings.batch} images: retrying with "
                f"{settings.accumulate} gradient accumulation steps"
            )
            resume = True
        return finish(data, settings, folder, say) if world.is_main else card


def _free_gpu_memory() -> None:
    # Call it outside of the exception's handler: the exception keeps the tensors alive.
    gc.collect()
    torch.cuda.empty_cache()


def _require_images(data: FaceData, world: World) -> None:
    if len(data.split("val")) < world.size:
        raise DataError(
            f"{data.root} has fewer images in val than there are processes ({world.size}): add "
            "images, or start fewer processes"
        )


def _explain_compile_error(error: RuntimeError, settings: Settings) -> None:
    """Replace an error of torch.compile, such as a missing compiler, by one line."""
    if not settings.compile:
        return
    from torch._dynamo.exc import TorchDynamoException

    if isinstance(error, TorchDynamoException):
        lines = [line for line in str(error).splitlines() if not line.startswith("backend=")]
        reason = next(filter(None, lines), type(error).__name__)
        raise ModelError(
            f"--compile: torch.compile failed ({reason}): install what is missing, or train with "
            "--no-compile"
        ) from error


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN select the fastest kernels; the shapes of a run are constant."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _increase_accumulation(settings: Settings, world: World) -> Settings:
    before = settings.accumulate
    possible = possible_accumulation_steps(settings.batch, world.size)
    larger = [steps for steps in possible if steps > before]
    if not larger:
        raise ModelError(
            f"out of GPU memory with {settings.micro_batch(world.size)} images, and a batch of "
            f"{settings.batch} cannot be divided into smaller micro-batches: use a smaller --crop "
            "or --network, or another --batch"
        )
    # Doubles, because each attempt repeats the current epoch.
    steps = next((steps for steps in larger if steps >= 2 * before), larger[-1])
    if world.size > 1:
        # One process cannot change the settings of the others.
        raise ModelError(f"out of GPU memory: restart with --accumulate {steps}")
    return replace(settings, accumulate=steps)


def _train_stages(
    data: FaceData,
    settings: Settings,
    folder: Path,
    resume: bool,
    progress: bool,
    say: Callable[[str], None],
) -> ModelCard:
    world = World.from_environment()
    L.seed_everything(settings.seed, verbose=False)
    accelerator, precision = choose_device(settings)
    if accelerator == "cpu":
        keep_freed_memory()
    else:
        world.require_gpus(torch.cuda.device_count())
    position = read_position(folder / RESUME) if resume else Position()
    if position == Position():
        card = _initial_card(data, settings, folder.name)
        net = build(settings.network, settings.weights)
    else:
        card = load_card(folder / BEST)
        require_same_data(folder, card, data)
        net = build(settings.network)
    if world.size > 1 and accelerator == "cuda":
        # PyTorch supports synchronised BatchNorm only on GPUs.
        net = synchronise(net)
    net.to(memory_format=torch.channels_last)
    if accelerator == "cpu" and precision == "bf16-mixed":
        use_fast_depthwise(net)
    teacher = load_teacher(settings.teacher)
    completed = count_epochs_before(settings.stages, position)
    if world.is_main:
        require_space(folder, net, settings)
        open_folder(folder, settings, data)
        keep_metrics(folder / METRICS, completed)

    epochs = sum(stage.epochs for stage in settings.stages)
    with (
        RunProgress(say, epochs, completed, progress) as reporter,
        closing(TensorBoard(folder)) as log,
    ):
        run = _Run(
            data, settings, folder, net, teacher, card, accelerator, precision, reporter, log, world
        )
        while position.stage < len(settings.stages):
            position = run.train_stage(position)
    return card


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    data: FaceData
    settings: Settings
    folder: Path
    net: FaceNet
    teacher: nn.Module | None
    card: ModelCard
    accelerator: str
    precision: Any
    reporter: RunProgress
    log: TensorBoard
    world: World

    def train_stage(self, position: Position) -> Position:
        """Train one stage from a position in it; returns the start of the next stage."""
        settings = self.settings
        stage = settings.stages[position.stage]
        offset = count_epochs_before(settings.stages, Position(position.stage))
        module = StagedTraining(self.net, settings, stage, offset, self.teacher)
        if position.epoch >= stage.epochs:
            # The run ended between two stages: only the network is restored.
            state = torch.load(self.folder / RESUME, map_location="cpu", weights_only=True)
            module.load_state_dict(state["state_dict"])
            module.end_stage()
            return Position(position.stage + 1, 0, position.best)
        self._announce(position, stage)
        saver = RunCheckpoint(
            self.folder, position.stage, self.card, position.best, self.reporter, settings.keep
        )
        callbacks = [self.reporter, saver]
        if self.world.is_main:
            callbacks.append(self.log)
        try:
            self._trainer(stage, callbacks).fit(
                module,
                datamodule=FaceDataModule(self.data, settings, offset, self.world),
                ckpt_path=str(self.folder / RESUME) if position.epoch else None,
                weights_only=True if position.epoch else None,
            )
        except SystemExit:
            # Lightning turns Ctrl-C into SystemExit.
            raise KeyboardInterrupt from None
        module.end_stage()
        return Position(position.stage + 1, 0, saver.best)

    def _announce(self, position: Position, stage: Stage) -> None:
        trained = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        self.reporter.say(
            f"stage {position.stage + 1} of {len(self.settings.stages)}: {stage.part}, "
            f"{trained / 1e6:.1f} M parameters, {stage.epochs - position.epoch} epochs, "
            f"lr {stage.lr:g}, {self.accelerator} {self.precision}"
            + (f", {self.world.size} processes" if self.world.size > 1 else "")
        )

    def _trainer(self, stage: Stage, callbacks: list[Callback]) -> L.Trainer:
        return L.Trainer(
            accelerator=self.accelerator,
            precision=self.precision,
            max_epochs=stage.epochs,
            callbacks=callbacks,
            accumulate_grad_batches=self.settings.accumulate,
            gradient_clip_val=self.settings.clip or None,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            **_distributed_arguments(self.world, self.accelerator),
        )


def _distributed_arguments(world: World, accelerator: str) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer for torchrun's processes."""
    if world.size == 1:
        return {"devices": 1}
    backend = "nccl" if accelerator == "cuda" else "gloo"
    return {
        "devices": world.local_size,
        "num_nodes": world.nodes,
        "strategy": DDPStrategy(process_group_backend=backend),
    }


def _initial_card(data: FaceData, settings: Settings, name: str) -> ModelCard:
    provenance = Provenance(
        version=__version__,
        manifest_sha256=data.manifest_sha256,
        weights=describe_weights(settings.weights),
    )
    return ModelCard(name=name, architecture=settings.network, provenance=provenance)


def finish(
    data: FaceData, settings: Settings, folder: Path, say: Callable[[str], None]
) -> ModelCard:
    """Calibrate on val, write temperature, threshold and unsure band to the card, plot curves."""
    net, card = load_checkpoint(folder / BEST)
    samples = data.split("val")
    device, _ = choose_device(settings)
    micro_batch = settings.micro_batch(World.from_environment().size)
    logits = predict_logits(
        net.to(device), data, samples, card.preprocess, micro_batch, settings.workers
    )
    generated = np.array([sample.label == 0 for sample in samples])
    sources = [sample.source for sample in samples]
    fitted = calibrate(logits, generated, sources, settings.false_alarms)
    card = card.replace(
        temperature=fitted.temperature, threshold=fitted.threshold, unsure=fitted.unsure
    )
    scores = expit((logits[:, 0] - logits[:, 1]) / card.temperature)
    report = measure_scores(scores, [sample.label for sample in samples], card)
    card = card.replace(metrics={"val": report.summary()})
    save_checkpoint(folder / BEST, net.cpu(), card)
    write_output(folder / "card.json", (card.to_json(indent=2) + "\n").encode())
    plot_curves(folder / METRICS, folder / "curves.png")
    say(
        f"{settings.keep} epoch on val: AUC {report.roc_auc:.4f}, accuracy {report.accuracy:.4f}; "
        f"temperature {fitted.temperature:.3f}, threshold {fitted.threshold:.3f}, "
        f"unsure from {fitted.unsure[0]:.3f} to {fitted.unsure[1]:.3f}"
    )
    return card


def _silence_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")

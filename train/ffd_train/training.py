"""Staged training, from a scanned data set to a calibrated checkpoint with its card."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy

from ffd_runtime import __version__
from ffd_runtime.core.errors import DataError, ModelError
from ffd_runtime.model.card import ModelCard, PreprocessSpec, Provenance

from .calibrate import calibrate
from .checkpoint import load_card, load_checkpoint, save_checkpoint
from .classification_metrics import measure
from .data import FaceData
from .loading import one_opencv_thread
from .networks import FaceNet, build, describe_weights, synchronise
from .out_of_memory import is_out_of_memory
from .predict import predict_logits
from .progress import RunProgress
from .run_folder import (
    BEST,
    METRICS,
    RESUME,
    Position,
    SaveRun,
    epochs_before,
    keep_metrics,
    open_folder,
    read_position,
    require_same_data,
    require_space,
    write_whole,
)
from .sampling import possible_parts
from .settings import Settings, choose_device
from .staged_training import FaceBatches, StagedTraining
from .tensorboard import TensorBoard
from .training_curves import plot_curves
from .world import Processes


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

    Started by torchrun, the processes train together, and the first one writes. Where a GPU's
    memory is too small for a batch, it is taken in at least twice as many parts, from the last
    whole epoch on.

    Args:
        data: with both classes in train and val.
        settings: how.
        folder: of the run; made if needed.
        resume: go on from the folder's last whole epoch.
        progress: draw a progress bar on stderr.
        say: told one line at each step worth one.

    Returns:
        The card of `folder/best.safetensors`; in processes other than the first, of the beginning.

    Raises:
        FfdError: the weights, the device or the folder cannot be used.
    """
    _silence_lightning()
    processes = Processes.here()
    _require_images(data, processes)
    with one_opencv_thread(), _fastest_kernels():
        while True:
            try:
                card = _train_stages(data, settings, folder, resume, progress, say)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    _require_compiled(error, settings)
                    raise
                settings = _in_more_parts(settings, processes)
            # Outside of the handler, which holds what filled the memory.
            gc.collect()
            torch.cuda.empty_cache()
            say(
                f"the GPU's memory is too small for {settings.batch} images at once: going on with "
                f"{settings.accumulate} parts of a batch"
            )
            resume = True
        return finish(data, settings, folder, say) if processes.first else card


def _require_images(data: FaceData, processes: Processes) -> None:
    if len(data.split("val")) < processes.count:
        raise DataError(f"{data.root} has fewer than {processes.count} images in val: too few here")


def _require_compiled(error: RuntimeError, settings: Settings) -> None:
    """Report what torch.compile lacks, such as a compiler, in one line."""
    if not settings.compile:
        return
    from torch._dynamo.exc import TorchDynamoException

    if isinstance(error, TorchDynamoException):
        lines = [line for line in str(error).splitlines() if not line.startswith("backend=")]
        reason = next(filter(None, lines), type(error).__name__)
        raise ModelError(
            f"--compile: torch.compile failed ({reason}): provide what it lacks, or train with "
            "--no-compile"
        ) from error


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN time its kernels for each shape: those of a run's batches are constant."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _in_more_parts(settings: Settings, processes: Processes) -> Settings:
    before = settings.accumulate
    possible = possible_parts(settings.batch, processes.count)
    more = [parts for parts in possible if parts > before]
    if not more:
        raise ModelError(
            f"the GPU's memory is too small for {settings.part(processes.count)} images, and a "
            f"batch of {settings.batch} cannot be taken in smaller parts: use a smaller --crop or "
            "--network, or another --batch"
        )
    # Each try costs what was trained of the epoch.
    parts = next((parts for parts in more if parts >= 2 * before), more[-1])
    if processes.count > 1:
        # One process alone cannot change what all do.
        raise ModelError(f"a GPU's memory is too small: start again with --accumulate {parts}")
    return replace(settings, accumulate=parts)


def _train_stages(
    data: FaceData,
    settings: Settings,
    folder: Path,
    resume: bool,
    progress: bool,
    say: Callable[[str], None],
) -> ModelCard:
    processes = Processes.here()
    L.seed_everything(settings.seed, verbose=False)
    accelerator, precision = choose_device(settings)
    position = read_position(folder / RESUME) if resume else Position()
    if position == Position():
        card = _first_card(data, settings, folder.name)
        net = build(settings.network, settings.weights)
    else:
        card = load_card(folder / BEST)
        require_same_data(folder, card, data)
        net = build(settings.network)
    if processes.count > 1 and accelerator == "cuda":
        # PyTorch has it for GPUs alone.
        net = synchronise(net)
    net.to(memory_format=torch.channels_last)
    teacher = _load_teacher(settings)
    behind = epochs_before(settings.stages, position)
    if processes.first:
        require_space(folder, net, settings)
        open_folder(folder, settings, data)
        keep_metrics(folder / METRICS, behind)

    epochs = sum(stage.epochs for stage in settings.stages)
    with RunProgress(say, epochs, behind, progress) as reporter:
        run = _Run(
            data, settings, folder, net, teacher, card, accelerator, precision, reporter, processes
        )
        while position.stage < len(settings.stages):
            position = _train_stage(run, position)
    return card


def _load_teacher(settings: Settings) -> FaceNet | None:
    if not settings.teacher:
        return None
    path = Path(settings.teacher)
    teacher, card = load_checkpoint(path / BEST if path.is_dir() else path)
    if card.preprocess != PreprocessSpec():
        raise ModelError(f"teacher {path} was trained on images that are prepared otherwise")
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Run:
    """What stays the same from stage to stage."""

    data: FaceData
    settings: Settings
    folder: Path
    net: FaceNet
    teacher: FaceNet | None
    card: ModelCard
    accelerator: str
    precision: Any
    reporter: RunProgress
    processes: Processes


def _train_stage(run: _Run, position: Position) -> Position:
    """Train one stage from a position in it to its end; the start of the next stage."""
    settings = run.settings
    stage = settings.stages[position.stage]
    offset = epochs_before(settings.stages, Position(position.stage))
    module = StagedTraining(run.net, settings, stage, offset, run.teacher)
    if position.epoch >= stage.epochs:
        # Killed between two stages: only the network comes from the state.
        state = torch.load(run.folder / RESUME, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
        module.end_stage()
        return Position(position.stage + 1, 0, position.best)
    trained = sum(p.numel() for p in run.net.parameters() if p.requires_grad)
    run.reporter.say(
        f"stage {position.stage + 1} of {len(settings.stages)}: {stage.part}, "
        f"{trained / 1e6:.1f} M parameters, {stage.epochs - position.epoch} epochs, "
        f"lr {stage.lr:g}, {run.accelerator} {run.precision}"
        + (f", {run.processes.count} processes" if run.processes.count > 1 else "")
    )
    saver = SaveRun(
        run.folder, position.stage, run.card, position.best, run.reporter, settings.keep
    )
    callbacks = [run.reporter, saver]
    if run.processes.first:
        callbacks.append(TensorBoard(run.folder, offset + position.epoch))
    trainer = L.Trainer(
        accelerator=run.accelerator,
        precision=run.precision,
        max_epochs=stage.epochs,
        callbacks=callbacks,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        **_spread(run.processes, run.accelerator),
    )
    try:
        trainer.fit(
            module,
            datamodule=FaceBatches(run.data, settings, offset, run.processes),
            ckpt_path=str(run.folder / RESUME) if position.epoch else None,
            weights_only=True if position.epoch else None,
        )
    except SystemExit:
        # How Lightning passes on a Ctrl-C.
        raise KeyboardInterrupt from None
    module.end_stage()
    return Position(position.stage + 1, 0, saver.best)


def _spread(processes: Processes, accelerator: str) -> dict[str, Any]:
    """Lightning's arguments for the processes that torchrun started."""
    if processes.count == 1:
        return {"devices": 1}
    backend = "nccl" if accelerator == "cuda" else "gloo"
    return {
        "devices": processes.local_count,
        "num_nodes": processes.machines,
        "strategy": DDPStrategy(process_group_backend=backend),
    }


def _first_card(data: FaceData, settings: Settings, name: str) -> ModelCard:
    provenance = Provenance(
        version=__version__,
        manifest_sha256=data.manifest_sha256,
        weights=describe_weights(settings.weights),
    )
    return ModelCard(name=name, architecture=settings.network, provenance=provenance)


def finish(
    data: FaceData, settings: Settings, folder: Path, say: Callable[[str], None]
) -> ModelCard:
    """Fit temperature, threshold and unsure band on val, write them into the card, draw plots."""
    net, card = load_checkpoint(folder / BEST)
    samples = data.split("val")
    device, _ = choose_device(settings)
    spec, part = card.preprocess, settings.part(Processes.here().count)
    logits = predict_logits(net.to(device), data, samples, spec, part, settings.workers)
    generated = np.array([sample.label == 0 for sample in samples])
    sources = [sample.source for sample in samples]
    fitted = calibrate(logits, generated, sources, settings.false_alarms)
    card = card.replace(
        temperature=fitted.temperature, threshold=fitted.threshold, unsure=fitted.unsure
    )
    report = measure(logits, [sample.label for sample in samples], card)
    card = card.replace(metrics={"val": report.summary()})
    save_checkpoint(folder / BEST, net.cpu(), card)
    write_whole(folder / "card.json", (card.to_json(indent=2) + "\n").encode())
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

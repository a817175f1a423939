from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ffd_runtime.core.errors import DataError, DeviceError, FfdError, ModelError, OutputError
from ffd_runtime.model.card import ModelCard, PreprocessSpec
from ffd_train.checkpoint import load_checkpoint
from ffd_train.dataset import FaceDataset
from ffd_train.face_data import FaceData
from ffd_train.loading import TimedLoader
from ffd_train.network_registry import NETWORKS
from ffd_train.networks import FaceNet
from ffd_train.predict import predict_logits
from ffd_train.progress import RunProgress
from ffd_train.scanning import scan
from ffd_train.settings import Settings, choose_device
from ffd_train.stage import Stage
from ffd_train.staged_training import StagedTraining, distillation_loss
from ffd_train.training import train
from ffd_train.world import World

from .. import tiny
from ..servers import free_port

STAGES = (Stage("head", 1, 1e-2), Stage("layer4", 1, 1e-2), Stage("all", 3, 1e-2))
SETTINGS = Settings(network="tiny", weights="none", stages=STAGES, batch=8, crop=96, workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FaceData:
    root = tmp_path_factory.mktemp("data")
    return scan(tiny.make_faces(root / "faces", {"train": 24, "val": 8}), ("train", "val"))


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing curves.png, which takes much of the CPU time of a small training."""
    monkeypatch.setattr("ffd_train.training.plot_curves", lambda metrics, output: None)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["waited"]
    return rows


@pytest.fixture(scope="module")
def run(
    data: FaceData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelCard, list[str]]:
    """The folder of a complete run, its card, and the lines that it reported."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    said: list[str] = []
    return folder, train(data, SETTINGS, folder, say=said.append), said


def test_a_run_learns_and_writes_its_files(
    data: FaceData, run: tuple[Path, ModelCard, list[str]]
) -> None:
    folder, card, said = run
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "best.safetensors",
        "card.json",
        "curves.png",
        "manifest.csv",
        "metrics.csv",
        "resume.ckpt",
        "settings.json",
        "tensorboard",
    }
    rows = metrics(folder)
    assert [row["part"] for row in rows] == ["head", "layer4", "all", "all", "all"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert card.metrics["val"]["roc_auc"] == 1
    assert card.provenance.manifest_sha256 == data.manifest_sha256
    net, loaded = load_checkpoint(folder / "best.safetensors")
    assert loaded == card
    logits = predict_logits(net, data, data.split("val"), card.preprocess)
    right = (logits[:, 0] > logits[:, 1]) == [s.label == 0 for s in data.split("val")]
    assert right.mean() > 0.8
    curves = cv2.imread(str(folder / "curves.png"))
    assert curves is not None
    assert curves.std() > 5
    assert Settings.from_json((folder / "settings.json").read_text()) == SETTINGS
    assert sum("stage" in line for line in said) == 3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_checkpoint_policy_selects_the_epoch(data: FaceData, tmp_path: Path, keep: str) -> None:
    # The last stage destroys the network: the best checkpoint is from an earlier epoch.
    stages = (Stage("all", 4, 1e-2), Stage("all", 1, 90.0))
    train(data, replace(SETTINGS, stages=stages, keep=keep), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    net, card = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert float(rows[-1]["val_auc"]) < 1
    assert (card.metrics["val"]["roc_auc"] == 1) == (keep == "best")
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer_and_schedule_trains(
    data: FaceData, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    options = {"optimizer": optimizer, "schedule": schedule, "stages": (Stage("all", 2, 1e-2),)}
    train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")
    rates = [float(row["lr"]) for row in metrics(tmp_path / "run")]
    assert rates[0] == rates[1] if schedule == "constant" else rates[1] < rates[0] / 10
    if schedule == "cosine":
        # The rate of the last of 12 steps; after it, the schedule has reached 0.
        assert rates[1] == pytest.approx(1e-2 * (1 + np.cos(np.pi * 11 / 12)) / 2)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_the_only_step_of_a_stage_has_its_rate(
    data: FaceData, tmp_path: Path, schedule: str
) -> None:
    stages = (Stage("all", 1, 1e-2),)
    settings = replace(SETTINGS, schedule=schedule, stages=stages, batch=48)
    train(data, settings, tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert float(row["lr"]) == 1e-2


def test_bfloat16_trains_on_a_cpu(data: FaceData, tmp_path: Path) -> None:
    options = {"precision": "bf16", "stages": (Stage("all", 1, 1e-2),)}
    card = train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")
    net, _ = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert net.head.weight.dtype == torch.float32
    assert card.precision == "fp32"


# A fork server that has imported PyTorch, which takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.tiny", "ffd_train.training", "torch.utils.tensorboard"])


def train_and_tell(told: Connection, data: FaceData, settings: Settings, folder: Path) -> None:
    """Train in a separate process; resume the run if it exists."""
    try:
        train(data, settings, folder, resume=folder.exists(), say=told.send)
    except KeyboardInterrupt:
        sys.exit(130)


def start(data: FaceData, settings: Settings, folder: Path) -> tuple[ForkServerProcess, Connection]:
    heard, told = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=train_and_tell, args=(told, data, settings, folder))
    process.start()
    told.close()
    return process, heard


def test_a_killed_run_resumes_to_the_same_result(data: FaceData, tmp_path: Path) -> None:
    # One-cycle and momentum have state that must be restored.
    long = (Stage("head", 2, 1e-2), Stage("all", 5, 1e-2))
    settings = Settings(**{**vars(SETTINGS), "stages": long, "schedule": "one-cycle"})
    train(data, settings, tmp_path / "unbroken")

    # Kill at random times: while loading, training, writing, between stages, calibrating.
    moments = random.Random(0)
    kills = 0
    while True:
        process, heard = start(data, settings, tmp_path / "killed")
        assert heard.poll(60), "it says nothing"
        process.join(moments.uniform(0.05, 0.5) + 0.1 * kills)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 3

    assert metrics(tmp_path / "killed") == metrics(tmp_path / "unbroken")
    first, _ = load_checkpoint(tmp_path / "unbroken" / "best.safetensors")
    second, _ = load_checkpoint(tmp_path / "killed" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def train_as_rank(
    rank: int, port: int, data: FaceData, settings: Settings, folder: Path, told: Path
) -> None:
    """Train as one of two processes, in the environment that torchrun gives them."""
    with told.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    # Lightning detects torchrun by the identifier of the run.
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**ranks, **run}.items()})
    # Only rank 0 has a bar, and must not wait for the other rank in it.
    train(data, settings, folder, progress=World.from_environment().is_main)


def test_two_processes_train_the_same_network_as_one(tmp_path: Path) -> None:
    # 28 images in batches of 8: the last batch is filled up.
    # The processes validate 5 and 4 images.
    faces = tiny.make_faces(tmp_path / "faces", {"train": 14, "val": 5})
    next((faces / "val/generated").iterdir()).unlink()
    data = scan(faces, ("train", "val"))
    stages = (Stage("head", 1, 0.1), Stage("all", 3, 0.1))
    settings = replace(SETTINGS, network="plain", stages=stages, crop=64, sizes=(64, 96))
    shared = (free_port(), data, settings, tmp_path / "two", tmp_path / "stderr")
    processes = [FORKS.Process(target=train_as_rank, args=(rank, *shared)) for rank in (0, 1)]
    for process in processes:
        process.start()
    alone = train(data, settings, tmp_path / "one")
    for process in processes:
        process.join(180)
        process.kill()
    told = (tmp_path / "stderr").read_text()
    assert [process.exitcode for process in processes] == [0, 0], told
    # Only rank 0 prints.
    assert told.count("stage 1 of 2") == 1
    assert "2 processes" in told

    first, _ = load_checkpoint(tmp_path / "one" / "best.safetensors")
    second, card = load_checkpoint(tmp_path / "two" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert card.threshold == pytest.approx(alone.threshold, abs=1e-3)
    rows, others = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_auc")
    for one, two in zip(rows, others, strict=True):
        for name in names:
            assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-5), name
    # The training changed the loss by far more than the tolerance.
    losses = [float(row["train_loss"]) for row in rows]
    assert max(losses) - min(losses) > 5e-3


def test_accumulation_steps_may_change_on_resuming(data: FaceData, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # One-cycle depends on the number of steps; 48 images in batches of 20 have a remainder.
    options = {"network": "plain", "stages": (Stage("all", 3, 1e-2),), "schedule": "one-cycle"}
    settings = Settings(**{**vars(SETTINGS), **options, "batch": 20})

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    train(data, settings, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(data, replace(settings, accumulate=10), tmp_path / "run", say=stop)
    train(data, settings, tmp_path / "run", resume=True)

    first, _ = load_checkpoint(tmp_path / "unbroken" / "best.safetensors")
    second, _ = load_checkpoint(tmp_path / "run" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    # Loss and steps do not depend on the accumulation steps, and no earlier point is missing.
    shown = {}
    for name in ("unbroken", "run"):
        events = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events.Reload()
        for tag in ("step/loss", "step/lr", "epoch/val_loss"):
            shown[name, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    for tag, steps in (("step/loss", [0, 3, 6]), ("epoch/val_loss", [2, 5, 8])):
        assert [step for step, _ in shown["run", tag]] == steps
        np.testing.assert_allclose(shown["run", tag], shown["unbroken", tag], rtol=1e-3)
    np.testing.assert_allclose(shown["run", "step/lr"], shown["unbroken", "step/lr"])


def test_ctrl_c_is_passed_on(data: FaceData, tmp_path: Path) -> None:
    settings = Settings(**{**vars(SETTINGS), "stages": (Stage("all", 500, 1e-2),)})
    process, heard = start(data, settings, tmp_path / "run")
    for line in ("stage 1 of 1", "epoch 1"):
        assert heard.poll(60)
        assert line in heard.recv()
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130


def test_resuming_needs_the_same_data_and_a_valid_state(data: FaceData, tmp_path: Path) -> None:
    settings = Settings(**{**vars(SETTINGS), "stages": (Stage("head", 1, 1e-2),)})
    folder = tmp_path / "run"
    card = train(data, settings, folder)
    # Resuming a complete run only calibrates again.
    assert train(data, settings, folder, resume=True) == card
    other = scan(tiny.make_faces(tmp_path / "other", {"train": 3, "val": 1}), ("train", "val"))
    with pytest.raises(DataError, match="has changed since this run was started"):
        train(other, settings, folder, resume=True)
    (folder / "resume.ckpt").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot resume from"):
        train(data, settings, folder, resume=True)
    (folder / "settings.json").write_text("{}")
    with pytest.raises(DataError, match=r"invalid settings.json"):
        Settings.from_json((folder / "settings.json").read_text())


def test_a_loss_that_is_not_finite_ends_the_run(data: FaceData, tmp_path: Path) -> None:
    options = {"stages": (Stage("all", 1, 1e-2), Stage("all", 3, 99.0)), "optimizer": "sgd"}
    settings = Settings(**{**vars(SETTINGS), **options, "weight_decay": 1.0})
    with pytest.raises(ModelError, match="the loss is not finite in epoch"):
        train(data, settings, tmp_path / "run")
    net, _ = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_loss_that_is_not_finite_is_detected_within_the_epoch(
    data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * float("nan")

    def build_broken(network: str, weights: str) -> FaceNet:
        net = tiny.build_tiny()
        net.layer4.append(Broken())  # type: ignore[operator]
        return net

    monkeypatch.setitem(NETWORKS, "broken", build_broken)
    options = {"network": "broken", "stages": (Stage("all", 3, 1e-2),)}
    with pytest.raises(ModelError, match="in epoch 1: lower .*no epoch was completed"):
        train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.csv").exists()


class SmallMemory(nn.Module):
    """Raises an out-of-memory error for more than a few images with gradients."""

    holds = 4

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if len(image) > self.holds and image.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return image


def build_hungry(network: str, weights: str) -> FaceNet:
    net = tiny.build_plain()
    net.layer4.append(SmallMemory())  # type: ignore[operator]
    return net


# The second batch divides evenly too, and the epoch is not a multiple of it.
@pytest.mark.parametrize(("batch", "tried"), [(12, [2, 4]), (20, [2, 4, 10])])
def test_out_of_memory_increases_the_accumulation_steps(
    data: FaceData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    tried: list[int],
) -> None:
    monkeypatch.setitem(NETWORKS, "hungry", build_hungry)
    # The memory suffices for training only the head.
    stages = (Stage("head", 1, 1e-2), Stage("all", 1, 3e-2))
    options = {"batch": batch, "stages": stages, "network": "hungry"}
    said: list[str] = []
    settings = Settings(**{**vars(SETTINGS), **options})
    train(data, settings, tmp_path / "hungry", say=said.append)
    assert [line for line in said if "memory" in line] == [
        f"out of GPU memory with a batch of {batch} images: retrying with {steps} gradient "
        "accumulation steps"
        for steps in tried
    ]
    assert sum("stage 1 of 2" in line for line in said) == 1
    kept = Settings.from_json((tmp_path / "hungry" / "settings.json").read_text())
    assert kept == Settings(**{**vars(settings), "accumulate": tried[-1]})
    # The result equals that of a GPU with enough memory.
    train(data, Settings(**{**vars(settings), "network": "plain"}), tmp_path / "plain")
    first, _ = load_checkpoint(tmp_path / "plain" / "best.safetensors")
    second, _ = load_checkpoint(tmp_path / "hungry" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_out_of_memory_with_two_images_is_an_error(
    data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "hungry", build_hungry)
    monkeypatch.setattr(SmallMemory, "holds", 1)
    options = {"batch": 4, "stages": (Stage("all", 1, 1e-2),), "network": "hungry"}
    with pytest.raises(
        ModelError, match="out of GPU memory with 2 images, .*: use a smaller --crop"
    ):
        train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")


def test_the_moving_average_is_validated_and_saved(data: FaceData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"stages": (Stage("all", 1, 1e-2),), "batch": 24, "clip": 0.0}
    options |= {"network": "plain", "schedule": "constant"}
    made = {}
    for decay in (0.0, 0.5):
        settings = Settings(**{**vars(SETTINGS), **options, "ema": decay})
        train(data, settings, tmp_path / str(decay))
        state = torch.load(tmp_path / str(decay) / "resume.ckpt", weights_only=True)["state_dict"]
        net, _ = load_checkpoint(tmp_path / str(decay) / "best.safetensors")
        made[decay] = net.head.weight, state["net.head.weight"]
    # Two steps: the average starts with the first weights, then has a decay of at most 2 / 11.
    assert torch.equal(*made[0.0])
    assert torch.equal(made[0.0][1], made[0.5][1])
    assert not torch.allclose(*made[0.5])


def test_label_smoothing_and_clipping_have_their_effect(data: FaceData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"stages": (Stage("all", 1, 1e-2),), "ema": 0.0, "batch": 48}
    options |= {"network": "plain", "schedule": "constant", "crop": None, "recipe": None}
    moved = {}
    for clip in (0.0, 1e-3):
        settings = Settings(**{**vars(SETTINGS), **options, "clip": clip})
        train(data, settings, tmp_path / str(clip))
        net, _ = load_checkpoint(tmp_path / str(clip) / "best.safetensors")
        torch.manual_seed(0)
        L.seed_everything(0, verbose=False)
        start = tiny.build_plain()
        step = torch.cat(
            [(a - b).flatten() for a, b in zip(net.parameters(), start.parameters(), strict=True)]
        )
        moved[clip] = float(step.detach().norm())
    # One step of the learning rate times the clipped gradient norm.
    assert moved[1e-3] == pytest.approx(1e-2 * 1e-3, rel=0.02)
    assert moved[0.0] > 2 * moved[1e-3]
    module = StagedTraining(tiny.build_tiny(), Settings(label_smoothing=0.2), STAGES[0], 0)
    sure = torch.tensor([[20.0, -20.0]])
    assert module.loss(sure, torch.tensor([0])) == pytest.approx(0.1 * 40, rel=1e-3)


def test_distillation_imitates_the_teacher(data: FaceData, tmp_path: Path) -> None:
    options = {"stages": (Stage("all", 2, 1e-2),)}
    train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "teacher")
    taught = {**options, "network": "plain", "teacher": (str(tmp_path / "teacher"),)}
    settings = Settings(**{**vars(SETTINGS), **taught, "teacher_weight": 1.0, "recipe": None})
    train(data, settings, tmp_path / "student")
    state = torch.load(tmp_path / "student" / "resume.ckpt", weights_only=True)
    assert not any("teacher" in name for name in state["state_dict"])
    assert len(state["teacher"]) == 64
    # Labels do not contribute to the loss: all was learned from the teacher.
    losses = [float(row["train_loss"]) for row in metrics(tmp_path / "student")]
    assert losses[1] < losses[0]
    with pytest.raises(ModelError, match="no such file"):
        train(data, replace(settings, teacher=(str(tmp_path / "absent"),)), tmp_path / "x")
    aim = torch.tensor([[3.0, -1.0], [0.5, 0.7]])
    assert distillation_loss(aim + 5, aim, 2.0) == pytest.approx(0, abs=1e-6)
    softened = (aim / 2).softmax(1)
    other = torch.zeros(2, 2).softmax(1)
    expected = 4 * (softened * (softened / other).log()).sum(1).mean()
    assert distillation_loss(torch.zeros(2, 2), aim, 2.0) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_a_disk_too_small_is_an_error_before_the_first_step(data: FaceData, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        said: list[str] = []
        with pytest.raises(
            OutputError, match="needs 0 MB .* free some space, or choose another disk"
        ):
            train(data, SETTINGS, disk / "runs" / "run", say=said.append)
        assert not said
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_tensorboard_shows_the_run(run: tuple[Path, ModelCard, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run[0]
    # TensorBoard can read two files of the same second out of order.
    assert len(list((folder / "tensorboard").iterdir())) == 1
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    epochs = [(event.step, event.value) for event in shown.Scalars("epoch/val_auc")]
    rows = metrics(folder)
    assert [step for step, _ in epochs] == [5, 11, 17, 23, 29]
    assert [value for _, value in epochs] == pytest.approx([float(r["val_auc"]) for r in rows])
    assert [event.step for event in shown.Scalars("step/loss")] == [0, 6, 12, 18, 24]


def test_the_bar_shows_the_unscaled_loss_of_a_micro_batch() -> None:
    with RunProgress(print, 1, 0, bar=True) as reporter:
        module = StagedTraining(tiny.build_tiny(), SETTINGS, STAGES[0], 0)
        trainer = L.Trainer(accumulate_grad_batches=4, logger=False, enable_checkpointing=False)
        # Lightning passes the loss divided by the accumulation steps.
        reporter.on_train_batch_end(trainer, module, {"loss": torch.tensor(0.2)}, None, 0)
        assert reporter._bar
        assert reporter._bar.tasks[0].fields["loss"] == pytest.approx(0.8)


LOAD_TWICE = """
import pathlib, sys
import cv2, numpy
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.dataset import FaceDataset
from ffd_train.loading import TimedLoader
from ffd_train.scanning import scan
data = scan(pathlib.Path(sys.argv[1]), ("train", "val"))
images = FaceDataset(data, data.split("val"), PreprocessSpec())
for _ in range(2):
    cv2.setNumThreads(4)
    cv2.cvtColor(numpy.zeros((999, 999, 3), numpy.uint8), cv2.COLOR_BGR2LAB)
    list(TimedLoader(images, 2, batch_size=4))
    assert cv2.getNumThreads() == 4
"""


def test_workers_do_not_use_threads_that_they_lack(data: FaceData) -> None:
    # In a forked worker, OpenCV's threads of the parent are missing, and it waits or crashes.
    command = [sys.executable, "-c", LOAD_TWICE, str(data.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_deleted_image_is_named(tmp_path: Path) -> None:
    faces = scan(tiny.make_faces(tmp_path / "faces", {"train": 8, "val": 4}), ("train", "val"))
    gone = faces.root / "train/generated/red3.png"
    gone.unlink()
    for workers in (0, 1):
        settings = Settings(**{**vars(SETTINGS), "workers": workers})
        with pytest.raises(DataError) as caught:
            train(faces, settings, tmp_path / str(workers))
        assert str(caught.value) == f"{gone}: no such file or folder"


def no_room(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


# PyTorch's messages about a full /dev/shm.
FULL = RuntimeError(
    "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)"
)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        # Images of a batch, its labels, and the workers' queues.
        ("torch.UntypedStorage._new_shared", FULL),
        ("torch.Tensor.share_memory_", FULL),
        (
            "torch.multiprocessing.Queue",
            OSError(errno.ENOSPC, "No space left on device"),
        ),
    ],
    ids=["pictures", "labels", "queues"],
)
def test_full_shared_memory_is_one_line_with_a_remedy(
    data: FaceData, place: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, no_room(error))
    assert_says_what_to_do(data)


def test_a_bus_error_of_a_worker_means_full_shared_memory(
    data: FaceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The two chained errors that PyTorch 2 raises.
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    killed.__cause__ = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit."
    )
    monkeypatch.setattr(DataLoader, "__iter__", no_room(killed))
    assert_says_what_to_do(data)


def assert_says_what_to_do(data: FaceData) -> None:
    dataset = FaceDataset(data, data.split("val"), PreprocessSpec())
    with pytest.raises(FfdError) as caught:
        list(TimedLoader(dataset, 2, batch_size=4))
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert "--shm-size" in message
    assert "--workers 0" in message
    # The workers have ended, and do not wait for the garbage collector.
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to open shared memory object </x>: Too many open files (24)"),
        RuntimeError("No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
def test_other_errors_of_workers_are_passed_on(
    data: FaceData, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataLoader, "__iter__", no_room(error))
    dataset = FaceDataset(data, data.split("val"), PreprocessSpec())
    with pytest.raises(type(error)) as caught:
        list(TimedLoader(dataset, 1, batch_size=4))
    assert caught.value is error


def test_the_loader_measures_only_its_waiting(data: FaceData) -> None:
    dataset = FaceDataset(data, data.split("val"), PreprocessSpec())
    loader = TimedLoader(dataset, 0, batch_size=4)
    begin = time.monotonic()
    for _ in loader:
        time.sleep(0.1)
    # Four batches, with a pause of 0.1 s by the consumer after each.
    assert 0 < loader.waited < time.monotonic() - begin - 0.4 + 1e-3


def test_calibration_reduces_the_batch_to_fit(data: FaceData) -> None:
    class Small(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if len(image) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return image

    net = tiny.build_plain()
    samples = data.split("val")
    expected = predict_logits(net, data, samples, PreprocessSpec(), batch=16)
    net.layer4.append(Small())  # type: ignore[operator]
    logits = predict_logits(net, data, samples, PreprocessSpec(), batch=16)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_other_sources_are_other_data(tmp_path: Path) -> None:
    root = tiny.make_faces(tmp_path / "faces", {"train": 4, "val": 2}, sources=True)
    settings = Settings(**{**vars(SETTINGS), "stages": (Stage("head", 1, 1e-2),)})
    train(scan(root, ("train", "val")), settings, tmp_path / "run")
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("red-1", "green"))
    with pytest.raises(DataError, match="or their sources differ"):
        train(scan(root, ("train", "val")), settings, tmp_path / "run", resume=True)


def test_too_few_images_are_an_error_before_the_first_step(
    data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "20"), ("LOCAL_WORLD_SIZE", "20")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="fewer images in val than there are processes .20.: add"):
        train(data, SETTINGS, tmp_path / "run")


def test_a_missing_device_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="PyTorch finds no GPU"):
        choose_device(Settings(device="cuda"))
    with pytest.raises(ModelError, match="use bf16 or 32 on a CPU"):
        choose_device(Settings(precision="16"))
    assert choose_device(Settings()) == ("cpu", "32-true")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "16-mixed"), ((7, 5), "16-mixed"), ((8, 6), "bf16-mixed")],
)
def test_bfloat16_is_chosen_if_the_hardware_supports_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    from types import SimpleNamespace

    # PyTorch's results for a V100, a T4 and an A10; all can store a bfloat16 tensor.
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert choose_device(Settings()) == ("cuda", precision)
    assert choose_device(Settings(precision="bf16")) == ("cuda", "bf16-mixed")


def test_each_process_needs_a_gpu() -> None:
    World(local_size=2, size=4).require_gpus(2)
    with pytest.raises(DeviceError, match="4 processes for 2 GPUs: .* --nproc-per-node 2"):
        World(local_size=4, size=4).require_gpus(2)


def test_a_folder_that_cannot_be_made_is_an_error(data: FaceData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot create .*run: Not a directory"):
        train(data, SETTINGS, tmp_path / "file" / "run")


def test_random_choices_differ_between_epochs(data: FaceData) -> None:
    from ffd_train.staged_training import FaceDataModule

    class Trainer:
        current_epoch = 0

    batches = FaceDataModule(data, SETTINGS, 0, World())
    batches.trainer = Trainer()  # type: ignore[assignment]
    first = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    again = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    Trainer.current_epoch = 1
    later = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, later, strict=True))

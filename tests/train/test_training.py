from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ffd_runtime.errors import DataError, ModelError, OutputError
from ffd_train.checkpoint import load_checkpoint
from ffd_train.data import FaceData, scan
from ffd_train.predict import predict_logits
from ffd_train.settings import Settings, choose_device
from ffd_train.stages import Stage
from ffd_train.training import train

from .. import tiny

STAGES = (Stage("head", 1, 1e-2), Stage("layer4", 1, 1e-2), Stage("all", 3, 1e-2))
SETTINGS = Settings(network="tiny", weights="none", stages=STAGES, batch=8, crop=96, workers=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FaceData:
    root = tmp_path_factory.mktemp("data")
    return scan(tiny.make_faces(root / "faces", {"train": 24, "val": 8}), ("train", "val"))


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return rows


def test_a_run_learns_and_leaves_what_it_should(data: FaceData, tmp_path: Path) -> None:
    said: list[str] = []
    card = train(data, SETTINGS, tmp_path / "run", say=said.append)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "best.safetensors",
        "card.json",
        "curves.png",
        "manifest.csv",
        "metrics.csv",
        "resume.ckpt",
        "settings.json",
    }
    rows = metrics(tmp_path / "run")
    assert [row["part"] for row in rows] == ["head", "layer4", "all", "all", "all"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert card.metrics["val"]["roc_auc"] == 1
    assert card.provenance.manifest_sha256 == data.manifest_sha256
    net, loaded = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert loaded == card
    logits = predict_logits(net, data, data.split("val"), card.preprocess)
    right = (logits[:, 0] > logits[:, 1]) == [s.label == 0 for s in data.split("val")]
    assert right.mean() > 0.8
    curves = cv2.imread(str(tmp_path / "run" / "curves.png"))
    assert curves is not None
    assert curves.std() > 5
    assert Settings.from_json((tmp_path / "run" / "settings.json").read_text()) == SETTINGS
    assert sum("stage" in line for line in said) == 3


def test_the_best_epoch_is_kept_not_the_last(data: FaceData, tmp_path: Path) -> None:
    # A last stage that wrecks the network: the best checkpoint is from before it.
    stages = (Stage("all", 4, 1e-2), Stage("all", 1, 90.0))
    train(data, Settings(**{**vars(SETTINGS), "stages": stages}), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    net, card = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert float(rows[-1]["val_auc"]) < 1
    assert card.metrics["val"]["roc_auc"] == 1
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_optimizer_and_schedule_trains(
    data: FaceData, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    options = {"optimizer": optimizer, "schedule": schedule, "stages": (Stage("all", 2, 1e-2),)}
    train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")
    rates = [float(row["lr"]) for row in metrics(tmp_path / "run")]
    assert rates[0] == rates[1] if schedule == "constant" else rates[1] < rates[0] / 10


def test_bfloat16_trains_on_a_cpu(data: FaceData, tmp_path: Path) -> None:
    options = {"precision": "bf16", "stages": (Stage("all", 1, 1e-2),)}
    card = train(data, Settings(**{**vars(SETTINGS), **options}), tmp_path / "run")
    net, _ = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert net.head.weight.dtype == torch.float32
    assert card.precision == "fp32"


# Of one process that has imported PyTorch, which takes seconds, and trained nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.tiny", "ffd_train.training"])


def train_and_tell(told: Connection, data: FaceData, settings: Settings, folder: Path) -> None:
    """Train in a process of its own; go on with the run if there is one."""
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


def test_a_killed_run_goes_on_as_if_it_had_not_been(data: FaceData, tmp_path: Path) -> None:
    # One-cycle and momentum: both have a memory that must survive.
    long = (Stage("head", 2, 1e-2), Stage("all", 5, 1e-2))
    settings = Settings(**{**vars(SETTINGS), "stages": long, "schedule": "one-cycle"})
    train(data, settings, tmp_path / "unbroken")

    # Killed after the first epoch of the first stage, then within the second stage.
    for epochs in (1, 4):
        process, _ = start(data, settings, tmp_path / "killed")
        path = tmp_path / "killed" / "metrics.csv"
        deadline = time.monotonic() + 120
        while not path.exists() or len(path.read_text().splitlines()) < epochs + 1:
            assert process.is_alive(), "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    said: list[str] = []
    train(data, settings, tmp_path / "killed", resume=True, say=said.append)
    assert not any("stage 1 of 2" in line for line in said)

    assert metrics(tmp_path / "killed") == metrics(tmp_path / "unbroken")
    first, _ = load_checkpoint(tmp_path / "unbroken" / "best.safetensors")
    second, _ = load_checkpoint(tmp_path / "killed" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


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


def test_resuming_needs_the_same_data_and_a_sound_state(data: FaceData, tmp_path: Path) -> None:
    settings = Settings(**{**vars(SETTINGS), "stages": (Stage("head", 1, 1e-2),)})
    folder = tmp_path / "run"
    card = train(data, settings, folder)
    # A finished run only calibrates again.
    assert train(data, settings, folder, resume=True) == card
    other = scan(tiny.make_faces(tmp_path / "other", {"train": 3, "val": 1}), ("train", "val"))
    with pytest.raises(DataError, match="is not what this run was started on"):
        train(other, settings, folder, resume=True)
    (folder / "resume.ckpt").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be resumed from"):
        train(data, settings, folder, resume=True)
    (folder / "settings.json").write_text("{}")
    with pytest.raises(DataError, match=r"settings.json cannot be used"):
        Settings.from_json((folder / "settings.json").read_text())


def test_a_loss_that_is_no_number_ends_the_run(data: FaceData, tmp_path: Path) -> None:
    options = {"stages": (Stage("all", 1, 1e-2), Stage("all", 3, 99.0)), "optimizer": "sgd"}
    settings = Settings(**{**vars(SETTINGS), **options, "weight_decay": 1.0})
    with pytest.raises(ModelError, match="the loss is no number any more in epoch"):
        train(data, settings, tmp_path / "run")
    net, _ = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_device_that_is_not_there_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="sees no CUDA device"):
        choose_device(Settings(device="cuda"))
    with pytest.raises(ModelError, match="use bf16 or 32 on a CPU"):
        choose_device(Settings(precision="16"))
    assert choose_device(Settings()) == ("cpu", "32-true")


def test_a_folder_that_cannot_be_made_is_an_error(data: FaceData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to"):
        train(data, SETTINGS, tmp_path / "file" / "run")


def test_random_choices_differ_between_epochs(data: FaceData) -> None:
    from ffd_train.module import FaceBatches

    class Trainer:
        current_epoch = 0

    batches = FaceBatches(data, SETTINGS, 0)
    batches.trainer = Trainer()  # type: ignore[assignment]
    first = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    again = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    Trainer.current_epoch = 1
    later = [images.numpy().copy() for images, _ in batches.train_dataloader()]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, later, strict=True))

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ffd_runtime.core.errors import DataError
from ffd_train.checkpoint import load_checkpoint
from ffd_train.cli.train import main as ffd_train
from ffd_train.scanning import scan
from ffd_train.settings import Settings
from ffd_train.stage import Stage
from ffd_train.training import train
from ffd_train.world import World

from .. import tiny

STAGES = (Stage("head", 1, 0.1), Stage("all", 3, 0.1))
# 28 images in batches of 8: the last batch is filled up.
SETTINGS = Settings(
    network="plain", weights="none", stages=STAGES, batch=8, crop=64, sizes=(64, 96), workers=0
)
ROOT = Path(__file__).parents[2]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_the_same_network_as_one(tmp_path: Path) -> None:
    root = tiny.make_faces(tmp_path / "faces", {"train": 14, "val": 5})
    command = ["--standalone", "--nproc-per-node", "2", "tests/train/train_plain.py"]
    together = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, root, tmp_path / "two"],
        cwd=ROOT,
        # Use the same packages as this process.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert together.returncode == 0, together.stderr
    # Only rank 0 prints.
    assert together.stderr.count("stage 1 of 2") == 1
    assert "2 processes" in together.stderr
    alone = train(scan(root, ("train", "val")), SETTINGS, tmp_path / "one")

    first, _ = load_checkpoint(tmp_path / "one" / "best.safetensors")
    second, card = load_checkpoint(tmp_path / "two" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert card.threshold == pytest.approx(alone.threshold, abs=1e-3)
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_auc")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in names:
            assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-5), name
    # The training changed the loss by far more than the tolerance.
    losses = [float(row["train_loss"]) for row in rows(tmp_path / "one")]
    assert max(losses) - min(losses) > 5e-3


def test_an_indivisible_batch_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*options: object) -> str:
        outcome = CliRunner().invoke(ffd_train, [str(tmp_path), *map(str, options)])
        assert outcome.exit_code == 2
        return outcome.stderr.splitlines()[-1]

    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text(replace(SETTINGS, batch=20, accumulate=8).to_json())
    shared = "1 x 8 micro-batches (processes x accumulation steps) of two images or more: use "
    assert f"{shared}--accumulate 10" in error("--resume", run)
    assert "use --accumulate 10" in error("--resume", run, "--accumulate", 16)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    whole = "micro-batches (processes x accumulation steps) of two images or more: use --batch"
    assert f"a batch of 32 images cannot be divided evenly into 3 x 1 {whole} 33" in error()
    assert f"into 3 x 4 {whole} 36" in error("--batch", 32, "--accumulate", 4)
    assert f"into 3 x 1 {whole} 6" in error("--batch", 4)
    assert "start another number of processes" in error("--resume", run)


def test_the_world_is_read_from_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.from_environment() == World()
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    own = World.from_environment()
    assert (own.rank, own.size, own.nodes, own.is_main) == (5, 8, 2, False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(DataError, match="the same --nproc-per-node on every machine"):
        World.from_environment()

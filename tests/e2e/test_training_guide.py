"""Run every command of docs/training.md on small synthetic data.

Tiny networks replace the real ones, torchrun starts two processes, and a stage has two epochs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from ffd_export.cli.export import main as ffd_export
from ffd_runtime.cli.run import main as ffd_run
from ffd_train.cli.data import main as ffd_data
from ffd_train.cli.eval import main as ffd_eval
from ffd_train.cli.train import main as ffd_train
from ffd_train.network_registry import NETWORKS

from .. import tiny
from ..conftest import picture

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "ffd-data": ffd_data,
    "ffd-eval": ffd_eval,
    "ffd-export": ffd_export,
    "ffd-run": ffd_run,
    "ffd-train": ffd_train,
}


def commands() -> list[str]:
    """Return the guide's commands in order, with continued lines joined."""
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def make_pictures(folder: Path, names: list[str], colour: str, seed: int) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        # Coarse noise survives JPEG and differs from image to image.
        image = picture(colour, 27, 22, seed=seed + number)
        image = np.asarray(cv2.resize(image, (178, 218), interpolation=cv2.INTER_CUBIC), np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a few images each of raw CelebA, FFHQ and two sets of generated faces."""
    celeba = [f"{number:06}.jpg" for number in range(1, 17)]
    make_pictures(tmp_path / "celeba" / "img_align_celeba", celeba, "blue", 100)
    splits = [0] * 10 + [1] * 2 + [2] * 4
    rows = [f"{name} {split}" for name, split in zip(celeba, splits, strict=True)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    rows = [f"{name} {number // 2}" for number, name in enumerate(celeba[:12])]
    rows += [f"{name} {number}" for number, name in enumerate(celeba[12:], 100)]
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text("\n".join(rows) + "\n")
    make_pictures(tmp_path / "ffhq", [f"00000/{n:05}.png" for n in range(20)], "blue", 200)
    make_pictures(tmp_path / "100k-faces", [f"{n}.jpg" for n in range(20)], "red", 300)
    make_pictures(tmp_path / "stylegan2", [f"seed{n:04}.png" for n in range(20)], "red", 400)
    return tmp_path


def shorten(words: list[str]) -> list[str]:
    """Return a command that trains, with fewer epochs, smaller images and no loader processes."""
    if "--resume" in words:
        return words
    words = [re.sub(r"^all:20:", "all:2:", word) for word in words]
    # The article's training keeps the default size.
    if "article" not in words and "--crop" not in words:
        words += ["--crop", "96"]
    # Starting loader processes takes longer than these trainings.
    return [*words, "--workers", "0"]


def in_process(words: list[str]) -> None:
    done = CliRunner().invoke(COMMANDS[words[0]], words[1:], prog_name=words[0])
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"


def by_torchrun(words: list[str]) -> None:
    words[words.index("--nproc-per-node") + 1] = "2"
    at = words.index("-m")
    words[at : at + 2] = [str(ROOT / "tests" / "e2e" / "train_small.py")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def in_a_shell(words: list[str]) -> None:
    subprocess.run(words, check=True, timeout=60)


@pytest.mark.no_cover
def test_every_command_of_the_guide_succeeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("resnext101_32x8d", "tf_efficientnet_lite0"):
        monkeypatch.setitem(NETWORKS, name, tiny.build_tiny)
    said = commands()
    assert {line.split()[0] for line in said} >= {*COMMANDS, "torchrun"}
    for line in said:
        words = shlex.split(line)
        runner: Callable[[list[str]], None] = in_a_shell
        if words[0] in COMMANDS:
            runner = in_process
            if words[0] == "ffd-train":
                words = shorten(words)
        elif words[0] == "torchrun":
            runner = by_torchrun
            words = shorten(words)
        runner(words)

    assert json.loads((folder / "packed" / "dataset.json").read_text())
    for run in ("article", "four-gpus", "student", "without-stylegan2"):
        card = json.loads((folder / "runs" / run / "card.json").read_text())
        assert card["metrics"]["val"]["images"] > 0
    manifest = (folder / "runs" / "without-stylegan2" / "manifest.csv").read_text()
    assert "100k-faces" in manifest
    assert "stylegan2" not in manifest
    assert (folder / "runs" / "article" / "best.fp16.onnx").is_file()
    assert len((folder / "verdicts.csv").read_text().splitlines()) == 1 + 16
    for page in ("raw.html", "packed.html", "article.html"):
        assert "</html>" in (folder / page).read_text()

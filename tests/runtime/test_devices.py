"""GPUs that cannot be used are reported, and rows stay alone on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from ffd_runtime.model.devices import count_gpus, explain_missing_gpu

from ..conftest import picture
from .fake_driver import install_driver, needs_compiler

COMMAND = Path(sys.executable).with_name("ffd-run")
no_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")


def classify(folder: Path, *options: str) -> tuple[int, list[str], str]:
    """Run the command on an image; return its exit code, the lines of its rows, and stderr."""
    path = folder / "image.png"
    cv2.imwrite(str(path), picture("red"))
    done = subprocess.run(
        [COMMAND, path, "--json", *options], capture_output=True, text=True, env=os.environ
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@no_gpu
def test_a_machine_without_a_driver_has_nothing_to_explain() -> None:
    assert explain_missing_gpu("no GPU") == "no GPU"


@no_gpu
@needs_compiler
def test_a_driver_that_does_not_start_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, 999)
    reason = "NVIDIA's driver does not start: driver mismatch (error 999)"
    code, rows, said = classify(tmp_path)
    assert (code, len(rows)) == (0, 1), said
    assert f"{reason}; running on the CPU" in said
    code, rows, said = classify(tmp_path, "--device", "cuda")
    assert (code, rows) == (1, [])
    assert f"--device cuda: {reason}; use --device cpu or auto" in said
    # This code means that there is no GPU.
    install_driver(tmp_path, monkeypatch, 100)
    code, _, said = classify(tmp_path)
    assert (code, "driver" in said) == (0, False)


@no_gpu
@needs_compiler
def test_a_provider_that_does_not_start_writes_nothing_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime starts its CUDA provider, for which this driver is too old."""
    install_driver(tmp_path, monkeypatch)
    code, rows, said = classify(tmp_path)
    assert code == 0, said
    assert [json.loads(row)["source"] for row in rows] == [str(tmp_path / "image.png")]
    assert "there is a GPU, but onnxruntime cannot use it: " in said
    assert "; running on the CPU" in said

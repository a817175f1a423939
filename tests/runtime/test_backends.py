"""All installed backends return the same results and report the same errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ffd_runtime.core.errors import BackendError, DeviceMemoryError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.image.decode import decode
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model.backends import (
    BACKENDS,
    EMBEDDED,
    EMBEDDED_INT8,
    READS,
    failure,
    open_backend,
)

from ..conftest import picture

# Installed backends that run on a CPU, the reference first.
HERE = [name for name in ("onnxruntime", "openvino") if find_spec(name)]


def compare(pictures: list[Any]) -> None:
    """Fail unless all backends agree on pictures, BGR."""
    opened = [open_backend(EMBEDDED, name, "cpu") for name in HERE]
    card = opened[0].card
    batch = np.stack([preprocess(image, card.preprocess) for image in pictures])
    reference, *others = [backend.infer(batch) for backend in opened]
    verdicts = [card.verdict(score) for score in reference.probability[:, 0]]
    for name, outputs in zip(HERE[1:], others, strict=True):
        assert np.abs(outputs.probability - reference.probability).max() <= 1e-4, name
        # Log-odds reach some tens, so rounding in float32 allows this difference.
        assert np.allclose(outputs.heatmap, reference.heatmap, rtol=1e-3, atol=1e-3), name
        assert [card.verdict(score) for score in outputs.probability[:, 0]] == verdicts, name


@pytest.mark.skipif(len(HERE) < 2, reason="only one backend is installed")
def test_backends_agree_on_synthetic_pictures() -> None:
    images: list[Any] = [
        picture(("red", "blue")[n % 2], 200 + 30 * n, 250, seed=n) for n in range(6)
    ]
    images += [cv2.GaussianBlur(image, (0, 0), 5) for image in images]
    images += [np.zeros((300, 300, 3), np.uint8), np.full((40, 400, 3), 255, np.uint8)]
    compare(images)


@pytest.mark.skipif(len(HERE) < 2, reason="only one backend is installed")
def test_backends_nearly_agree_in_int8() -> None:
    """Backends fuse different layers, and so round at different places."""
    opened = [open_backend(EMBEDDED_INT8, name, "cpu") for name in HERE]
    images = [picture(("red", "blue")[n % 2], 200, 250, seed=n) for n in range(4)]
    batch = np.stack([preprocess(image, opened[0].card.preprocess) for image in images])
    reference, *others = [backend.infer(batch).probability for backend in opened]
    for probability in others:
        assert np.abs(probability - reference).max() <= 0.1


@pytest.mark.skipif(len(HERE) < 2, reason="only one backend is installed")
def test_backends_agree_on_real_faces(faces: Path) -> None:
    paths = [
        path
        for name in ("generated", "groundtruth")
        for path in sorted((faces / "val" / name).iterdir())[:20]
    ]
    assert len(paths) == 40
    compare([decode(path.read_bytes()) for path in paths])


def test_the_default_is_the_first_backend_that_reads_a_file(colour_model: Path) -> None:
    assert "onnxruntime" in open_backend(colour_model, device="cpu").description
    assert READS == (".onnx", ".engine", ".plan")
    # A file with an unknown suffix is read as ONNX.
    other = colour_model.with_suffix(".model")
    other.write_bytes(colour_model.read_bytes())
    for name in HERE:
        assert name in open_backend(other, name, "cpu").description


def test_each_registered_backend_can_be_opened() -> None:
    for spec in BACKENDS.values():
        assert callable(spec.load().open_model)
        assert callable(spec.load().probe)


DUMMY = """
from ffd_runtime.model.backend_registry import BACKENDS, BackendSpec

BACKENDS["dummy"] = BackendSpec("dummy", __name__, (".dummy",), {"dummy_library": "dummy-extra"})


def open_model(path, device="auto"):
    return f"opened {path.name} on {device}"


def probe(library):
    raise ModuleNotFoundError(name=library)
"""
REPORT = """
import json
from ffd_runtime.cli.diagnosis import list_libraries
from ffd_runtime.cli.probe_process import run_probe
from ffd_runtime.cli.run import main
from ffd_runtime.model.backends import open_backend

(choices,) = [option.type.choices for option in main.params if option.name == "backend"]
print(json.dumps({
    "opened": open_backend("face.dummy", device="cpu"),
    "choices": list(choices),
    "libraries": list_libraries()[1],
    "probed": run_probe("library", "dummy_library"),
}))
"""


def test_a_new_backend_is_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python imports `sitecustomize` in every process, also in those that ffd-doctor starts."""
    (tmp_path / "sitecustomize.py").write_text(DUMMY)
    (tmp_path / "face.dummy").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["opened"] == "opened face.dummy on cpu"
    assert report["choices"][-1] == "dummy"
    assert report["libraries"][-1] == "dummy_library"
    assert report["probed"]["outcome"] == "absent"
    assert report["probed"]["do"] == install_hint("dummy-extra")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("tensorrt", "m.onnx", "tensorrt does not read m.onnx: onnxruntime and openvino do"),
        ("tensorrt", "m.model", "tensorrt does not read m.model: onnxruntime and openvino do"),
        ("onnxruntime", "m.engine", "onnxruntime does not read m.engine: tensorrt does"),
        ("openvino", "m.plan", "openvino does not read m.plan: tensorrt does"),
        ("abacus", "m.onnx", "unknown backend 'abacus': use auto or one of onnxruntime, openvino,"),
    ],
)
def test_a_backend_that_does_not_read_a_file_is_refused(
    tmp_path: Path, name: str, file: str, message: str
) -> None:
    (tmp_path / file).touch()
    with pytest.raises(BackendError, match=message) as raised:
        open_backend(tmp_path / file, name)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory")
@pytest.mark.parametrize("name", HERE)
def test_a_batch_that_exceeds_memory_fails_and_a_smaller_one_runs(name: str) -> None:
    script = f"""
import resource
import numpy as np
from ffd_runtime.model.backends import open_backend
from ffd_runtime.core.errors import DeviceMemoryError

backend = open_backend(None, {name!r}, "cpu")
images = np.zeros((32, 299, 299, 3), np.uint8)
backend.infer(images[:1])
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20),) * 2)
try:
    backend.infer(images)
except DeviceMemoryError as error:
    print("refused:", error)
print(len(backend.infer(images[:1]).probability), "ran")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    refused, ran = run.stdout.splitlines()
    assert refused.startswith(f"refused: {name} failed: ")
    assert ran == "1 ran"
    assert not run.stderr


# Messages from the documentation and sources of CUDA's libraries, which the tests do not need.
@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x",
        "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 35184372088832",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "std::bad_alloc",
        "bad allocation",
    ],
)
def test_out_of_memory_messages_are_recognised(said: str) -> None:
    assert type(failure("it failed", said)) is DeviceMemoryError
    assert type(failure(f"it failed: {said}")) is DeviceMemoryError


@pytest.mark.parametrize(
    "said",
    ["CUDA failure 209: no kernel image is available", "Got invalid dimensions for input", ""],
)
def test_other_messages_do_not_mean_out_of_memory(said: str) -> None:
    assert type(failure("it failed", said)) is BackendError

"""Checks of engines that TensorRT builds, where it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.devices import describe_gpu
from ffd_runtime.model.engine_manifest import read_manifest

from .check_models import make_fp16
from .claims import Setting, Unchecked, Unmet, require
from .provider import compare

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
# Compute capabilities that TensorRT for RTX builds for.
SERVED = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
EXPORT = "from ffd_export.cli.export import main; main(prog_name='ffd-export')"
# As on a device that has the lean runtime alone.
LEAN = """
import sys
from pathlib import Path
sys.modules["tensorrt"] = None
from tools.gpu.claims import Setting
from tools.gpu.provider import compare
print(compare(Path(sys.argv[1]), Setting(Path(sys.argv[1]).parent, sys.argv[2]), 1e-2))
"""


def build_engine(folder: Path, onnx: Path, kind: str, max_batch: int = 32, *flags: str) -> Path:
    """An engine of an ONNX, by ffd-export; built once for each folder.

    Args:
        folder: where it is put.
        onnx: the model.
        kind: `tensorrt` or `rtx`.
        max_batch: of the engine.
        flags: more options of ffd-export.

    Raises:
        Unchecked: the builder is not installed.
        Unmet: ffd-export failed.
    """
    if not find_spec(MODULES[kind]):
        raise Unchecked(f"{MODULES[kind]} is not installed")
    folder = folder / "-".join([kind, str(max_batch), *(flag.strip("-") for flag in flags)])
    suffix = ".engine" if kind == "tensorrt" else ".rtx.engine"
    engine = folder / f"{onnx.stem}{suffix}"
    if not engine.exists():
        options = ["--engine", kind, "--max-batch", str(max_batch), "--verify", "none", *flags]
        command = [sys.executable, "-c", EXPORT, str(onnx), *options, "--output", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unmet((done.stderr.strip().splitlines() or ["ffd-export said nothing"])[-1])
    return engine


def build(setting: Setting) -> str:
    """TensorRT builds an FP16 engine of the embedded model."""
    return _build(setting, "tensorrt")


def build_rtx(setting: Setting) -> str:
    """TensorRT for RTX does."""
    _require_served(setting)
    return _build(setting, "rtx")


def _require_served(setting: Setting) -> None:
    capability = describe_gpu(setting.index).compute_capability
    if capability not in SERVED:
        raise Unchecked(f"TensorRT for RTX is not for compute capability {capability}")


def _build(setting: Setting, kind: str) -> str:
    engine = build_engine(setting.folder, make_fp16(setting.folder, EMBEDDED), kind)
    manifest = read_manifest(engine)
    kernels = dict(manifest.built_layers or manifest.layers)
    seen = f"{manifest.builder} {manifest.builder_version} on {manifest.gpu}: {kernels}"
    return require(manifest.gpu is not None, seen)


def match(setting: Setting) -> str:
    """The engine of TensorRT against the embedded model on the CPU."""
    return _match(setting, "tensorrt")


def match_rtx(setting: Setting) -> str:
    """The engine of TensorRT for RTX."""
    _require_served(setting)
    return _match(setting, "rtx")


def _match(setting: Setting, kind: str) -> str:
    engine = build_engine(setting.folder, make_fp16(setting.folder, EMBEDDED), kind)
    return compare(engine, setting, 1e-2)


def match_lean(setting: Setting) -> str:
    """A version-compatible engine, in a process that has no tensorrt."""
    if not find_spec("tensorrt_lean"):
        raise Unchecked("tensorrt_lean is not installed")
    onnx = make_fp16(setting.folder, EMBEDDED)
    engine = build_engine(setting.folder, onnx, "tensorrt", 32, "--version-compatible")
    command = [sys.executable, "-c", LEAN, str(engine), setting.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return require(done.returncode == 0, (said or ["nothing was said"])[-1])

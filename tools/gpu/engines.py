"""Checks of engines, which need TensorRT to build them."""

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
# Compute capabilities that TensorRT for RTX supports.
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
EXPORT = "from ffd_export.cli.export import main; main(prog_name='ffd-export')"
# Compares an engine on a device with only the lean runtime.
LEAN = """
import sys
from pathlib import Path
sys.modules["tensorrt"] = None
from tools.gpu.claims import Setting
from tools.gpu.provider import compare
print(compare(Path(sys.argv[1]), Setting(Path(sys.argv[1]).parent, sys.argv[2]), 1e-2))
"""


def build_engine(folder: Path, onnx: Path, kind: str, max_batch: int = 32, *flags: str) -> Path:
    """Build an engine with ffd-export, once for each folder.

    Args:
        folder: of the engine.
        onnx: the model.
        kind: `tensorrt` or `rtx`.
        max_batch: of the engine.
        flags: further options of ffd-export.

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
            raise Unmet(
                (done.stderr.strip().splitlines() or ["ffd-export failed without a message"])[-1]
            )
    return engine


def build(setting: Setting) -> str:
    """Build an FP16 engine of the embedded model with TensorRT."""
    return _build(setting, "tensorrt")


def build_rtx(setting: Setting) -> str:
    """Build it with TensorRT for RTX."""
    _require_rtx_gpu(setting)
    return _build(setting, "rtx")


def _require_rtx_gpu(setting: Setting) -> None:
    capability = describe_gpu(setting.index).compute_capability
    if capability not in RTX_CAPABILITIES:
        raise Unchecked(f"TensorRT for RTX does not support compute capability {capability}")


def _build(setting: Setting, kind: str) -> str:
    engine = build_engine(setting.folder, make_fp16(setting.folder, EMBEDDED), kind)
    manifest = read_manifest(engine)
    kernels = dict(manifest.built_layers or manifest.layers)
    observed = f"{manifest.builder} {manifest.builder_version} on {manifest.gpu}: {kernels}"
    return require(manifest.gpu is not None, observed)


def match(setting: Setting) -> str:
    """Compare the engine of TensorRT with the embedded model on the CPU."""
    return _match(setting, "tensorrt")


def match_rtx(setting: Setting) -> str:
    """Compare the engine of TensorRT for RTX."""
    _require_rtx_gpu(setting)
    return _match(setting, "rtx")


def _match(setting: Setting, kind: str) -> str:
    engine = build_engine(setting.folder, make_fp16(setting.folder, EMBEDDED), kind)
    return compare(engine, setting, 1e-2)


def match_lean(setting: Setting) -> str:
    """Compare a version-compatible engine in a process without tensorrt."""
    if not find_spec("tensorrt_lean"):
        raise Unchecked("tensorrt_lean is not installed")
    onnx = make_fp16(setting.folder, EMBEDDED)
    engine = build_engine(setting.folder, onnx, "tensorrt", 32, "--version-compatible")
    command = [sys.executable, "-c", LEAN, str(engine), setting.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return require(done.returncode == 0, (lines or ["no output"])[-1])

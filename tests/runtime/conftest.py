"""Fixtures of the runtime's tests: TensorRT and CUDA for machines without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import ffd_runtime.model.backends.tensorrt as backend
from ffd_runtime.model.devices import Gpu

from .fake_cuda import FakeCuda, get_cuda_native_handle
from .fake_tensorrt import ICudaEngine, make_module
from .test_engine import MANIFEST


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """cuda-bindings on a machine with two GPUs; a fault fails the test."""
    made = FakeCuda(devices=2)
    package, utils = ModuleType("cuda.bindings"), ModuleType("cuda.bindings.utils")
    package.runtime = made  # type: ignore[attr-defined]
    utils.get_cuda_native_handle = get_cuda_native_handle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", utils)
    monkeypatch.setattr(backend, "count_gpus", lambda: 2)
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("NVIDIA RTX A2000", "8.6"))
    yield made
    assert made.faults == []


@pytest.fixture
def engine(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ICudaEngine:
    """An engine that `tensorrt` and `tensorrt_rtx` load; the user's cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = ICudaEngine(cuda)
    for name in ("tensorrt", "tensorrt_rtx"):
        module = make_module(name, MANIFEST.builder_version, made)
        monkeypatch.setitem(sys.modules, name, module)
    return made

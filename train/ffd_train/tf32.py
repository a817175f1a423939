"""Float32 without TF32, so that a checkpoint and its exported model agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ffd_runtime.core.process_setting import ProcessSetting


def _use_full_precision() -> Callable[[], object]:
    switches = _find_switches()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    _apply(switches)
    return lambda: _apply(before)


# A setting of PyTorch: owner, name, and value that disables TF32.
_Switch = tuple[Any, str, object]


def _find_switches() -> list[_Switch]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # PyTorch 2.9 and later. The older flags raise an error if a caller has set the newer ones.
    if hasattr(cudnn, "conv"):
        return [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


def _apply(switches: list[_Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)


# Runs float32 convolutions and matrix products in full precision on a GPU. By default, PyTorch lets
# cuDNN round the inputs of float32 convolutions to TF32 (10 bits of mantissa).
WITHOUT_TF32 = ProcessSetting(_use_full_precision)

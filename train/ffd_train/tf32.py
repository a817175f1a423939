"""Float32 without TF32, so that a checkpoint and its exported model agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

# A setting of PyTorch: owner, name, and value that disables TF32.
_Switch = tuple[Any, str, object]

_lock = Lock()
_users = 0
_before: list[_Switch] = []


@contextmanager
def without_tf32() -> Iterator[None]:
    """Run float32 convolutions and matrix products in full precision on a GPU.

    By default, PyTorch lets cuDNN round the inputs of float32 convolutions to TF32 (10 bits of
    mantissa). The settings apply to the whole process, and are restored when the last thread exits
    the context.
    """
    global _users
    with _lock:
        if _users == 0:
            switches = _find_switches()
            _before[:] = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
            _apply(switches)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _apply(_before)


def _find_switches() -> list[_Switch]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # PyTorch 2.9 and later. The older flags raise an error if a caller has set the newer ones.
    if hasattr(cudnn, "conv"):
        return [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]


def _apply(switches: list[_Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)

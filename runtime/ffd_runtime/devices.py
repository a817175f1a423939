"""Devices: what is asked for, and what the driver says is there."""

from __future__ import annotations

import ctypes
import os
import re
import sys

from .errors import DeviceError


def parse_device(text: str) -> tuple[str, int]:
    """`auto`, `cpu`, `cuda` or `cuda:N` as (kind, index).

    Raises:
        DeviceError: another text.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?:(?<=cuda):(\d{1,3}))?", text)
    if not match:
        raise DeviceError(f"unknown device {text!r}: use auto, cpu, cuda or cuda:N")
    return match[1], int(match[2] or 0)


def count_gpus() -> int:
    """How many GPUs NVIDIA's driver offers; asks the driver itself, needs no CUDA toolkit."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def count_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

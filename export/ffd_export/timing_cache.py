"""Kernel timings that TensorRT keeps between builds."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ffd_runtime.core.user_cache import cache_folder
from ffd_runtime.model.devices import Gpu

from .atomic_files import write_files


def find_timing_cache(trt: Any, folder: Path | None, gpu: Gpu | None) -> Path | None:
    """Return the file for a version and a GPU: TensorRT rejects timings of others.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        folder: of the timing caches; None for the user's cache folder.
        gpu: that times the kernels; None if the engine is built without a GPU.
    """
    # TensorRT for RTX compiles kernels on the target and times nothing during the build.
    if gpu is None or trt.__name__ != "tensorrt":
        return None
    key = re.sub(r"[^\w.]+", "-", f"{trt.__version__}-{gpu.name}-{gpu.compute_capability}")
    with suppress(RuntimeError):  # the user has no home folder
        return (folder or cache_folder()) / f"timing-{key}.cache"
    return None


def load_timing_cache(config: Any, path: Path) -> None:
    """Give the builder's configuration the timings of a file.

    The cache is empty if the file is absent, damaged, or of another version or GPU.
    """
    content = b""
    with suppress(OSError):
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)


def save_timing_cache(config: Any, path: Path) -> None:
    """Write the timings of a build. A failure only makes the next build slower."""
    with suppress(Exception):
        write_files({path: bytes(config.get_timing_cache().serialize())})

"""Kernel timings that TensorRT keeps between builds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ffd_runtime.core.user_cache import cache_folder
from ffd_runtime.model.devices import Gpu

from .atomic_files import write_files


@contextmanager
def reuse_timings(trt: Any, config: Any, folder: Path | None, gpu: Gpu | None) -> Iterator[None]:
    """Give a build the kernel timings of earlier ones, and save its own if it succeeds.

    Timings are kept by version and GPU, as TensorRT rejects others. A file that cannot be read,
    used or written only makes a build slower.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        config: the builder's configuration.
        folder: of the files; None for the user's cache folder.
        gpu: that times the kernels; None if the engine is built without a GPU.
    """
    # TensorRT for RTX compiles kernels on the target and times nothing during the build.
    if gpu is None or trt.__name__ != "tensorrt":
        yield
        return
    key = re.sub(r"[^\w.]+", "-", f"{trt.__version__}-{gpu.name}-{gpu.compute_capability}")
    path, content = None, b""
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        path = (folder or cache_folder()) / f"timing-{key}.cache"
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    if path:
        with suppress(Exception):
            write_files({path: bytes(config.get_timing_cache().serialize())})

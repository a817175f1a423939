"""A cache of the kernels that TensorRT for RTX compiled for an engine.

TensorRT for RTX compiles kernels on the machine that runs the engine. Its runtime cache is saved in
the user's cache folder, so that the next start compiles nothing. A file belongs to one engine, GPU
and version. ffd checks the file's hash before TensorRT, which checks the driver's version among
others, so that no damaged bytes reach native code.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from ...core.atomic_file import write_atomic
from ...core.user_cache import cache_folder
from ..devices import Gpu

log = logging.getLogger(__name__)

HEADER = b"ffd-rtx-kernels-1\n"
DIGEST_BYTES = hashlib.sha256().digest_size


class KernelCache:
    """The runtime cache of one engine, by its sha256 in hex; used only with TensorRT for RTX."""

    def __init__(self, engine: str, gpu: Gpu, version: str) -> None:
        self._key = "\n".join((engine, gpu.name, gpu.compute_capability, version)).encode()
        self._cache: Any = None
        self._saved = b""

    @property
    def path(self) -> Path:
        """The path of the file.

        Raises:
            RuntimeError: the user has no home folder.
        """
        return cache_folder() / "rtx" / f"{hashlib.sha256(self._key).hexdigest()[:32]}.kernels"

    def open(self, config: Any) -> Any:
        """Return the cache for an `IRuntimeConfig`, loaded from the file the first time."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        return self._cache

    def _load(self) -> None:
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, RuntimeError):
            return
        except OSError as error:
            log.warning("compiling kernels again: %s: %s", self.path, error.strerror)
            return
        kernels = content[len(HEADER) + DIGEST_BYTES :]
        if content != self._wrap(kernels):
            reason = "is damaged, or belongs to another engine, GPU or version"
        elif not self._deserialize(kernels):
            reason = "was rejected by TensorRT, possibly after an update of the driver"
        else:
            self._saved = kernels
            return
        log.warning("compiling kernels again: %s %s", self.path, reason)

    def _deserialize(self, kernels: bytes) -> bool:
        try:
            return bool(self._cache.deserialize(kernels))
        except Exception as error:  # pybind11 translates any exception of TensorRT
            log.debug("deserialize: %s", error)
            return False

    def save(self) -> None:
        """Write kernels that were compiled since the file was read or written.

        The GPU must be the current device. After a failure, the next start compiles the kernels
        again.
        """
        if self._cache is None:
            return
        try:
            serialized = self._cache.serialize()
            kernels = bytes(serialized) if serialized is not None else b""
            if kernels and kernels != self._saved:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.path, self._wrap(kernels))
                self._saved = kernels
        except Exception as error:  # also those of pybind11: the cache is optional
            log.debug("compiled kernels were not saved: %s", error)

    def close(self) -> None:
        """Free the cache. Every execution context must be freed before."""
        self._cache = None

    def _wrap(self, kernels: bytes) -> bytes:
        return HEADER + hashlib.sha256(self._key + b"\n" + kernels).digest() + kernels

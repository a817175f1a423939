"""The cache of the kernels that TensorRT for RTX compiles."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import ffd_runtime.model.backends.tensorrt as backend
from ffd_runtime.core.errors import BackendError
from ffd_runtime.model.backends import kernel_cache, open_backend
from ffd_runtime.model.devices import Gpu

from .fake_cuda import FakeCuda
from .fake_tensorrt import (
    ICudaEngine,
    IRuntimeCache,
    IRuntimeConfig,
    RtxContext,
    images,
    save_engine,
)


def start(engine: ICudaEngine, folder: Path, builder: str = "tensorrt_rtx") -> list[str]:
    """Run batches of two sizes, and return what was compiled for them."""
    engine.compiled.clear()
    opened = open_backend(save_engine(folder, builder=builder))
    opened.infer(images(4))
    opened.infer(images(1))
    opened.close()
    return list(engine.compiled)


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file()]


def test_a_second_start_compiles_nothing(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    (path,) = files(tmp_path)
    assert path.parent == tmp_path / "cache" / "ffd" / "rtx"
    before = path.stat().st_mtime_ns
    assert start(engine, tmp_path) == []
    # The file is not written again.
    assert path.stat().st_mtime_ns == before
    assert not caplog.messages


def test_kernels_are_saved_when_the_model_is_loaded(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    opened = open_backend(save_engine(tmp_path, builder="tensorrt_rtx"))
    engine.compiled.clear()
    open_backend(save_engine(tmp_path, builder="tensorrt_rtx")).close()
    assert engine.compiled == []
    opened.close()


def test_any_thread_may_close_the_model_and_save_the_kernels(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    opened = open_backend(save_engine(tmp_path, builder="tensorrt_rtx"), device="cuda:1")
    opened.infer(images(2))
    thread = Thread(target=opened.close)
    thread.start()
    thread.join()
    engine.compiled.clear()
    opened = open_backend(save_engine(tmp_path, builder="tensorrt_rtx"), device="cuda:1")
    opened.infer(images(2))
    opened.close()
    assert engine.compiled == []


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "cut in the header": lambda content: content[:20],
    "longer": lambda content: content + b"x",
    "first byte": lambda content: b"\x00" + content[1:],
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "hash": lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "something else": lambda content: os.urandom(5000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_ignored_and_replaced(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    compiled = start(engine, tmp_path)
    (path,) = files(tmp_path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with monkeypatch.context() as patch:
        # Damaged bytes never reach native code.
        patch.setattr(IRuntimeCache, "deserialize", lambda self, blob: pytest.fail("damaged"))
        assert start(engine, tmp_path) == compiled
    (message,) = caplog.messages
    assert message.startswith(f"compiling kernels again: {path} is damaged")
    assert "\n" not in message
    assert start(engine, tmp_path) == []
    assert files(tmp_path) == [path]


def test_a_file_of_another_engine_gpu_or_version_is_not_used(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(engine, tmp_path)
    (first,) = files(tmp_path)
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("NVIDIA RTX A4000", "8.6"))
    # Each GPU has its own file ...
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    (second,) = set(files(tmp_path)) - {first}
    assert not caplog.messages
    # ... and a file of another GPU is recognised by its content.
    second.write_bytes(first.read_bytes())
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    assert "to another engine, GPU or version" in caplog.text
    keys = {
        kernel_cache.KernelCache(engine_hash, Gpu(name, capability), version).path
        for engine_hash in ("a" * 64, "b" * 64)
        for name in ("x", "y")
        for capability in ("8.6", "8.9")
        for version in ("1.4", "1.5")
    }
    assert len(keys) == 16


@pytest.mark.parametrize("how", ["refused", "raised"])
def test_kernels_that_tensorrt_rejects_are_compiled_again(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    start(engine, tmp_path)
    if how == "refused":
        monkeypatch.setattr(IRuntimeCache, "driver", b"driver 2")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(IRuntimeCache, "deserialize", lambda self: None)  # a TypeError
            assert start(engine, tmp_path) == ["fallback", "4", "1"]
        assert "was rejected by TensorRT" in caplog.text
        return
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    (message,) = caplog.messages
    assert "was rejected by TensorRT" in message
    caplog.clear()
    assert start(engine, tmp_path) == []
    assert not caplog.messages


@pytest.mark.parametrize("how", ["read-only", "a file", "full", "no home", "no blob"])
def test_a_folder_that_cannot_be_written_is_not_an_error(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    if how == "read-only":
        monkeypatch.setattr(kernel_cache, "write_atomic", refuse)
    elif how == "a file":
        (tmp_path / "cache").write_bytes(b"")
    elif how == "full":
        monkeypatch.setattr(os, "fsync", refuse)
    elif how == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", classmethod(homeless))
    else:
        monkeypatch.setattr(IRuntimeCache, "serialize", lambda self: None)
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    assert not caplog.messages
    # No incomplete file is left.
    assert [path.name for path in files(tmp_path)] == []


def test_a_file_that_cannot_be_read_is_reported(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    start(engine, tmp_path)
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    assert start(engine, tmp_path) == ["fallback", "4", "1"]
    (message,) = caplog.messages
    assert str(path) in message


def test_tensorrt_has_no_kernel_cache(tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine) -> None:
    start(engine, tmp_path, "tensorrt")
    assert files(tmp_path) == []


def test_a_refused_cache_is_an_error(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IRuntimeConfig, "set_runtime_cache", lambda self, cache: False)
    with pytest.raises(BackendError, match="rejects its runtime cache"):
        open_backend(save_engine(tmp_path, builder="tensorrt_rtx"))
    assert not cuda.taken()


@pytest.mark.parametrize("collected", [True, False])
def test_contexts_are_freed_before_the_cache_that_they_use(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    collected: bool,
) -> None:
    alive: weakref.WeakSet[RtxContext] = weakref.WeakSet()
    counted: list[int] = []
    start, close = RtxContext.__init__, kernel_cache.KernelCache.close

    def starting(self: RtxContext, *given: Any) -> None:
        start(self, *given)
        alive.add(self)

    def closing(self: kernel_cache.KernelCache) -> None:
        counted.append(len(alive))
        close(self)

    monkeypatch.setattr(RtxContext, "__init__", starting)
    monkeypatch.setattr(kernel_cache.KernelCache, "close", closing)
    opened = open_backend(save_engine(tmp_path, builder="tensorrt_rtx"))
    # More images than the largest batch use both lanes.
    pending = opened.submit(images(11))  # type: ignore[attr-defined]
    if collected:
        pending.collect()
    assert len(alive) == 2
    opened.close()
    assert counted == [0]

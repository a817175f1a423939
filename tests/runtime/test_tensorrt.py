"""Padding, copies, graph capture, splitting and freeing in the TensorRT backend.

The tests need no GPU: the calls of CUDA work on host memory, and an engine computes means of its
input (fake_cuda.py, fake_tensorrt.py). They do not show how TensorRT and CUDA behave on a GPU.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

import ffd_runtime.model.backends.tensorrt as backend
from ffd_runtime.core.errors import BackendError, DeviceError, DeviceMemoryError, EngineError
from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.devices import Gpu

from .fake_cuda import FakeCuda
from .fake_tensorrt import (
    SIZE,
    ICudaEngine,
    IExecutionContext,
    ILogger,
    assert_right,
    images,
    save_engine,
)

# Streams that run immediately: 0 is inference, 1 the copies of images. The others run when a thread
# waits for them.
PACES = {"both at once": {0, 1}, "late inference": {1}, "late copies": {0}, "both late": set[int]()}


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 19])
def test_every_image_gets_its_own_outputs(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, count: int, pace: str
) -> None:
    cuda.eager = PACES[pace]
    opened = open_backend(save_engine(tmp_path))
    assert opened.description.startswith("tensorrt 10.13.3.9, NVIDIA RTX A2000 (CUDA device 0)")
    # Run directly, with capture, and with a captured graph and used buffers.
    for seed in range(3):
        given = images(count, seed)
        outputs = opened.infer(given)
        assert_right(given, outputs)
    # The padding is not copied.
    assert sum(cuda.copied) == 3 * count * (SIZE * SIZE * 3 + 2 * 4 + 9 * 4)
    # The next batch does not change outputs that were returned.
    before = outputs.probability.copy()
    opened.infer(images(4)[:, ::-1])
    assert np.array_equal(outputs.probability, before)
    opened.close()
    opened.close()
    assert not cuda.taken()
    with pytest.raises(BackendError, match="was closed"):
        opened.infer(given)


def test_a_batch_is_padded_to_its_bucket_and_captured_once(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    opened = open_backend(save_engine(tmp_path))
    for count in (3, 4, 3, 1, 2, 1, 4, 2):
        assert len(opened.infer(images(count)).heatmap) == count
    # Each bucket ran directly once and was captured once; other batches launched a graph.
    assert engine.enqueued == [(4, False), (4, True), (1, False), (1, True), (2, False), (2, True)]
    assert cuda.launches == 5
    assert len(cuda.launchable) == 3
    assert not cuda.graphs


def test_batches_are_padded_to_the_smallest_batch_of_the_engine(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    engine.least = 2
    given = images(9)
    outputs = open_backend(save_engine(tmp_path, batch=(2, 2, 4))).infer(given)
    assert_right(given, outputs)
    assert {count for count, _ in engine.enqueued} == {2, 4}


def test_the_next_part_is_copied_during_an_inference(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.eager = {1}
    opened = open_backend(save_engine(tmp_path))
    opened.infer(images(16))  # captures the graphs that are launched below
    steps: list[str] = []
    compute, copy = IExecutionContext.compute, ctypes.memmove

    def watched_compute(context: IExecutionContext) -> None:
        steps.append("infer")
        compute(context)

    def watched_copy(target: int, source: int, size: int) -> None:
        steps.append("in" if target in cuda.device else "out")
        copy(target, source, size)

    monkeypatch.setattr(IExecutionContext, "compute", watched_compute)
    monkeypatch.setattr(ctypes, "memmove", watched_copy)
    opened.infer(images(16, 1))
    # Even if each inference starts as late as possible, the next part is already on the GPU.
    part = ["infer", "out", "out"]
    assert steps == ["in", "in", *part, "in", *part, "in", *part, *part]


@pytest.mark.parametrize("reason", ["refused", "invalidated", "no memory"])
def test_the_engine_runs_without_a_graph(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    opened = open_backend(save_engine(tmp_path))
    engine.can_be_captured = reason != "refused"
    cuda.spoils_capture = reason == "invalidated"
    given = images(11)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cuda.fails_in = 0 if reason == "no memory" else 1 << 40
            assert_right(given, opened.infer(given))
    assert len(caplog.messages) == 1
    assert "runs without CUDA graphs" in caplog.text
    assert cuda.launches == 0
    opened.close()
    assert not cuda.taken()


def test_a_failure_is_an_error_and_the_next_batch_runs(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    engine.works = False
    with pytest.raises(BackendError, match="TensorRT failed"):
        opened.infer(images(2))
    engine.works = True
    given = images(3)
    assert_right(given, opened.infer(given))
    opened.close()
    assert not cuda.taken()


def test_a_failure_between_parts_leaves_no_work_queued(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    opened.infer(images(4))
    engine.contexts = 0  # the second lane, and any other bucket, has no context yet
    engine.said = "Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(DeviceMemoryError, match="an execution context; TensorRT said: .*Memory"):
        opened.infer(images(6))
    assert not any(stream.queue for stream in cuda.streams.values())
    # A batch that needs no second lane still runs.
    given = images(4, 1)
    assert_right(given, opened.infer(given))


def test_no_context_is_an_error(tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine) -> None:
    engine.contexts = 0
    engine.said = "the engine is of no use"
    with pytest.raises(
        BackendError, match="an execution context; TensorRT said: the eng"
    ) as raised:
        open_backend(save_engine(tmp_path))
    assert not isinstance(raised.value, DeviceMemoryError)
    assert not cuda.taken()


def test_a_model_that_cannot_be_opened_frees_everything(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    path = save_engine(tmp_path)
    open_backend(path).close()
    needed = cuda.made
    assert needed > 15
    for number in range(needed):
        cuda.fails_in = number
        with pytest.raises(DeviceMemoryError, match="CUDA failed: out of memory"):
            open_backend(path)
        assert not cuda.taken(), number
    cuda.fails_in = needed
    open_backend(path).close()
    assert not cuda.taken()


def test_a_heatmap_without_a_fixed_size_is_refused(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    engine.heatmap = (-1, -1, -1)
    with pytest.raises(EngineError, match="heatmap has no fixed size"):
        open_backend(save_engine(tmp_path))
    assert not cuda.taken()


def test_images_of_another_shape_are_refused(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    opened = open_backend(save_engine(tmp_path))
    wrongs: list[Any] = [images(1)[:, :10], images(1)[..., :1], images(1)[0], images(1) / 255]
    for wrong in wrongs:
        with pytest.raises(BackendError, match="images must be uint8"):
            opened.infer(wrong)


def test_threads_take_turns(tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine) -> None:
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    given = [images(count, count) for count in (1, 3, 6, 9)]
    outputs: dict[int, Any] = {}

    def infer(number: int) -> None:
        outputs[number] = opened.infer(given[number])

    threads = [Thread(target=infer, args=(number,)) for number in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, batch in enumerate(given):
        assert_right(batch, outputs[number])


def test_errors_quote_the_log_of_tensorrt(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    with pytest.raises(EngineError, match="TensorRT said: magic tag differs; rebuild it here"):
        open_backend(save_engine(tmp_path, b"another engine"))


def test_ctrl_c_during_a_callback_is_not_lost(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT discards an exception of its logger, which it calls while it loads an engine."""

    def profile(name: str, index: int) -> list[tuple[int, ...]]:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return [(n, SIZE, SIZE, 3) for n in (1, 2, 4)]

    monkeypatch.setattr(engine, "get_tensor_profile_shape", profile)
    with pytest.raises(KeyboardInterrupt):
        open_backend(save_engine(tmp_path))
    assert not cuda.taken()


def test_the_engine_must_have_the_batches_of_its_manifest(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    engine.most = 8
    with pytest.raises(EngineError, match=r"batches of .*8\), but its manifest has \(1, 2, 4\)"):
        open_backend(save_engine(tmp_path))


def test_another_gpu_is_refused(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("RTX 4090", "8.9"))
    with pytest.raises(EngineError, match=r"found tensorrt 10.13.3.9 and RTX 4090 \(8.9\)"):
        open_backend(save_engine(tmp_path))


@pytest.mark.parametrize("name", ["image", "probability", "heatmap"])
def test_a_refused_address_is_an_error(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, name: str
) -> None:
    engine.refused = {name}
    with pytest.raises(
        BackendError, match=rf"rejects the address 0x\w+ of {name}; TensorRT said: setTensorAddress"
    ):
        open_backend(save_engine(tmp_path))
    assert not cuda.taken()


def test_every_thread_uses_the_models_device(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    """A new thread has device 0, and the model is on device 1."""
    opened = open_backend(save_engine(tmp_path), device="cuda:1")
    assert engine.device == 1
    given = images(3)

    def work() -> None:
        assert cuda.current_device() == 0
        outputs.append(opened.infer(given))

    def close() -> None:
        cuda.cudaSetDevice(0)
        opened.close()

    outputs: list[Any] = []
    for task in (work, work, close):
        thread = Thread(target=task)
        thread.start()
        thread.join()
    for output in outputs:
        assert_right(given, output)
    assert len(outputs) == 2
    assert not cuda.taken()


def test_an_error_that_cuda_keeps_ends_the_model(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    engine.crashes = True
    for _ in range(2):
        with pytest.raises(BackendError, match="illegal memory access.*restart it") as raised:
            opened.infer(images(3))
        # A smaller batch would not help.
        assert not isinstance(raised.value, DeviceMemoryError)
    # Closing frees what it can, and does not raise.
    opened.close()
    opened.close()


def test_an_earlier_error_of_cuda_does_not_fail_an_inference(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    """TensorRT would report an error that an earlier call left behind."""
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    given = images(3)
    pending = opened.submit(given)  # type: ignore[attr-defined]
    assert not pending.done()  # CUDA keeps "not ready" as its last error
    assert_right(given, opened.infer(given))
    assert_right(given, pending.collect())


def test_cuda_bindings_without_native_handles_are_too_old(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", None)
    with pytest.raises(BackendError, match=r"cuda-bindings>=12\.9\.1,<13"):
        open_backend(save_engine(tmp_path))


@pytest.mark.parametrize("capability", ["9.0", "10.0", "7.0", "8.7"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_gpu_that_tensorrt_for_rtx_does_not_support_is_refused(
    tmp_path: Path,
    cuda: FakeCuda,
    engine: ICudaEngine,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    listed: bool,
) -> None:
    """It is refused before the engine is loaded, even if the manifest names the GPU."""
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("NVIDIA H100", capability))
    if not listed:
        monkeypatch.delattr(sys.modules["tensorrt_rtx"], "ComputeCapability")
    for claimed in ("8.9", capability):
        path = save_engine(tmp_path, builder="tensorrt_rtx", compute_capabilities=(claimed,))
        with pytest.raises(DeviceError) as raised:
            open_backend(path)
        message = str(raised.value)
        assert f"does not support NVIDIA H100 (compute capability {capability};" in message
        assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in message
        assert "--engine tensorrt" in message
    assert engine.logger is None
    assert not cuda.taken()


def test_tensorrt_for_rtx_captures_graphs_itself(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_backend(save_engine(tmp_path, builder="tensorrt_rtx"))
    for seed in range(2):
        given = images(11, seed)
        assert_right(given, opened.infer(given))
    assert cuda.launches == 0
    assert not any(capturing for _, capturing in engine.enqueued)
    assert not caplog.messages
    opened.close()
    assert not cuda.taken()


def test_an_unsupported_gpu_is_refused_by_the_probe(
    cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.probe("tensorrt_rtx")["version"]
    monkeypatch.setattr(backend, "describe_gpu", lambda index: Gpu("NVIDIA H100", "9.0"))
    with pytest.raises(DeviceError, match="does not support NVIDIA H100"):
        backend.probe("tensorrt_rtx")


def test_a_warning_about_another_gpu_is_shown(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine of an Orin AGX on an Orin Nano: both have compute capability 8.7."""
    open_backend(save_engine(tmp_path)).close()
    with caplog.at_level(logging.WARNING):
        engine.logger.log(ILogger.Severity.WARNING, "Lazy loading is off.")
        engine.logger.log(
            ILogger.Severity.WARNING,
            "Using an engine plan file across different models of devices is not recommended.",
        )
    (message,) = caplog.messages
    assert message.startswith("TensorRT warns: Using an engine plan file across different models")

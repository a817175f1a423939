from __future__ import annotations

import ctypes
import json
import logging
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import ffd_runtime.backends.onnxruntime as backend
import ffd_runtime.devices as devices
from ffd_runtime.backends import EMBEDDED, Outputs, open_backend
from ffd_runtime.backends.onnxruntime import OnnxRuntime, Staging
from ffd_runtime.card import CARD_KEY
from ffd_runtime.devices import PinnedMemory, count_gpus, parse_device
from ffd_runtime.errors import (
    BackendError,
    CardError,
    DeviceError,
    DeviceMemoryError,
    ModelError,
)

from ..models import CARD, colour_model, save_colour_model

BATCH = np.zeros((2, 299, 299, 3), np.uint8)


def test_a_model_runs_at_any_batch(colour_model: Path) -> None:
    with_model = open_backend(colour_model, device="cpu")
    assert with_model.card == CARD
    assert "CPU" in with_model.description
    for n in (1, 2, 5, 70):
        images = np.zeros((n, 299, 299, 3), np.uint8)
        images[:, :, :, 0] = 10
        outputs = with_model.infer(images)
        assert outputs.probability.shape == (n, 2)
        assert outputs.heatmap.shape == (n, 13, 13)
        log_odds = outputs.heatmap.mean((1, 2))
        assert np.allclose(outputs.probability[:, 0], 1 / (1 + np.exp(-log_odds)))
    with_model.close()
    with pytest.raises(BackendError, match="was closed"):
        with_model.infer(BATCH)


def test_a_batch_of_another_shape_is_an_error_not_a_crash(colour_model: Path) -> None:
    with pytest.raises(BackendError, match="onnxruntime failed"):
        open_backend(colour_model).infer(np.zeros((1, 10, 10, 3), np.uint8))


def test_a_model_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no model card"):
        open_backend(save_colour_model(tmp_path / "m.onnx", card=None))


def test_a_card_of_another_schema_is_refused(tmp_path: Path) -> None:
    card = json.dumps({**json.loads(CARD.to_json()), "schema": 9})
    with pytest.raises(CardError, match=r"m.onnx.*schema 9.*export the model again"):
        open_backend(save_colour_model(tmp_path / "m.onnx", card=card))


@pytest.mark.parametrize("change", [{"size": 322}, {"batch": 1}, {"kind": TensorProto.INT8}])
def test_other_inputs_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"takes image .*not image uint8\[N,299,299,3\]"):
        open_backend(save_colour_model(tmp_path / "m.onnx", **change))


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    model = colour_model()
    model.metadata_props.add(key=CARD_KEY, value=CARD.to_json())
    del model.graph.output[1]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="gives probability"):
        open_backend(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 50])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_backend(path)


def test_what_was_asked_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_backend(tmp_path / "absent.onnx")
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(ModelError, match="ffd-export"):
        open_backend(tmp_path / "best.safetensors")


def test_an_unknown_backend_is_refused(colour_model: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend"):
        open_backend(colour_model, backend="abacus")


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "CUDA", ""])
def test_an_unknown_device_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        parse_device(text)


def test_devices_are_read() -> None:
    assert parse_device("cuda:3") == ("cuda", 3)
    assert parse_device("cuda") == ("cuda", 0)
    assert parse_device("auto") == ("auto", 0)


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_an_error(colour_model: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU here; use --device cpu"):
        open_backend(colour_model, device="cuda")


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU that works")
def test_a_gpu_that_cannot_be_used_is_said(
    colour_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # onnxruntime really tries to start its CUDA provider here, and finds no CUDA.
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    with pytest.raises(DeviceError, match=r"ffd-edge\[cuda\]"):
        open_backend(colour_model, device="cuda")
    with caplog.at_level(logging.WARNING):
        opened = open_backend(colour_model, device="auto")
    assert "CPU" in opened.description
    assert "ffd-edge[cuda]" in caplog.text


@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_cuda_is_used_where_it_is(colour_model: Path) -> None:
    opened = open_backend(colour_model, device="cuda")
    assert "CUDA device 0" in opened.description
    on_cpu = open_backend(colour_model, device="cpu")
    assert np.allclose(opened.infer(BATCH).probability, on_cpu.infer(BATCH).probability, atol=1e-4)


class Heap:
    """Memory of the host as a session on CUDA would get page-locked memory."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = 0
        self.left = 1 << 40

    def allocate(self, size: int) -> Any:
        if size > self.left:
            raise DeviceMemoryError("no memory")
        self.sizes.append(size)
        self.open += 1
        return Block(self, size)


class Block:
    def __init__(self, heap: Heap, size: int) -> None:
        self._heap = heap
        self._memory = ctypes.create_string_buffer(size)
        self.address = ctypes.addressof(self._memory)

    def close(self) -> None:
        self._heap.open -= 1
        # A view that outlived it would show.
        ctypes.memset(self.address, 0x5A, len(self._memory))


def open_staged(heap: Heap) -> OnnxRuntime:
    """The embedded model as on CUDA, but in a session on the CPU."""
    session = ort.InferenceSession(str(EMBEDDED), providers=["CPUExecutionProvider"])
    one = session.run(["probability", "heatmap"], {"image": BATCH[:1]})
    card = open_backend(EMBEDDED, device="cpu").card
    return OnnxRuntime(session, card, "staged", Staging(Outputs(*one), heap.allocate))


def noise(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 299, 299, 3), np.uint8)


def test_staged_batches_are_those_of_a_plain_run() -> None:
    plain = open_backend(EMBEDDED, "onnxruntime", "cpu")
    heap = Heap()
    staged = open_staged(heap)
    kept = []
    for count in (2, 1, 5, 3, 5):
        images = noise(count)[:, ::-1]  # not contiguous either
        expected = plain.infer(np.ascontiguousarray(images))
        kept.append((expected, staged.infer(images)))
    staged.close()
    # Still theirs after later batches and after the buffers are gone.
    for expected, outputs in kept:
        assert np.array_equal(outputs.probability, expected.probability)
        assert np.array_equal(outputs.heatmap, expected.heatmap)
    # Three buffers for the first batch and three for the only one that was larger than any before.
    assert len(heap.sizes) == 6
    assert heap.open == 0
    with pytest.raises(BackendError, match="was closed"):
        staged.infer(BATCH)


@pytest.mark.parametrize("bytes_left", [0, 100, 5 * 299 * 299 * 3 - 1])
def test_a_batch_that_staging_has_no_memory_for_leaves_the_smaller_ones(bytes_left: int) -> None:
    heap = Heap()
    staged = open_staged(heap)
    expected = staged.infer(noise(1))
    heap.left = bytes_left
    with pytest.raises(DeviceMemoryError, match="no memory"):
        staged.infer(noise(5))
    assert heap.open == 0
    heap.left = 299 * 299 * 3
    assert np.array_equal(staged.infer(noise(1)).heatmap, expected.heatmap)
    with pytest.raises(BackendError, match="onnxruntime failed"):
        staged.infer(np.zeros((1, 10, 10, 3), np.uint8))
    assert np.array_equal(staged.infer(noise(1)).heatmap, expected.heatmap)


def test_staged_threads_get_their_own_outputs() -> None:
    staged = open_staged(Heap())
    plain = open_backend(EMBEDDED, "onnxruntime", "cpu")
    found: dict[int, Outputs] = {}

    def infer(count: int) -> None:
        for _ in range(3):
            found[count] = staged.infer(noise(count))

    threads = [Thread(target=infer, args=(count,)) for count in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count, outputs in found.items():
        assert np.array_equal(outputs.probability, plain.infer(noise(count)).probability)


class Driver:
    """NVIDIA's driver, of which only the host's memory is asked."""

    def __init__(self) -> None:
        self.contexts = 0
        self.pushed = 0
        self.blocks: dict[int, Any] = {}
        self.error = 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0 if index == 0 else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        self.contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.contexts -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.pushed += 1
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.pushed -= 1
        return 0

    def cuMemHostAlloc(self, address: Any, size: Any, flags: int) -> int:
        assert self.pushed == 1
        if not self.error:
            block = ctypes.create_string_buffer(size.value)
            address._obj.value = ctypes.addressof(block)
            self.blocks[address._obj.value] = block
        return self.error

    def cuMemFreeHost(self, address: Any) -> int:
        del self.blocks[address.value]
        return 0


def test_page_locked_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(devices, "_driver", lambda: driver)
    memory = PinnedMemory(0, 1000)
    assert len(driver.blocks[memory.address]) == 1000
    memory.close()
    memory.close()
    driver.error = 2
    with pytest.raises(DeviceMemoryError, match="no 1000 bytes of page-locked memory"):
        PinnedMemory(0, 1000)
    with pytest.raises(DeviceError, match="cannot start GPU 1"):
        PinnedMemory(1, 1000)
    assert (driver.contexts, driver.pushed, driver.blocks) == (0, 0, {})


@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_page_locked_memory_is_memory() -> None:
    memory = PinnedMemory(0, 1 << 20)
    ctypes.memset(memory.address, 7, 1 << 20)
    assert ctypes.string_at(memory.address + (1 << 20) - 1, 1) == b"\x07"
    memory.close()

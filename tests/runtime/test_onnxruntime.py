from __future__ import annotations

import ctypes
import json
import logging
import mmap
import re
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import ffd_runtime.model.backends.onnxruntime as backend
import ffd_runtime.model.devices as devices
from ffd_runtime.core.errors import (
    BackendError,
    CardError,
    DeviceError,
    DeviceMemoryError,
    ModelError,
)
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.model.backends import EMBEDDED, Outputs, open_backend
from ffd_runtime.model.backends.onnxruntime import (
    CPU,
    CUDA,
    TUNING,
    OnnxRuntime,
    choose_providers,
)
from ffd_runtime.model.backends.staging import MAX_CUDA_BATCH, SHRINK_AFTER_BATCHES, Staging
from ffd_runtime.model.card import CARD_KEY, PreprocessSpec
from ffd_runtime.model.devices import PinnedMemory, count_gpus, parse_device

from ..models import CARD, colour_model, save_colour_model

onnx = pytest.importorskip("onnx")

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


@pytest.mark.parametrize("change", [{"size": 322}, {"batch": 1}, {"kind": onnx.TensorProto.INT8}])
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
def test_an_invalid_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_backend(path)


def test_a_missing_file_and_a_checkpoint_are_refused(tmp_path: Path) -> None:
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


def test_devices_are_parsed() -> None:
    assert parse_device("cuda:3") == ("cuda", 3)
    assert parse_device("cuda") == ("cuda", 0)
    assert parse_device("auto") == ("auto", 0)


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_an_error(colour_model: Path) -> None:
    with pytest.raises(DeviceError, match="no GPU; use --device cpu"):
        open_backend(colour_model, device="cuda")


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU that works")
def test_a_gpu_that_cannot_be_used_is_reported(
    colour_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # onnxruntime tries to start its CUDA provider, and finds no CUDA.
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    with pytest.raises(DeviceError, match=re.escape(install_hint("cuda"))):
        open_backend(colour_model, device="cuda")
    with caplog.at_level(logging.WARNING):
        opened = open_backend(colour_model, device="auto")
    assert "CPU" in opened.description
    assert install_hint("cuda") in caplog.text


@pytest.mark.gpu
def test_cuda_is_used_if_present(colour_model: Path) -> None:
    opened = open_backend(colour_model, device="cuda")
    assert "CUDA device 0" in opened.description
    on_cpu = open_backend(colour_model, device="cpu")
    assert np.allclose(opened.infer(BATCH).probability, on_cpu.infer(BATCH).probability, atol=1e-4)


def save_precision(folder: Path, precision: str) -> Path:
    """Save the colour model with a card of this precision; its layers stay FP32."""
    card = CARD.replace(precision=precision).to_json()
    return save_colour_model(folder / f"{precision}.onnx", card=card)


@pytest.mark.parametrize(
    ("precision", "exact"), [("fp32", True), ("fp16", False), ("int8", False), (None, True)]
)
def test_tf32_is_switched_off_for_fp32_models_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str | None, exact: bool
) -> None:
    monkeypatch.setattr(backend, "count_gpus", lambda: 2)
    if precision:
        path = save_precision(tmp_path, precision)
    else:
        path = save_colour_model(tmp_path / "m.onnx", card=None)
    (name, options), other = choose_providers(path, "cuda:1")
    assert (name, other) == (CUDA, CPU)
    assert options["device_id"] == 1
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options.get("use_tf32") == (0 if exact else None)
    assert choose_providers(path, "cpu") == [CPU]


def test_tuning_options_are_passed_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    (_, plain), _ = choose_providers(EMBEDDED, "auto")
    (_, tuned), _ = choose_providers(EMBEDDED, "auto", TUNING)
    assert tuned == {**plain, "prefer_nhwc": 1, "fuse_conv_bias": 1}


def test_the_provider_knows_the_options() -> None:
    """Without a driver the provider does not read options, but its library contains their names."""
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        pytest.skip("this onnxruntime has no CUDA provider for Linux")
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for name in ("use_tf32", *TUNING):
            assert content.find(b"\0" + name.encode() + b"\0") >= 0, name


def test_the_options_reach_the_session(colour_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, only the creation of the session fails."""
    made: list[Any] = []
    real = ort.InferenceSession

    def make(path: str, options: Any, providers: list[Any], **fallback: int) -> Any:
        made.append(providers)
        return real(path, options, providers=[CPU], **fallback)

    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    monkeypatch.setattr(ort, "InferenceSession", make)
    with pytest.raises(DeviceError, match="CUDA provider did not start"):
        backend.open_model(colour_model, "cuda", ["prefer_nhwc"])
    assert made == [choose_providers(colour_model, "cuda", ["prefer_nhwc"])]
    assert made[0][0][1]["use_tf32"] == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "/onnxruntime_src/cuda_call.cc:129 bool onnxruntime::CudaCall() CUDA failure 35: CUDA "
            "driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=x",
            "cannot use it: CUDA failure 35: CUDA driver version is insufficient for CUDA runtime "
            "version; running on the CPU",
        ),
        ("out of luck", "cannot be loaded: out of luck; running on the CPU"),
    ],
)
def test_the_error_of_the_provider_is_quoted(
    colour_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: str,
    said: str,
) -> None:
    real = ort.InferenceSession

    def make(path: str, options: Any, providers: list[Any], **fallback: int) -> Any:
        if providers == [CPU]:
            return real(path, options, providers=providers, **fallback)
        raise RuntimeError(error)

    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    monkeypatch.setattr(ort, "InferenceSession", make)
    with caplog.at_level(logging.WARNING):
        assert "CPU" in open_backend(colour_model).description
    (message,) = caplog.messages
    assert message.endswith(said)


def test_no_advice_names_a_package_without_cuda(
    colour_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    for architecture, advice in (
        ("x86_64", install_hint("cuda")),
        ("aarch64", "--engine tensorrt"),
    ):
        monkeypatch.setattr(backend, "machine", lambda found=architecture: found)
        with pytest.raises(DeviceError, match=re.escape(advice)):
            open_backend(colour_model, device="cuda")


def test_auto_uses_the_cpu_for_int8_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_precision(tmp_path, "int8")
    without = open_backend(path).description
    monkeypatch.setattr(backend, "count_gpus", lambda: 1)
    with caplog.at_level(logging.WARNING):
        opened = open_backend(path)
    # CUDA was not tried.
    assert not caplog.records
    assert isinstance(opened, OnnxRuntime)
    assert not opened.on_cuda
    assert opened.description.startswith(without)
    assert "not the GPU, for which onnxruntime has no INT8 convolutions" in opened.description
    assert "\n" not in opened.description
    # A named GPU is tried.
    with pytest.raises(DeviceError, match="onnxruntime cannot use it"):
        open_backend(path, device="cuda")
    assert "GPU" not in open_backend(path, device="cpu").description


class Heap:
    """Host memory that stands for page-locked memory."""

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
        # A view that outlives the block would return wrong values.
        ctypes.memset(self.address, 0x5A, len(self._memory))


class Watched:
    """A session that records its batch sizes, and fails above `most`."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sizes: list[int] = []
        self.most = 1 << 20

    def io_binding(self) -> Any:
        session = self

        class Binding(ort.IOBinding):  # type: ignore[misc]
            def bind_input(self, *arguments: Any) -> None:
                session.sizes.append(arguments[4][0])
                super().bind_input(*arguments)

        return Binding(self._session)

    def run_with_iobinding(self, *arguments: Any) -> None:
        if self.sizes[-1] > self.most:
            raise RuntimeError("CUDA failure 2: out of memory")
        self._session.run_with_iobinding(*arguments)


SMALL = CARD.replace(preprocess=PreprocessSpec(size=32))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model for images of 32x32 pixels."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    return save_colour_model(path, card=SMALL.to_json(), size=32)


def open_watched(path: Path, heap: Heap | None = None) -> tuple[OnnxRuntime, Watched]:
    """Open a model with the buffers for CUDA, in a session on the CPU."""
    plain = open_backend(path, "onnxruntime", "cpu")
    side = plain.card.preprocess.size
    one = plain.infer(noise(1, side))
    watched = Watched(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    staging = Staging(one, (heap or Heap()).allocate)
    return OnnxRuntime(watched, plain.card, "staged", staging), watched


def noise(count: int, side: int = 32) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


def test_batches_on_cuda_have_few_sizes(small_model: Path) -> None:
    staged, watched = open_watched(small_model)
    plain = open_backend(small_model, device="cpu")
    # As in a folder with unreadable images and an incomplete last batch.
    for count in (16, 15, 16, 13, 16, 3):
        outputs = staged.infer(noise(count))
        assert len(outputs.heatmap) == count
        assert np.array_equal(outputs.probability, plain.infer(noise(count)).probability)
    assert watched.sizes == [16] * 6
    # As with a camera that shows fewer faces for a long time: the size shrinks.
    watched.sizes.clear()
    for _ in range(3 * SHRINK_AFTER_BATCHES):
        staged.infer(noise(1))
    assert watched.sizes[0] == 16
    assert watched.sizes[-1] == 1
    assert watched.sizes == sorted(watched.sizes, reverse=True)
    # ffd-bench measures each batch in its own bucket.
    watched.sizes.clear()
    for count in (5, 1):
        staged.settle(count)
        staged.infer(noise(count))
    assert watched.sizes == [8, 1]


def test_a_batch_above_the_maximum_runs_in_parts(small_model: Path) -> None:
    staged, watched = open_watched(small_model)
    images = np.zeros((MAX_CUDA_BATCH + 1, 32, 32, 3), np.uint8)
    images[-1, :, :, 0] = 50
    outputs = staged.infer(images)
    assert outputs.probability.shape == (MAX_CUDA_BATCH + 1, 2)
    assert outputs.probability[-1, 0] > 0.99
    assert np.allclose(outputs.probability[:-1], 0.5)
    assert max(watched.sizes) == MAX_CUDA_BATCH


def test_batches_are_not_padded_to_a_size_that_exceeds_memory(small_model: Path) -> None:
    staged, watched = open_watched(small_model)
    watched.most = 8
    with pytest.raises(DeviceMemoryError):
        staged.infer(noise(9))
    assert len(staged.infer(noise(4)).heatmap) == 4
    assert watched.sizes == [16, 4]


def test_images_of_another_size_leave_the_buffers_usable(small_model: Path) -> None:
    staged, _ = open_watched(small_model)
    with pytest.raises(BackendError, match="onnxruntime failed"):
        staged.infer(noise(1, 10))
    assert len(staged.infer(noise(1)).heatmap) == 1


def test_images_of_another_type_are_refused(small_model: Path) -> None:
    staged, _ = open_watched(small_model)
    with pytest.raises(BackendError, match="onnxruntime failed: Cannot cast"):
        staged.infer(noise(1).astype(np.float32))


@pytest.mark.parametrize(("name", "counts"), [("embedded", (3, 1)), ("small", (2, 1, 5, 3, 5))])
def test_staged_batches_have_the_outputs_of_a_plain_run(
    small_model: Path, name: str, counts: tuple[int, ...]
) -> None:
    path = EMBEDDED if name == "embedded" else small_model
    plain = open_backend(path, "onnxruntime", "cpu")
    heap = Heap()
    staged, _ = open_watched(path, heap)
    kept = []
    for count in counts:
        images = noise(count, plain.card.preprocess.size)[:, ::-1]  # not contiguous
        expected = plain.infer(np.ascontiguousarray(images))
        kept.append((expected, staged.infer(images)))
    staged.close()
    # Outputs do not change with later batches, or after the buffers are freed.
    for expected, outputs in kept:
        assert np.array_equal(outputs.probability, expected.probability)
        assert np.array_equal(outputs.heatmap, expected.heatmap)
    # Three buffers for the first batch, and three for the first larger one.
    assert len(heap.sizes) == (3 if name == "embedded" else 6)
    assert heap.open == 0
    with pytest.raises(BackendError, match="was closed"):
        staged.infer(BATCH)


@pytest.mark.parametrize("bytes_left", [0, 100, 8 * 32 * 32 * 3 - 1])
def test_smaller_batches_run_after_one_that_exceeds_memory(
    small_model: Path, bytes_left: int
) -> None:
    heap = Heap()
    staged, _ = open_watched(small_model, heap)
    expected = staged.infer(noise(1))
    heap.left = bytes_left
    with pytest.raises(DeviceMemoryError, match="no memory"):
        staged.infer(noise(5))
    assert heap.open == 0
    heap.left = 32 * 32 * 3
    assert np.array_equal(staged.infer(noise(1)).heatmap, expected.heatmap)
    with pytest.raises(BackendError, match="onnxruntime failed"):
        staged.infer(np.zeros((1, 10, 10, 3), np.uint8))
    assert np.array_equal(staged.infer(noise(1)).heatmap, expected.heatmap)


def test_staged_threads_get_their_own_outputs(small_model: Path) -> None:
    staged, _ = open_watched(small_model)
    plain = open_backend(small_model, "onnxruntime", "cpu")
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
    """A fake of NVIDIA's driver that allocates host memory."""

    def __init__(self) -> None:
        self.contexts = 0
        self.pushed = 0
        self.blocks: dict[int, Any] = {}
        self.error = 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0 if index == 0 else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 0xC0
        self.contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.contexts -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        assert context.value == 0xC0
        assert self.contexts, "a context that was released"
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
        if not self.pushed:
            return 201  # CUDA_ERROR_INVALID_CONTEXT: nothing is freed
        del self.blocks[address.value]
        return 0


def test_page_locked_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(devices, "_driver", lambda: driver)
    memory = PinnedMemory(0, 1000)
    assert len(driver.blocks[memory.address]) == 1000
    memory.close()
    memory.close()
    driver.error = 2
    with pytest.raises(DeviceMemoryError, match="cannot allocate 1000 bytes of page-locked memory"):
        PinnedMemory(0, 1000)
    with pytest.raises(DeviceError, match="cannot start GPU 1"):
        PinnedMemory(1, 1000)
    assert (driver.contexts, driver.pushed, driver.blocks) == (0, 0, {})


@pytest.mark.gpu
def test_page_locked_memory_can_be_written() -> None:
    memory = PinnedMemory(0, 1 << 20)
    ctypes.memset(memory.address, 7, 1 << 20)
    assert ctypes.string_at(memory.address + (1 << 20) - 1, 1) == b"\x07"
    memory.close()


@pytest.mark.parametrize(("bits", "exact"), [(None, "1"), (8, "1"), (7, "0")])
def test_int8_weights_of_8_bits_use_exact_kernels(
    tmp_path: Path, bits: int | None, exact: str
) -> None:
    """On a CPU without VNNI, the default kernels would saturate and change scores."""
    metrics = {} if bits is None else {"export": {"weight_bits": bits}}
    card = CARD.replace(precision="int8", metrics=metrics)
    path = save_colour_model(tmp_path / "model.onnx", card=card.to_json())
    options = backend._open(ort, path, [backend.CPU]).get_session_options()
    assert read_option(options, "session.x64quantprecision") == exact


def read_option(options: ort.SessionOptions, name: str) -> str:
    try:
        return str(options.get_session_config_entry(name))
    except RuntimeError:  # onnxruntime's default, which is 0
        return "0"

"""OpenVINO reads and refuses the same files as onnxruntime, and reports its precision."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import BackendError, CardError, DeviceError, ModelError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.text import counted
from ffd_runtime.model.backends import EMBEDDED, Outputs, open_backend
from ffd_runtime.model.card import CARD_KEY

from ..models import CARD, colour_model, save_colour_model

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")


def open_openvino(path: Path, device: str = "auto") -> Any:
    return open_backend(path, "openvino", device)


def noise(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 299, 299, 3), np.uint8)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_model_runs_at_any_batch(colour_model: Path, device: str) -> None:
    opened = open_openvino(colour_model, device)
    assert opened.card == CARD
    for n in (1, 2, 5, 70, 1):
        images = np.zeros((n, 299, 299, 3), np.uint8)
        images[:, :, :, 0] = np.arange(n)[:, None, None]
        outputs = opened.infer(images)
        assert outputs.heatmap.shape == (n, 13, 13)
        log_odds = np.arange(n) / 5
        assert np.allclose(outputs.heatmap.mean((1, 2)), log_odds, atol=1e-4)
        assert np.allclose(outputs.probability[:, 0], 1 / (1 + np.exp(-log_odds)), atol=1e-5)
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="was closed"):
        opened.infer(images)


def test_the_description_states_the_precision_in_use() -> None:
    description = open_openvino(EMBEDDED).description
    assert description.startswith("openvino 20")
    # Not bfloat16, which OpenVINO prefers on a CPU that has it.
    assert description.endswith(f", CPU, {counted(count_cores(), 'thread')}, computing in f32")


def test_outputs_outlive_the_next_batch() -> None:
    opened = open_openvino(EMBEDDED)
    first = opened.infer(noise(2))
    before = first.probability.copy(), first.heatmap.copy()
    opened.infer(noise(3)[:2])
    assert np.array_equal(first.probability, before[0])
    assert np.array_equal(first.heatmap, before[1])


def test_images_need_not_be_contiguous(colour_model: Path) -> None:
    opened = open_openvino(colour_model)
    images = noise(4)[::2, :, ::-1]
    assert np.array_equal(
        opened.infer(images).heatmap, opened.infer(np.ascontiguousarray(images)).heatmap
    )


def test_threads_get_their_own_outputs() -> None:
    opened = open_openvino(EMBEDDED)
    found: dict[int, Outputs] = {}

    def infer(count: int) -> None:
        for _ in range(3):
            found[count] = opened.infer(noise(count))

    threads = [Thread(target=infer, args=(count,)) for count in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for count in (1, 2, 3):
        expected = opened.infer(noise(count))
        assert np.allclose(found[count].probability, expected.probability, atol=1e-6)


def test_a_batch_of_another_shape_is_an_error_and_the_next_one_runs(colour_model: Path) -> None:
    opened = open_openvino(colour_model)
    with pytest.raises(BackendError, match="openvino failed: .*incompatible") as raised:
        opened.infer(np.zeros((1, 10, 10, 3), np.uint8))
    assert "\n" not in str(raised.value)
    assert len(opened.infer(noise(2)).probability) == 2


def test_openvino_refuses_a_gpu(colour_model: Path) -> None:
    with pytest.raises(DeviceError, match="--device cuda:1: openvino supports only the CPU"):
        open_openvino(colour_model, "cuda:1")
    with pytest.raises(DeviceError, match="unknown device"):
        open_openvino(colour_model, "gpu")


def test_the_error_for_a_missing_package_names_its_extra(
    colour_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=re.escape(install_hint("openvino"))):
        open_openvino(colour_model)


@pytest.mark.parametrize("card", [None, "{}", '{"schema": 9}', "no json"])
def test_a_card_that_cannot_be_read_is_refused(tmp_path: Path, card: str | None) -> None:
    path = save_colour_model(tmp_path / "m.onnx", card=card)
    with pytest.raises(CardError) as said:
        open_openvino(path)
    with pytest.raises(CardError) as expected:
        open_backend(path, "onnxruntime", "cpu")
    assert str(said.value) == str(expected.value)


@pytest.mark.parametrize("change", [{"size": 322}, {"batch": 1}, {"kind": onnx.TensorProto.INT8}])
def test_other_inputs_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save_colour_model(tmp_path / "m.onnx", **change)
    with pytest.raises(ModelError, match=r"takes image .*not image uint8\[N,299,299,3\]") as said:
        open_openvino(path)
    with pytest.raises(ModelError) as expected:
        open_backend(path, "onnxruntime", "cpu")
    assert str(said.value) == str(expected.value)


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    model = colour_model()
    model.metadata_props.add(key=CARD_KEY, value=CARD.to_json())
    del model.graph.output[1]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"gives probability float\[N,2\], not"):
        open_openvino(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 50])
def test_an_invalid_onnx_is_refused_without_other_output(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="m.onnx (cannot be loaded: |has no model card)") as raised:
        open_openvino(path)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(EMBEDDED.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="m.onnx"):
        open_openvino(path)


def test_an_int8_model_runs_in_8_bits(portraits: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    from ffd_export.calibration import find_ranges
    from ffd_export.int8 import quantise
    from ffd_export.onnx_file import read_onnx, to_bytes
    from ffd_export.sample_images import find_images, prepare_images

    model, card = read_onnx(EMBEDDED)
    images = prepare_images(find_images(portraits, 3), card.preprocess)
    # Better ranges take seconds to find, and do not change the types of layers.
    extremes = {
        name: (np.float32(low), np.float32(high))
        for name, (low, high) in find_ranges(model, images).items()
    }
    ranges = TensorsData(CalibrationMethod.MinMax, extremes)
    path = tmp_path / "m.int8.onnx"
    path.write_bytes(to_bytes(quantise(model, "cpu", ranges), card.replace(precision="int8")))
    opened = open_openvino(path)
    # The first layer and the classifier stay FP32.
    assert opened.description.endswith("computing in f32/u8")
    batch = next(iter(images.batches(3)))
    expected = open_backend(path, "onnxruntime", "cpu").infer(batch)
    # The backends round differently, by as much as INT8 differs from FP32.
    assert np.allclose(opened.infer(batch).probability, expected.probability, atol=2e-2)

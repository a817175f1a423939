from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import ffd_runtime.backends.onnxruntime as backend
from ffd_runtime.backends import open_backend
from ffd_runtime.card import CARD_KEY
from ffd_runtime.devices import count_gpus, parse_device
from ffd_runtime.errors import BackendError, CardError, DeviceError, ModelError

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

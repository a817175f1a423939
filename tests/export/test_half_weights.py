"""Weights that are stored as FP16 give the outputs of the rounded FP32 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ffd_export.half_weights import pack_weights, unpack_weights
from ffd_export.onnx_file import copy_model, read_onnx, to_bytes
from ffd_runtime.model.backends import open_backend

from ..models import LITE0


@pytest.fixture(scope="module")
def rounded() -> onnx.ModelProto:
    """LITE0 with weights that are values of FP16."""
    model, _ = read_onnx(LITE0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def test_a_packed_file_is_half_as_large_and_gives_the_same_scores(
    rounded: onnx.ModelProto, tmp_path: Path
) -> None:
    _, card = read_onnx(LITE0)
    packed = copy_model(rounded)
    pack_weights(packed)
    whole, half = tmp_path / "whole.onnx", tmp_path / "half.onnx"
    whole.write_bytes(to_bytes(copy_model(rounded), card))
    half.write_bytes(to_bytes(packed, card))
    assert half.stat().st_size < 0.55 * whole.stat().st_size
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    scores = [open_backend(path, "onnxruntime", "cpu").infer(images) for path in (whole, half)]
    assert np.array_equal(scores[0].probability, scores[1].probability)
    assert packed.graph.node[0].op_type == "Cast"
    assert packed.graph.node[0].input[0] == "image"


def test_reading_restores_the_graph(rounded: onnx.ModelProto) -> None:
    packed = copy_model(rounded)
    pack_weights(packed)
    assert packed != rounded
    unpack_weights(packed)
    assert packed == rounded


def test_other_weights_stay(rounded: onnx.ModelProto) -> None:
    model = copy_model(rounded)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(1.0001)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    before = copy_model(model)
    pack_weights(model)
    assert model == before

"""Conversion to FP16, and the layers that stay in FP32."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ffd_export import fp16, verification
from ffd_export.baseline import Baseline, classify_candidate
from ffd_export.calibration import find_ranges
from ffd_export.fp16 import MAX_VALUE, find_overflows, to_fp16
from ffd_export.layer_errors import compare_layers
from ffd_export.layers import ends_of, layer_types, layers_of
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_export.sample_images import SampleImages
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard

from .conftest import error_of, run


def test_layers_are_named_after_their_weights(model: onnx.ModelProto) -> None:
    layers = list(layer_types(model).types)
    assert layers[0] == "stem.0"
    assert {"layer1.0.0.conv_dw", "head", "heatmap"} <= set(layers)
    assert len(layers) == 51
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    ends = ends_of(model.graph)
    assert ends.first == ("stem.0",)
    assert ends.last == ("head",)


def test_fp16_keeps_normalisation_and_scores_in_fp32(
    model: onnx.ModelProto, card: ModelCard
) -> None:
    before = model.SerializeToString(deterministic=True)
    half = to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert set(layer_types(half).types.values()) == {"half"}
    inferred = onnx.shape_inference.infer_shapes(half)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in half.graph.output}
    by_name = {node.name: node for node in half.graph.node}
    ends = ends_of(model.graph)
    for name in (*ends.normalisation, *ends.scores):
        assert kinds[by_name[name].output[0]] == TensorProto.FLOAT, name
    assert kinds["probability"] == kinds["heatmap"] == TensorProto.FLOAT
    # Casts of the image, to FP16, to the scores and to the heatmap. No value is cast back again.
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 4
    assert len(to_bytes(half, card)) < 0.52 * EMBEDDED.stat().st_size


def test_fp16_is_within_its_limit(
    model: onnx.ModelProto, card: ModelCard, images: SampleImages
) -> None:
    baseline = Baseline(card, images, classify_candidate(model, card, images))
    assert 0 < baseline.compare(to_fp16(model)).largest < 1e-2


def loud(model: onnx.ModelProto, layer: str, factor: float) -> onnx.ModelProto:
    """Scale the output of a layer by a factor, and the weights of the next layer by its inverse."""
    copy = deepcopy(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = {node.name: node for node in copy.graph.node}
    first = nodes[layer]
    (after,) = (node for node in copy.graph.node if first.output[0] in node.input)
    for scale, names in ((factor, first.input[1:]), (1 / factor, after.input[1:2])):
        for name in names:
            values = numpy_helper.to_array(stored[name]) * np.float32(scale)
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return copy


def test_overflowing_layers_are_found(model: onnx.ModelProto, images: SampleImages) -> None:
    few = images.spread(4)
    assert find_overflows(model, find_ranges(model, few)) == []
    # There is no activation between this layer and the next.
    big = loud(model, "layer1.0.0.conv_pw", 1e6)
    found = find_ranges(big, few)
    assert max(max(-low, high) for low, high in found.values()) > MAX_VALUE
    overflowing = find_overflows(big, found)
    assert overflowing == ["layer1.0.0.conv_pw", "layer1.1.0.conv_pw"]
    pixels = few.pixels[:1]
    assert not compare_layers(big, to_fp16(big), pixels)["layer1.1.0.conv_pw"] < 0.5
    assert compare_layers(big, to_fp16(big, overflowing), pixels)["layer1.1.0.conv_pw"] < 0.01


def test_the_command_keeps_overflowing_layers_in_fp32(
    model: onnx.ModelProto, card: ModelCard, labelled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "loud.onnx"
    path.write_bytes(to_bytes(loud(model, "layer1.0.0.conv_pw", 1e6), card))
    outcome = run(path, "--fp16", "--verify", labelled)
    assert outcome.exit_code == 0, outcome.output
    assert "exceed FP16's range: layer1.0.0.conv_pw, layer1.1.0.conv_pw" in outcome.stderr
    _, made = read_onnx(tmp_path / "loud.fp16.onnx")
    assert made.precision == "fp16"
    assert made.metrics["export"]["overflowing"] == "layer1.0.0.conv_pw, layer1.1.0.conv_pw"
    assert made.metrics["export"]["half_layers"] == 49
    assert made.metrics["export"]["float_layers"] == 2
    assert made.metrics["parity"]["verified"] == "verified"


def shifted(model: onnx.ModelProto, layer: str, by: float) -> onnx.ModelProto:
    """Add a constant to the output of a layer, and subtract its effect in the next layer."""
    copy = deepcopy(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    (node,) = (node for node in copy.graph.node if node.name == layer)
    (after,) = (one for one in copy.graph.node if node.output[0] in one.input)
    weight = numpy_helper.to_array(stored[after.input[1]])
    assert weight.shape[2:] == (1, 1)
    for one, more in ((node, by), (after, -by * weight.sum((1, 2, 3)))):
        bias = numpy_helper.to_array(stored[one.input[2]]) + np.float32(more)
        stored[one.input[2]].CopyFrom(numpy_helper.from_array(bias, one.input[2]))
    return copy


def test_keep_auto_finds_the_most_sensitive_layers_of_fp16(
    model: onnx.ModelProto,
    card: ModelCard,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Measuring all layers takes too long. Of twenty layers, two may be kept.
    monkeypatch.setattr(fp16, "layers_of", lambda graph: layers_of(graph)[:20])
    monkeypatch.setattr(fp16, "SENSITIVITY_IMAGES", 4)
    monkeypatch.setattr(verification, "EXPLANATION_IMAGES", 2)
    path = tmp_path / "shifted.onnx"
    path.write_bytes(to_bytes(shifted(model, "layer1.0.0.conv_pw", 3000), card))
    error = error_of(path, "--fp16", "--verify", labelled)
    assert "largest |Δp|" in error
    assert "--keep auto finds layers to keep in FP32" in error
    outcome = run(path, "--fp16", "--verify", labelled, "--keep", "auto")
    assert outcome.exit_code == 0, outcome.stderr
    _, made = read_onnx(tmp_path / "shifted.fp16.onnx")
    kept = str(made.metrics["export"]["kept"]).split(", ")
    assert sorted(kept) == ["layer1.0.0.conv_pw", "layer1.1.0.conv_pw"]
    assert made.metrics["export"]["float_layers"] == 2


def test_any_node_can_be_kept_in_fp32(model: onnx.ModelProto, images: SampleImages) -> None:
    """This includes nodes that share a constant, as all Clip nodes of the network do."""
    clips = [node.name for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) > 10
    pixels = images.pixels[:1]
    difference = compare_layers(model, to_fp16(model, clips), pixels)
    # The logits of this image are small, so their relative error is the largest.
    assert max(difference.values()) < 0.1
    everything = [node.name for node in model.graph.node]
    assert max(compare_layers(model, to_fp16(model, everything), pixels).values()) == 0


def test_layer_errors_name_a_changed_layer(model: onnx.ModelProto, images: SampleImages) -> None:
    broken = deepcopy(model)
    for tensor in broken.graph.initializer:
        if tensor.name == "net.layer3.3.2.conv_pw.weight":
            values = numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    differences = compare_layers(model, broken, images.pixels[:2])
    assert len(differences) == 51
    assert differences["stem.0"] == 0
    assert differences["layer3.3.2.conv_pw"] == pytest.approx(0.5, abs=0.2)


def test_a_model_beyond_its_limit_is_not_written(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_fp16

    def wrong(model: onnx.ModelProto, keep: Any = ()) -> onnx.ModelProto:
        made = real(model, keep)
        for tensor in made.graph.initializer:
            if tensor.name == "net.head.weight":
                values = numpy_helper.to_array(tensor) * np.float16(-1)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return made

    monkeypatch.setattr(fp16, "to_fp16", wrong)
    monkeypatch.setattr(verification, "EXPLANATION_IMAGES", 2)
    error = error_of(EMBEDDED, "--fp16", "--verify", labelled, "--output", tmp_path / "out")
    assert "the exported fp16 model differs from its source on 8 images" in error
    assert "layers that differ most: head" in error
    assert not (tmp_path / "out").exists()

"""The normalisation of the image at the start of the graph, and INT8 models that skip it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from ffd_export.baseline import Baseline, classify_candidate
from ffd_export.int8 import quantise
from ffd_export.layers import ends_of, layer_types
from ffd_export.onnx_file import copy_model, to_bytes
from ffd_export.pixels import can_fold, fold_normalisation
from ffd_export.sample_images import SampleImages
from ffd_runtime.model.card import ModelCard
from ffd_train.networks import build

from .. import tiny

assert "tiny" in tiny.NAMES


def run_graph(
    model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], *outputs: str
) -> list[npt.NDArray[np.float32]]:
    """Return the values of any tensors of a graph."""
    copy = copy_model(model)
    known = {value.name for value in copy.graph.output}
    for output in outputs:
        if output not in known:
            copy.graph.output.append(
                onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(values) for values in session.run(outputs, {"image": pixels})]


def transpose_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in the order of earlier exports, with the same layers."""
    changed = copy_model(model)
    graph = changed.graph
    cast, transpose, subtract, divide = graph.node[:4]
    normalised = divide.output[0]
    for tensor in graph.initializer:
        if tensor.name in (subtract.input[1], divide.input[1]):
            values = numpy_helper.to_array(tensor).reshape(3)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    subtract.input[0], divide.output[0] = cast.output[0], "pixels"
    transpose.input[0], transpose.output[0] = "pixels", normalised
    order = [cast, subtract, divide, transpose, *graph.node[4:]]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


@pytest.fixture(scope="module", params=["transpose first", "transpose last"])
def ordered(request: pytest.FixtureRequest, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the embedded model with its normalisation in either order."""
    return model if request.param == "transpose first" else transpose_last(model)


def test_the_order_does_not_change_normalised_values(
    model: onnx.ModelProto, images: SampleImages
) -> None:
    pixels = images.spread(4).pixels
    image = torch.from_numpy(pixels)
    net = build("tiny")
    last = ((image.float() - net.mean.flatten()) / net.std.flatten()).permute(0, 3, 1, 2)
    assert torch.equal(net.scale(image), last)
    changed = transpose_last(model)
    onnx.checker.check_model(changed, full_check=True)
    outputs = (model.graph.node[3].output[0], "probability", "heatmap")
    normalised, *scores = zip(
        *(run_graph(one, pixels, *outputs) for one in (model, changed)), strict=True
    )
    assert np.array_equal(*normalised)
    for before, after in scores:
        assert np.allclose(before, after, rtol=0, atol=1e-6)


def test_folding_the_normalisation_changes_only_the_edges(
    ordered: onnx.ModelProto, card: ModelCard, images: SampleImages
) -> None:
    folded = copy_model(ordered)
    assert can_fold(folded)
    tensor, zero = fold_normalisation(folded)
    (first,) = (node for node in folded.graph.node if node.name == "stem.0")
    assert (tensor, zero) == (first.input[0], 114)
    nodes = {node.name: node for node in folded.graph.node}
    assert "Div" not in [nodes[name].op_type for name in ends_of(folded.graph).normalisation]
    few = images.spread(4)
    baseline = Baseline(card, few, classify_candidate(ordered, card, few))
    assert baseline.compare(folded).mean < 0.01
    # Inside of the image's edges, the first layer's output is the same.
    inner = [
        run_graph(one, images.pixels[:1], first.output[0])[0][:, :, 1:-1, 1:-1]
        for one in (ordered, folded)
    ]
    assert np.allclose(inner[0], inner[1], atol=1e-4)


@pytest.fixture(scope="module")
def quantised_last(model: onnx.ModelProto, ranges: dict[str, Any]) -> onnx.ModelProto:
    """Return the graph in the order of earlier exports, as INT8 for the CPU."""
    return quantise(transpose_last(model), "cpu", ranges["percentile"])


@pytest.mark.parametrize("name", ["quantised", "quantised_last"])
def test_int8_runs_in_8_bits_on_the_cpu(
    name: str, card: ModelCard, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """onnxruntime must run integer convolutions, not float convolutions between Q/DQ pairs."""
    content = to_bytes(request.getfixturevalue(name), card)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == 50
    # The first of them reads the pixels, which are not normalised.
    assert not {"Cast", "Sub"} & set(operators)


def test_int8_scores_are_equal_in_either_order(
    quantised: onnx.ModelProto, quantised_last: onnx.ModelProto, images: SampleImages
) -> None:
    first, last = (
        run_graph(one, images.pixels, "probability") for one in (quantised, quantised_last)
    )
    assert np.array_equal(first, last)


def test_a_first_layer_kept_in_fp32_reads_normalised_values(
    ordered: onnx.ModelProto, ranges: dict[str, Any]
) -> None:
    kept = quantise(ordered, "cpu", ranges["percentile"], ["stem.0"])
    assert layer_types(kept).of_other_type("int8") == ["stem.0", "head"]
    alone = quantise(ordered, "cpu", ranges["percentile"], only="layer4.2")
    assert layer_types(alone).counts() == {"float": 50, "int8": 1}
    for made in (kept, alone):
        assert "Cast" in {node.op_type for node in made.graph.node}

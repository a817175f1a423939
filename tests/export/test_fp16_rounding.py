"""FP16 models on a CPU, with the rounding of a GPU."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ffd_export.baseline import Baseline, classify_candidate, open_candidate
from ffd_export.fp16 import to_fp16
from ffd_export.fp16_rounding import emulate_fp16
from ffd_export.layer_errors import compare_layers
from ffd_export.onnx_file import to_bytes
from ffd_export.parity import classify
from ffd_export.sample_images import SampleImages
from ffd_runtime.model.card import ModelCard

from .conftest import error_of

Halves = npt.NDArray[np.float16]


def calculation(added: Halves, factors: Halves, dtype: int) -> onnx.ModelProto:
    """Return a model of `(x + added) * factors - added`, with FP32 input and output."""
    constants = {"added": added, "factors": factors}
    if dtype == TensorProto.FLOAT:
        constants = {name: values.astype(np.float32) for name, values in constants.items()}
    # One constant is stored in a node, as some exporters do.
    inside = numpy_helper.from_array(constants.pop("factors"), "")
    nodes = [
        helper.make_node("Constant", [], ["factors"], value=inside),
        helper.make_node("Cast", ["x"], ["narrow"], to=dtype),
        helper.make_node("Add", ["narrow", "added"], ["sum"]),
        helper.make_node("Mul", ["sum", "factors"], ["product"]),
        helper.make_node("Sub", ["product", "added"], ["difference"]),
        helper.make_node("Cast", ["difference"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "calculation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: npt.NDArray[np.float32] = session.run(["y"], {"x": x})[0]
    return found


NUMBERS = st.floats(-60000, 60000, width=16)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_every_result_is_rounded_to_fp16(rows: list[tuple[float, float, float]]) -> None:
    """NumPy rounds each result of a calculation with FP16 arrays, and overflows to infinity."""
    x, added, factors = (np.array(column, np.float16) for column in zip(*rows, strict=True))
    model = calculation(added, factors, TensorProto.FLOAT16)
    before = model.SerializeToString(deterministic=True)
    with np.errstate(all="ignore"):
        expected = ((x + added) * factors - added).astype(np.float32)
    np.testing.assert_array_equal(run(emulate_fp16(model), x.astype(np.float32)), expected)
    assert model.SerializeToString(deterministic=True) == before


def test_casts_to_integers_stay_as_they_are() -> None:
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["narrow"], to=half),
        helper.make_node("Mul", ["narrow", "narrow"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "whole numbers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        value_info=[helper.make_tensor_value_info("narrow", half, ["N"])],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    found = run(emulate_fp16(model), np.array([1.7, 60.9], np.float32))
    np.testing.assert_array_equal(found, np.array([1, 3600], np.float32))


def test_a_layer_that_overflows_is_the_one_with_the_error(
    model: onnx.ModelProto, images: SampleImages
) -> None:
    half, pixels = to_fp16(model), images.pixels[:1]
    for tensor in half.graph.initializer:
        if tensor.name == "net.layer1.0.0.conv_pw.weight":
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 60_000), tensor.name))
    errors = compare_layers(model, half, pixels)
    assert not np.isfinite(errors["layer1.0.0.conv_pw"])


def test_models_without_fp16_stay_as_they_are(model: onnx.ModelProto) -> None:
    assert emulate_fp16(model) is model
    one = np.ones(1, np.float16)
    full = calculation(one, one, TensorProto.FLOAT)
    assert emulate_fp16(full) is full


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add 20,000 to an activation and subtract it again, which only FP16 does not survive."""
    made = deepcopy(model)
    clip = next(node for node in made.graph.node if node.op_type == "Clip")
    name, made_by_clip = clip.output[0], "made_by_clip"
    clip.output[0] = made_by_clip
    made.graph.initializer.append(numpy_helper.from_array(np.array(20_000, np.float32), "much"))
    added = helper.make_node("Add", [made_by_clip, "much"], ["large"], name="add")
    subtracted = helper.make_node("Sub", ["large", "much"], [name], name="subtract")
    place = list(made.graph.node).index(clip) + 1
    made.graph.node.insert(place, subtracted)
    made.graph.node.insert(place, added)
    return made


def test_the_parity_check_rounds_activations(
    model: onnx.ModelProto, card: ModelCard, images: SampleImages, labelled: Path, tmp_path: Path
) -> None:
    large = rounding(model)
    baseline = Baseline(card, images, classify_candidate(large, card, images))
    half = to_fp16(large)
    with open_candidate(to_bytes(half, card)) as backend:
        # onnxruntime alone rounds only the weights.
        assert baseline.compare_results(classify(backend, images)).largest < 0.01
    assert baseline.compare(half).largest > 0.01
    path = tmp_path / "large.onnx"
    path.write_bytes(to_bytes(large, card))
    assert "largest |Δp|" in error_of(path, "--fp16", "--verify", labelled)

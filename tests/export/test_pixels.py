"""The normalisation of the image at the start of the graph, and INT8 models that skip it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto

from ffd_export.baseline import Baseline, classify_candidate
from ffd_export.int8 import quantise
from ffd_export.layers import ends_of, layer_types
from ffd_export.onnx_file import to_bytes
from ffd_export.pixels import can_fold, fold_normalisation
from ffd_export.sample_images import SampleImages
from ffd_runtime.model.card import ModelCard


def run_to(
    model: onnx.ModelProto, pixels: npt.NDArray[np.uint8], output: str
) -> npt.NDArray[np.float32]:
    """Return the values of a tensor within a graph."""
    copy = deepcopy(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"image": pixels})[0])


def test_folding_the_normalisation_changes_only_the_edges(
    model: onnx.ModelProto, card: ModelCard, images: SampleImages
) -> None:
    folded = deepcopy(model)
    assert can_fold(folded)
    tensor, zero = fold_normalisation(folded)
    (first,) = (node for node in folded.graph.node if node.name == "stem.0")
    assert (tensor, zero) == (first.input[0], 114)
    nodes = {node.name: node for node in folded.graph.node}
    assert "Div" not in [nodes[name].op_type for name in ends_of(folded.graph).normalisation]
    few = images.spread(4)
    baseline = Baseline(card, few, classify_candidate(model, card, few))
    assert baseline.compare(folded).mean < 0.01
    # Inside of the image's edges, the first layer's output is the same.
    inner = [
        run_to(one, images.pixels[:1], first.output[0])[:, :, 1:-1, 1:-1] for one in (model, folded)
    ]
    assert np.allclose(inner[0], inner[1], atol=1e-4)


def test_int8_runs_in_8_bits_on_the_cpu(
    quantised: onnx.ModelProto, card: ModelCard, tmp_path: Path
) -> None:
    """onnxruntime must run integer convolutions, not float convolutions between Q/DQ pairs."""
    content = to_bytes(quantised, card)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == 50
    # The first of them reads the pixels, which are not normalised.
    assert not {"Cast", "Sub"} & set(operators)


def test_a_first_layer_kept_in_fp32_reads_normalised_values(
    model: onnx.ModelProto, ranges: dict[str, Any]
) -> None:
    kept = quantise(model, "cpu", ranges["percentile"], ["stem.0"])
    assert layer_types(kept).of_other_type("int8") == ["stem.0", "head"]
    alone = quantise(model, "cpu", ranges["percentile"], only="layer4.2")
    assert layer_types(alone).counts() == {"float": 50, "int8": 1}
    for made in (kept, alone):
        assert "Cast" in {node.op_type for node in made.graph.node}


def test_another_normalisation_is_not_folded(
    model: onnx.ModelProto, ranges: dict[str, Any]
) -> None:
    changed = deepcopy(model)
    changed.graph.node[3].op_type = "Mul"
    made = quantise(changed, "cpu", ranges["percentile"])
    assert layer_types(made).of_other_type("int8") == ["stem.0", "head"]

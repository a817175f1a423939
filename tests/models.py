"""A small ONNX of the graph contract with known verdicts, built without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffd_runtime.model.card import CARD_KEY, ModelCard, Provenance

# `onnx.TensorProto.UINT8`. Only the functions import onnx, and skip their tests without it.
UINT8 = 2

CARD = ModelCard(
    name="colour",
    architecture="colour",
    provenance=Provenance(version="0"),
    threshold=0.5,
    unsure=(0.2, 0.8),
)


def colour_model(size: int = 299, batch: int | str = "N", kind: int = UINT8) -> Any:
    """Build a model: log-odds are (mean red - mean blue) / 5; the heatmap is their local value."""
    onnx = pytest.importorskip("onnx")
    helper, kinds, from_array = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    weight = np.array([0.2, 0, -0.2], np.float32).reshape(1, 3, 1, 1)
    to_logits = np.array([[1, 0]], np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=kinds.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight"], ["local"]),
        helper.make_node(
            "AveragePool", ["local"], ["pooled"], kernel_shape=[23, 23], strides=[23, 23]
        ),
        helper.make_node("Squeeze", ["pooled", "channel"], ["heatmap"]),
        helper.make_node("ReduceMean", ["pooled", "space"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "to_logits"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("image", kind, [batch, size, size, 3])],
        [
            helper.make_tensor_value_info("probability", kinds.FLOAT, [batch, 2]),
            helper.make_tensor_value_info("heatmap", kinds.FLOAT, [batch, "h", "w"]),
        ],
        [
            from_array(weight, "weight"),
            from_array(to_logits, "to_logits"),
            from_array(np.array([1]), "channel"),
            from_array(np.array([2, 3]), "space"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save_colour_model(
    path: Path, card: str | None = CARD.to_json(), doc: str = "", **options: Any
) -> Path:
    """Write the colour model with the text of a card or without one; `doc` changes its hash."""
    onnx = pytest.importorskip("onnx")
    model = colour_model(**options)
    model.doc_string = doc
    if card is not None:
        model.metadata_props.add(key=CARD_KEY, value=card)
    onnx.save(model, path)
    return path


def save_sided_model(path: Path) -> Path:
    """Write a colour model with larger weights at the right and the bottom.

    A rotated image has another score.
    """
    save_colour_model(path)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    y, x = np.mgrid[-1:1:13j, -1:1:13j]
    sides = (1 + 0.8 * x + 0.4 * y).astype(np.float32)[None, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(sides, "sides"))
    mean = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    mean.input[0] = "sided"
    place = list(model.graph.node).index(mean)
    model.graph.node.insert(place, onnx.helper.make_node("Mul", ["pooled", "sides"], ["sided"]))
    onnx.save(model, path)
    return path

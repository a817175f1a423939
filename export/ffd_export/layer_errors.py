"""Where a converted model parts from the one that it was made from, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .layers import layers_of

if TYPE_CHECKING:
    from onnx import ModelProto


def compare_layers(
    reference: ModelProto, converted: ModelProto, pixels: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """How much of each layer's output is error.

    Args:
        reference: of the graph contract.
        converted: the same network, its layers under the same names.
        pixels: uint8 [N, size, size, 3], RGB; a few are enough.

    Returns:
        By layer, the largest first: the root of the mean square difference, relative to the
        reference's output.
    """
    outputs = _run_layers(reference, pixels)
    others = _run_layers(converted, pixels)
    errors = {}
    for name in outputs.keys() & others.keys():
        expected = outputs[name].astype(np.float64)
        error = float(np.linalg.norm(others[name].astype(np.float64) - expected))
        errors[name] = error / max(float(np.linalg.norm(expected)), 1e-12)
    return dict(sorted(errors.items(), key=lambda entry: (-entry[1], entry[0])))


def describe(differences: dict[str, float], count: int = 5) -> str:
    """The first of them, in words."""
    return ", ".join(f"{name} {error:.1e}" for name, error in list(differences.items())[:count])


def _run_layers(
    model: ModelProto, pixels: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    import onnxruntime as ort
    from onnx import ModelProto as Model
    from onnx import helper

    copy = Model()
    copy.CopyFrom(model)
    layers = {node.output[0]: node.name for node in layers_of(copy.graph)}
    there = {value.name for value in copy.graph.output}
    for name in layers:
        if name not in there:
            # onnxruntime finds the type by itself.
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(layers), {"image": pixels})
    return dict(zip(layers.values(), found, strict=True))

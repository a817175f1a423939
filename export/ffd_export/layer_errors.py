"""Errors of a converted model against its source, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .layers import layers_of
from .onnx_file import copy_model

if TYPE_CHECKING:
    from onnx import ModelProto


def compare_layers(
    reference: ModelProto, converted: ModelProto, pixels: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """Measure the error of each layer's output in a converted model.

    Args:
        reference: the FP32 model.
        converted: the same network, with the same layer names.
        pixels: uint8 [N, size, size, 3], RGB; a few are enough.

    Returns:
        Root mean square error by layer, relative to the reference's output, the largest first.
    """
    outputs = _run_layers(reference, pixels)
    errors = {}
    for name, output in _run_layers(converted, pixels).items():
        if name in outputs:
            error = float(np.linalg.norm(output - outputs[name]))
            errors[name] = error / max(float(np.linalg.norm(outputs[name])), 1e-12)
    return dict(sorted(errors.items(), key=lambda entry: (-entry[1], entry[0])))


def describe(errors: dict[str, float], count: int = 5) -> str:
    """Return the first errors as text."""
    return ", ".join(f"{name} {error:.1e}" for name, error in list(errors.items())[:count])


def _run_layers(
    model: ModelProto, pixels: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float64]]:
    import onnxruntime as ort
    from onnx import helper

    copy = copy_model(model)
    layers = {node.output[0]: node.name for node in layers_of(copy.graph)}
    outputs = {value.name for value in copy.graph.output}
    for name in layers:
        if name not in outputs:
            # onnxruntime infers the type.
            copy.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(layers), {"image": pixels})
    return {
        name: output.astype(np.float64) for name, output in zip(layers.values(), found, strict=True)
    }

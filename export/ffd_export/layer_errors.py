"""Errors of a converted model against its source, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .fp16_rounding import emulate_fp16
from .layers import layers_of

if TYPE_CHECKING:
    from onnx import ModelProto


def compare_layers(
    reference: ModelProto, converted: ModelProto, pixels: npt.NDArray[np.uint8]
) -> dict[str, float]:
    """Measure the error of each layer's output in a converted model.

    The images run one by one, so that memory holds all outputs of one image only.

    Args:
        reference: the FP32 model.
        converted: the same network, with the same layer names.
        pixels: uint8 [N, size, size, 3], RGB; a few are enough.

    Returns:
        Root mean square error by layer, relative to the reference's output, the largest first.
    """
    reference_layers, converted_layers = _LayerRunner(reference), _LayerRunner(converted)
    errors: dict[str, float] = defaultdict(float)
    energies: dict[str, float] = defaultdict(float)
    for image in pixels:
        outputs = reference_layers.run(image)
        for name, output in converted_layers.run(image).items():
            if name in outputs:
                wanted = outputs[name].astype(np.float64)
                errors[name] += float(np.linalg.norm(output - wanted)) ** 2
                energies[name] += float(np.linalg.norm(wanted)) ** 2
    relative = {name: (error / max(energies[name], 1e-24)) ** 0.5 for name, error in errors.items()}
    return dict(sorted(relative.items(), key=lambda entry: (-entry[1], entry[0])))


def describe(errors: dict[str, float], count: int = 5) -> str:
    """Return the first errors as text."""
    return ", ".join(f"{name} {error:.1e}" for name, error in list(errors.items())[:count])


class _LayerRunner:
    """Runs a model, with the rounding of a GPU, and returns the output of every layer."""

    def __init__(self, model: ModelProto) -> None:
        import onnxruntime as ort
        from onnx import helper

        # The rounded output keeps the name.
        self._layers = {node.output[0]: node.name for node in layers_of(model.graph)}
        copy = deepcopy(emulate_fp16(model))
        outputs = {value.name for value in copy.graph.output}
        for name in self._layers:
            if name not in outputs:
                # onnxruntime infers the type.
                copy.graph.output.append(helper.make_empty_tensor_value_info(name))
        self._session = ort.InferenceSession(
            copy.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.floating]]:
        found = self._session.run(list(self._layers), {"image": image[None]})
        return dict(zip(self._layers.values(), found, strict=True))

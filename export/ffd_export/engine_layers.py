"""Types of the layers of a parsed TensorRT network, and of the kernels of a built engine."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from .layers import LayerTypes


def network_layer_types(trt: Any, network: Any) -> LayerTypes:
    """Return the types of the convolution and matrix layers of a parsed network.

    A layer is INT8 if its activation and its weight both come from dequantise layers that read
    int8. TensorRT turns this pair into an 8-bit kernel.
    """
    operators = trt.LayerType
    counted = (operators.CONVOLUTION, operators.DECONVOLUTION, operators.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    dequantised = {
        layer.get_output(0).name
        for layer in layers
        if layer.type == operators.DEQUANTIZE and layer.get_input(0).dtype == trt.DataType.INT8
    }
    names = {trt.DataType.HALF: "half", trt.DataType.FLOAT: "float"}
    found = {}
    for layer in layers:
        if layer.type not in counted:
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)][:2]
        if len(inputs) == 2 and all(tensor.name in dequantised for tensor in inputs):
            found[layer.name] = "int8"
        else:
            dtype = inputs[0].dtype
            found[layer.name] = names.get(dtype, str(dtype).rpartition(".")[2].lower())
    return LayerTypes(found)


def inspect_engine(
    trt: Any, content: bytes, logger: Any, version_compatible: bool = False
) -> dict[str, int] | None:
    """Count the convolution and GEMM kernels of an engine by type, with the engine inspector.

    It needs a GPU. The counts are only information: the result is None if the inspector's answer
    has an unknown format (TensorRT's documentation, "Engine Inspector").
    """
    with suppress(AttributeError, ValueError, KeyError, TypeError, IndexError):
        runtime = trt.Runtime(logger)
        # The lean runtime is host code, which TensorRT loads only if this is set.
        runtime.engine_host_code_allowed = version_compatible
        engine = runtime.deserialize_cuda_engine(content)
        inspector = engine.create_engine_inspector()
        document = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return count_kernels(json.loads(document)["Layers"])
    return None


def count_kernels(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Count kernels by the type of their first input, in the engine inspector's list of layers."""
    counts: dict[str, int] = {}
    words = {"int8": ("int8",), "half": ("half", "fp16"), "float": ("float", "fp32")}
    for layer in layers:
        kind = f"{layer['LayerType']} {layer.get('ParameterType', '')}".lower()
        if not any(word in kind for word in ("conv", "gemm", "matrixmultiply", "matmul")):
            continue
        text = json.dumps(layer["Inputs"][0]).lower()
        name = next((n for n, found in words.items() if any(w in text for w in found)), "other")
        counts[name] = counts.get(name, 0) + 1
    return counts

"""Compute an FP16 model on a CPU with the rounding that a GPU does."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def emulate_fp16(model: ModelProto) -> ModelProto:
    """Return a model that computes in FP32 and rounds each FP16 tensor to FP16.

    onnxruntime's CPU provider has FP16 kernels for few operators. It computes the others in FP32
    and does not round between them, so the FP16 model itself would be too precise there. GPUs round
    the result of each operator, and sum up in FP32 within it.

    Args:
        model: an ONNX of any precision without subgraphs and functions, and with no FP16 input or
            output, such as `to_fp16` makes; not changed. Without FP16 tensors, it is returned as it
            is.
    """
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    typed = [*graph.value_info, *graph.output]
    half = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    if not half:
        return model
    emulated = deepcopy(model)
    # Their types would be wrong.
    del emulated.graph.value_info[:]
    for tensor in emulated.graph.initializer:
        _widen(tensor)
    nodes = list(emulated.graph.node)
    del emulated.graph.node[:]
    for node in nodes:
        emulated.graph.node.extend(_round_outputs(node, half))
    return emulated


def _round_outputs(node: NodeProto, half: set[str]) -> Iterator[NodeProto]:
    """Yield a node that computes in FP32, and the casts that round its FP16 outputs."""
    from onnx import TensorProto, helper

    for attribute in node.attribute:
        _widen(attribute.t)
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    casts = []
    for index, name in enumerate(node.output):
        if name in half:
            exact, rounded = f"{name}/exact", f"{name}/rounded"
            node.output[index] = exact
            casts.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
            casts.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    yield node
    yield from casts


def _widen(tensor: TensorProto) -> None:
    """Store an FP16 tensor's values as FP32."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.FLOAT16:
        values = numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

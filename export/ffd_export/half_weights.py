"""Store the weights of an FP32 graph as FP16 where that loses nothing, which halves its file.

A Cast turns each weight back into FP32. Inference libraries compute it once, while they load the
graph, and then run in FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Smaller tensors, such as biases, stay FP32: they take little space.
MIN_ELEMENTS = 256
# Largest relative difference to a value of FP16: that of two computations in FP32.
MAX_ERROR = 1e-6
_SUFFIX = ".half"


def pack_weights(model: ModelProto) -> None:
    """Store the weights that are values of FP16 as FP16 with a Cast, in place.

    Weights of other values stay FP32.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < MIN_ELEMENTS:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.allclose(half, values, rtol=MAX_ERROR, atol=0):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, name + _SUFFIX))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    # The graph contract keeps the image's Cast first.
    first, *others = model.graph.node
    _replace_nodes(model, [first, *casts, *others])


def unpack_weights(model: ModelProto) -> None:
    """Undo `pack_weights`, in place, so that a conversion finds its weights in FP32."""
    from onnx import numpy_helper

    packed = {t.name: t for t in model.graph.initializer if t.name.endswith(_SUFFIX)}
    kept = []
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in packed:
            tensor = packed[node.input[0]]
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def _replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    from onnx import NodeProto as Node

    copies = [Node.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)

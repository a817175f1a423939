"""Convert an FP32 model to a typed FP16 ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

from .baseline import Baseline, classify_candidate
from .layers import ends_of, layer_before, layers_of, producers_of
from .parity import LIMITS, measure_differences
from .reporter import Advance

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Half of the largest finite FP16 number, 65504, as other images may have larger values.
MAX_VALUE = 65504 / 2
# Keep no more layers in FP32 if the difference is below this share of the parity limit. The rest is
# a margin, as other images may differ more.
TARGET_SHARE = 0.75
# Images with the largest differences, on which the sensitivity of each layer is measured.
SENSITIVITY_IMAGES = 16
# One layer in this many may be kept in FP32.
MIN_LAYERS_PER_KEPT = 10


def to_fp16(model: ModelProto, keep: Collection[str] = ()) -> ModelProto:
    """Convert a model with onnxruntime's converter, for strongly typed networks of TensorRT.

    `image`, `probability` and `heatmap` keep their types. The image's normalisation and the softmax
    stay in FP32, so that the score loses no precision there.

    Args:
        model: an FP32 model of the graph contract; not changed.
        keep: names of nodes to keep in FP32.
    """
    # First, as onnxruntime.transformers changes sys.path and breaks this import.
    import onnxruntime.quantization  # noqa: F401
    from onnx import checker
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    ends = ends_of(model.graph)
    with warnings.catch_warnings():
        # The converter warns of each tensor with a weight below the smallest FP16 number.
        warnings.simplefilter("ignore")
        converted: ModelProto = convert_float_to_float16(
            deepcopy(model),
            keep_io_types=True,
            node_block_list=[*ends.normalisation, *ends.scores, *keep],
        )
    # Removing casts invalidates these.
    del converted.graph.value_info[:]
    _remove_duplicate_casts(converted.graph)
    _remove_cast_pairs(converted.graph)
    OnnxModel.graph_topological_sort(converted.graph, is_deterministic=True)
    checker.check_model(converted, full_check=True)
    return converted


def find_overflows(model: ModelProto, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the nodes that read or produce values beyond FP16's range, in graph order.

    `ranges` are the smallest and the largest value of each tensor on real images.
    """
    import numpy as np
    from onnx import numpy_helper

    beyond = {name for name, (low, high) in ranges.items() if max(-low, high) > MAX_VALUE}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and np.abs(values).max() > MAX_VALUE:
            beyond.add(tensor.name)
    ends = ends_of(model.graph)
    always = {*ends.normalisation, *ends.scores}
    return [
        node.name
        for node in model.graph.node
        if node.name not in always and beyond.intersection((*node.input, *node.output))
    ]


def choose_layers_to_keep(
    model: ModelProto,
    baseline: Baseline,
    always: Collection[str] = (),
    advance: Advance = lambda count: None,
) -> list[str]:
    """Choose layers to keep in FP32 so that FP16 stays well within its parity limit.

    Keep the most sensitive layer, then two, four and so on, until the difference is small enough or
    a tenth of the layers is kept. The sensitivity of a layer includes the rounding of its input, so
    each layer is followed by the layer before it.

    Returns:
        No layer if FP16 is close enough without; if it never is, those that bring it closest.
    """
    everything = [node.name for node in model.graph.node]
    results = classify_candidate(to_fp16(model, always), baseline.card, baseline.images)
    differences = measure_differences(baseline.results, results)
    target = TARGET_SHARE * (LIMITS["fp16"].largest or 0)
    layers = [node.name for node in layers_of(model.graph) if node.name not in always]
    counts = counts_to_keep(len(layers))
    if max(differences) <= target or not counts:
        return []
    worst = sorted(range(len(differences)), key=lambda i: -differences[i])[:SENSITIVITY_IMAGES]
    sensitivity = baseline.select(worst).measure_sensitivity(
        layers, lambda layer: to_fp16(model, [n for n in everything if n != layer]), advance
    )
    names = _add_layers_before(model, sensitivity)
    tried = [(max(differences), 0)]
    for count in counts:
        converted = to_fp16(model, [*always, *names[:count]])
        tried.append((baseline.compare(converted).largest, count))
        if tried[-1][0] <= target:
            break
    return names[: min(tried)[1]]


def counts_to_keep(layers: int) -> list[int]:
    """Return 1, 2, 4 and so on, up to a tenth of the layers."""
    powers = (1 << i for i in range(layers.bit_length()))
    return [count for count in powers if MIN_LAYERS_PER_KEPT * count <= layers]


def _add_layers_before(model: ModelProto, layers: Collection[str]) -> list[str]:
    """Move the layer before each layer directly behind it."""
    order: dict[str, None] = {}
    for name in layers:
        order |= dict.fromkeys([name, layer_before(model.graph, name) or name])
    return [name for name in order if name in layers]


def _remove_duplicate_casts(graph: GraphProto) -> None:
    """Remove all but one cast of a tensor. The converter adds one for each kept node."""
    made = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in made:
            graph.node.remove(node)
        made.update(node.output)


def _remove_cast_pairs(graph: GraphProto) -> None:
    """Connect adjacent FP32 nodes directly.

    The converter casts the output of a kept node to FP16 and back for the next node, which loses
    the precision and the range that the nodes are kept for.
    """
    from onnx import TensorProto

    producers = producers_of(graph)
    outputs = {value.name for value in graph.output}
    replacements: dict[str, str] = {}
    for node in list(graph.node):
        source = producers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if source is None or not _casts_to(source, TensorProto.FLOAT16):
            continue
        before, after = source.input[0], node.output[0]
        if after in outputs:
            # Keep the name of a graph output: rename the tensor at its producer.
            producer = producers[before]
            producer.output[list(producer.output).index(before)] = after
            replacements[before] = after
        else:
            replacements[after] = before
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            while name in replacements:
                name = replacements[name]
            node.input[i] = name
    read = {name for node in graph.node for name in node.input} | outputs
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] not in read:
            graph.node.remove(node)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == kind for attribute in node.attribute
    )

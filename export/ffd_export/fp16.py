"""From FP32 to a typed FP16 ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from ffd_runtime.core.results import Result
from ffd_runtime.model.card import ModelCard

from .candidate import classify_candidate
from .layers import ends_of, layer_before, layers_of, producers_of
from .parity import LIMITS, compare, difference
from .sample_images import Images

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# The largest finite half is 65504. The images at hand are a sample: those of tomorrow get twice
# the room.
MOST = 65504 / 2
# Share of the limit that is near enough to keep no more layers: tomorrow's images get room, too.
ENOUGH = 0.75
# Images, those that differ most, that tell what each single layer costs.
FEW = 16


def to_fp16(model: ModelProto, keep: Collection[str] = ()) -> ModelProto:
    """Convert by onnxruntime's converter; TensorRT's strongly typed networks then run it as it is.

    `image`, `probability` and `heatmap` keep their types. So that a score loses nothing before and
    after the network, the scaling of the image and the softmax stay FP32.

    Args:
        model: of the graph contract, FP32; not changed.
        keep: names of nodes that stay FP32.
    """
    # In this order: the transformers package changes sys.path in a way that breaks the other.
    import onnxruntime.quantization  # noqa: F401
    from onnx import ModelProto as Model
    from onnx import checker
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = Model()
    copy.CopyFrom(model)
    ends = ends_of(copy.graph)
    with warnings.catch_warnings():
        # One line for each tensor with a weight under the smallest half.
        warnings.simplefilter("ignore")
        converted: Model = convert_float_to_float16(
            copy,
            keep_io_types=True,
            node_block_list=[*ends.scaling, *ends.scores, *keep],
        )
    # Of before the casts were joined.
    del converted.graph.value_info[:]
    _drop_twins(converted.graph)
    _join_casts(converted.graph)
    OnnxModel.graph_topological_sort(converted.graph, is_deterministic=True)
    checker.check_model(converted, full_check=True)
    return converted


def find_overflows(model: ModelProto, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Nodes that FP16 cannot hold: they read or make what goes beyond its range.

    Args:
        model: of the graph contract, FP32.
        ranges: least and largest value of each tensor on real images.

    Returns:
        Their names, in the order of the graph.
    """
    import numpy as np
    from onnx import numpy_helper

    beyond = {name for name, (low, high) in ranges.items() if max(-low, high) > MOST}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and np.abs(values).max() > MOST:
            beyond.add(tensor.name)
    ends = ends_of(model.graph)
    always = {*ends.scaling, *ends.scores}
    return [
        node.name
        for node in model.graph.node
        if node.name not in always and beyond.intersection((*node.input, *node.output))
    ]


def choose_kept(
    model: ModelProto,
    card: ModelCard,
    images: Images,
    reference: list[Result],
    always: Collection[str] = (),
    advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Layers to keep FP32 so that FP16 stays well within its limit.

    The costliest layer is kept, then two, four, and so on up to a tenth of all, until that is
    enough. What a layer costs comes from its rounded input, too, so the second is the layer before
    it, then come the second costliest and the layer before that.

    Args:
        model: of the graph contract, FP32.
        card: its card.
        images: to measure on.
        reference: FP32's rows for them.
        always: nodes that stay FP32 anyway.
        advance: told after each layer.

    Returns:
        Their names, none if FP16 is near enough as it is; if it never is, those with which it is
        nearest.
    """

    def classify(count: int) -> list[Result]:
        return classify_candidate(to_fp16(model, [*always, *names[:count]]), card, images)

    names: list[str] = []
    apart = [difference(a, b) for a, b in zip(reference, classify(0), strict=True)]
    enough = ENOUGH * (LIMITS["fp16"].largest or 0)
    layers = [node.name for node in layers_of(model.graph) if node.name not in always]
    counts = [1 << i for i in range(len(layers).bit_length()) if 10 << i <= len(layers)]
    if max(apart) <= enough or not counts:
        return []
    worst = sorted(range(len(images)), key=lambda i: -apart[i])[:FEW]
    few, expected = images.select(worst), [reference[i] for i in worst]
    names = _order(model, _measure(model, card, layers, few, expected, advance))
    tried = [(max(apart), 0)]
    for count in counts:
        tried.append((compare(reference, classify(count), images, card).largest, count))
        if tried[-1][0] <= enough:
            break
    return names[: min(tried)[1]]


def _measure(
    model: ModelProto,
    card: ModelCard,
    layers: Collection[str],
    images: Images,
    reference: list[Result],
    advance: Callable[[int], None],
) -> dict[str, float]:
    """What each layer costs if it alone is FP16: mean |Δp|."""
    costs = {}
    for name in layers:
        others = [node.name for node in model.graph.node if node.name != name]
        rows = classify_candidate(to_fp16(model, others), card, images)
        costs[name] = compare(reference, rows, images, card).mean
        advance(1)
    return costs


def _order(model: ModelProto, costs: Mapping[str, float]) -> list[str]:
    """The layers, the costliest first, each with the one before it right after it."""
    order: dict[str, None] = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        order |= dict.fromkeys([name, layer_before(model.graph, name) or name])
    return [name for name in order if name in costs]


def _drop_twins(graph: GraphProto) -> None:
    """Leave one cast of what several kept nodes read; the converter makes one for each of them."""
    made = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in made:
            graph.node.remove(node)
        made.update(node.output)


def _join_casts(graph: GraphProto) -> None:
    """Let nodes that stay FP32 hand on FP32.

    The converter casts what such a node makes to FP16 and back for the next one, which costs the
    precision, and the range, that they were kept for.
    """
    from onnx import TensorProto

    producers = producers_of(graph)
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}
    for node in list(graph.node):
        source = producers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if source is None or not _casts_to(source, TensorProto.FLOAT16):
            continue
        before, after = source.input[0], node.output[0]
        if after in outputs:
            # An output keeps its name: what makes the value takes it over.
            maker = producers[before]
            maker.output[list(maker.output).index(before)] = after
            instead[before] = after
        else:
            instead[after] = before
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[i] = name
    read = {name for node in graph.node for name in node.input} | outputs
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] not in read:
            graph.node.remove(node)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == kind for attribute in node.attribute
    )

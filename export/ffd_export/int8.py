"""From FP32 to INT8, in the flavour that its target needs, by onnxruntime's static quantisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.results import Result
from ffd_runtime.model.card import ModelCard

from .candidate import classify_candidate
from .layers import ends_of, layers_of
from .parity import Parity, compare
from .pixels import can_fold, fold_scaling, read_pixels
from .sample_images import Images

if TYPE_CHECKING:
    from onnx import ModelProto

TARGETS = ("cpu", "tensorrt")
# Of the weights of matrix products: with 7, no kernel of any CPU saturates; see `quantise`.
WEIGHT_BITS = {"cpu": 7, "tensorrt": 8}
# onnxruntime's CPU kernels run a whole chain in 8 bits. TensorRT fuses an activation into the
# convolution before it, which a Q/DQ pair between the two would forbid; and it carries a residual
# branch in 8 bits by itself, as that shares its Q/DQ with a convolution.
OPERATORS_OF = {"cpu": ["Conv", "Add", "Relu", "Clip", "MaxPool"], "tensorrt": ["Conv"]}
# Channels a group that onnxruntime's 8-bit kernel is fastest with; benchmarks/export.py measures.
GROUP_CHANNELS = 32
# Of a weight by output channel, for onnxruntime's quantizer.
FULL_RANGE = {"axis": 0, "reduce_range": False}
# Images that tell what each single layer costs.
FEW = 32


@dataclass(frozen=True)
class Quantised:
    """An INT8 model and how it was made.

    Attributes:
        model: QDQ, without a card.
        method: how its ranges were found.
        parity: against FP32 on the calibration images.
    """

    model: ModelProto
    method: str
    parity: Parity


def quantise(
    model: ModelProto, target: str, ranges: Any, keep: Collection[str] = (), only: str | None = None
) -> ModelProto:
    """Insert Q/DQ pairs: weights int8 by channel; activations uint8 for the CPU, else int8.

    For the CPU, weights lie in -64 to 64, so that scores are the same on every CPU: x86 CPUs
    without VNNI add two products of a uint8 activation and a weight in 16 bits, and larger weights
    saturate that sum (onnxruntime.ai, "Quantize ONNX Models", U8S8 and `reduce_range`). Depthwise
    convolutions keep the full range: their kernels add in 32 bits.

    The classifier stays FP32: its error would be that of the score. For TensorRT, the first layer
    does too: three channels rounded to one grid lose the noise by which generated images are found.
    For the CPU, it reads the pixels as they are.

    Args:
        model: of the graph contract, FP32, nodes named; not changed.
        target: `cpu` or `tensorrt`.
        ranges: TensorsData of `calibrate`.
        keep: layers that stay FP32.
        only: the one layer to quantise, to see what that costs.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

    changed = _copy(model)
    on_cpu = target == "cpu"
    excluded = {*edges_of(model, target), *keep}
    pixels = ""
    if on_cpu:
        merge_groups(changed)
        first = set(ends_of(model.graph).first)
        if not first & excluded and (only is None or only in first):
            pixels, zero = fold_scaling(changed)
            ranges = _with_range(ranges, pixels, -zero, 255 - zero)
    whole = depthwise_weights(changed)
    quantizer = QDQQuantizer(
        save_and_reload_model_with_shape_infer(changed),
        per_channel=True,
        reduce_range=WEIGHT_BITS[target] == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if on_cpu else QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[only] if only else [],
        nodes_to_exclude=sorted(excluded),
        op_types_to_quantize=OPERATORS_OF[target],
        extra_options={
            "ActivationSymmetric": not on_cpu,
            "QuantizeBias": on_cpu,
            "OpTypesToExcludeOutputQuantization": [] if on_cpu else ["Conv"],
            "TensorQuantOverrides": {weight: [FULL_RANGE] for weight in whole if on_cpu},
        },
    )
    quantizer.quantize_model()
    made: ModelProto = quantizer.model.model
    if pixels:
        read_pixels(made, pixels)
    quantizer.model.topological_sort()
    return made


def choose(
    model: ModelProto,
    card: ModelCard,
    target: str,
    ranges: dict[str, Any],
    images: Images,
    reference: list[Result],
    keep: Collection[str] = (),
) -> Quantised:
    """Quantise by each method's ranges and take what is most accurate, then nearest to FP32.

    Args:
        model: FP32.
        card: its card.
        target: `cpu` or `tensorrt`.
        ranges: by method.
        images: to measure on.
        reference: FP32's rows for them.
        keep: layers that stay FP32.
    """
    made = []
    for method, found in ranges.items():
        quantised = quantise(model, target, found, keep)
        rows = classify_candidate(quantised, card, images)
        made.append(Quantised(quantised, method, compare(reference, rows, images, card)))
    return min(made, key=lambda one: (one.parity.accuracy_lost, one.parity.mean))


def find_sensitive(
    model: ModelProto,
    card: ModelCard,
    target: str,
    ranges: Any,
    images: Images,
    reference: list[Result],
    advance: Callable[[int], None] = lambda count: None,
) -> list[tuple[str, float]]:
    """Every layer that quantisation would touch, with what it alone costs: mean |Δp|.

    Args:
        model: FP32.
        card: its card.
        target: `cpu` or `tensorrt`.
        ranges: of one method.
        images: a few; each layer is run on all of them.
        reference: FP32's rows for them.
        advance: told after each layer.

    Returns:
        Names and costs, the costliest first.
    """
    costs = []
    for name in quantisable(model, target):
        alone = quantise(model, target, ranges, only=name)
        rows = classify_candidate(alone, card, images)
        costs.append((name, compare(reference, rows, images, card).mean))
        advance(1)
    return sorted(costs, key=lambda cost: -cost[1])


def choose_kept(
    model: ModelProto,
    card: ModelCard,
    target: str,
    ranges: Any,
    images: Images,
    reference: list[Result],
    advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The fewest layers that are worth keeping FP32.

    The costliest layer, the two, the four costliest, and so on up to a tenth of all, are kept in
    turn; of these, and of keeping none, the fewest are taken that come near the best.

    Args:
        model: FP32.
        card: its card.
        target: `cpu` or `tensorrt`.
        ranges: of one method.
        images: to measure on; a few of them tell what a layer alone costs.
        reference: FP32's rows for them.
        advance: told after each layer.

    Returns:
        Their names, the costliest first.
    """
    few = images.first(FEW)
    rows = dict(zip(images.sources, reference, strict=True))
    costs = find_sensitive(
        model, card, target, ranges, few, [rows[source] for source in few.sources], advance
    )
    names = [name for name, _ in costs]
    counts = [0] + [1 << i for i in range(len(names).bit_length()) if 10 << i <= len(names)]
    tried = []
    for count in counts:
        quantised = quantise(model, target, ranges, names[:count])
        parity = compare(reference, classify_candidate(quantised, card, images), images, card)
        tried.append((count, parity.accuracy_lost, parity.mean))
    least_lost = min(lost for _, lost, _ in tried)
    least_mean = min(mean for _, _, mean in tried)
    fewest = next(
        (n for n, lost, mean in tried if lost <= least_lost + 1e-3 and mean <= 1.25 * least_mean),
        counts[-1],
    )
    return names[:fewest]


def quantisable(model: ModelProto, target: str) -> list[str]:
    """Layers that quantisation for a target touches: every convolution but its edges."""
    edges = edges_of(model, target)
    return [
        node.name
        for node in layers_of(model.graph)
        if node.op_type == "Conv" and node.name not in edges
    ]


def edges_of(model: ModelProto, target: str) -> set[str]:
    """The layer that makes the logits, and the one that reads the image unless as pixels."""
    ends = ends_of(model.graph)
    return {*ends.last} if target == "cpu" and can_fold(model) else {*ends.first, *ends.last}


def depthwise_weights(model: ModelProto) -> list[str]:
    """Weights of convolutions with one input and one output channel a group."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv"
        and any(a.name == "group" and [a.i, 1] == shapes[node.input[1]][:2] for a in node.attribute)
    ]


def merge_groups(model: ModelProto) -> None:
    """Join groups of a grouped convolution until each has 32 channels; the result is the same.

    A group's weights for another group's channels are zero. onnxruntime runs each group as a matrix
    product of its own, and those of 8 or 16 channels leave most of a vector register empty.

    Args:
        model: changed in place.
    """
    import numpy as np
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        groups = [attribute for attribute in node.attribute if attribute.name == "group"]
        if node.op_type != "Conv" or not groups or node.input[1] not in stored:
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
        channels = weight.shape[1]
        factor = min(GROUP_CHANNELS // channels, groups[0].i)
        # Depthwise convolutions have a kernel of their own.
        if channels == 1 or factor < 2 or groups[0].i % factor:
            continue
        merged = np.zeros((len(weight), channels * factor, *weight.shape[2:]), weight.dtype)
        outputs = len(weight) // groups[0].i
        for i, own in enumerate(weight):
            start = (i // outputs) % factor * channels
            merged[i, start : start + channels] = own
        stored[node.input[1]].CopyFrom(numpy_helper.from_array(merged, node.input[1]))
        groups[0].i //= factor
    # Shapes of the weights may stand there too.
    del model.graph.value_info[:]


def require_layers(model: ModelProto, names: Collection[str]) -> None:
    """Refuse names that no layer has.

    Raises:
        ModelError: naming them.
    """
    layers = [node.name for node in layers_of(model.graph)]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ModelError(
            f"--keep {','.join(unknown)}: no such layer; the layers are {', '.join(layers)}"
        )


def _with_range(ranges: Any, tensor: str, low: float, high: float) -> Any:
    """TensorsData with the range of one more tensor; the given one is not changed."""
    import numpy as np
    from onnxruntime.quantization.calibrate import TensorData

    changed = copy.copy(ranges)
    values = TensorData(lowest=np.float32(low), highest=np.float32(high))
    changed.data = {**ranges.data, tensor: values}
    return changed


def _copy(model: ModelProto) -> ModelProto:
    from onnx import ModelProto as Model

    copy = Model()
    copy.CopyFrom(model)
    return copy

"""Quantise an FP32 model to INT8 for its target, with onnxruntime's static quantisation."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from .baseline import Baseline
from .fp16 import counts_to_keep
from .layers import ends_of, layers_of
from .pixels import can_fold, fold_normalisation, read_pixels
from .reporter import Advance
from .sample_images import spread

if TYPE_CHECKING:
    from onnx import ModelProto

# Bits of the weights of matrix products. With 7, no CPU kernel saturates; see `quantise`.
WEIGHT_BITS = {"cpu": 7, "tensorrt": 8}
# Operators to quantise. onnxruntime's CPU kernels run whole chains in 8 bits. TensorRT fuses an
# activation into the convolution before it, which a Q/DQ pair between them would prevent. A
# residual branch needs no pair, as it uses that of the convolution that reads the same tensor.
OPERATORS = {"cpu": ["Conv", "Add", "Relu", "Clip", "MaxPool"], "tensorrt": ["Conv"]}
# Channels of a group for which onnxruntime's 8-bit kernel is fastest: see benchmarks/export.py.
GROUP_CHANNELS = 32
# Quantise a weight by output channel with all 8 bits.
FULL_RANGE = {"axis": 0, "reduce_range": False}
# Images on which the sensitivity of each layer is measured.
SENSITIVITY_IMAGES = 32
# A choice of layers to keep in FP32 is good enough if it loses at most this much more accuracy than
# the best choice, and if its mean |Δp| is at most this many times the best.
ACCURACY_TOLERANCE = 1e-3
DIFFERENCE_TOLERANCE = 1.25


def quantise(
    model: ModelProto, target: str, ranges: Any, keep: Collection[str] = (), only: str | None = None
) -> ModelProto:
    """Insert Q/DQ pairs: weights int8 by channel; activations uint8 for the CPU, otherwise int8.

    For the CPU, weights are within -64 to 64, so that scores are equal on every CPU. x86 CPUs
    without VNNI add two products of a uint8 activation and a weight in 16 bits, and larger weights
    saturate that sum (onnxruntime.ai, "Quantize ONNX Models", U8S8 and `reduce_range`). Depthwise
    convolutions keep the full range, as their kernels add in 32 bits.

    The classifier stays in FP32, because its error would be the score's error. For TensorRT, the
    first layer stays in FP32, too: rounding its three channels to one grid removes the noise by
    which generated images are recognised. For the CPU, the first layer reads the pixels directly.

    Args:
        model: an FP32 model of the graph contract with named nodes; not changed.
        target: `cpu` or `tensorrt`.
        ranges: TensorsData of `calibrate`.
        keep: layers to keep in FP32.
        only: the only layer to quantise, to measure its sensitivity.
    """
    changed = deepcopy(model)
    excluded = {*excluded_layers(model, target), *keep}
    pixels = ""
    if target == "cpu":
        merge_groups(changed)
        first = set(ends_of(model.graph).first)
        if not first & excluded and (only is None or only in first):
            pixels, zero = fold_normalisation(changed)
            ranges = _with_range(ranges, pixels, -zero, 255 - zero)
    quantizer = _make_quantizer(changed, target, ranges, excluded, only)
    quantizer.quantize_model()
    quantised: ModelProto = quantizer.model.model
    if pixels:
        read_pixels(quantised, pixels)
    quantizer.model.topological_sort()
    return quantised


def _make_quantizer(
    model: ModelProto, target: str, ranges: Any, excluded: Collection[str], only: str | None
) -> Any:
    """Return onnxruntime's quantizer with the settings for a target."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

    on_cpu = target == "cpu"
    full_range = depthwise_weights(model) if on_cpu else []
    return QDQQuantizer(
        save_and_reload_model_with_shape_infer(model),
        per_channel=True,
        reduce_range=WEIGHT_BITS[target] == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if on_cpu else QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=[only] if only else [],
        nodes_to_exclude=sorted(excluded),
        op_types_to_quantize=OPERATORS[target],
        extra_options={
            "ActivationSymmetric": not on_cpu,
            "QuantizeBias": on_cpu,
            "OpTypesToExcludeOutputQuantization": [] if on_cpu else ["Conv"],
            "TensorQuantOverrides": {weight: [FULL_RANGE] for weight in full_range},
        },
    )


def choose_calibration(
    model: ModelProto,
    target: str,
    ranges: dict[str, Any],
    baseline: Baseline | None,
    keep: Collection[str] = (),
) -> tuple[ModelProto, str]:
    """Quantise with each method's ranges; return the best model and its method.

    The best model is the most accurate one. Of equally accurate ones, it is the closest to FP32.
    One method needs no baseline.
    """
    models = {method: quantise(model, target, found, keep) for method, found in ranges.items()}
    if len(models) == 1:
        return next((quantised, method) for method, quantised in models.items())
    assert baseline is not None
    parities = {method: baseline.compare(quantised) for method, quantised in models.items()}
    best = min(models, key=lambda method: (parities[method].accuracy_lost, parities[method].mean))
    return models[best], best


def choose_layers_to_keep(
    model: ModelProto,
    target: str,
    ranges: Any,
    baseline: Baseline,
    advance: Advance = lambda count: None,
) -> list[str]:
    """Choose the fewest layers that are worth keeping in FP32, the most sensitive first.

    Keep no layer, the most sensitive one, then two, four and so on up to a tenth of all. Return the
    fewest that come close to the best. Sensitivity is measured on a few of the baseline's images.
    """
    some = baseline.select(spread(range(len(baseline.images)), SENSITIVITY_IMAGES))
    excluded = excluded_layers(model, target)
    layers = [node.name for node in layers_of(model.graph) if node.op_type == "Conv"]
    sensitivity = some.measure_sensitivity(
        [name for name in layers if name not in excluded],
        lambda layer: quantise(model, target, ranges, only=layer),
        advance,
    )
    names = list(sensitivity)
    tried = []
    for count in (0, *counts_to_keep(len(names))):
        parity = baseline.compare(quantise(model, target, ranges, names[:count]))
        tried.append((count, parity.accuracy_lost, parity.mean))
    max_lost = min(lost for _, lost, _ in tried) + ACCURACY_TOLERANCE
    max_mean = min(mean for _, _, mean in tried) * DIFFERENCE_TOLERANCE
    good = (count for count, lost, mean in tried if lost <= max_lost and mean <= max_mean)
    return names[: next(good, tried[-1][0])]


def excluded_layers(model: ModelProto, target: str) -> set[str]:
    """Return the last layer, and the first one unless it reads the pixels directly."""
    ends = ends_of(model.graph)
    return {*ends.last} if target == "cpu" and can_fold(model) else {*ends.first, *ends.last}


def depthwise_weights(model: ModelProto) -> list[str]:
    """Return the weights of convolutions with one input and one output channel a group."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv"
        and any(a.name == "group" and [a.i, 1] == shapes[node.input[1]][:2] for a in node.attribute)
    ]


def merge_groups(model: ModelProto) -> None:
    """Merge groups of grouped convolutions until each group has 32 channels; outputs stay the same.

    The model is changed in place. Weights between merged groups are zero. onnxruntime computes each
    group as a separate matrix product, and products of 8 or 16 channels leave most of a vector
    register empty.
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
        # Depthwise convolutions have their own kernel.
        if channels == 1 or factor < 2 or groups[0].i % factor:
            continue
        merged = np.zeros((len(weight), channels * factor, *weight.shape[2:]), weight.dtype)
        outputs = len(weight) // groups[0].i
        for i, own in enumerate(weight):
            start = (i // outputs) % factor * channels
            merged[i, start : start + channels] = own
        stored[node.input[1]].CopyFrom(numpy_helper.from_array(merged, node.input[1]))
        groups[0].i //= factor
    # These may contain the old shapes of the weights.
    del model.graph.value_info[:]


def _with_range(ranges: Any, tensor: str, low: float, high: float) -> Any:
    """Return a copy of TensorsData with the range of one more tensor."""
    import numpy as np
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    values = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(ranges.calibration_method, {**ranges.data, tensor: values})

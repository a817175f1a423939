"""Convert an FP32 model to the precision of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ffd_runtime.model.card import Metric

from . import fp16, int8
from .baseline import Baseline, classify_candidate
from .calibration import calibrate, find_ranges
from .export_options import AUTO, METHODS, ExportOptions
from .exported_model import ExportedModel
from .layers import layer_types, layers_of
from .reporter import Reporter
from .sample_images import SampleImages
from .source_model import SourceModel

if TYPE_CHECKING:
    from onnx import ModelProto

# Graph, layers kept in FP32 on request, and facts for the model card.
Converted = tuple["ModelProto", tuple[str, ...], dict[str, Metric]]


def convert(
    source: SourceModel,
    options: ExportOptions,
    calibration: SampleImages | None,
    baseline: Baseline | None,
    reporter: Reporter,
) -> ExportedModel:
    """Convert a model and check the types of its layers. An ONNX stays unchanged as FP32.

    Args:
        source: an FP32 model.
        options: precision, target, calibration and layers to keep in FP32.
        calibration: images to calibrate INT8 with.
        baseline: the source's results, with which FP16 is compared.
        reporter: receives messages and progress.

    Raises:
        ModelError: the source is not FP32, or too few layers have the precision's type.
    """
    if source.content is not None and options.precision == "fp32":
        return ExportedModel.unchanged(source)
    source.require_convertible(options.keep)
    if options.fp16:
        model, kept, facts = _convert_fp16(source, options, baseline, reporter)
    elif options.int8:
        assert calibration is not None
        model, kept, facts = _convert_int8(source, options, calibration, reporter)
    else:
        model, kept, facts = source.model, (), {}
    layers = layer_types(model)
    layers.require(options.precision, kept)
    names = ", ".join(kept)
    reporter.say(f"{layers}" + (f"; kept in FP32: {names}" if kept else ""))
    counts: dict[str, Metric] = {f"{kind}_layers": n for kind, n in layers.counts().items()}
    facts = {**counts, "kept": names or None, **facts}
    card = source.card.replace(precision=options.precision)
    return ExportedModel(source, options, model, card, layers, facts)


def _convert_fp16(
    source: SourceModel, options: ExportOptions, baseline: Baseline | None, reporter: Reporter
) -> Converted:
    model, kept = source.model, options.keep
    overflowing: list[str] = []
    if baseline is None:
        reporter.say("without images, activations beyond FP16's range are not detected")
    else:
        with reporter.track("ranges", len(baseline.images)) as advance:
            ranges = find_ranges(model, baseline.images, advance)
        overflowing = [name for name in fp16.find_overflows(model, ranges) if name not in kept]
    if overflowing:
        names = ", ".join(overflowing)
        reporter.say(f"kept in FP32, because values on real images exceed FP16's range: {names}")
    if kept == AUTO:
        assert baseline is not None
        with reporter.track("sensitivity", len(layers_of(model.graph))) as advance:
            kept = tuple(fp16.choose_layers_to_keep(model, baseline, overflowing, advance))
        reporter.say(f"kept in FP32, selected by --keep auto: {', '.join(kept) or 'none'}")
    converted = fp16.to_fp16(model, [*kept, *overflowing])
    return converted, kept, {"overflowing": ", ".join(overflowing) or None}


def _convert_int8(
    source: SourceModel, options: ExportOptions, images: SampleImages, reporter: Reporter
) -> Converted:
    model, card, target, kept = source.model, source.card, options.int8_target, options.keep
    methods = METHODS if options.calibration == "auto" else (options.calibration,)
    baseline = None
    if len(methods) > 1 or kept == AUTO:
        with reporter.track("FP32", 1):
            baseline = Baseline(card, images, classify_candidate(model, card, images))
    with reporter.track("calibrating", len(images)) as advance:
        ranges = calibrate(model, int8.OPERATORS[target], images, methods, advance)
    quantised, method = int8.choose_calibration(
        model, target, ranges, baseline, () if kept == AUTO else kept
    )
    if kept == AUTO:
        assert baseline is not None
        with reporter.track("sensitivity", len(layers_of(model.graph))) as advance:
            chosen = ranges[method]
            kept = tuple(int8.choose_layers_to_keep(model, target, chosen, baseline, advance))
            quantised = int8.quantise(model, target, chosen, kept)
        reporter.say(f"kept in FP32, selected by --keep auto: {', '.join(kept) or 'none'}")
    reporter.say(f"calibrated on {images.describe()}, ranges by {method}")
    facts: dict[str, Metric] = {
        "target": target,
        "weight_bits": int8.WEIGHT_BITS[target],
        "calibration": method,
        "calibration_images": len(images),
    }
    return quantised, kept, facts

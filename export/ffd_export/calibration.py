"""Calibration: find the ranges of a network's tensors on real images, with onnxruntime."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .quiet import quiet
from .reporter import Advance
from .sample_images import SampleImages

if TYPE_CHECKING:
    from onnx import ModelProto

# Percentage of a tensor's values within the range of the percentile method.
PERCENTILE = 99.99
MAX_BINS = 512
QUANTIZED_BINS = 128
# onnxruntime keeps all tensors of a batch in memory: 0.1 GB an image for ResNeXt-101.
BATCH_IMAGES = 4


def find_ranges(
    model: ModelProto, images: SampleImages, advance: Advance = lambda count: None
) -> dict[str, tuple[float, float]]:
    """Find the smallest and the largest value of every float tensor of an FP32 model."""
    from onnxruntime.quantization import CalibrationMethod

    ranges = {}
    with _calibrate(model, None, CalibrationMethod.MinMax, {}, images, advance) as calibrator:
        for name, data in calibrator.compute_data().items():
            low, high = data.range_value
            ranges[name] = (float(low.min()), float(high.max()))
    return ranges


def calibrate(
    model: ModelProto,
    operators: list[str],
    images: SampleImages,
    methods: Sequence[str],
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """Find calibration ranges of the tensors of some operators, from shared histograms.

    Args:
        model: an FP32 model; not changed.
        operators: operators whose inputs and outputs are calibrated.
        images: images to run.
        methods: `percentile`, `entropy` or both. The entropy search takes seconds.
        advance: called with the number of images that ran.

    Returns:
        onnxruntime's TensorsData by method.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    bins = {"num_bins": MAX_BINS, "num_quantized_bins": QUANTIZED_BINS, "symmetric": False}
    method = CalibrationMethod.Entropy
    with _calibrate(model, operators, method, bins, images, advance) as calibrator:
        collector = calibrator.collector
    collector.percentile = PERCENTILE
    for name, histogram in collector.histogram_dict.items():
        collector.histogram_dict[name] = _coarsen(*histogram)
    ranges = {}
    for name in methods:
        collector.method = name
        with quiet():
            found = collector.compute_collection_result()
        ranges[name] = TensorsData(CalibrationMethod[name.title()], found)
    return ranges


def _coarsen(counts: Any, edges: Any, low: Any, high: Any, reach: Any) -> tuple[Any, ...]:
    """Return a histogram with at most `MAX_BINS` bins and its middle at 0.

    For values beyond the first batch's, the collector appends bins: thousands for an outlier. The
    time of the entropy search grows with the square of their number.
    """
    import numpy as np

    factor = -(-len(counts) // MAX_BINS)
    if factor == 1:
        return counts, edges, low, high, reach
    half = len(counts) // 2
    padding = -half % factor
    width = float(edges[-1]) / half
    summed = np.pad(counts, padding).reshape(-1, factor).sum(1)
    reach = (half + padding) * width
    wider = np.linspace(-reach, reach, len(summed) + 1).astype(edges.dtype)
    return summed, wider, low, high, np.array(reach, edges.dtype)


@contextlib.contextmanager
def _calibrate(
    model: ModelProto,
    operators: list[str] | None,
    method: Any,
    options: dict[str, Any],
    images: SampleImages,
    advance: Advance,
) -> Iterator[Any]:
    """Yield onnxruntime's calibrator after it has read the images."""
    import onnx
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        with quiet():
            calibrator = create_calibrator(
                path, operators, augmented, calibrate_method=method, extra_options=options
            )
        for batch in images.batches(BATCH_IMAGES):
            # onnxruntime reads until get_next returns None.
            reader = SimpleNamespace(get_next=[None, {"image": batch}].pop)
            with quiet():
                calibrator.collect_data(reader)
            advance(len(batch))
        yield calibrator

"""The values that a network's tensors take on real images, by onnxruntime's calibrators."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sample_images import Images

if TYPE_CHECKING:
    from onnx import ModelProto

METHODS = ("percentile", "entropy")
# Of a tensor's values, this share lies inside a percentile's range.
PERCENTILE = 99.99
BINS = 512
QUANTIZED_BINS = 128
# All tensors of a batch are in memory at once: 0.1 GB an image for ResNeXt-101.
BATCH = 4


def find_extremes(
    model: ModelProto, images: Images, advance: Callable[[int], None] = lambda count: None
) -> dict[str, tuple[float, float]]:
    """Least and largest value of every float tensor.

    Args:
        model: of the graph contract, FP32.
        images: real ones.
        advance: told after each batch how many images it held.
    """
    from onnxruntime.quantization import CalibrationMethod

    with _calibrator(model, None, CalibrationMethod.MinMax, {}) as calibrator:
        for batch in images.batches(BATCH):
            calibrator.collect_data(_Reader(batch))
            advance(len(batch))
        found = calibrator.compute_data()
        return {name: _pair(data.range_value) for name, data in found.items()}


def calibrate(
    model: ModelProto,
    operators: list[str],
    images: Images,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Ranges to quantise by, from histograms that every method shares.

    Args:
        model: of the graph contract, FP32.
        operators: kinds of nodes that will be quantised.
        images: real ones; all are seen.
        advance: told after each batch how many images it held.

    Returns:
        onnxruntime's TensorsData, by the methods' names.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    bins = {"num_bins": BINS, "num_quantized_bins": QUANTIZED_BINS, "symmetric": False}
    with _calibrator(model, operators, CalibrationMethod.Entropy, bins) as calibrator:
        for batch in images.batches(BATCH):
            with _quiet():
                calibrator.collect_data(_Reader(batch))
            advance(len(batch))
        collector = calibrator.collector
    collector.percentile = PERCENTILE
    for name, histogram in collector.histogram_dict.items():
        collector.histogram_dict[name] = _coarsen(*histogram)
    ranges = {}
    for name, method in zip(
        METHODS, (CalibrationMethod.Percentile, CalibrationMethod.Entropy), strict=True
    ):
        collector.method = name
        with _quiet():
            ranges[name] = TensorsData(method, collector.compute_collection_result())
    return ranges


def _coarsen(counts: Any, edges: Any, low: Any, high: Any, reach: Any) -> tuple[Any, ...]:
    """A histogram of at most `BINS` bins, its middle still at 0.

    A value beyond those of the first batch makes the collector append bins, thousands of them for
    an outlier; the search for the least entropy takes their number squared.
    """
    import numpy as np

    factor = -(-len(counts) // BINS)
    if factor == 1:
        return counts, edges, low, high, reach
    half = len(counts) // 2
    padding = -half % factor
    width = float(edges[-1]) / half
    summed = np.pad(counts, padding).reshape(-1, factor).sum(1)
    reach = (half + padding) * width
    wider = np.linspace(-reach, reach, len(summed) + 1).astype(edges.dtype)
    return summed, wider, low, high, np.array(reach, edges.dtype)


class _Reader:
    """onnxruntime's CalibrationDataReader over one batch."""

    def __init__(self, batch: Any) -> None:
        self._left = [{"image": batch}]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


@contextlib.contextmanager
def _calibrator(
    model: ModelProto, operators: list[str] | None, method: Any, options: dict[str, Any]
) -> Iterator[Any]:
    import onnx
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        augmented = str(Path(folder) / "augmented.onnx")
        with _quiet():
            made = create_calibrator(
                path, operators, augmented, calibrate_method=method, extra_options=options
            )
        yield made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Onnxruntime's tools print to stdout, where results go, and advise in the log."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low.min()), float(high.max())

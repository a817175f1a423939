"""Compare FP16 and INT8 with FP32: size, parity, accuracy, and speed on the CPU.

Usage: python benchmarks/export.py DATA RUN... > benchmarks/export.csv

Each RUN is a folder of ffd-train. It is converted to each precision as by ffd-export, verified on
the run's validation images, and evaluated on the test images of DATA. Small networks are converted
with `--keep auto`. With - for DATA, only size and speed are measured. Speeds are medians of rounds
in which the precisions take turns. A speed-up is the median of the rounds' ratios to FP32.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from ffd_export.conversion import convert
from ffd_export.export_options import AUTO, ExportOptions
from ffd_export.exported_model import ExportedModel
from ffd_export.layers import layers_of
from ffd_export.reporter import Reporter
from ffd_export.sample_images import prepare_images
from ffd_export.source_model import open_source
from ffd_export.training_runs import find_calibration, find_checkpoint, find_verification
from ffd_export.verification import measure_baseline, verify_model
from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import FfdError
from ffd_runtime.model.backends import Backend, open_backend
from ffd_train.classification_metrics import Report
from ffd_train.evaluation import evaluate
from ffd_train.scanning import find_labelled

ROUNDS = 10
BATCHES = (1, 8)
CALIBRATION_IMAGES = 256
# Calibration images if only speed is measured.
MIN_CALIBRATION_IMAGES = 16
# Measuring sensitivity runs the network once for each layer, which takes too long for deep ones.
MAX_SENSITIVITY_LAYERS = 60
COLUMNS = (
    "network,precision,megabytes,layers,images,largest_dp,mean_dp,verdict_flips,"
    "test_accuracy,test_auc,ms_an_image_batch_1,speedup_batch_1,ms_an_image_batch_8,speedup_batch_8"
)


def main() -> None:
    """Print a CSV with a row for each network and precision."""
    data, *runs = map(Path, sys.argv[1:])
    count = MIN_CALIBRATION_IMAGES if str(data) == "-" else CALIBRATION_IMAGES
    print(f"# {describe()}; {ROUNDS} rounds; INT8 calibrated on {count} images")
    print(COLUMNS)
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            measure(find_checkpoint(run, Path()), data, Path(folder), count)


def measure(checkpoint: Path, data: Path, folder: Path, count: int) -> None:
    """Export a network in every precision and print its rows."""
    source = open_source(checkpoint)
    spec = source.card.preprocess
    only_speed = str(data) == "-"
    verification = None
    if not only_speed:
        verification = prepare_images(find_verification(checkpoint, None), spec)
    calibration = prepare_images(find_calibration(checkpoint, None, count), spec)
    reporter = ErrorReporter()
    baseline = measure_baseline(source, verification, reporter)
    few_layers = len(layers_of(source.model.graph)) <= MAX_SENSITIVITY_LAYERS
    keep = AUTO if few_layers and not only_speed else ()
    exported, backends, scores = {}, {}, {}
    for options in (
        ExportOptions(),
        ExportOptions(fp16=True, keep=keep),
        ExportOptions(int8=True, keep=keep),
    ):
        precision = options.precision
        print(f"{checkpoint}: {precision}", file=sys.stderr)
        try:
            converted = convert(source, options, calibration, baseline, reporter)
            exported[precision] = verify_model(converted, baseline, reporter)
        except FfdError as error:
            print(f"# {source.card.architecture} {precision} failed: {error}", flush=True)
            if precision == "fp32":
                return  # The others are compared with it.
            continue
        path = folder / f"{precision}.onnx"
        path.write_bytes(exported[precision].content)
        backends[precision] = open_backend(path, device="cpu")
        if not only_speed:
            classifier = Classifier(backends[precision])
            scores[precision] = evaluate(classifier, find_labelled(data, "test")).report
    speeds = {batch: time_rounds(backends, calibration.pixels[:batch]) for batch in BATCHES}
    for precision, model in exported.items():
        print_row(model, scores.get(precision), speeds)


def print_row(
    model: ExportedModel, score: Report | None, speeds: dict[int, dict[str, list[float]]]
) -> None:
    """Print the row of a precision."""
    precision, parity = model.card.precision, model.parity
    layers = " ".join(f"{count} {kind}" for kind, count in model.layers.counts().items())
    row = [model.card.architecture, precision, f"{len(model.content) / 1e6:.1f}", layers]
    if parity and score:
        row += [str(parity.images), f"{parity.largest:.1e}", f"{parity.mean:.1e}"]
        row += [str(parity.flips), f"{score.accuracy:.4f}", f"{score.roc_auc:.4f}"]
    else:
        row += [""] * 6
    for batch in BATCHES:
        own, base = speeds[batch][precision], speeds[batch]["fp32"]
        ratio = statistics.median(b / o for o, b in zip(own, base, strict=True))
        row += [f"{1000 * statistics.median(own) / batch:.1f}", f"{ratio:.2f}"]
    print(",".join(row), flush=True)


def time_rounds(backends: dict[str, Backend], images: Any) -> dict[str, list[float]]:
    """Measure seconds of an inference in each round."""
    for backend in backends.values():
        backend.infer(images)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            batch = np.ascontiguousarray(images)
            # The threads of the previous backend still spin for a while.
            backend.infer(batch)
            start = time.perf_counter()
            backend.infer(batch)
            seconds[name].append(time.perf_counter() - start)
    return seconds


class ErrorReporter(Reporter):
    """Prints messages to stderr, as the table is on stdout."""

    def say(self, message: str) -> None:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main()

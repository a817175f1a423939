"""What FP16 and INT8 cost and gain against FP32: size, parity, accuracy, and speed on the CPU.

Usage: python benchmarks/export.py DATA RUN... > benchmarks/export.csv

With - for DATA only size and speed are measured: nothing is verified or evaluated.

Each RUN is a folder of ffd-train, each precision is made as ffd-export makes it, verified on the
run's validation images and evaluated on DATA's test images. Speeds are medians of rounds in which
the precisions take turns; a speed-up is the median of the rounds' ratios to FP32.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from ffd_export.exporting import Wish, make, open_source
from ffd_export.layers import layers_of
from ffd_export.sample_images import prepare_images
from ffd_export.training_runs import find_calibration, find_checkpoint, find_verification
from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import FfdError
from ffd_runtime.model.backends import Backend, open_backend
from ffd_train.data import find_labelled
from ffd_train.evaluation import evaluate

ROUNDS = 10
BATCHES = (1, 8)
CALIBRATION = 256
# Enough to quantise by where only speed is measured.
FEW = 16
# Finding the layers to keep runs the network once for each: left out for deep ones.
MOST_LAYERS_TO_WEIGH = 60
COLUMNS = (
    "network,precision,megabytes,layers,images,largest_dp,mean_dp,verdict_flips,"
    "test_accuracy,test_auc,ms_an_image_batch_1,speedup_batch_1,ms_an_image_batch_8,speedup_batch_8"
)


def main() -> None:
    """Print a CSV: a row for each network and precision."""
    data, *runs = map(Path, sys.argv[1:])
    count = FEW if str(data) == "-" else CALIBRATION
    print(f"# {describe()}; {ROUNDS} rounds; INT8 calibrated on {count} images")
    print(COLUMNS)
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            measure(find_checkpoint(run, Path()), data, Path(folder))


def measure(checkpoint: Path, data: Path, folder: Path) -> None:
    """Export one network in every precision and print its rows."""
    source = open_source(checkpoint)
    spec = source.card.preprocess
    only_speed = str(data) == "-"
    verification = None
    if not only_speed:
        verification = prepare_images(find_verification(checkpoint, None), spec)
    count = FEW if only_speed else CALIBRATION
    calibration = prepare_images(find_calibration(checkpoint, None, count), spec)
    made, backends, scores = {}, {}, {}
    for precision in ("fp32", "fp16", "int8"):
        weigh = precision == "int8" and len(layers_of(source.model.graph)) <= MOST_LAYERS_TO_WEIGH
        wish = Wish(precision, keep=("auto",) if weigh and not only_speed else ())
        print(f"{checkpoint}: {wish}", file=sys.stderr)
        try:
            made[precision] = make(source, wish, verification, calibration, complain, silent_track)
        except FfdError as error:
            print(f"# {source.card.architecture} {precision} refused: {error}", flush=True)
            if precision == "fp32":
                return  # What the others are compared with.
            continue
        path = folder / f"{precision}.onnx"
        path.write_bytes(made[precision].content)
        backends[precision] = open_backend(path, device="cpu")
        if not only_speed:
            classifier = Classifier(backends[precision])
            scores[precision] = evaluate(classifier, find_labelled(data, "test")).report
    speeds = {batch: time_rounds(backends, calibration.pixels[:batch]) for batch in BATCHES}
    for precision, one in made.items():
        layers = " ".join(f"{count} {kind}" for kind, count in one.layers.counts().items())
        row = [
            source.card.architecture,
            precision,
            f"{len(one.content) / 1e6:.1f}",
            layers,
        ]
        if one.parity:
            row += [str(one.parity.images), f"{one.parity.largest:.1e}", f"{one.parity.mean:.1e}"]
            row += [str(one.parity.flips), f"{scores[precision].accuracy:.4f}"]
            row.append(f"{scores[precision].roc_auc:.4f}")
        else:
            row += [""] * 6
        for batch in BATCHES:
            own, base = speeds[batch][precision], speeds[batch]["fp32"]
            ratio = statistics.median(b / o for o, b in zip(own, base, strict=True))
            row += [f"{1000 * statistics.median(own) / batch:.1f}", f"{ratio:.2f}"]
        print(",".join(row), flush=True)


def time_rounds(backends: dict[str, Backend], images: Any) -> dict[str, list[float]]:
    """Seconds of one inference, round by round."""
    for backend in backends.values():
        backend.infer(images)
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            batch = np.ascontiguousarray(images)
            # The threads of the one before still spin for a while.
            backend.infer(batch)
            start = time.perf_counter()
            backend.infer(batch)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def complain(message: str) -> None:
    """What a person would read, out of the table's way."""
    print(message, file=sys.stderr)


@contextmanager
def silent_track(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda count: None


if __name__ == "__main__":
    main()

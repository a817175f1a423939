"""Compare ffd-run with the cost of its stages: throughput, preprocessing, cold start, memory.

Usage: python benchmarks/folders.py FACES [ROUNDS] > benchmarks/folders.csv

Each row has the ratio of two values, measured in turns in one run, and the limit of the ratio.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from machine import describe

from ffd_runtime import Classifier
from ffd_runtime.cli.cold_start import FRESH, measure_cold_start
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model.backends import EMBEDDED

IMAGES = 600
BATCH = 16
FILES = (2_000, 20_000)


def seconds(work: Callable[[], object]) -> float:
    """Measure the wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(classifier: Classifier, items: list[Item], rounds: int) -> tuple[float, float]:
    """Measure images a second end to end, and 1 / (decode + preprocess + infer)."""
    spec = classifier.card.preprocess
    images = [decode(read_file(item.source), at_least=spec.decode_side) for item in items]
    pixels = np.stack([preprocess(image, spec) for image in images])

    def decode_all() -> None:
        for item in items:
            decode(read_file(item.source), at_least=spec.decode_side)

    def preprocess_all() -> None:
        for image in images:
            preprocess(image, spec)

    def infer_all() -> None:
        for start in range(0, len(pixels), BATCH):
            classifier.predict(pixels[start : start + BATCH])

    def end_to_end() -> None:
        rows = list(classifier.classify_items(items))
        assert all(row.label for row in rows), "a picture could not be read"

    parts = (decode_all, preprocess_all, infer_all, end_to_end)
    infer_all()
    times = [[seconds(part) for part in parts] for _ in range(rounds)]
    *stages, whole = (statistics.median(column) for column in zip(*times, strict=True))
    return len(items) / whole, len(items) / sum(stages)


def against_fp32(items: list[Item], rounds: int) -> tuple[float, float]:
    """Measure images a second end to end with the default model of a CPU, and with FP32."""
    with (
        Classifier.open(device="cpu", batch=BATCH) as default,
        Classifier.open(EMBEDDED, backend="onnxruntime", device="cpu", batch=BATCH) as fp32,
    ):

        def classify(classifier: Classifier) -> None:
            rows = list(classifier.classify_items(items))
            assert all(row.label for row in rows), "a picture could not be read"

        pair = (default, fp32)
        for classifier in pair:
            classify(classifier)
        times = [[seconds(partial(classify, one)) for one in pair] for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return len(items) / ours, len(items) / theirs


def preprocessing(classifier: Classifier, items: list[Item], rounds: int) -> tuple[float, float]:
    """Measure milliseconds of `preprocess`, and of only its OpenCV calls."""
    spec = classifier.card.preprocess
    images = [decode(read_file(item.source)) for item in items[:200]]
    clahe = cv2.createCLAHE(spec.clahe_clip, (spec.clahe_tiles, spec.clahe_tiles))

    def bare(image: np.ndarray) -> np.ndarray:
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[top : top + side, left : left + side]
        method = cv2.INTER_AREA if side > spec.size else cv2.INTER_LINEAR_EXACT
        lab = cv2.cvtColor(
            cv2.resize(square, (spec.size, spec.size), interpolation=method), cv2.COLOR_BGR2LAB
        )
        lightness, a, b = cv2.split(lab)
        mean, deviation = cv2.meanStdDev(lightness)
        gain = min(spec.max_gain, spec.target_deviation / max(float(deviation[0, 0]), 1e-6))
        offset = spec.target_mean - float(mean[0, 0]) * gain
        lightness = clahe.apply(cv2.convertScaleAbs(lightness, alpha=gain, beta=offset))
        return cv2.cvtColor(cv2.merge((lightness, a, b)), cv2.COLOR_LAB2RGB)

    def ours() -> None:
        for image in images:
            preprocess(image, spec)

    def theirs() -> None:
        for image in images:
            bare(image)

    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    milliseconds = [1000 * statistics.median(side) / len(images) for side in zip(*pairs)]  # noqa: B905
    return milliseconds[0], milliseconds[1]


def cold_start(item: Item, rounds: int) -> tuple[float, float]:
    """Measure milliseconds from process start to first verdict, and of only imports and a run."""
    measured = measure_cold_start(None, "onnxruntime", "cpu", 299, item, rounds)
    return measured["first_verdict_ms"], measured["bare_ms"]


def memory(items: list[Item]) -> tuple[float, float]:
    """Measure peak resident MiB of ffd-run over `FILES[1]` files, and over `FILES[0]`."""
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in FILES:
            folder = Path(scratch, str(count))
            folder.mkdir()
            for number in range(count):
                # Links, so that the run opens many files and the disk stores few.
                target = Path(items[number % len(items)].source).resolve()
                (folder / f"{number:05}.jpg").symlink_to(target)
            output = Path(scratch, f"{count}.jsonl")
            # The process reports its own peak: the system starts a child's count at its parent's.
            command = [sys.executable, "-c", FRESH, str(folder), "--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(int(done.stderr.splitlines()[-1]) / (1 << 20))
    return peaks[1], peaks[0]


def main() -> None:
    """Print a CSV: what, our value, the reference, their ratio, and its limit."""
    faces = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    cv2.setNumThreads(1)
    found = list(find_files([faces]))
    items = found[:: max(1, len(found) // IMAGES)][:IMAGES]
    print(f"# {describe()}; {len(items)} faces, batch {BATCH}; {rounds} rounds")
    print("what,ours,reference,ratio,must_be")

    def report(what: str, pair: tuple[float, float], limit: str) -> None:
        print(f"{what},{pair[0]:.2f},{pair[1]:.2f},{pair[0] / pair[1]:.3f},{limit}", flush=True)

    with Classifier.open(device="cpu", batch=BATCH) as classifier:
        report(
            "images a second / (1 / (decode + preprocess + infer))",
            throughput(classifier, items, rounds),
            ">= 0.95",
        )
        report(
            "preprocess ms / bare OpenCV calls ms",
            preprocessing(classifier, items, 4 * rounds),
            "<= 1.10",
        )
    report(
        "images a second by the embedded model of a CPU / by the FP32 one with onnxruntime",
        against_fp32(items, rounds),
        ">= 1.6",
    )
    report(
        "cold ffd-run to first verdict ms / bare imports and session and run ms",
        cold_start(items[0], 4 * rounds),
        "<= 1.5",
    )
    report(f"peak MiB over {FILES[1]} files / over {FILES[0]}", memory(items), "<= 1.05")


if __name__ == "__main__":
    main()

"""Compare the speed of ffd-run's pipeline on a CPU with that of a plain PyTorch script.

Usage: python benchmarks/against_pytorch.py FACES RUN ONNX... > benchmarks/against_pytorch.csv

RUN is a run of ffd-train, and each ONNX is an export of it. The script runs eager FP32 on one image
at a time, with OpenCV's preprocessing. All take turns within one run. Accuracy is measured on the
test split, with the runtime.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from machine import describe

from ffd_runtime import Classifier
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.inputs import Item
from ffd_train.checkpoint import load_checkpoint
from ffd_train.evaluation import evaluate
from ffd_train.scanning import find_labelled

IMAGES = 32
ROUNDS = 4
BACKENDS = ("onnxruntime", "openvino")


def plain_script(run: Path, paths: list[str]) -> Callable[[], None]:
    """Return the PyTorch script."""
    net, card = load_checkpoint(run / "best.safetensors")
    net.eval()

    def classify() -> None:
        with torch.inference_mode():
            for path in paths:
                image = preprocess(decode(read_file(path)), card.preprocess)
                net(torch.from_numpy(image)[None]).softmax(1)

    return classify


def ours(classifier: Classifier, paths: list[str]) -> Callable[[], None]:
    """Return the pipeline of ffd-run."""

    def classify() -> None:
        rows = list(classifier.classify_items(map(Item, paths)))
        assert all(row.label for row in rows), "a picture could not be read"

    return classify


def seconds(work: Callable[[], object]) -> float:
    """Measure the wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a CSV: what runs, images a second, the ratio to the script, and accuracy."""
    faces, run, *models = map(Path, sys.argv[1:])
    cv2.setNumThreads(1)
    test = find_labelled(faces, "test")
    chosen = test.samples[:: max(1, len(test.samples) // IMAGES)][:IMAGES]
    paths = [str(faces / sample.path) for sample in chosen]
    work = {("PyTorch script", "fp32"): plain_script(run, paths)}
    accuracy: dict[tuple[str, str], float] = {}
    for model in models:
        for backend in BACKENDS:
            classifier = Classifier.open(model, backend=backend, device="cpu")
            name = (backend, f"{classifier.card.precision} {model.name}")
            work[name] = ours(classifier, paths)
            accuracy[name] = evaluate(classifier, test).report.accuracy
    for one in work.values():
        one()
    times = [[seconds(one) for one in work.values()] for _ in range(ROUNDS)]
    print(f"# {describe()}, torch {torch.__version__}; {len(paths)} faces, {ROUNDS} rounds")
    print("runs,model,images_a_second,times_the_script,test_accuracy")
    for column, name in enumerate(work):
        taken = statistics.median(row[column] for row in times)
        ratio = statistics.median(row[0] / row[column] for row in times)
        right = f"{accuracy[name]:.4f}" if name in accuracy else ""
        print(f"{name[0]},{name[1]},{len(paths) / taken:.2f},{ratio:.2f},{right}")


if __name__ == "__main__":
    main()

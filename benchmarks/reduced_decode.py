"""Measure how decoding large JPEGs at a reduced size changes scores, and how much time it saves.

Usage: python benchmarks/reduced_decode.py FOLDER [IMAGES] > benchmarks/reduced_decode.csv

The images of FOLDER are enlarged (Lanczos) and saved as JPEG with quality 92, because no data set
of large images of both classes was available. Real large images have finer detail.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cv2
import numpy as np
from machine import describe

from ffd_runtime import Classifier
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.inputs import find_files

# Shorter sides: the smallest that are reduced to 1/2, 1/4 and 1/8, and one between.
SIDES = (1196, 1600, 2392, 4784)


def enlarge(path: str, side: int) -> bytes:
    """Return an image as a JPEG whose shorter side has `side` pixels."""
    image = decode(read_file(path))
    scale = side / min(image.shape[:2])
    size = tuple(max(side, round(length * scale)) for length in image.shape[1::-1])
    large = cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def measure(data: bytes, at_least: int, classifier: Classifier) -> tuple[float, str, float]:
    """Return score, verdict, and the milliseconds of decoding."""
    start = time.perf_counter()
    image = decode(data, at_least=at_least)
    milliseconds = 1000 * (time.perf_counter() - start)
    pixels = preprocess(image, classifier.card.preprocess)
    score = float(classifier.predict(pixels[np.newaxis]).probability[0, 0])
    return score, classifier.card.verdict(score), milliseconds


def main() -> None:
    """Print a CSV with a row for each size."""
    cv2.setNumThreads(1)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    paths = [item.source for item in find_files([str(Path(sys.argv[1]))])]
    chosen = paths[:: max(1, len(paths) // count)][:count]
    print(f"# {describe()}; {len(chosen)} images enlarged, JPEG quality 92; embedded model")
    print(
        "shorter_side,reduced_to,largest_dp,mean_dp,verdict_flips,"
        "whole_decode_ms,reduced_decode_ms,speedup"
    )
    with Classifier.open() as classifier:
        at_least = 2 * classifier.card.preprocess.size
        for side in SIDES:
            pairs = []
            for path in chosen:
                data = enlarge(path, side)
                pairs.append([measure(data, least, classifier) for least in (0, at_least)])
            reduced = min(decode(data, at_least=at_least).shape[:2])
            differences = [abs(whole[0] - small[0]) for whole, small in pairs]
            flips = sum(whole[1] != small[1] for whole, small in pairs)
            whole, small = (float(np.median([pair[i][2] for pair in pairs])) for i in (0, 1))
            print(
                f"{side},{reduced},{max(differences):.1e},{np.mean(differences):.1e},{flips},"
                f"{whole:.1f},{small:.1f},{whole / small:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

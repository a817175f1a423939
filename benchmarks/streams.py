"""Measure verdicts a second, and their delay beyond the networks' time: 640x480 at 25 fps.

    python benchmarks/streams.py PORTRAIT FACE_MODEL [FRAMES] > benchmarks/streams.csv

A frame's age is the time from its capture to its verdict. The time of the face detector and of the
classifier is subtracted. The rest is waiting, cropping, preprocessing and tracking. Sources are
synthetic, so that the time of capture is known. Each gives FRAMES frames (1000 by default). To
compare two versions, run them in turns on one machine: PYTHONPATH=OTHER/runtime runs another one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from machine import describe

from ffd_runtime import Classifier, decode, read_file
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.video.feed import Feed
from ffd_runtime.video.frame_classifier import FrameClassifier
from ffd_runtime.video.frame_result import FrameResult, StreamHealth
from ffd_runtime.video.stream_address import to_streams
from ffd_runtime.video.stream_pipeline import StreamPipeline
from ffd_runtime.video.stream_policy import StreamPolicy

WARM_UP = 50
FPS = 25


class Camera:
    """A source of portraits that move over a grey frame."""

    timeout = 10.0
    note: str | None = None
    broken = 0

    def __init__(self, portrait: npt.NDArray[np.uint8], faces: int, frames: int) -> None:
        side = 480 if faces == 1 else 240
        portrait = np.asarray(cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA))
        places = [(0, 0), (240, 0), (0, 240), (240, 240)][:faces]
        self._frames = []
        for shift in range(100):
            frame = np.full((480, 640, 3), 128, np.uint8)
            for top, left in places:
                frame[top : top + side, left + shift : left + shift + side] = portrait
            self._frames.append(frame)
        self._number = 0
        self._last = frames
        self._due = self.grabbed = time.monotonic()
        self.waited = 1 / FPS

    def grab(self) -> bool:
        self._number += 1
        self._due += 1 / FPS
        time.sleep(max(0.0, self._due - time.monotonic()))
        self.grabbed = time.monotonic()
        return self._number <= self._last

    def timestamp(self) -> float:
        return self._number / FPS

    def retrieve(self) -> npt.NDArray[np.uint8]:
        # A copy, as OpenCV returns each frame in new memory.
        return self._frames[self._number % 100].copy()

    def close(self) -> None:
        pass


class Ages:
    """A frame sink that records the delay of each frame."""

    def __init__(self) -> None:
        self.inference: list[float] = []
        self.added: list[float] = []
        self.faces: list[int] = []
        self.shown: list[float] = []

    def show(self, frame_result: FrameResult) -> None:
        assert frame_result.health.age is not None
        self.inference.append(frame_result.inference)
        self.added.append(frame_result.health.age - frame_result.inference)
        self.faces.append(len(frame_result.results))
        self.shown.append(time.monotonic())

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        pass

    def __enter__(self) -> Ages:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def measure(
    name: str,
    camera: Callable[[], Camera],
    detector: FaceDetector | None = None,
    sources: int = 1,
) -> None:
    """Print the row of a case."""
    ages = Ages()
    policy = StreamPolicy(retries=0)
    streams = to_streams(map(str, range(sources)))
    with (
        Classifier.open(device="cpu") as classifier,
        Feed(streams, policy, lambda *_: camera()) as feed,
    ):
        frame_classifier = FrameClassifier(classifier.backend, detector)
        StreamPipeline(feed, frame_classifier, frame_sinks=[ages]).run()
        dropped = sum(health.dropped for health in feed.health())
    warm = slice(WARM_UP, None)
    added, inference = 1000 * np.array(ages.added[warm]), 1000 * np.array(ages.inference[warm])
    fps = (len(added) - 1) / (ages.shown[-1] - ages.shown[WARM_UP])
    p50, p99 = np.percentile(added, [50, 99])
    print(
        f"{name},{sources},{len(added)},{dropped},{fps:.1f},{np.mean(ages.faces[warm]):.2f},"
        f"{np.median(inference):.1f},{p50:.2f},{p99:.2f},{added.max():.2f}",
        flush=True,
    )


def main() -> None:
    portrait = decode(read_file(sys.argv[1]))
    detector = FaceDetector(Path(sys.argv[2]))
    frames = WARM_UP + int(sys.argv[3] if len(sys.argv) > 3 else 1000)
    one, four = (partial(Camera, portrait, faces, frames) for faces in (1, 4))
    print(f"# {describe()}; 640x480 at {FPS} frames a second, embedded model on the CPU")
    print(
        "# added: capture to verdict, less networks_ms; each face costs a preprocessing of its own"
    )
    print(
        "case,sources,frames,dropped,fps,faces,networks_ms,added_p50_ms,added_p99_ms,added_max_ms"
    )
    measure("whole picture", one)
    measure("one face", one, detector)
    measure("four faces", four, detector)
    measure("one face each", one, detector, sources=4)


if __name__ == "__main__":
    main()

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime.core.errors import BackendError, DeviceMemoryError
from ffd_runtime.core.results import Result
from ffd_runtime.image.faces import Face
from ffd_runtime.model.backends import Outputs
from ffd_runtime.model.card import ModelCard
from ffd_runtime.video.feed import Feed
from ffd_runtime.video.frame_classifier import FrameClassifier
from ffd_runtime.video.frame_result import Frame, FrameResult, Quit, StreamHealth
from ffd_runtime.video.stream_address import Stream, to_streams
from ffd_runtime.video.stream_pipeline import StreamPipeline
from ffd_runtime.video.stream_policy import StreamPolicy

from ..conftest import Image
from ..models import CARD

# Limit in seconds for a test that hangs.
WATCHDOG = 30
Classified = tuple[list[Result], float]


class Scripted:
    """A source that gives frames when `left` is released, and ends after `frames`."""

    timeout = 10.0
    note: str | None = None
    broken = 0
    waited = 1.0

    def __init__(self, frames: int, allowed: int | None = None) -> None:
        self.frames = frames
        self.left = threading.Semaphore(frames if allowed is None else allowed)
        self.number = -1
        self.grabbed = time.monotonic()

    def grab(self) -> bool:
        self.number += 1
        if self.number >= self.frames:
            return False
        assert self.left.acquire(timeout=WATCHDOG)
        self.grabbed = time.monotonic()
        return True

    def timestamp(self) -> float:
        return self.number / 25.0

    def retrieve(self) -> Image:
        return np.full((4, 4, 3), self.number % 256, np.uint8)

    def close(self) -> None:
        pass


class Faked(FrameClassifier):
    """Calls a function for each frame, and returns a fixed result."""

    def __init__(self, work: Callable[[Frame], None], detects_faces: bool = False) -> None:
        super().__init__(Gated())
        self.work = work
        self._detects_faces = detects_faces

    @property
    def detects_faces(self) -> bool:
        return self._detects_faces

    def classify(self, frame: Frame) -> Classified:
        self.work(frame)
        row = Result(frame.source, frame=frame.number, label="generated", score=0.9)
        return [row], 0.0


class Kept:
    """A sink that keeps rows and frames."""

    def __init__(self, quit_after: int | None = None) -> None:
        self.rows: list[Result] = []
        self.shown: list[Frame] = []
        self.ticks = 0
        self.quit_after = quit_after

    def write(self, result: Result) -> None:
        self.rows.append(result)

    def show(self, frame_result: FrameResult) -> None:
        self.shown.append(frame_result.frame)
        if len(self.shown) == self.quit_after:
            raise Quit

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        self.ticks += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def numbers(self, source: str) -> list[int]:
        return [frame.number for frame in self.shown if frame.source == source]


class Gated:
    """A backend that waits for `gate`, and records the batch sizes."""

    card: ModelCard = CARD
    description = "gated"

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.gate = threading.Event()
        self.batches: list[int] = []

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        self.batches.append(len(images))
        assert self.gate.wait(WATCHDOG)
        if len(images) > self.most:
            raise DeviceMemoryError("out of memory")
        score = images.mean((1, 2, 3), dtype=np.float64).astype(np.float32) / 255
        return Outputs(np.stack([score, 1 - score], 1), images[:, :2, :2, 0].astype(np.float32))

    def close(self) -> None:
        pass


def run(
    sources: dict[str, Scripted],
    work: Callable[[Frame], None],
    kept: Kept,
    workers: int = 2,
    whole_frames: bool = True,
) -> StreamPipeline:
    """Run sources to their end; file names are files, numbers cameras."""

    def open_capture(stream: Stream, _: float) -> Scripted:
        return sources[stream.name]

    with Feed(to_streams(sources), StreamPolicy(retries=0), open_capture) as feed:
        pipeline = StreamPipeline(
            feed,
            Faked(work, detects_faces=not whole_frames),
            rows=[kept],
            frame_sinks=[kept],
        )
        pipeline.run(workers)
    return pipeline


def worker_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ffd-classify")]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WATCHDOG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_frames_of_a_file_keep_their_order() -> None:
    done = [threading.Event() for _ in range(20)]

    def work(frame: Frame) -> None:
        # The first worker waits for the second.
        if frame.number % 2 == 0:
            assert done[frame.number + 1].wait(WATCHDOG)
        done[frame.number].set()

    kept = Kept()
    run({"a.mp4": Scripted(20)}, work, kept)
    assert [row.frame for row in kept.rows] == list(range(20))
    assert kept.numbers("a.mp4") == list(range(20))


def test_slow_frame_does_not_delay_other_sources() -> None:
    others = threading.Semaphore(0)

    def work(frame: Frame) -> None:
        if frame.source == "a.mp4" and frame.number == 0:
            for _ in range(30):
                assert others.acquire(timeout=WATCHDOG)
        elif frame.source != "a.mp4":
            others.release()

    kept = Kept()
    run({name: Scripted(10) for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")}, work, kept)
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        assert kept.numbers(name) == list(range(10))


def test_sources_take_turns() -> None:
    kept = Kept()
    names = [f"{name}.mp4" for name in "abc"]
    order: list[str] = []
    ready = threading.Event()

    def work(frame: Frame) -> None:
        # Each file has decoded frames before the first is classified.
        if not order:
            assert ready.wait(WATCHDOG)
        order.append(frame.source)

    sources = {name: Scripted(8) for name in names}

    def open_gate() -> None:
        wait_until(lambda: all(source.number >= 3 for source in sources.values()))
        ready.set()

    threading.Thread(target=open_gate).start()
    run(sources, work, kept, workers=1)
    # After the first frame, no source is served twice in a row.
    assert all(set(order[i : i + 3]) == set(names) for i in range(3, 9, 3)), order


def test_camera_has_one_frame_in_flight_the_newest() -> None:
    camera = Scripted(21, allowed=1)
    busy = threading.Lock()

    def work(frame: Frame) -> None:
        assert busy.acquire(blocking=False)
        # Ten frames arrive while one is classified.
        for _ in range(10 if frame.number < 20 else 0):
            camera.left.release()
        wait_until(lambda: camera.number > min(frame.number + 10, 20))
        busy.release()

    kept = Kept()
    pipeline = run({"0": camera}, work, kept, workers=4)
    assert kept.numbers("0") == [0, 10, 20]
    assert pipeline.summary() == "0: 3 of 21 frames, 18 dropped"


def test_frame_that_cannot_be_processed_is_an_error_row() -> None:
    def work(frame: Frame) -> None:
        if frame.number in (3, 4):
            raise cv2.error("bad frame")
        if frame.number == 5:
            raise MemoryError

    kept = Kept()
    pipeline = run({"a.mp4": Scripted(8)}, work, kept)
    assert [row.frame for row in kept.rows] == list(range(8))
    codes = {row.frame: row.error.code for row in kept.rows if row.error}
    assert codes == {3: "corrupt", 4: "corrupt", 5: "too_large"}
    assert "bad frame" in (kept.rows[3].error.message if kept.rows[3].error else "")
    assert pipeline.errors == 3
    # The track continues after the error.
    assert {row.track.number for row in kept.rows if row.track} == {1}
    assert kept.numbers("a.mp4") == [0, 1, 2, 6, 7]


def test_failing_model_ends_the_run() -> None:
    def work(frame: Frame) -> None:
        if frame.number == 3:
            raise BackendError("the GPU is gone")

    threads = cv2.getNumThreads()
    with pytest.raises(BackendError, match="the GPU is gone"):
        run({"a.mp4": Scripted(8)}, work, Kept())
    assert not worker_threads()
    assert cv2.getNumThreads() == threads


def test_quit_ends_the_run_while_frames_are_in_flight() -> None:
    started = threading.Semaphore(0)

    def work(frame: Frame) -> None:
        started.release()

    threads = cv2.getNumThreads()
    kept = Kept(quit_after=2)
    run({"a.mp4": Scripted(100), "0": Scripted(100)}, work, kept)
    assert len(kept.shown) == 2
    assert not worker_threads()
    assert cv2.getNumThreads() == threads


def test_workers_and_opencv_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffd_runtime.video.classification_pool.count_cores", lambda: 4)
    used = set()

    def work(frame: Frame) -> None:
        used.add(cv2.getNumThreads())

    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        run({"0": Scripted(3)}, work, Kept(), workers=4)
        assert used == {4}
        used.clear()
        run({"0": Scripted(3), "1": Scripted(3)}, work, Kept(), workers=4)
        assert used == {2}
        used.clear()
        run({"a.mp4": Scripted(3)}, work, Kept(), workers=4)
        assert used == {1}
    finally:
        cv2.setNumThreads(before)


def test_end_of_a_file_is_reported_after_its_last_result(monkeypatch: pytest.MonkeyPatch) -> None:
    # The reader ends long before the only frame is classified.
    for module in ("classification_pool", "stream_pipeline"):
        monkeypatch.setattr(f"ffd_runtime.video.{module}.TICK_SECONDS", 0.001)
    kept = Kept()
    run(
        {"a.mp4": Scripted(1)},
        lambda _: wait_until(lambda: kept.ticks > 5),
        kept,
        whole_frames=False,
    )
    assert [row.error for row in kept.rows] == [None]


def frame(number: int, level: int = 90) -> Frame:
    image = np.full((48, 64, 3), level, np.uint8)
    image[:, ::2] //= 2
    return Frame("0", number, image, 0.0, 0.0)


def start_in_turn(
    callers: list[threading.Thread], backend: Gated, frame_classifier: FrameClassifier
) -> None:
    """Start each caller after the previous one has started or queued its batch."""
    for count, caller in enumerate(callers, 1):
        caller.start()
        wait_until(partial(arrived, backend, frame_classifier, count))


def arrived(backend: Gated, frame_classifier: FrameClassifier, count: int) -> bool:
    return len(backend.batches) + len(frame_classifier._waiting) == count


def test_requests_that_wait_together_share_a_batch() -> None:
    backend = Gated()
    frame_classifier = FrameClassifier(backend)
    answers: dict[int, Classified] = {}

    def classify(number: int) -> None:
        answers[number] = frame_classifier.classify(frame(number, 40 * number))

    callers = [threading.Thread(target=classify, args=(number,)) for number in range(1, 6)]
    # Two batches run; later callers wait.
    start_in_turn(callers, backend, frame_classifier)
    backend.gate.set()
    for caller in callers:
        caller.join(WATCHDOG)
    assert backend.batches == [1, 1, 3]
    for number in range(1, 6):
        alone, _ = frame_classifier.classify(frame(number, 40 * number))
        shared, seconds = answers[number]
        assert shared == alone
        assert shared[0].frame == number
        assert seconds > 0


def test_failure_of_a_shared_batch_reaches_all_callers() -> None:
    class Broken(Gated):
        def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
            super().infer(images)
            raise BackendError("broken")

    backend = Broken()
    frame_classifier = FrameClassifier(backend)
    caught: list[BackendError] = []

    def classify(number: int) -> None:
        try:
            frame_classifier.classify(frame(number))
        except BackendError as error:
            caught.append(error)

    callers = [threading.Thread(target=classify, args=(number,)) for number in range(4)]
    start_in_turn(callers, backend, frame_classifier)
    backend.gate.set()
    for caller in callers:
        caller.join(WATCHDOG)
    assert len(caught) == 4


def test_halved_batch_size_is_kept_between_frames(caplog: pytest.LogCaptureFixture) -> None:
    class EightFaces:
        def detect(self, image: Image) -> list[Face]:
            return [Face((4 * at, 8, 32, 32), 0.9, np.zeros((5, 2), np.float32)) for at in range(8)]

    backend = Gated(most=3)
    backend.gate.set()
    frame_classifier = FrameClassifier(backend, EightFaces())  # type: ignore[arg-type]
    for number in range(3):
        rows, _ = frame_classifier.classify(frame(number))
        assert [(row.frame, row.face and row.face[0]) for row in rows] == [
            (number, 4 * at) for at in range(8)
        ]
    assert backend.batches == [8, 4, *[2] * 12]
    assert len(caplog.records) == 2


def test_rows_do_not_depend_on_the_number_of_workers() -> None:
    backend = Gated()
    backend.gate.set()

    def rows(workers: int) -> list[Result]:
        kept = Kept()
        with Feed(to_streams(["a.mp4", "b.mp4"]), None, lambda *_: Scripted(10)) as feed:
            StreamPipeline(
                feed,
                FrameClassifier(backend),
                rows=[kept],
            ).run(workers)
        return sorted(kept.rows, key=lambda row: (row.source, row.frame or 0))

    assert rows(1) == rows(4)

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import pytest

from ffd_runtime import Classifier
from ffd_runtime.core.results import Result
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.video.feed import TICK_SECONDS, Feed
from ffd_runtime.video.frame_classifier import FrameClassifier
from ffd_runtime.video.frame_result import FrameResult, Quit, StreamHealth
from ffd_runtime.video.stream_address import to_streams
from ffd_runtime.video.stream_pipeline import StreamPipeline
from ffd_runtime.video.stream_policy import StreamPolicy

from ..conftest import Image, load, picture

FRAMES = 50
# Limit in seconds for a test that hangs.
WATCHDOG = 30


class Kept:
    """A sink that keeps rows and frames."""

    def __init__(self, quit_after: int | None = None) -> None:
        self.rows: list[Result] = []
        self.frame_results: list[FrameResult] = []
        self.ticks: list[Sequence[StreamHealth]] = []
        self.quit_after = quit_after

    def write(self, result: Result) -> None:
        self.rows.append(result)

    def show(self, frame_result: FrameResult) -> None:
        self.frame_results.append(frame_result)
        if len(self.frame_results) == self.quit_after:
            raise Quit

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        self.ticks.append(sources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def write(path: Path, frames: Sequence[Image]) -> Path:
    height, width = frames[0].shape[:2]
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def watch(
    sources: Sequence[Path],
    model: Path | None,
    detector: FaceDetector | None = None,
    changes: bool = False,
    quit_after: int | None = None,
) -> tuple[Kept, StreamPipeline, list[str]]:
    kept, said = Kept(quit_after), list[str]()
    with (
        Classifier.open(model, device="cpu") as classifier,
        Feed(to_streams(map(str, sources)), StreamPolicy()) as feed,
    ):
        pipeline = StreamPipeline(
            feed,
            FrameClassifier(classifier.backend, detector),
            rows=[] if changes else [kept],
            changes=[kept] if changes else [],
            frame_sinks=[kept],
            report=said.append,
        )
        pipeline.run()
    return kept, pipeline, said


@pytest.fixture(scope="module")
def crowd(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """A video of four moving faces, and the class of each by quarter of the frame."""
    kinds = ["generated", "groundtruth", "groundtruth", "generated"]
    paths = {kind: sorted((faces / "test" / kind).iterdir()) for kind in set(kinds)}
    tiles = []
    for number, kind in enumerate(kinds):
        tiles.append(load(paths[kind][100 * number]))
    frames = []
    for number in range(FRAMES):
        frame = np.full((640, 640, 3), 90, np.uint8)
        for index, tile in enumerate(tiles):
            top, left = 320 * (index // 2), 320 * (index % 2)
            left += round(10 + 10 * np.sin(number / 5 + index))
            # Flickering light, so that frames differ.
            shade = cv2.convertScaleAbs(tile, alpha=1 + 0.25 * np.sin(number + index))
            frame[top + 10 : top + 310, left : left + 300] = shade
        frames.append(frame)
    return write(tmp_path_factory.mktemp("crowd") / "crowd.mp4", frames), dict(enumerate(kinds))


def test_faces_keep_track_number_and_label(
    crowd: tuple[Path, dict[int, str]], face_model: Path
) -> None:
    path, kinds = crowd
    kept, pipeline, _ = watch([path], None, FaceDetector(face_model, min_side=60))
    tracks: dict[int, list[Result]] = defaultdict(list)
    for row in kept.rows:
        assert row.track is not None
        tracks[row.track.number].append(row)
    assert len(tracks) == len(kinds)
    clear = 0
    for rows in tracks.values():
        quarters = set()
        for row in rows:
            assert row.face is not None
            x, y, width, height = row.face
            quarters.add(int((y + height / 2) // 320 * 2 + (x + width / 2) // 320))
        # A face is one track from the first frame to the last.
        (quarter,) = quarters
        assert len(rows) == FRAMES
        (majority, count), *_ = Counter(row.label for row in rows).most_common()
        labels = [row.track.label for row in rows if row.track]
        assert sum(a != b for a, b in itertools.pairwise(labels)) <= 1
        # Only faces with a clear majority of labels.
        if count > 0.6 * FRAMES and majority == kinds[quarter]:
            clear += 1
            assert labels[-1] == kinds[quarter]
    # Otherwise the test would check nothing.
    assert clear >= 3
    assert pipeline.summary().startswith(f"{path}: {FRAMES} of {FRAMES} frames, 4 faces")


def test_results_of_all_faces_of_two_streams(
    crowd: tuple[Path, dict[int, str]], face_model: Path, colour_model: Path
) -> None:
    kept, _, _ = watch([crowd[0]] * 2, colour_model, FaceDetector(face_model), quit_after=8)
    assert {frame_result.frame.source for frame_result in kept.frame_results} == {
        str(crowd[0]),
        f"{crowd[0]}#2",
    }
    for frame_result in kept.frame_results:
        assert len(frame_result.results) == 4
        for result in frame_result.results:
            assert result.heatmap is not None
            assert (result.frame, result.time) == (
                frame_result.frame.number,
                frame_result.frame.time,
            )
        assert 0 < frame_result.inference < (frame_result.health.age or 0)


def test_black_frame_is_unsure(colour_model: Path, tmp_path: Path) -> None:
    black = np.zeros((120, 160, 3), np.uint8)
    clip = write(tmp_path / "black.mp4", [black] * 5 + [picture("red", 120, 160)] * 5)
    kept, _, _ = watch([clip], colour_model)
    assert [row.reason for row in kept.rows] == ["blank"] * 5 + [None] * 5
    assert [row.label for row in kept.rows] == ["unsure"] * 5 + ["generated"] * 5


def test_video_without_a_face_has_an_error_row(
    face_model: Path, colour_model: Path, tmp_path: Path
) -> None:
    clip = write(tmp_path / "empty.mp4", [picture("red", 120, 160)] * 5)
    kept, pipeline, _ = watch([clip], colour_model, FaceDetector(face_model))
    (row,) = kept.rows
    assert row.error is not None
    assert row.error.code == "no_face"
    assert row.time is None
    assert pipeline.errors == 1


def test_changes_receive_only_changed_labels(colour_model: Path, tmp_path: Path) -> None:
    frames = [picture("red", 120, 160, seed) for seed in range(20)]
    frames += [picture("blue", 120, 160, seed) for seed in range(100)]
    clip = write(tmp_path / "turn.mp4", frames)
    kept, _, said = watch([clip], colour_model, changes=True)
    labels = [row.track.label for row in kept.rows if row.track]
    assert labels in (["generated", "unsure", "groundtruth"], ["generated", "groundtruth"])
    # The state of a file is not reported.
    assert said in ([], [f"{clip}: playing, 160x120"])


class Flaky:
    """A camera that gives a number of frames, and then breaks."""

    timeout = 10.0
    note: str | None = None
    broken = 0
    waited = 0.02

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.grabbed = time.monotonic()

    def grab(self) -> bool:
        time.sleep(0.001)
        self.grabbed = time.monotonic()
        self.left -= 1
        return self.left >= 0

    def timestamp(self) -> float:
        return 0.0

    def retrieve(self) -> Image:
        return picture("red", 48, 64)

    def close(self) -> None:
        pass


def test_break_between_two_ticks_has_a_row(colour_model: Path) -> None:
    class Slow(Kept):
        def show(self, frame_result: FrameResult) -> None:
            # Longer than the break.
            end = time.monotonic() + WATCHDOG
            while feed.readers[0].health().outage is None:
                assert time.monotonic() < end
                time.sleep(0.001)
            time.sleep(TICK_SECONDS)
            super().show(frame_result)

    begin = time.time()
    # It breaks once and recovers immediately.
    frames = iter((10, 1_000_000))
    kept, said = Slow(quit_after=3), list[str]()
    policy = StreamPolicy(initial_backoff=0.01, max_backoff=0.01)
    with (
        Classifier.open(colour_model, device="cpu") as classifier,
        Feed(to_streams(["0"]), policy, lambda *_: Flaky(next(frames))) as feed,
    ):
        frame_classifier = FrameClassifier(classifier.backend)
        pipeline = StreamPipeline(
            feed,
            frame_classifier,
            rows=[kept],
            frame_sinks=[kept],
            report=said.append,
        )
        pipeline.run()
    assert pipeline.errors >= 1
    assert all(row.error.code == "fetch_failed" for row in kept.rows if row.error)
    assert all(row.time is not None and begin <= row.time <= time.time() for row in kept.rows)
    (first, *_) = [line for line in said if "back after" in line]
    assert first.startswith("0: the stream was interrupted; back after 0.")


def test_row_of_a_failed_camera_has_the_time_of_the_report(colour_model: Path) -> None:
    kept, begin = Kept(), time.time()
    with (
        Classifier.open(colour_model, device="cpu") as classifier,
        Feed(to_streams(["0"]), StreamPolicy(retries=0), lambda *_: Flaky(0)) as feed,
    ):
        StreamPipeline(feed, FrameClassifier(classifier.backend), rows=[kept]).run()
    (row,) = kept.rows
    assert row.error is not None
    assert row.time is not None
    assert begin <= row.time <= time.time()


def test_quit_ends_the_run(colour_model: Path, tmp_path: Path) -> None:
    clip = write(tmp_path / "long.mp4", [picture("red", 120, 160)] * 50)
    kept, _, _ = watch([clip], colour_model, quit_after=3)
    assert len(kept.frame_results) == 3


def test_files_are_classified_by_face(
    faces: Path, face_model: Path, colour_model: Path, tmp_path: Path
) -> None:
    photographs = sorted((faces / "test" / "groundtruth").iterdir())[:4]
    group = np.hstack([load(path) for path in photographs])
    cv2.imwrite(str(tmp_path / "group.png"), group)
    cv2.imwrite(str(tmp_path / "none.png"), picture())
    with Classifier.open(
        colour_model, device="cpu", batch=3, detector=FaceDetector(face_model)
    ) as classifier:
        rows = list(classifier.classify_files(tmp_path))
    *group_rows, none = rows
    assert [Path(row.source).name for row in rows] == ["group.png"] * 4 + ["none.png"]
    assert len({row.face for row in group_rows}) == 4
    assert none.error is not None
    assert none.error.code == "no_face"
    assert all(json.dumps(row.to_dict()) for row in rows)

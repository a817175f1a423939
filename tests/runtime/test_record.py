from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from threading import Event
from threading import enumerate as threads
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.results import Result
from ffd_runtime.video import recording, source_recording, video_file
from ffd_runtime.video.draw_frame import draw_frame
from ffd_runtime.video.frame_result import Frame, FrameResult, State, StreamHealth
from ffd_runtime.video.recording import Recorder, check_recording_path
from ffd_runtime.video.source_recording import (
    DEFAULT_FPS,
    choose_recording_rate,
    estimate_frame_rate,
    recording_paths,
)

from ..conftest import picture

Array = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 320, 240
# Limit in seconds for a test that hangs.
WATCHDOG = 30


def frame_result(
    number: int,
    at: float,
    *,
    source: str = "door",
    live: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    breaks: int = 0,
    state: State = "playing",
) -> FrameResult:
    """A grey picture, 2 of 256 levels brighter than the one before."""
    image = np.full((size[1], size[0], 3), 20 + 2 * (number % 100), np.uint8)
    health = StreamHealth(source, live, state, size=size, fps=25.0, breaks=breaks, age=0.02)
    results = [Result(source, number, (120, 120, 60, 70), "generated", 0.98)]
    return FrameResult(Frame(source, number, image, at, at), results, health)


def brightness(path: Path) -> tuple[list[float], float]:
    """Mean brightness of the top quarter of each frame, and the duration in seconds."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert video.isOpened(), path
    levels: list[float] = []
    while True:
        there, image = video.read()
        if not there:
            return levels, len(levels) / video.get(cv2.CAP_PROP_FPS)
        levels.append(float(image[: image.shape[0] // 4].mean()))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WATCHDOG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(path: Path, *frame_results: FrameResult, sources: tuple[str, ...] = ("door",)) -> None:
    with Recorder(path, sources, face_scale=1.3) as sink:
        for each in frame_results:
            # A full queue drops live frames; these are not timed.
            while each.health.live and sink._encoders[each.frame.source].queue.full():
                time.sleep(0.002)
            sink.show(each)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(7)])
def test_video_file_keeps_every_frame_once_at_its_rate(
    tmp_path: Path, rate: Fraction, ending: str
) -> None:
    # Timestamps in milliseconds, as in Matroska.
    frame_results = [frame_result(number, round(float(number / rate), 3)) for number in range(90)]
    save(tmp_path / f"a{ending}", *frame_results)
    levels, seconds = brightness(tmp_path / f"a{ending}")
    assert len(levels) == 90
    assert np.diff(levels).min() > 0.5
    assert seconds == pytest.approx(90 / rate, abs=float(1 / rate / 10))


@pytest.mark.parametrize("rate", [23.976, 25, 29.97, 30, 59.94, 8.3333, 0.2])
def test_frame_rate_is_estimated_from_rounded_timestamps(rate: float) -> None:
    rate_found = estimate_frame_rate([round(number / rate, 3) for number in range(20)])
    assert rate_found == pytest.approx(rate, rel=1e-4 if rate > 20 else 1e-3)
    assert estimate_frame_rate([1.0]) == estimate_frame_rate([2.0, 2.0]) == DEFAULT_FPS


@pytest.mark.parametrize("rate", [25, 29.97, 8.3333])
@pytest.mark.parametrize("at", [1, 10, 25, 31])
def test_a_pause_does_not_change_the_frame_rate(rate: float, at: int) -> None:
    times = [round(number / rate + 20 * (number >= at), 3) for number in range(32)]
    assert estimate_frame_rate(times) == pytest.approx(rate, rel=1e-3)


def test_a_video_file_with_a_pause_is_recorded_in_real_time(tmp_path: Path) -> None:
    times = [number / 25 + 4 * (number >= 10) for number in range(75)]
    save(tmp_path / "a.mkv", *(frame_result(number, at) for number, at in enumerate(times)))
    assert brightness(tmp_path / "a.mkv")[1] == pytest.approx(7, abs=0.1)


def test_live_source_plays_in_real_time(tmp_path: Path) -> None:
    # Seven frames per second with jitter, and a gap of one second.
    rng = np.random.default_rng(0)
    times = [number / 7 + rng.uniform(0, 0.05) for number in range(28)]
    times = [100 + at + (at > 2) for at in times]
    save(tmp_path / "a.mkv", *(frame_result(3 * n, at, live=True) for n, at in enumerate(times)))
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(times[-1] - times[0], abs=0.1)
    for number, at in enumerate(times):
        shown = levels[min(round((at - times[0]) * DEFAULT_FPS), len(levels) - 1)]
        # The codec darkens grey by about three levels.
        assert shown == pytest.approx(17 + 6 * number, abs=2.5)


def test_frames_above_the_recording_rate_are_dropped(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4", *(frame_result(n, n / 100, live=True) for n in range(200)))
    assert brightness(tmp_path / "a.mp4")[1] == pytest.approx(2, abs=0.1)


# The health of the last frame before the break may already include it.
@pytest.mark.parametrize(("breaks", "state"), [(0, "playing"), (1, "waiting")])
def test_long_break_becomes_a_notice_of_one_second(
    tmp_path: Path, breaks: int, state: State
) -> None:
    times = [number / 25 + (3600 if number >= 50 else 0) for number in range(100)]
    frame_results = [frame_result(n, at, live=True, breaks=n >= 50) for n, at in enumerate(times)]
    frame_results[49] = frame_result(49, times[49], live=True, breaks=breaks, state=state)
    save(tmp_path / "a.mkv", *frame_results)
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(5, abs=0.1)
    assert max(levels[52:73]) < 60 < min(levels[40:48])


def test_slowly_sampled_source_has_no_notice(tmp_path: Path) -> None:
    # As with `--fps 0.1`. The source broke once, before the first frame.
    times = (0, 10, 20, 30)
    save(tmp_path / "a.mkv", *(frame_result(20, at, live=True, breaks=1) for at in times))
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(30, abs=0.1)
    assert max(levels) - min(levels) < 5


def test_a_file_with_a_pause_keeps_it(tmp_path: Path) -> None:
    """As a recorded screen that does not change."""
    times = [number / 25 + (20 if number >= 50 else 0) for number in range(100)]
    save(tmp_path / "a.mkv", *(frame_result(n, at) for n, at in enumerate(times)))
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(24, abs=0.2)
    # The last image before the pause, not a notice.
    assert levels[300] == pytest.approx(levels[49], abs=2)


def test_a_slow_encoder_delays_no_other_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw, free = draw_frame, Event()

    def slowly(frame: FrameResult, **options: Any) -> Any:
        if frame.frame.source == "slow":
            free.wait(WATCHDOG)
        return draw(frame, **options)

    monkeypatch.setattr(recording, "draw_frame", slowly)
    with Recorder(tmp_path / "a.mkv", ["slow", "door"], face_scale=1.3) as sink:
        door = sink._encoders["door"]
        with caplog.at_level(logging.WARNING):
            for number in range(50):
                for source in ("slow", "door"):
                    wait_until(lambda: not door.queue.full())
                    sink.show(frame_result(number, number / 25, source=source, live=True))
        wait_until(door.queue.empty)
        # The source that lacks frames is named at once, and once.
        (message,) = caplog.messages
        assert message.startswith("the recording of slow lacks frames, 1 so far")
        free.set()
    assert brightness(tmp_path / "a-door.mkv")[1] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("sampled", "rate"), [(None, 25), (30.0, 25), (10.0, 20), (1.0, 2), (0.1, 2)]
)
def test_recordings_repeat_few_frames(sampled: float | None, rate: float) -> None:
    assert choose_recording_rate(sampled) == rate


def test_repetition_of_an_image_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_recording, "MAX_REPEAT_SECONDS", 2.0)
    times = [0, *(1e6 + number / 25 for number in range(25))]
    save(tmp_path / "a.mkv", *(frame_result(n, at, live=True) for n, at in enumerate(times)))
    assert brightness(tmp_path / "a.mkv")[1] == pytest.approx(3, abs=0.1)


def test_repetition_ends_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.0)
    with Recorder(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        sink.show(frame_result(0, 0, live=True))
        wait_until(lambda: sink._encoders["door"]._recording._video is not None)
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 1 << 62)
        sink.show(frame_result(1, 3600, live=True))
    assert "recording stopped" in caplog.text
    assert len(brightness(tmp_path / "a.mkv")[0]) < 10


def test_new_file_starts_when_the_size_changes_and_after_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_recording, "MAX_FILE_SECONDS", 1.0)
    (tmp_path / "a-2.mp4").write_text("mine")
    sizes = [(641, 479)] * 20 + [(320, 240)] * 40
    save(
        tmp_path / "a.mp4",
        *(frame_result(n, n / 25, live=True, size=s) for n, s in enumerate(sizes)),
    )
    assert files(tmp_path) == ["a-2.mp4", "a-3.mp4", "a-4.mp4", "a.mp4"]
    assert (tmp_path / "a-2.mp4").read_text() == "mine"
    lengths = [len(brightness(tmp_path / name)[0]) for name in ("a.mp4", "a-3.mp4", "a-4.mp4")]
    assert lengths == [20, 25, 15]


def test_each_of_several_sources_has_its_own_file(tmp_path: Path) -> None:
    sources = ("0", "rtsp://door:554/live?x=1", "clips/a.mp4", "others/a.mp4")
    frame_results = [frame_result(n, n / 25, source=source) for n in range(5) for source in sources]
    save(tmp_path / "x.mkv", *frame_results, sources=sources)
    named = ["x-0.mkv", "x-door_554_live_x_1.mkv", "x-a.mkv", "x-a-source4.mkv"]
    assert [path.name for path in recording_paths(tmp_path / "x.mkv", sources).values()] == named
    assert files(tmp_path) == sorted(named)
    assert all(len(brightness(tmp_path / name)[0]) == 5 for name in named)
    strange = recording_paths(Path("x.mkv"), ["../..", "a/\x1b[31m", "\udcff" * 300])
    assert all(path.parent == Path() and len(str(path)) < 120 for path in strange.values())


def test_recording_without_frames_leaves_no_file(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4")
    assert files(tmp_path) == []
    assert not [thread for thread in threads() if thread.name == "ffd-record"]


def test_invalid_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, said in {
        "a.avi": "must end with .mp4 or .mkv",
        "folder.mp4": "is a folder",
        "absent/a.mp4": "the folder .*absent does not exist",
        "\udcff.mp4": "UTF-8",
    }.items():
        with pytest.raises(OutputError, match=said):
            check_recording_path(tmp_path / name)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="not writable"):
            check_recording_path(tmp_path / "a.mp4")


def test_writer_that_does_not_open_is_an_error(tmp_path: Path) -> None:
    # The codec stores each side in 13 bits.
    with pytest.raises(OutputError, match="cannot encode"):
        save(tmp_path / "a.mp4", frame_result(0, 0.0, live=True, size=(9000, 200)))
    assert files(tmp_path) == []


def test_recording_stops_cleanly_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.01)
    with Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(60):
            if number == 30:
                monkeypatch.setattr(recording, "MIN_FREE_BYTES", 1 << 62)
            sink.show(frame_result(number, number / 25))
            time.sleep(0.005)
    assert [each.levelno for each in caplog.records if "recording stopped" in each.message] == [
        logging.WARNING
    ]
    assert 20 <= len(brightness(tmp_path / "a.mp4")[0]) < 60


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(recording, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(recording, "RESUME_FREE_BYTES", 0)


@pytest.mark.usefixtures("quick_pauses")
def test_live_recording_starts_on_a_full_disk_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(recording, "MIN_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(recording, "RESUME_FREE_BYTES", 1 << 62)
    path = tmp_path / "a.mkv"
    with pytest.raises(OutputError, match="MiB are free"):
        check_recording_path(path)
    with Recorder(path, ["door"], face_scale=1.3, live=True) as sink:
        assert "MiB are free" in caplog.text
        sink.show(frame_result(0, 0.0, live=True))
        assert not files(tmp_path)
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 0)
        monkeypatch.setattr(recording, "RESUME_FREE_BYTES", 0)
        wait_until(lambda: "recording resumes" in caplog.text)
        sink.show(frame_result(1, 0.1, live=True))
        wait_until(lambda: bool(files(tmp_path)))
        # The disk is full again.
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 1 << 62)
        wait_until(lambda: caplog.text.count("recording stopped") == 2)
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 0)
        wait_until(lambda: caplog.text.count("recording resumes") == 2)
        sink.show(frame_result(2, 0.2, live=True))
    assert files(tmp_path) == ["a-2.mkv", "a.mkv"]
    assert brightness(tmp_path / "a-2.mkv")[0]


@pytest.mark.usefixtures("quick_pauses")
def test_recording_of_a_video_file_does_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with Recorder(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 1 << 62)
        wait_until(lambda: "recording stopped" in caplog.text)
        monkeypatch.setattr(recording, "MIN_FREE_BYTES", 0)
        checked = sink._encoders["door"]._checked
        wait_until(lambda: sink._encoders["door"]._checked > checked + 0.2)
    assert "recording resumes" not in caplog.text


@pytest.mark.usefixtures("quick_pauses")
def test_live_recording_resumes_after_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "share"
    folder.mkdir()
    with Recorder(folder / "a.mkv", ["door"], face_scale=1.3, live=True) as sink:
        sink.show(frame_result(0, 0.0, live=True))
        # An error before the first frame is written would end the run.
        wait_until(lambda: sink._shared.started)
        folder.rename(tmp_path / "gone")
        # Only a new file needs the folder.
        sink.show(frame_result(1, 0.1, live=True, size=(96, 64)))
        wait_until(lambda: "recording stopped" in caplog.text)
        folder.mkdir()
        wait_until(lambda: "recording resumes" in caplog.text)
        sink.show(frame_result(2, 0.2, live=True, size=(96, 64)))
    assert len(brightness(next(folder.iterdir()))[0]) == 1


def test_removed_folder_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.01)
    folder = tmp_path / "gone"
    folder.mkdir()
    with Recorder(folder / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(5):
            sink.show(frame_result(number, number / 25))
        folder.rmdir()
        wait_until(lambda: "the run continues" in caplog.text)
        sink.show(frame_result(9, 0.4))
    assert "the run continues" in caplog.text


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files, so that writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_that_does_not_grow_stops_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(video_file, "STALL_TIMEOUT_SECONDS", 0.4)
    noise = picture(height=HEIGHT, width=WIDTH)
    end = time.monotonic() + 8
    with largest_file(300_000), Recorder(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        for number in range(10_000):
            if "does not grow" in caplog.text or time.monotonic() > end:
                break
            one = frame_result(number, number / 25)
            frame = Frame("door", number, np.roll(noise, number, 1), 0.0, number / 25)
            sink.show(FrameResult(frame, one.results, one.health))
            time.sleep(0.005)
    assert "does not grow" in caplog.text
    assert brightness(tmp_path / "a.mkv")[0]


def test_removed_file_is_replaced_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.02)
    with Recorder(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        for number in range(100):
            if number == 50:
                (tmp_path / "a.mkv").unlink()
            sink.show(frame_result(number, number / 25))
            time.sleep(0.004)
    assert files(tmp_path) == ["a-2.mkv"]


def test_recording_of_an_ended_source_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CHECK_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(recording, "IDLE_CLOSE_SECONDS", 0.1)
    with Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(10):
            sink.show(frame_result(number, number / 25))
        sink.tick([StreamHealth("door", False, "ended")])
        path = str(tmp_path / "a.mp4")
        # Before its first frame is written, the file exists and cannot be read.
        wait_until(
            lambda: (
                sink._encoders["door"]._recording._video is None
                and files(tmp_path) != []
                and cv2.VideoCapture(path, cv2.CAP_FFMPEG).isOpened()
            )
        )
        assert len(brightness(tmp_path / "a.mp4")[0]) == 10


def interrupt_after(path: Path, frames: int) -> None:
    """Record frames of a video file, and interrupt the run."""
    with pytest.raises(KeyboardInterrupt), Recorder(path, ["door"], face_scale=1.3) as sink:
        for number in range(frames):
            sink.show(frame_result(number, number / 25))
        raise KeyboardInterrupt


def test_exception_leaves_a_playable_file(tmp_path: Path) -> None:
    interrupt_after(tmp_path / "a.mp4", 40)
    # The queue holds four frames, which may be discarded.
    assert 36 <= len(brightness(tmp_path / "a.mp4")[0]) <= 40


class FakeEncoder:
    """Count the frames that OpenCV encodes; `before_frame` and `before_end` may wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames = 0
        self.before_frame: Callable[[], object] = lambda: None
        self.before_end: Callable[[], object] = lambda: None
        real, fake = cv2.VideoWriter, self

        class Writer:
            def __init__(self, *options: Any) -> None:
                self._writer = real(*options)

            def isOpened(self) -> bool:
                return self._writer.isOpened()

            def write(self, image: Array) -> None:
                fake.frames += 1
                fake.before_frame()
                self._writer.write(image)

            def release(self) -> None:
                fake.before_end()
                self._writer.release()

        monkeypatch.setattr(cv2, "VideoWriter", Writer)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    return FakeEncoder(monkeypatch)


def test_normal_end_waits_for_a_slow_encoder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoder: FakeEncoder,
) -> None:
    monkeypatch.setattr(recording, "CLOSE_TIMEOUT_SECONDS", 0.1)
    encoder.before_frame = lambda: time.sleep(0.02)
    save(tmp_path / "a.mp4", *(frame_result(number, number / 25) for number in range(40)))
    assert len(brightness(tmp_path / "a.mp4")[0]) == 40
    assert "not closed" not in caplog.text


@pytest.mark.parametrize("first", ["in the run", "at its end"])
def test_interruption_discards_frames_that_are_not_encoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoder: FakeEncoder,
    first: str,
) -> None:
    monkeypatch.setattr(recording, "CLOSE_TIMEOUT_SECONDS", WATCHDOG)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def wait_in_the_repetitions() -> None:
        if encoder.frames > 2:
            wait_until(sink._shared.interruption.started)

    with (
        pytest.raises(KeyboardInterrupt),
        Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink,
    ):
        encoder.before_frame = wait_in_the_repetitions
        sink.show(frame_result(0, 0, live=True))
        sink.show(frame_result(1, 4, live=True))
        wait_until(lambda: encoder.frames > 2)
        sink.show(frame_result(2, 5, live=True))
        if first == "in the run":
            raise KeyboardInterrupt
        monkeypatch.setattr(sink._encoders["door"].encoded, "wait", interrupt)
    # The first frame, two of its 99 repetitions, and the second frame.
    assert encoder.frames == len(brightness(tmp_path / "a.mp4")[0]) == 4
    assert "not closed" not in caplog.text


def test_second_interruption_ends_the_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoder: FakeEncoder,
) -> None:
    monkeypatch.setattr(recording, "CLOSE_TIMEOUT_SECONDS", 1e6)
    entered, release, waits = Event(), Event(), list[object]()

    def hang() -> None:
        entered.set()
        release.wait(WATCHDOG)

    def interrupt(*options: object) -> None:
        waits.append(options)
        raise KeyboardInterrupt

    encoder.before_frame = hang
    sink = Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3)
    join = sink._encoders["door"].thread.join
    with pytest.raises(KeyboardInterrupt), sink:
        sink.show(frame_result(0, 0, live=True))
        entered.wait(WATCHDOG)
        monkeypatch.setattr(sink._encoders["door"].encoded, "wait", interrupt)
        monkeypatch.setattr(sink._encoders["door"].thread, "join", interrupt)
    assert len(waits) == 2
    assert "the recording of door was not closed: a frame is still being encoded" in caplog.text
    release.set()
    join()


def test_interruption_limits_the_first_frames_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: FakeEncoder
) -> None:
    monkeypatch.setattr(source_recording, "MAX_FLUSH_SECONDS", 0.0)
    interrupt_after(tmp_path / "a.mp4", 20)
    assert len(brightness(tmp_path / "a.mp4")[0]) == 1


@pytest.mark.parametrize("hangs", ["encoder", "disk"])
def test_recording_that_is_not_closed_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoder: FakeEncoder,
    hangs: str,
) -> None:
    entered, release = Event(), Event()

    def hang() -> None:
        entered.set()
        release.wait(WATCHDOG)

    monkeypatch.setattr(recording, "CLOSE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(recording, "FINISH_TIMEOUT_SECONDS", 0.1)
    sink = Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3)
    if hangs == "encoder":
        encoder.before_frame = hang
        with pytest.raises(KeyboardInterrupt), sink:
            sink.show(frame_result(0, 0, live=True))
            entered.wait(WATCHDOG)
            raise KeyboardInterrupt
    else:
        encoder.before_end = hang
        with sink:
            sink.show(frame_result(0, 0, live=True))
    reason = "a frame is still being encoded" if hangs == "encoder" else "the disk does not respond"
    assert f"the recording of door was not closed: {reason}" in caplog.text
    release.set()
    sink._encoders["door"].thread.join()


_RECORDS = """
import sys, time
import numpy as np
from pathlib import Path
from ffd_runtime.video.recording import Recorder
from ffd_runtime.video.frame_result import Frame, StreamHealth, FrameResult
rng = np.random.default_rng(0)
noise = rng.integers(0, 255, (480, 640, 3), np.uint8)
with Recorder(Path(sys.argv[1]), ["door"], face_scale=1.3) as sink:
    for number in range(10_000):
        frame = Frame("door", number, np.roll(noise, number, 1), 0.0, number / 25)
        sink.show(FrameResult(frame, [], StreamHealth("door", False, "playing")))
        print(number, flush=True)
"""


def test_matroska_file_of_a_killed_process_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    child = subprocess.Popen(
        [sys.executable, "-c", _RECORDS, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    for line in child.stdout:
        if int(line) == 80:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=20)
    # FFmpeg's buffer of 256 KiB is lost.
    assert len(brightness(path)[0]) > 40


@pytest.mark.alone
def test_live_source_does_not_block_the_frame_loop(tmp_path: Path) -> None:
    with Recorder(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        frame_results = [frame_result(n, n / 25, live=True, size=(1920, 1080)) for n in range(30)]
        begin = time.perf_counter()
        for each in frame_results:
            sink.show(each)
        took = time.perf_counter() - begin
    assert brightness(tmp_path / "a.mp4")[0]
    # All frames are queued in less time than it takes to encode one queue.
    assert sink._encoders["door"].dropped > 10
    assert took < 1

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from threading import enumerate as threads

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.results import Result
from ffd_runtime.video import recording as record
from ffd_runtime.video.recording import Record, check_record, name_recordings, tell_rate
from ffd_runtime.video.scene import Frame, Health, Scene

from ..conftest import picture

# Real time passes in it.
pytestmark = pytest.mark.alone

Array = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 320, 240


def scene(
    number: int,
    at: float,
    *,
    source: str = "door",
    live: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Scene:
    """A grey picture, brighter by 2 of 256 than the one before."""
    image = np.full((size[1], size[0], 3), 20 + 2 * (number % 100), np.uint8)
    health = Health(source, live, "playing", size=size, fps=25.0, age=0.02)
    results = [Result(source, number, (120, 120, 60, 70), "generated", 0.98)]
    return Scene(Frame(source, number, image, at, at), results, health)


def brightness(path: Path) -> tuple[list[float], float]:
    """Of each frame's upper part, and how long the file plays."""
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert video.isOpened(), path
    levels: list[float] = []
    while True:
        there, image = video.read()
        if not there:
            return levels, len(levels) / video.get(cv2.CAP_PROP_FPS)
        levels.append(float(image[: image.shape[0] // 4].mean()))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(path: Path, *scenes: Scene, sources: tuple[str, ...] = ("door",)) -> None:
    with Record(path, sources, face_scale=1.3) as sink:
        for each in scenes:
            # The queue leaves live frames out when it is full, as these come all at once.
            while each.health.live and sink._queue.full():
                time.sleep(0.002)
            sink.show(each)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(7)])
def test_a_video_file_keeps_every_frame_once_at_its_rate(
    tmp_path: Path, rate: Fraction, ending: str
) -> None:
    # Times in whole milliseconds, as a Matroska file has them.
    scenes = [scene(number, round(float(number / rate), 3)) for number in range(90)]
    save(tmp_path / f"a{ending}", *scenes)
    levels, seconds = brightness(tmp_path / f"a{ending}")
    assert len(levels) == 90
    assert np.diff(levels).min() > 0.5
    assert seconds == pytest.approx(90 / rate, abs=float(1 / rate / 10))


@pytest.mark.parametrize("rate", [23.976, 25, 29.97, 30, 59.94, 8.3333, 0.2])
def test_the_rate_is_told_from_rounded_times(rate: float) -> None:
    told = tell_rate([round(number / rate, 3) for number in range(20)])
    assert told == pytest.approx(rate, rel=1e-4 if rate > 20 else 1e-3)
    assert tell_rate([1.0]) == tell_rate([2.0, 2.0]) == record.FPS


def test_a_live_source_plays_in_real_time(tmp_path: Path) -> None:
    # Seven frames a second, unevenly, and a second without any.
    rng = np.random.default_rng(0)
    times = [number / 7 + rng.uniform(0, 0.05) for number in range(28)]
    times = [100 + at + (at > 2) for at in times]
    save(tmp_path / "a.mkv", *(scene(3 * n, at, live=True) for n, at in enumerate(times)))
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(times[-1] - times[0], abs=0.1)
    for number, at in enumerate(times):
        shown = levels[min(round((at - times[0]) * record.FPS), len(levels) - 1)]
        # The codec makes grey some three levels darker.
        assert shown == pytest.approx(17 + 6 * number, abs=2.5)


def test_frames_that_come_faster_than_the_recording_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4", *(scene(n, n / 100, live=True) for n in range(200)))
    assert brightness(tmp_path / "a.mp4")[1] == pytest.approx(2, abs=0.1)


def test_a_long_gap_is_a_second_that_says_so(tmp_path: Path) -> None:
    times = [number / 25 + (3600 if number >= 50 else 0) for number in range(100)]
    save(tmp_path / "a.mkv", *(scene(n, at, live=True) for n, at in enumerate(times)))
    levels, seconds = brightness(tmp_path / "a.mkv")
    assert seconds == pytest.approx(5, abs=0.1)
    assert max(levels[52:73]) < 60 < min(levels[40:48])


def test_a_new_file_begins_with_another_size_and_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LONGEST", 1.0)
    (tmp_path / "a-2.mp4").write_text("mine")
    sizes = [(641, 479)] * 20 + [(320, 240)] * 40
    save(tmp_path / "a.mp4", *(scene(n, n / 25, live=True, size=s) for n, s in enumerate(sizes)))
    assert files(tmp_path) == ["a-2.mp4", "a-3.mp4", "a-4.mp4", "a.mp4"]
    assert (tmp_path / "a-2.mp4").read_text() == "mine"
    lengths = [len(brightness(tmp_path / name)[0]) for name in ("a.mp4", "a-3.mp4", "a-4.mp4")]
    assert lengths == [20, 25, 15]


def test_several_sources_have_a_file_each(tmp_path: Path) -> None:
    sources = ("0", "rtsp://door:554/live?x=1", "clips/a.mp4", "others/a.mp4")
    scenes = [scene(n, n / 25, source=source) for n in range(5) for source in sources]
    save(tmp_path / "x.mkv", *scenes, sources=sources)
    named = ["x-0.mkv", "x-door_554_live_x_1.mkv", "x-a.mkv", "x-a-source4.mkv"]
    assert [path.name for path in name_recordings(tmp_path / "x.mkv", sources).values()] == named
    assert files(tmp_path) == sorted(named)
    assert all(len(brightness(tmp_path / name)[0]) == 5 for name in named)
    strange = name_recordings(Path("x.mkv"), ["../..", "a/\x1b[31m", "\udcff" * 300])
    assert all(path.parent == Path() and len(str(path)) < 120 for path in strange.values())


def test_an_empty_recording_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4")
    assert files(tmp_path) == []
    assert not [thread for thread in threads() if thread.name == "ffd-record"]


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, said in {
        "a.avi": "must end with .mp4 or .mkv",
        "folder.mp4": "is a folder",
        "absent/a.mp4": "there is no folder",
        "\udcff.mp4": "UTF-8",
    }.items():
        with pytest.raises(OutputError, match=said):
            check_record(tmp_path / name)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="must not be written"):
            check_record(tmp_path / "a.mp4")


def test_a_writer_that_does_not_open_ends_the_run(tmp_path: Path) -> None:
    # The codec has 13 bits for a side.
    with pytest.raises(OutputError, match="does not encode"):
        save(tmp_path / "a.mp4", scene(0, 0.0, live=True, size=(9000, 200)))
    assert files(tmp_path) == []


def test_the_recording_ends_in_order_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "CHECK_EVERY", 0.01)
    with Record(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(60):
            if number == 30:
                monkeypatch.setattr(record, "LEAST_FREE", 1 << 62)
            sink.show(scene(number, number / 25))
            time.sleep(0.005)
    assert [each.levelno for each in caplog.records if "stopped" in each.message] == [
        logging.WARNING
    ]
    assert 20 <= len(brightness(tmp_path / "a.mp4")[0]) < 60


def test_a_folder_that_has_gone_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "CHECK_EVERY", 0.01)
    folder = tmp_path / "gone"
    folder.mkdir()
    with Record(folder / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(5):
            sink.show(scene(number, number / 25))
        folder.rmdir()
        time.sleep(0.1)
        sink.show(scene(9, 0.4))
    assert "the run goes on" in caplog.text


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to make a file larger, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_grow_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "CHECK_EVERY", 0.02)
    monkeypatch.setattr(record, "STUCK", 0.4)
    noise = picture(height=HEIGHT, width=WIDTH)
    end = time.monotonic() + 8
    with largest_file(300_000), Record(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        for number in range(10_000):
            if "does not grow" in caplog.text or time.monotonic() > end:
                break
            one = scene(number, number / 25)
            frame = Frame("door", number, np.roll(noise, number, 1), 0.0, number / 25)
            sink.show(Scene(frame, one.results, one.health))
            time.sleep(0.005)
    assert "does not grow" in caplog.text
    assert brightness(tmp_path / "a.mkv")[0]


def test_a_file_that_was_removed_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "CHECK_EVERY", 0.02)
    with Record(tmp_path / "a.mkv", ["door"], face_scale=1.3) as sink:
        for number in range(100):
            if number == 50:
                (tmp_path / "a.mkv").unlink()
            sink.show(scene(number, number / 25))
            time.sleep(0.004)
    assert files(tmp_path) == ["a-2.mkv"]


def test_the_recording_of_a_source_that_ended_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "CHECK_EVERY", 0.02)
    monkeypatch.setattr(record, "QUIET", 0.1)
    with Record(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        for number in range(10):
            sink.show(scene(number, number / 25))
        sink.tick([Health("door", False, "ended")])
        end = time.monotonic() + 8
        while not files(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.1)
        assert len(brightness(tmp_path / "a.mp4")[0]) == 10


def test_an_error_and_a_signal_leave_a_file_that_plays(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Record(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink,
    ):
        for number in range(40):
            sink.show(scene(number, number / 25))
        raise KeyboardInterrupt
    assert len(brightness(tmp_path / "a.mp4")[0]) == 40


_RECORDS = """
import sys, time
import numpy as np
from pathlib import Path
from ffd_runtime.video.recording import Record
from ffd_runtime.video.scene import Frame, Health, Scene
rng = np.random.default_rng(0)
noise = rng.integers(0, 255, (480, 640, 3), np.uint8)
with Record(Path(sys.argv[1]), ["door"], face_scale=1.3) as sink:
    for number in range(10_000):
        frame = Frame("door", number, np.roll(noise, number, 1), 0.0, number / 25)
        sink.show(Scene(frame, [], Health("door", False, "playing")))
        print(number, flush=True)
"""


def test_a_killed_recording_in_matroska_can_be_played(tmp_path: Path) -> None:
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
    # What FFmpeg had not handed on, 256 KiB at most, is missing.
    assert len(brightness(path)[0]) > 40


def test_the_frame_loop_is_not_held_by_a_live_source(tmp_path: Path) -> None:
    with Record(tmp_path / "a.mp4", ["door"], face_scale=1.3) as sink:
        scenes = [scene(n, n / 25, live=True, size=(1920, 1080)) for n in range(30)]
        begin = time.perf_counter()
        for each in scenes:
            sink.show(each)
        took = time.perf_counter() - begin
    assert brightness(tmp_path / "a.mp4")[0]
    # All came within less than it takes to draw and encode what there is room for.
    assert sink._left_out > 10
    assert took < 1

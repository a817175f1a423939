from __future__ import annotations

import functools
import http.server
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime import Classifier
from ffd_runtime.core.errors import BackendError, InputError
from ffd_runtime.video import remote_reader
from ffd_runtime.video.capture import OpenCVCapture
from ffd_runtime.video.feed import TICK_SECONDS, Feed
from ffd_runtime.video.frame_classifier import FrameClassifier
from ffd_runtime.video.frame_result import Frame, FrameResult, StreamHealth
from ffd_runtime.video.remote_reader import RemoteCapture
from ffd_runtime.video.stream_address import to_streams
from ffd_runtime.video.stream_pipeline import StreamPipeline
from ffd_runtime.video.stream_policy import Backoff, StreamPolicy
from ffd_runtime.video.stream_reader import HANG_MARGIN_SECONDS

from ..nightly import repeat
from ..servers import (
    RtspServer,
    answer_options_alone,
    free_port,
    rtsp,
    say_nothing,
    send_garbage,
    send_pictures,
    serving,
    stop_in_mid_frame,
)

__all__ = ["rtsp"]

# Limit in seconds for a test that hangs.
WATCHDOG = 30
QUICK = StreamPolicy(timeout=1.0, initial_backoff=0.05, max_backoff=0.2)
PATIENT = StreamPolicy(timeout=WATCHDOG)


def rounds(feed: Feed) -> Iterator[list[Frame]]:
    """Yield at most one frame of each stream until all have ended; none after `TICK_SECONDS`."""
    while True:
        with feed.changed:
            for reader in feed.readers:
                reader.raise_fatal()
            frames = [frame for reader in feed.readers if (frame := reader.take())]
            if not frames:
                if all(reader.done() for reader in feed.readers):
                    return
                feed.changed.wait(TICK_SECONDS)
        yield frames


def frames_until(feed: Feed, enough: Callable[[Frame], bool]) -> list[Frame]:
    """Return the frames up to the first that satisfies a condition."""
    begin = time.monotonic()
    frames: list[Frame] = []
    for taken in rounds(feed):
        for frame in taken:
            frames.append(frame)
            if enough(frame):
                return frames
        assert time.monotonic() - begin < WATCHDOG, feed.health()
    return frames


def wait_for(feed: Feed, what: Callable[[list[StreamHealth]], bool]) -> list[StreamHealth]:
    """Read until the sources satisfy a condition."""
    begin = time.monotonic()
    for _ in rounds(feed):
        if what(feed.health()):
            return feed.health()
        assert time.monotonic() - begin < WATCHDOG, feed.health()
    return feed.health()


class Kept:
    """A frame sink that keeps nothing."""

    def show(self, frame_result: FrameResult) -> None:
        pass

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ffd-stream")]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 60 numbered frames at 25 per second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write(path, "mp4v")
    return path


def write(path: Path, code: str) -> None:
    """Write a video whose frames show their numbers in binary, as six black or white bars."""
    fourcc = cv2.VideoWriter.fourcc(*code)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 25, (192, 32))
    for number in range(60):
        bits = [255 * (number >> bit & 1) for bit in range(6)]
        row = np.repeat(np.array(bits, np.uint8), 32)
        writer.write(np.tile(row[None, :, None], (32, 1, 3)))
    writer.release()


def shown(image: npt.NDArray[np.uint8]) -> int:
    """Return the number that a frame shows."""
    return sum(int(image[16, 32 * bit + 16, 0] > 127) << bit for bit in range(6))


def numbers_of(path: Path, policy: StreamPolicy | None = None, slow: float = 0.0) -> list[int]:
    numbers = []
    with Feed(to_streams([str(path)]), policy) as feed:
        for taken in rounds(feed):
            for frame in taken:
                assert shown(frame.image) == frame.number
                assert frame.time == pytest.approx(frame.number / 25, abs=1e-3)
                numbers.append(frame.number)
                time.sleep(slow)
    assert feed.readers[0].health().state == "ended"
    assert not threads()
    return numbers


def test_slow_consumer_gets_every_frame_of_a_file_in_order(clip: Path) -> None:
    assert numbers_of(clip, slow=0.005) == list(range(60))


def test_sampled_frames_of_a_file(clip: Path) -> None:
    assert numbers_of(clip, StreamPolicy(every=7)) == list(range(0, 60, 7))
    assert numbers_of(clip, StreamPolicy(fps=5)) == list(range(0, 60, 5))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"text " * 1000, "corrupt"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (None, "not_found"),
    ],
    ids=["empty", "text", "half", "absent"],
)
def test_invalid_video_file_fails(
    clip: Path, tmp_path: Path, damage: Callable[[bytes], bytes] | None, code: str
) -> None:
    path = tmp_path / "bad.mp4"
    if damage:
        path.write_bytes(damage(clip.read_bytes()))
    with Feed(to_streams([str(path)])) as feed:
        assert not any(rounds(feed))
        assert feed.readers[0].health().state == "failed"
        assert feed.readers[0].health().code == code


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_truncated_file_fails_after_its_frames(tmp_path: Path, share: float) -> None:
    # An AVI header contains the number of frames.
    whole, cut = tmp_path / "whole.avi", tmp_path / "cut.avi"
    write(whole, "MJPG")
    data = whole.read_bytes()
    cut.write_bytes(data[: round(len(data) * share)])
    with Feed(to_streams([str(cut)])) as feed:
        frames = [frame for taken in rounds(feed) for frame in taken]
        health = feed.readers[0].health()
    assert 10 < len(frames) < 57
    assert health.code == "truncated"
    assert health.error == f"it ends after {len(frames) / 25:.1f} of 2.4 s"


class Synthetic:
    """A camera with an interval between frames; 0 for no delay."""

    timeout = 10.0
    note: str | None = None
    broken = 0

    def __init__(self, gap: float, frames: int) -> None:
        self.gap = gap
        self.left = frames
        self.due = self.grabbed = time.monotonic()
        self.waited = 0.0

    def grab(self) -> bool:
        self.due += self.gap
        if self.gap:
            time.sleep(max(0.0, self.due - time.monotonic()))
        self.left -= 1
        self.grabbed = time.monotonic()
        return self.left >= 0

    def timestamp(self) -> float:
        return 0.0

    def retrieve(self) -> npt.NDArray[np.uint8]:
        return np.full((48, 64, 3), self.left % 200, np.uint8)

    def close(self) -> None:
        pass


@pytest.mark.alone
def test_slow_consumer_gets_the_newest_frame_and_drops_are_counted() -> None:
    gap, inference = 0.01, 0.02
    policy = StreamPolicy(retries=0)
    ages, numbers = [], []
    with Feed(to_streams(["0"]), policy, lambda *_: Synthetic(gap, 200)) as feed:
        for taken in rounds(feed):
            for frame in taken:
                time.sleep(inference)
                ages.append(time.monotonic() - frame.captured)
                numbers.append(frame.number)
        health = feed.readers[0].health()
    assert numbers == sorted(set(numbers))
    assert health.frames == 200
    assert health.dropped == 200 - len(numbers) > 50
    assert health.state == "failed"
    # The median, because the machine may be busy for a moment.
    assert sorted(ages)[len(ages) // 2] < inference + gap


def test_slow_decoder_reconnects_when_its_lag_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffd_runtime.video.stream_reader.MAX_LAG_SECONDS", 0.5)

    class Behind(Synthetic):
        """Never waits: decodes a frame in 5 ms of a simulated clock, while frames arrive faster."""

        def grab(self) -> bool:
            self.due += 0.005
            self.left -= 1
            self.grabbed = self.due
            return self.left >= 0

        def timestamp(self) -> float:
            return (400 - self.left) * 1e-4

    policy = StreamPolicy(retries=0)
    late = 0.0
    with Feed(to_streams(["rtsp://127.0.0.1:9/x"]), policy, lambda *_: Behind(0.0, 4000)) as feed:
        for taken in rounds(feed):
            for frame in taken:
                late = max(late, frame.lag)
        health = feed.readers[0].health()
    assert "late" in (health.error or "")
    assert 0.4 < late <= 0.5


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.no_cover
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_over_many_frames(colour_model: Path) -> None:
    frames = repeat(40_000, 100_000)

    class Fast(Synthetic):
        """Much faster than the model, which must still get processor time."""

        def grab(self) -> bool:
            if self.left % 20 == 0:
                time.sleep(3e-4)
            return super().grab()

    class Watched(Kept):
        early = 0

        def show(self, frame_result: FrameResult) -> None:
            # Enough frames for the threads' heaps to reach their size.
            if 10_000 < frame_result.frame.number < frames // 2:
                self.early = max(self.early, resident())

    kept = Watched()
    with (
        Classifier.open(colour_model, device="cpu") as classifier,
        Feed(to_streams(["0"]), StreamPolicy(retries=0), lambda *_: Fast(0.0, frames)) as feed,
    ):
        frame_classifier = FrameClassifier(classifier.backend)
        StreamPipeline(feed, frame_classifier, frame_sinks=[kept]).run()
        health = feed.readers[0].health()
    assert health.frames == frames
    assert health.analysed > 100
    # 100 bytes a frame. Less may be the heap of another test's thread.
    assert resident() - kept.early < 100 * frames // 2


@pytest.mark.alone
def test_rtsp_server_gives_a_thousand_frames(rtsp: RtspServer) -> None:
    rtsp.start(width=320, height=240, fps=200)
    with Feed(to_streams([rtsp.address]), QUICK) as feed:
        frames = frames_until(feed, lambda frame: frame.number >= 1000)
        health = feed.readers[0].health()
    assert health.size == (320, 240)
    assert health.reconnects == 0
    assert len(frames) + health.dropped >= 1000
    # The picture moves.
    assert not np.array_equal(frames[0].image, frames[-1].image)


def test_a_camera_that_refuses_tcp_is_read_over_udp(rtsp: RtspServer) -> None:
    rtsp.start(udp=True)
    with Feed(to_streams([rtsp.address]), PATIENT) as feed:
        assert frames_until(feed, lambda frame: frame.number >= 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("udp", [False, True])
def test_udp_is_only_used_if_the_server_refuses_tcp(rtsp: RtspServer, udp: bool) -> None:
    rtsp.start(udp=udp)
    capture = RemoteCapture(to_streams([rtsp.address])[0], timeout=WATCHDOG)
    assert capture.grab()
    opened = {os.readlink(path) for path in Path(f"/proc/{capture.process}/fd").iterdir()}
    rows = Path("/proc/net/udp").read_text() + Path("/proc/net/udp6").read_text()
    sockets = {f"socket:[{row.split()[9]}]" for row in rows.splitlines() if ":" in row[:8]}
    assert bool(opened & sockets) == udp
    capture.close()


def test_crash_of_the_reader_process_is_an_error(rtsp: RtspServer) -> None:
    rtsp.start()
    (stream,) = to_streams([rtsp.address])
    capture = RemoteCapture(stream, timeout=5.0)
    assert capture.grab()
    assert capture.retrieve() is not None
    os.kill(capture.process, signal.SIGSEGV)
    with pytest.raises(InputError, match="crashed"):
        while capture.grab():
            pass
    capture.close()
    with pytest.raises(ProcessLookupError):
        os.kill(capture.process, 0)


def test_ffmpeg_log_does_not_corrupt_frames(
    rtsp: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "48")
    rtsp.start()
    capture = RemoteCapture(to_streams([rtsp.address])[0], timeout=5.0)
    for _ in range(50):
        assert capture.grab()
        image = capture.retrieve()
        assert image is not None
        assert image.shape == (120, 160, 3)
    capture.close()


@pytest.mark.alone
def test_silent_servers_do_not_delay_others(rtsp: RtspServer) -> None:
    rtsp.start()
    with ExitStack() as stack:
        ports = [stack.enter_context(serving(answer_options_alone)) for _ in range(3)]
        addresses = [f"rtsp://127.0.0.1:{port}/x" for port in ports]
        # No source times out while the good one starts.
        with Feed(to_streams([*addresses, rtsp.address]), PATIENT) as feed:
            begin = time.monotonic()
            frames_until(feed, lambda frame: frame.number > 10)
            assert time.monotonic() - begin < 5
            assert [health.state for health in feed.health()] == ["connecting"] * 3 + ["playing"]


def test_damaged_jpeg_in_a_stream_is_skipped() -> None:
    with (
        serving(lambda connection: send_pictures(connection, broken=10)) as port,
        Feed(to_streams([f"http://127.0.0.1:{port}/cam.mjpg"]), PATIENT) as feed,
    ):
        wait_for(feed, lambda states: states[0].frames > 50)
        assert feed.readers[0].health().breaks == 0


def test_remote_file_is_read_completely(clip: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{clip.name}"
        with Feed(to_streams([address])) as feed:
            numbers = [frame.number for taken in rounds(feed) for frame in taken]
        with Feed(to_streams([address + "x.mp4"])) as feed:
            assert not any(rounds(feed))
            assert "404" in (feed.readers[0].health().error or "")
        server.shutdown()
    assert numbers == list(range(60))


@pytest.mark.parametrize("name", [b"cl\xffip.mp4", b"cam:1.mp4", b"a%d|b?c#d.mp4", b"-.mp4"])
def test_video_file_may_have_any_name(clip: Path, tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(clip.read_bytes())
    assert numbers_of(path, StreamPolicy(every=30)) == [0, 30]


# Five show that each reconnect frees its resources; more find slow leaks.
RECONNECTS = repeat(5, 50)


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_reconnects_to_a_restarted_server_with_another_size(rtsp: RtspServer) -> None:
    sizes = [(160, 120), (96, 64)]
    policy = StreamPolicy(timeout=2.0, initial_backoff=0.02, max_backoff=0.1)
    rtsp.start(*sizes[0], fps=400)
    with Feed(to_streams([rtsp.address]), policy) as feed:
        frames_until(feed, lambda _: True)
        for cycle in range(1, RECONNECTS + 1):
            rtsp.kill()
            wait_for(feed, lambda states: states[0].state == "waiting")
            width, height = sizes[cycle % 2]
            rtsp.start(width, height, fps=400)
            begin = time.monotonic()
            while feed.readers[0].health().size != (width, height):
                frames_until(feed, lambda _: True)
            assert time.monotonic() - begin < policy.max_backoff + 2
            if cycle == 2:
                threads_then, descriptors_then = threading.active_count(), descriptors()
        assert feed.readers[0].health().reconnects == RECONNECTS
        assert threading.active_count() == threads_then
        assert descriptors() <= descriptors_then
    assert not threads()


@pytest.mark.alone
@pytest.mark.parametrize("form", ["rtsp://127.0.0.1:{}/door", "http://127.0.0.1:{}/a.mjpg"])
@pytest.mark.parametrize(
    ("answer", "codes"),
    [(say_nothing, {"timeout"}), (send_garbage, {"fetch_failed", "timeout"})],
)
def test_bad_server_fails_in_time_and_does_not_delay_others(
    form: str, answer: Callable[..., None], codes: set[str]
) -> None:
    with serving(answer) as bad, serving(send_pictures) as good:
        addresses = [form.format(bad), f"http://127.0.0.1:{good}/cam.mjpg"]
        with Feed(to_streams(addresses), QUICK) as feed:
            begin = time.monotonic()
            states = wait_for(feed, lambda states: states[0].state == "waiting")
            # Two timeouts: for opening it, and for the attempt to read it as MJPEG.
            assert time.monotonic() - begin < 2 * QUICK.timeout + 1
            assert states[0].error
            assert states[0].code in codes
            seen = feed.readers[1].health().frames
            wait_for(feed, lambda states: states[1].frames > seen + 10)
            assert feed.readers[1].health().state == "playing"
        # A reader may be blocked while its process starts, and until its timeout.
        feed.readers[0].thread.join(WATCHDOG)
    assert not threads()


@pytest.mark.alone
def test_server_that_stops_within_a_frame_is_retried(rtsp: RtspServer) -> None:
    rtsp.start(fps=100)
    with serving(stop_in_mid_frame) as stopping:
        addresses = [f"http://127.0.0.1:{stopping}/cam.mjpg", rtsp.address]
        with Feed(to_streams(addresses), QUICK) as feed:
            wait_for(feed, lambda states: states[0].frames >= 15)
            begin = time.monotonic()
            wait_for(feed, lambda states: states[0].state == "waiting")
            assert time.monotonic() - begin < QUICK.timeout + 1
            # It is retried.
            wait_for(feed, lambda states: states[0].reconnects >= 1)
            assert feed.readers[1].health().state == "playing"


@pytest.mark.alone
def test_frozen_server_fails_within_the_timeout(rtsp: RtspServer) -> None:
    rtsp.start(fps=100)
    assert rtsp.process
    with Feed(to_streams([rtsp.address]), QUICK) as feed:
        frames_until(feed, lambda frame: frame.number > 20)
        rtsp.process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        wait_for(feed, lambda states: states[0].state == "waiting")
        assert time.monotonic() - begin < QUICK.timeout + 1
        assert feed.readers[0].health().code == "timeout"


def test_absent_server_fails_after_its_retries() -> None:
    address = f"rtsp://me:secret@127.0.0.1:{free_port()}/door"
    policy = StreamPolicy(timeout=1.0, retries=2, initial_backoff=0.05)
    with Feed(to_streams([address]), policy) as feed:
        assert not any(rounds(feed))
        health = feed.readers[0].health()
    assert health.state == "failed"
    assert health.error is not None
    assert "refused" in health.error
    assert "secret" not in repr(health) + repr(feed.readers[0].stream)


@pytest.mark.parametrize(
    ("status", "user", "said"),
    [
        (b"401 Unauthorized", "", "requires a user and password"),
        (b"401 Unauthorized", "me:secret@", "rejected the user and password"),
        (b"404 Not Found", "", "wrong path?"),
    ],
)
def test_error_of_a_server_names_the_reason(status: bytes, user: str, said: str) -> None:
    def refuse(connection: object) -> None:
        request = connection.recv(4096)  # type: ignore[attr-defined]
        protocol = b"RTSP" if b"RTSP" in request else b"HTTP"
        number = [line for line in request.split(b"\r\n") if line.startswith(b"CSeq")]
        answer = [protocol + b"/1.0 " + status, *number, b"", b""]
        connection.sendall(b"\r\n".join(answer))  # type: ignore[attr-defined]

    with serving(refuse) as port:
        address = f"rtsp://{user}127.0.0.1:{port}/door"
        with Feed(to_streams([address]), StreamPolicy(timeout=WATCHDOG, retries=0)) as feed:
            assert not any(rounds(feed))
            assert said in (feed.readers[0].health().error or "")


def test_unexpected_exception_is_retried() -> None:
    tries = []

    def fail(*_: object) -> Synthetic:
        tries.append(1)
        raise BlockingIOError("no more processes")

    policy = StreamPolicy(retries=2, initial_backoff=0.02)
    with Feed(to_streams(["0"]), policy, fail) as feed:
        assert not any(rounds(feed))
        assert "no more processes" in (feed.readers[0].health().error or "")
    assert len(tries) == 3


def test_time_to_open_a_source_does_not_count_as_playing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that opens slowly and fails after a frame must be retried less and less often."""
    played = []

    def open_slowly(*_: object) -> Synthetic:
        time.sleep(0.1)
        return Synthetic(0.0, 1)

    record = Backoff.record_success

    def record_success(backoff: Backoff, seconds: float) -> None:
        played.append(seconds)
        record(backoff, seconds)

    monkeypatch.setattr(Backoff, "record_success", record_success)
    policy = StreamPolicy(initial_backoff=0.001, max_backoff=0.01)
    with Feed(to_streams(["0"]), policy, open_slowly) as feed:
        wait_for(feed, lambda _: len(played) >= 3)
    assert max(played[:3]) < 0.1


def test_absent_camera_is_an_error() -> None:
    policy = StreamPolicy(timeout=1.0, retries=0)
    with Feed(to_streams(["/dev/video977"]), policy) as feed:
        assert not any(rounds(feed))
        assert feed.readers[0].health().error == "camera /dev/video977 does not exist"


@pytest.mark.skipif(
    cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER), reason="this OpenCV has GStreamer"
)
def test_missing_gstreamer_is_an_error() -> None:
    from ffd_runtime.video.capture import require_gstreamer

    with pytest.raises(BackendError, match="built without GStreamer"):
        require_gstreamer()


_SILENT = "import sys; sys.stdin.readline(); {}; sys.stdin.read()"
# It announces a description of five bytes and sends two of them.
_STALLED = _SILENT.format(
    "import struct; head = struct.pack('=c3I3d', b'O', 5, 0, 0, 0, 0, 0); "
    "sys.stdout.buffer.write(head + b'ab'); "
    "sys.stdout.flush()"
)


@pytest.mark.parametrize("program", [_SILENT.format("pass"), _STALLED], ids=["silent", "stalled"])
def test_silent_reader_process_fails_before_it_is_reported_as_hanging(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    real, waits = remote_reader._readable, list[float]()

    def readable(source: int, seconds: float) -> bool:
        waits.append(seconds)
        if program == _STALLED and len(waits) < 3:
            return real(source, WATCHDOG)
        return False

    monkeypatch.setattr(remote_reader, "_BOOTSTRAP", program)
    monkeypatch.setattr(remote_reader, "_readable", readable)
    begin = time.monotonic()
    with pytest.raises(InputError, match="no data within 100 s"):
        RemoteCapture(to_streams(["rtsp://127.0.0.1:9/door"])[0], timeout=100.0)
    # The whole time until the error, if the process had been waited for.
    assert time.monotonic() - begin + waits[-1] < 100 + HANG_MARGIN_SECONDS


@pytest.mark.alone
def test_hanging_reader_is_reported_and_does_not_block_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ffd_runtime.video.stream_reader.HANG_MARGIN_SECONDS", 0.1)
    release = threading.Event()

    def hang(*_: object) -> OpenCVCapture:
        release.wait(WATCHDOG)
        raise AssertionError

    policy = StreamPolicy(timeout=0.2)
    with Feed(to_streams(["0"]), policy, hang) as feed:
        states = wait_for(feed, lambda states: states[0].state == "waiting")
        assert "hangs" in (states[0].error or "")
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    release.set()

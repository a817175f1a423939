from __future__ import annotations

import string
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ffd_runtime.cli.run_streams import accepts
from ffd_runtime.core.redact import redact
from ffd_runtime.video.lag_estimator import (
    MIN_BACKWARD_JUMP_SECONDS,
    MIN_CLOCK_JUMP_SECONDS,
    LagEstimator,
)
from ffd_runtime.video.remote_reader import open_capture
from ffd_runtime.video.stream_address import is_stream, to_streams
from ffd_runtime.video.stream_policy import Backoff, FrameSampler, StreamPolicy

# Without characters that are special in an address.
secrets = st.text(string.ascii_uppercase + string.digits + "@:/%!$'()*+,;=._~-", min_size=6)
words = st.text(string.ascii_uppercase + string.digits + "-_.~", min_size=6)


@pytest.mark.parametrize("image", ["https://example.com/a.jpg", "portrait.jpg"])
def test_a_web_video_beside_an_image_is_not_a_live_stream(
    image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = ("https://u:secret@example.com/clip.mp4?token=abc", "https://example.com/b.mkv")
    options = {"gst": False, "stream": False}
    assert accepts(videos, options)
    assert not accepts((*videos, image), options)
    shown = "https://***@example.com/clip.mp4?token=*** is treated as an image"
    assert shown in capsys.readouterr().err


def test_an_address_beside_a_live_stream_is_one() -> None:
    assert accepts(("0", "https://example.com/a.jpg"), {"gst": False, "stream": False})


@given(secrets, secrets)
def test_user_and_password_are_not_shown(user: str, password: str) -> None:
    shown = redact(f"rtsp://{user}:{password}@camera.example:554/live?channel=1")
    if {*"/="} <= {*user, *password} and shown == "rtsp://***":
        # It may be a path with a secret parameter, so all is hidden.
        return
    assert shown == "rtsp://***@camera.example:554/live?channel=1"


@given(
    st.sampled_from(
        [
            "rtsp://camera.example/live?user={0}&password={1}&channel=1",
            "rtsp://camera.example/user={0}&passwd={1}_channel=1_stream=0.sdp",
            "http://camera.example/cgi/mjpg?loginuse={0}&loginpas={1}",
            "http://camera.example/video?access_token={0}&sig={1}",
            'rtspsrc location=rtsp://camera.example/live user-id={0} user-pw="{1}" ! appsink',
            "rtspsrc location=rtsp://{0}:{1}@camera.example/live ! decodebin ! appsink",
            "rtspsrc location=rtsp://camera.example/live user-pw='{0} {1}' ! appsink",
            'souphttpsrc location=http://camera.example extra-headers="a,Authorization=(string)'
            '\\"Basic {0} {1}\\"" ! appsink',
            "rtsp://camera.example/live?jwt={0}&session={1}",
            "rtsp://admin:{0} {1}@camera.example/live",
        ]
    ),
    words,
    words,
)
def test_credentials_anywhere_in_an_address_are_not_shown(form: str, user: str, word: str) -> None:
    shown = redact(form.format(user, word))
    assert user not in shown
    assert word not in shown
    assert "camera.example" in shown


@given(st.lists(st.sampled_from(["rtsp://a:b@c/d", "rtsp://x:y@c/d", "rtsp://c/d", "0"])))
def test_stream_names_are_unique(sources: list[str]) -> None:
    streams = to_streams(sources)
    assert len({stream.name for stream in streams}) == len(sources)
    assert not any("x:y" in repr(stream) for stream in streams)


@pytest.mark.parametrize(
    ("source", "kind", "target"),
    [
        ("0", "camera", 0),
        ("/dev/video2", "camera", "/dev/video2"),
        ("rtsp://camera/live", "server", "rtsp://camera/live"),
        ("RTSP://camera/live", "server", "RTSP://camera/live"),
        ("srt://camera:9000", "server", "srt://camera:9000"),
        ("http://camera/video.mjpg?x=1", "server", "http://camera/video.mjpg?x=1"),
        ("door=rtsp://camera/live", "server", "rtsp://camera/live"),
        ("desk=1", "camera", 1),
        ("front.door = rtsp://camera/live", "server", "rtsp://camera/live"),
    ],
)
def test_sources_that_are_streams(source: str, kind: str, target: str | int) -> None:
    assert is_stream(source)
    (stream,) = to_streams([source])
    assert (stream.kind, stream.target, stream.live) == (kind, target, True)


def test_sources_that_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Names that some tools give to folders.
    Path("day=12").mkdir()
    assert not is_stream("day=12")
    for name in ("clip.MP4", "0", "a=b.mp4"):
        Path(name).write_bytes(b"?")
    assert is_stream("clip.MP4")
    assert is_stream("a=b.mp4")
    # The name of a video is not part of its path, unless a file has that path.
    for source, name, path in (
        ("door=clip.MP4", "door", "clip.MP4"),
        ("a=b.mp4", "a=b.mp4", "a=b.mp4"),
        ("x=a=b.mp4", "x", "a=b.mp4"),
    ):
        assert is_stream(source)
        (stream,) = to_streams([source])
        assert (stream.name, stream.target, stream.live) == (name, path, False)
    # Not streams: a file named like a camera, a folder, a missing path.
    assert not is_stream("door=absent.mp4")
    assert not is_stream("folder/door=clip.MP4")
    assert not is_stream("0")
    assert not is_stream("folder.mp4")
    assert not is_stream("http://example.org/a.jpg")
    assert is_stream("http://example.org/a.jpg", web=True)
    assert not is_stream("a\0b")
    # The address of a file.
    (stream,) = to_streams(["http://example.org/clip.mp4"])
    assert (stream.kind, stream.live) == ("file", False)
    (stream,) = to_streams(["clip.MP4"])
    assert (stream.kind, stream.live, stream.name) == ("file", False, "clip.MP4")


@pytest.mark.parametrize(
    "name",
    [
        "cam:1.mp4",
        "2024-11-14T22:57:44.mp4",
        "http:a.mp4",
        "rtsp:cam.mkv",
        "concat:a.mp4|b.mp4",
        "subfile,,start,1,end,9,,:a.mp4",
        "file:x.avi",
        "a,b.mp4",
        "x=y:1.mp4",
        "-x.mp4",
    ],
)
def test_existing_path_with_a_colon_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    video = cv2.VideoWriter(
        f"{tmp_path}/video.mkv", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48)
    )
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    Path("video.mkv").replace(name)
    for source in (name, f"{tmp_path}/{name}"):
        assert is_stream(source)
        (stream,) = to_streams([source])
        assert (stream.name, stream.kind) == (source, "file")
        with closing(open_capture(stream, 10.0)) as capture:
            assert capture.grab()
            assert capture.retrieve() is not None


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["door=rtsp://a", "door=rtsp://b", "door#2=rtsp://c"], ["door", "door#3", "door#2"]),
        (["door#2=rtsp://c", "door=rtsp://a", "door=rtsp://b"], ["door#2", "door", "door#3"]),
        (["0", "0=rtsp://a", "0#2=rtsp://b"], ["0#3", "0", "0#2"]),
        (["rtsp://a:1@b", "rtsp://a:2@b"], ["rtsp://***@b", "rtsp://***@b#2"]),
        (["0", "0", "0"], ["0", "0#2", "0#3"]),
    ],
)
def test_names_are_unique(sources: list[str], names: list[str]) -> None:
    streams = to_streams(iter(sources))
    assert [stream.name for stream in streams] == names
    assert to_streams(sources) == streams


@given(st.floats(0.01, 10), st.floats(1, 100), st.integers(1, 50))
def test_backoff_grows_to_its_limit(first: float, times: float, count: int) -> None:
    backoff = Backoff(first, first * times)
    waits = [backoff.next_delay() for _ in range(count)]
    whole = [min(first * 2**n, first * times) for n in range(count)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, whole, strict=True))
    backoff.record_success(first / 2)
    assert backoff.next_delay() >= min(first * 2**count, first * times) / 2
    backoff.record_success(first * times * 2 + 1)
    assert backoff.next_delay() <= first


def test_lag_grows_with_the_backlog() -> None:
    lag = LagEstimator()
    # Many servers start with a burst of old frames.
    assert [lag.measure(10 + n / 25, 100 + n / 250, 0.0) for n in range(25)] == [0] * 25
    # Decoding is then slower than the stream: 2 s late after 100 frames.
    lags = [lag.measure(11 + n / 25, 100.1 + n * 0.06, 0.0) for n in range(101)]
    assert lags == sorted(lags)
    assert lags[-1] - lags[0] == pytest.approx(2, abs=0.01)
    # The camera's clock was set: there is no backlog.
    assert lag.measure(15.0 + 2 * MIN_CLOCK_JUMP_SECONDS, 106.2, 0.0) == 0
    assert lag.measure(0.0, 106.3, 0.0) == 0
    # A small step back, for example of unsorted timestamps, is not a jump.
    assert lag.measure(-MIN_BACKWARD_JUMP_SECONDS / 2, 106.3, 0.0) > 0
    assert lag.measure(-2 * MIN_BACKWARD_JUMP_SECONDS, 106.3, 0.0) == 0


# The wait for the next frame may include the stop.
@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("waited", [0.0, 0.03])
def test_frames_after_a_stop_of_the_process_are_late(waited: float, share: int) -> None:
    lag, stop = LagEstimator(), 2 * MIN_CLOCK_JUMP_SECONDS
    assert all(lag.measure(n / 25, 100 + n / 25, waited) < 0.01 for n in range(50))
    lags = [lag.measure(2.0, 102 + stop, share * stop)]
    # The frames that queued up are read without waiting, ten times as fast.
    lags += [lag.measure(2 + n / 25, 102 + stop + n / 250, 0.0) for n in range(1, 25)]
    assert lags == pytest.approx([stop - 0.036 * n for n in range(25)], abs=0.02)


@given(st.floats(0.3, 3))
def test_camera_with_a_wrong_clock_rate_has_no_lag(speed: float) -> None:
    lag = LagEstimator()
    lags = [lag.measure(n / 25 * speed, n / 25, 0.02) for n in range(2_000)]
    assert max(lags) < 0.1


@given(st.integers(1, 9), st.integers(0, 100))
def test_sampler_takes_every_nth_frame(every: int, count: int) -> None:
    sampler = FrameSampler(StreamPolicy(every=every))
    assert [n for n in range(count) if sampler.takes(n, 0.0)] == list(range(0, count, every))


@given(st.floats(0.1, 60), st.sampled_from([24.0, 25.0, 29.97, 60.0]))
@example(29.96875, 29.97)
@example(24.090396706775625, 24.0)
def test_sampler_limits_frames_per_second(wanted: float, rate: float) -> None:
    sampler = FrameSampler(StreamPolicy(fps=wanted))
    seconds = 20
    taken = sum(sampler.takes(n, round(n / rate, 3)) for n in range(round(rate * seconds)))
    assert abs(taken - min(wanted, rate) * seconds) <= 2
    # The clock steps back: the sampler restarts.
    assert sampler.takes(0, -1000.0)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"retries": -1}, {"every": 0}, {"fps": 0.0}, {"initial_backoff": 31.0}],
)
def test_invalid_policy_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        StreamPolicy(**wrong)  # type: ignore[arg-type]

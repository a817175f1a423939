"""Run ffd-run on streams as a user does: real servers, signals and files."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ffd_runtime.cli.run import main

from ..conftest import load, picture
from ..servers import RtspServer, free_port, rtsp, say_nothing, send_pictures, serving
from ..videos import write_audio, write_two_videos, write_video
from .in_process import invoke

__all__ = ["rtsp"]

COMMAND = str(Path(sys.executable).with_name("ffd-run"))
WATCHDOG = 60
FRAMES = 125


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([COMMAND, *map(str, arguments)], text=True, **{**pipes, **options})


def finish(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]], str]:
    out, err = process.communicate(timeout=WATCHDOG)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def run(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    return finish(start(*arguments))


def run_here(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    """Like `run`, but in this process."""
    done = invoke(main, "ffd-run", *arguments)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.exit_code, rows, done.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of red frames, then four of blue ones."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, (160, 120))
    for number in range(FRAMES):
        writer.write(picture("red" if number < 25 else "blue", 120, 160, seed=number))
    writer.release()
    return path


def test_video_file_has_one_row_per_frame(clip: Path, colour_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    command = (clip, "--no-faces", "--model", colour_model, "--json", "--output", output)
    code, rows, err = run_here(*command)
    assert code == 0, err
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    assert [row["label"] for row in rows] == ["generated"] * 25 + ["groundtruth"] * 100
    assert [row["time"] for row in rows] == [round(n / 25, 3) for n in range(FRAMES)]
    assert {row["track"]["number"] for row in rows} == {1}
    labels = [row["track"]["label"] for row in rows]
    # The smoothed label changes later, and may be unsure in between.
    assert sum(a != b for a, b in itertools.pairwise(labels)) <= 2
    assert labels[26] == "generated"
    assert labels[-1] == "groundtruth"
    with output.open() as file:
        written = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in written] == list(range(FRAMES))
    assert written[-1]["track_label"] == "groundtruth"
    assert f"{FRAMES} of {FRAMES} frames" in err


@pytest.mark.parametrize("fields", ["tff", "bff"])
def test_interlaced_video_without_an_extension_is_classified(
    fields: str, colour_model: Path, tmp_path: Path
) -> None:
    pictures = [picture("red", 120, 160, seed=number) for number in range(5)]
    path = write_video(tmp_path / "a.mp4", pictures, fields=fields).rename(tmp_path / "recording")
    code, rows, err = run_here(path, "--no-faces", "--model", colour_model)
    assert code == 0, err
    assert [row["label"] for row in rows] == ["generated"] * 5
    assert [row["time"] for row in rows] == [0.0, 0.04, 0.08, 0.12, 0.16]
    assert f"{path} is a video, according to its content" in err


def test_damaged_frame_is_an_error_row(colour_model: Path, tmp_path: Path) -> None:
    pictures = [picture("red", 120, 160, seed=number) for number in range(6)]
    path = write_video(tmp_path / "a.avi", pictures, "mjpeg", pix_fmt="yuvj420p")
    data = path.read_bytes()
    # Overwrite most of the third picture.
    begin = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)][2]
    path.write_bytes(data[:begin] + b"?" * 2000 + data[begin + 2000 :])
    code, rows, err = run_here(path, "--no-faces", "--model", colour_model)
    assert code == 3
    assert [row["frame"] for row in rows if not row["error"]] == [0, 1, 3, 4, 5]
    assert [row["error"] for row in rows if row["error"]] == [
        {"code": "corrupt", "message": "1 of 6 frames could not be decoded"}
    ]
    assert "6 frames, 1 damaged" in err


def test_missing_or_ambiguous_video_stream_is_reported(colour_model: Path, tmp_path: Path) -> None:
    sound = write_audio(tmp_path / "song.mp4", picture("red", 120, 160))
    code, rows, _ = run_here(sound, "--no-faces", "--model", colour_model)
    assert (code, rows[0]["error"]["code"]) == (3, "unsupported")
    assert rows[0]["error"]["message"] == "an audio file with a cover image, not a video"
    two = write_two_videos(tmp_path / "two.mkv", picture("red"), picture("blue"))
    code, rows, err = run_here(two, "--no-faces", "--model", colour_model)
    assert (code, len(rows)) == (0, 1)
    assert f"{two}: 1 of 1 frames, video stream 1 of 2" in err


def test_events_are_only_the_label_changes(clip: Path, colour_model: Path) -> None:
    options = ("--no-faces", "--model", colour_model, "--events", "--every", 2)
    code, rows, err = run_here(clip, *options)
    assert code == 0, err
    labels = [row["track"]["label"] for row in rows]
    assert len(labels) <= 3
    assert all(a != b for a, b in itertools.pairwise(labels))
    assert (labels[0], labels[-1]) == ("generated", "groundtruth")
    assert all(row["frame"] % 2 == 0 for row in rows)


def test_table_shows_changes_and_the_file_has_all_rows(
    clip: Path, colour_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.csv"
    process = start(clip, "--no-faces", "--model", colour_model, "--table", "--output", output)
    out, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 0, err
    assert len(out.splitlines()) <= 1 + 3
    assert "generated" in out
    assert "photograph" in out
    with output.open() as file:
        assert len(list(csv.DictReader(file))) == FRAMES


def test_invalid_video_is_an_error_row(clip: Path, colour_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"text " * 100)
    code, rows, err = run_here(bad, clip, "--no-faces", "--model", colour_model)
    assert code == 3
    assert len(rows) == FRAMES + 1
    (error,) = [row for row in rows if row["error"]]
    assert (error["source"], error["error"]["code"]) == (str(bad), "corrupt")
    assert "Traceback" not in err


def test_passwords_are_not_shown(rtsp: RtspServer, colour_model: Path) -> None:
    rtsp.start()
    dead = f"rtsp://admin:hunter2secret@127.0.0.1:{free_port()}/live?password=hunter2secret"
    live = rtsp.address.replace("rtsp://", "rtsp://admin:hunter2secret@")
    process = start(
        live, dead, "--no-faces", "--model", colour_model, "--timeout", 1, "--debug", "-v"
    )
    assert process.stdout
    assert process.stderr
    lines = [process.stdout.readline() for _ in range(30)]
    said = ""
    while "refused" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 130, err
    assert "hunter2secret" not in "".join(lines) + out + said + err
    assert any(json.loads(line)["label"] for line in lines)


@pytest.mark.alone
def test_sigterm_ends_the_run_within_two_seconds_with_complete_files(
    rtsp: RtspServer, colour_model: Path, tmp_path: Path
) -> None:
    rtsp.start(width=320, height=240, fps=50)
    film, rows = tmp_path / "film.mp4", tmp_path / "rows.jsonl"
    rows.write_text('{"cut": tr')
    with serving(say_nothing) as hanging:
        process = start(
            *(rtsp.address, f"rtsp://127.0.0.1:{hanging}/x", "--no-faces"),
            *("--model", colour_model, "--record", film, "--output", rows),
        )
        begin = time.monotonic()
        while rows.stat().st_size < 20_000:
            time.sleep(0.05)
            assert time.monotonic() - begin < WATCHDOG
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        _, err = process.communicate(timeout=WATCHDOG)
        assert time.monotonic() - begin < 2
    assert process.returncode == 143, err
    # The torn row of an earlier run is gone.
    assert len([json.loads(line) for line in rows.read_text().splitlines()]) > 50
    (recorded,) = tmp_path.glob("film*.mp4")
    capture = cv2.VideoCapture(str(recorded))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames > 10


def test_invalid_combinations_are_usage_errors(clip: Path, portraits: Path, tmp_path: Path) -> None:
    for arguments, said in [
        (("0", portraits), "is not a stream"),
        ((clip, "--resume", "--output", tmp_path / "a.jsonl"), "--resume applies only to images"),
        ((portraits, "--show"), "--show applies only to streams"),
        ((portraits, "--every", 2), "--every applies only to streams"),
        (("http://127.0.0.1:1/a.jpg", "--events"), "--events applies only to streams"),
        ((clip, "--serve", "nonsense:port"), "--serve"),
        (("ftp://a/b",), "is not a supported address"),
        ((clip, "--batch", 2), "--batch applies only to images"),
        ((portraits, "--token", "x" * 16), "--token applies only to streams"),
        ((clip, "--token", "x" * 16), "--token needs --serve"),
        ((clip, "--retries", 3), "--retries applies only to live streams"),
    ]:
        code, rows, err = run_here(*arguments)
        assert (code, rows) == (2, []), err
        assert said in err
        assert len(err.splitlines()) <= 2


def test_startup_errors_are_one_line(clip: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing.csv"
    existing.write_text("source\n")
    for arguments, said in [
        (("0", "--output", tmp_path / "a.csv"), "append to a .jsonl file: change the name"),
        (("videotestsrc ! appsink", "--gst"), "without GStreamer"),
        ((clip, "--record", tmp_path / "a.gif"), "a.gif"),
        ((clip, "--face-model", tmp_path / "absent.onnx"), "absent.onnx"),
        ((clip, "--output", existing), "exists: replace it with --overwrite, or name another file"),
    ]:
        code, rows, err = run_here(*arguments)
        assert (code, rows) == (1, []), err
        assert said in err
        assert "Traceback" not in err


def test_http_address_is_a_stream_only_with_the_option(colour_model: Path) -> None:
    with serving(send_pictures) as port:
        address = f"http://127.0.0.1:{port}/picture"
        code, rows, _ = run(address, "--allow-private", "--model", colour_model)
        assert code == 3
        assert "--stream" in rows[0]["error"]["message"]
        process = start(address, "--stream", "--no-faces", "--model", colour_model)
        assert process.stdout
        assert json.loads(process.stdout.readline())["frame"] is not None
        process.terminate()
        process.communicate(timeout=WATCHDOG)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_systemd_is_notified(colour_model: Path, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(WATCHDOG)
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        process = start(
            f"rtsp://127.0.0.1:{free_port()}/x",
            *("--no-faces", "--model", colour_model),
            env=environment,
        )
        first = listener.recv(1000).decode().splitlines()
        assert {"READY=1", "WATCHDOG=1", "STATUS=0 of 1 streams play"} == set(first)
        assert listener.recv(1000) == b"WATCHDOG=1"
        process.terminate()
        while listener.recv(1000) != b"STOPPING=1":
            pass
        process.communicate(timeout=WATCHDOG)


def test_closed_pipe_ends_the_run_quietly(clip: Path, colour_model: Path) -> None:
    process = start(clip, "--no-faces", "--model", colour_model)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    err = process.stderr.read()
    assert process.wait(WATCHDOG) == 1
    assert "Traceback" not in err


def test_resume_completes_an_image_with_some_faces_written(
    faces: Path, face_model: Path, colour_model: Path, tmp_path: Path
) -> None:
    folder, output = tmp_path / "groups", tmp_path / "rows.jsonl"
    folder.mkdir()
    photographs = sorted((faces / "test" / "groundtruth").iterdir())[:3]
    group = np.hstack([load(path) for path in photographs])
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), group)
    command = [folder, "--faces", "--face-model", face_model, "--model", colour_model]
    command += ["--output", output, "--report", tmp_path / "page.html"]
    code, _, err = run_here(*command)
    assert code == 0, err
    whole = output.read_text()
    assert len(whole.splitlines()) == 6
    # Six rows of two inputs.
    assert "\n6 rows: " in err
    assert "<h1>6 rows</h1>" in (tmp_path / "page.html").read_text()
    origin = tmp_path / "rows.jsonl.origin.json"
    for kept in (1, 2, 3, 5):
        # The state after a kill.
        partial = tmp_path / "rows.jsonl.partial"
        partial.write_text("".join(whole.splitlines(keepends=True)[:kept]))
        origin.rename(tmp_path / "rows.jsonl.partial.origin.json")
        output.unlink()
        code, _, err = run_here(*command, "--resume")
        assert code == 0, err
        assert output.read_text() == whole
    code, _, err = run_here(*command, "--resume", "--min-face", 20)
    assert code == 1
    assert "other preprocessing" in err


@pytest.mark.parametrize(
    "line",
    [
        "\ufeffrtsp://admin:hunter2secret@127.0.0.1:9/x",
        '"rtsp://admin:hunter2secret@127.0.0.1:9/x"',
        "front.door = rtsp://admin:hunter2secret@127.0.0.1:9/x",
        "a/b=rtsp://admin:hunter2secret@127.0.0.1:9/x",
        "rtsp://admin:hunter2secret with a space@127.0.0.1:9/x",
        "rtps://admin:hunter2secret@127.0.0.1:9/x",
    ],
)
def test_passwords_in_malformed_lines_are_not_shown(
    line: str, colour_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "sources"
    listed.write_text(line + "\n", encoding="utf-8")
    options = ("--model", colour_model, "--debug")
    code, rows, err = run_here("--sources", listed, *options, "--retries", 0, "--no-faces")
    if code == 2:
        # The line is not a stream, which --retries requires: run it as a path.
        code, rows, err = run_here("--sources", listed, *options)
    assert code in (2, 3)
    # The reader's process and native libraries write to the file descriptors.
    written = "".join(capfd.readouterr())
    assert "hunter2" not in json.dumps(rows) + err + written
    with listed.open("rb") as file:
        done = subprocess.run(
            [COMMAND, "-", "--model", str(colour_model)], stdin=file, capture_output=True
        )
    assert b"hunter2" not in done.stdout + done.stderr


def test_killed_run_leaves_no_reader_process(rtsp: RtspServer, colour_model: Path) -> None:
    rtsp.start()
    process = start(rtsp.address, "--no-faces", "--model", colour_model)
    assert process.stdout
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    (worker,) = [int(number) for path in children for number in path.read_text().split()]
    process.kill()
    process.communicate(timeout=WATCHDOG)
    begin = time.monotonic()
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.02)
        assert time.monotonic() - begin < WATCHDOG


def test_full_disk_is_an_error(clip: Path, colour_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    output.symlink_to("/dev/full")
    code, _, err = run(
        f"http://127.0.0.1:{free_port()}/x.mjpg",
        "--model",
        colour_model,
        "--no-faces",
        "--output",
        output,
    )
    assert code == 1
    assert f"cannot write to {output}: No space left on device" in err


def test_video_among_images_is_an_error_row(
    clip: Path, portraits: Path, colour_model: Path
) -> None:
    code, rows, err = run_here(clip, portraits, "--model", colour_model)
    assert code == 3
    assert [row["error"] and row["error"]["code"] for row in rows] == ["not_an_image"] + [None] * 3
    assert "classify videos in a separate run" in err


def test_sources_from_a_file(clip: Path, colour_model: Path, tmp_path: Path) -> None:
    listed = tmp_path / "sources"
    listed.write_text(f"# cameras\n\n{clip}\n")
    options = ("--no-faces", "--model", colour_model, "--every", 50)
    code, rows, _ = run_here("--sources", listed, *options)
    assert (code, [row["frame"] for row in rows]) == (0, [0, 50, 100])
    code, _, err = run_here("--sources", tmp_path / "absent")
    assert code == 1
    assert "absent: No such file" in err
    assert run_here()[0] == 2

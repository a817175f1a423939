"""ffd-run as a user starts it: processes, real files, exit codes and streams."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

import ffd_runtime
from ffd_runtime.cli.run import main

from ..conftest import picture
from ..models import save_colour_model
from .in_process import invoke

ROW = "source frame face label score error reason time track".split()
COMMAND = Path(sys.executable).with_name("ffd-run")


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    defaults: dict[str, Any] = streams
    command = [os.fsencode(str(part)) for part in (COMMAND, *arguments)]
    return subprocess.Popen(command, **{**defaults, **options})


def run(*arguments: object, **options: Any) -> tuple[int, str, str]:
    given = options.pop("input", None)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    process = start(*arguments, **options)
    out, err = process.communicate(given, timeout=120)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def run_here(*arguments: object) -> tuple[int, str, str]:
    """Like `run`, but in this process."""
    done = invoke(main, "ffd-run", *arguments)
    return done.exit_code, done.stdout, done.stderr


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def png_bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b""))
    )


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Write files of many kinds; return the label or error code that each must have."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    red = np.ascontiguousarray(picture("red", 160, 120))
    ok, encoded = cv2.imencode(".jpg", red)
    assert ok
    jpeg = encoded.tobytes()
    pillow = Pillow.fromarray(red[..., ::-1])
    exif = Pillow.Exif()
    exif[0x0112] = 6

    def save(name: str, image: Any, **options: Any) -> None:
        image.save(folder / name, **options)

    cv2.imwrite(str(folder / "good-blue.png"), np.ascontiguousarray(picture("blue")))
    (folder / "good-red.jpg").write_bytes(jpeg)
    cv2.imwrite(str(folder / "sixteen-bit.png"), red.astype(np.uint16) * 257)
    save("cmyk.jpg", pillow.convert("CMYK"), quality=95)
    save("grey.png", pillow.convert("L"))
    save("alpha.png", pillow.convert("RGBA"))
    save("exif.jpg", pillow, exif=exif)
    save("one-pixel.png", Pillow.new("RGB", (1, 1), (250, 20, 20)))
    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    # These are not images by name and content. They are counted and have no rows.
    (folder / "notes.txt").write_text("no picture")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\0")
    (folder / "html.jpg").write_text("<!DOCTYPE html>")
    (folder / "cut off").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "bomb.png").write_bytes(png_bomb(20_000))
    (folder / "forbidden.jpg").write_bytes(jpeg)
    (folder / "forbidden.jpg").chmod(0)
    (folder / "broken-link.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "new\nline\x1b[31m.jpg").write_bytes(jpeg)
    (folder / os.fsdecode(b"bytes-\xff\xfe.jpg")).write_bytes(jpeg)
    return folder, {
        "good-blue.png": "groundtruth",
        "good-red.jpg": "generated",
        "sixteen-bit.png": "generated",
        "cmyk.jpg": "generated",
        "grey.png": "unsure",
        "alpha.png": "generated",
        "exif.jpg": "generated",
        "one-pixel.png": "generated",
        "empty.jpg": "empty",
        "truncated.jpg": "truncated",
        "html.jpg": "not_an_image",
        "cut off": "truncated",
        "bomb.png": "too_large",
        "forbidden.jpg": "permission_denied",
        "broken-link.jpg": "not_found",
        "loop.jpg": "link_loop",
        "sub/up": "link_loop",
        "pipe.jpg": "not_a_file",
        "new\nline\x1b[31m.jpg": "generated",
        os.fsdecode(b"bytes-\xff\xfe.jpg"): "generated",
    }


def as_ordinary_user() -> list[str]:
    """Return a prefix that runs a command without root's right to read every file."""
    if os.geteuid():
        return []
    tool = shutil.which("setpriv")
    assert tool, "run the tests as an ordinary user, or install util-linux"
    return [tool, "--bounding-set", "-dac_override,-dac_read_search"]


def test_folder_of_mixed_files(mixed: tuple[Path, dict[str, str]], colour_model: Path) -> None:
    folder, expected = mixed
    command = [*as_ordinary_user(), str(COMMAND), str(folder), "--model", str(colour_model)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    rows = rows_of(done.stdout.decode())
    found = {
        row["source"].removeprefix(f"{folder}/"): row["label"] or row["error"]["code"]
        for row in rows
    }
    assert found == expected
    assert len(rows) == len(expected)
    assert [row["source"] for row in rows] == sorted(row["source"] for row in rows)
    for row in rows:
        assert list(row) == ROW
        assert (row["error"] is None) == (row["score"] is not None)
        assert row["error"] is None or row["error"]["message"]
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout + done.stderr
    summary = done.stderr.decode().splitlines()[-1]
    assert summary.startswith("20 inputs: 8 generated, 1 photograph, 1 unsure, 10 errors (")
    assert summary.endswith("; skipped 2 files that are not images: .DS_Store, notes.txt")


def test_valid_files_exit_with_0(portraits: Path, colour_model: Path) -> None:
    code, out, err = run(portraits, "--model", colour_model)
    assert code == 0
    assert [row["label"] for row in rows_of(out)] == ["generated", "groundtruth", "generated"]
    first, summary = err.splitlines()
    assert first.startswith("colour (colour, fp32), onnxruntime")
    assert summary.startswith("3 inputs: 2 generated, 1 photograph, 0 unsure, 0 errors (")


def test_paths_on_standard_input(portraits: Path, colour_model: Path) -> None:
    names = sorted(map(str, portraits.iterdir()))
    for end, option in (("\n", ()), ("\0", ("--null",))):
        code, out, _ = run(
            "-", *option, "--model", colour_model, input=os.fsencode(end.join(names))
        )
        assert code == 0
        assert [row["source"] for row in rows_of(out)] == names


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_output_file_in_the_source_folder_is_not_classified(
    portraits: Path, colour_model: Path, ending: str
) -> None:
    output = portraits / f"rows.{ending}"
    for again in ((), ("--overwrite",)):
        code, out, _ = run_here(portraits, "--model", colour_model, "--output", output, *again)
        assert (code, out) == (0, "")
        if ending == "csv":
            labels = [row["label"] for row in csv.DictReader(io.StringIO(output.read_text()))]
        else:
            labels = [row["label"] for row in rows_of(output.read_text())]
        assert labels == ["generated", "groundtruth", "generated"]


def test_table_has_one_line_per_verdict(portraits: Path, colour_model: Path) -> None:
    code, out, _ = run_here(portraits, "--model", colour_model, "--table")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "verdict",
        "generated",
        "photograph",
        "generated",
    ]
    assert "\x1b" not in out


def test_terminal_output_has_colour(portraits: Path, colour_model: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = start(
        portraits, "--model", colour_model, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            seen += chunk
    except OSError:  # Linux raises it when the other end is closed
        pass
    assert process.wait(60) == 0
    assert b"\x1b[1;31mgenerated" in seen
    assert b"3 inputs" in seen


def test_invalid_usage_is_a_one_line_error(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    no_card = save_colour_model(tmp_path / "no-card.onnx", card=None)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "x").mkdir()
    for arguments, code, message in (
        ((portraits, "--model", tmp_path / "absent.onnx"), 1, "no such file"),
        ((portraits, "--model", no_card), 1, "has no model card"),
        ((portraits, "--model", colour_model, "--device", "gpu"), 2, "unknown device"),
        ((portraits, "--model", tmp_path), 1, "is a folder: name a file"),
        ((portraits, "--model", tmp_path / "\x1b[31m.onnx"), 1, "\\x1b[31m.onnx: no such file"),
        ((portraits, "--model", colour_model, "--output", "rows.txt"), 1, "must end with"),
        ((portraits, "--model", colour_model, "--output", "/proc/x.csv"), 1, "cannot write"),
        ((portraits, "--output", tmp_path / "folder.csv"), 1, "is a folder: name a file"),
        ((no_card, "--output", tmp_path / "x/../y.csv", tmp_path / "y.csv"), 2, "is also a SOURCE"),
        (("ftp://camera/1",), 2, "is not a supported address"),
        ((), 2, "Missing argument"),
        ((portraits, "--batch", "0"), 2, "Invalid value for '--batch'"),
    ):
        ended, out, err = run_here(*arguments)
        assert ended == code, err
        assert out == ""
        assert message in err.splitlines()[-1]
        assert err.splitlines()[-1].startswith("ffd-run: error: ")
        assert len(err.splitlines()) <= 2
        assert "\x1b" not in err


def test_closed_streams_fail_and_ascii_output_is_escaped(
    portraits: Path, colour_model: Path
) -> None:
    command = f'"{COMMAND}" - --model "{colour_model}"'
    for redirection in ("<&-", ">&- </dev/null"):
        done = subprocess.run(
            f"{command} {redirection}", shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "closed" in done.stderr.splitlines()[-1]
    (portraits / "0-red.png").rename(portraits / "é.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code, out, _ = run(portraits, "--model", colour_model, "--table", env=environment)
    assert code == 0
    assert "\\xe9.png" in out


def test_closed_stderr_loses_no_row(portraits: Path, colour_model: Path) -> None:
    command = f'"{COMMAND}" "{portraits}" --model "{colour_model}" 2>&-'
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert len(rows_of(done.stdout)) == 3


def test_each_path_on_a_pipe_has_its_row_immediately(portraits: Path, colour_model: Path) -> None:
    ours, theirs = os.pipe()
    # A producer may have made its pipe non-blocking, and it waits for each row.
    os.set_blocking(ours, False)
    process = start("-", "--model", colour_model, stdin=ours)
    os.close(ours)
    assert process.stdout
    for name, label in (("0-red.png", "generated"), ("1-blue.png", "groundtruth")):
        os.write(theirs, f"{portraits}/{name}\n".encode())
        assert json.loads(process.stdout.readline())["label"] == label
    os.close(theirs)
    assert process.wait(60) == 0


def test_debug_shows_the_traceback(portraits: Path) -> None:
    code, _, err = run(portraits, "--model", "absent.onnx", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_missing_source_is_an_error_row(colour_model: Path) -> None:
    code, out, _ = run_here("absent/", "absent*.jpg", "--model", colour_model)
    assert code == 3
    assert [row["error"]["code"] for row in rows_of(out)] == ["not_found"] * 2


def test_empty_folder_is_reported(tmp_path: Path, colour_model: Path) -> None:
    (tmp_path / "nothing").mkdir()
    code, out, err = run_here(tmp_path / "nothing", "--model", colour_model)
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == "no files found"


def test_closed_pipe_ends_the_run_without_a_traceback(portraits: Path, colour_model: Path) -> None:
    process = start("-", "--batch", "1", "--model", colour_model, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    names = f"{portraits}/0-red.png\n".encode() * 200
    try:
        process.stdin.write(names)
        process.stdin.close()
    except BrokenPipeError:
        pass
    assert process.wait(60) == 1
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_of_standard_output_is_an_error(portraits: Path, colour_model: Path) -> None:
    with open("/dev/full", "wb") as full:
        code, _, err = run(portraits, "--model", colour_model, stdout=full)
    assert code == 1
    assert "cannot write to standard output: No space left on device" in err
    assert "Traceback" not in err


def test_ctrl_c_exits_with_130_and_keeps_the_rows(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    process = start(
        "-", "--batch", "1", "--model", colour_model, "--output", output, stdin=subprocess.PIPE
    )
    assert process.stdin
    assert process.stderr
    process.stdin.write(f"{portraits}/0-red.png\n".encode() * 50)
    process.stdin.flush()
    partial = tmp_path / "rows.jsonl.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    assert process.wait(30) == 130
    assert b"Traceback" not in process.stderr.read()
    assert all(row["label"] == "generated" for row in rows_of(partial.read_text()))
    assert not output.exists()


def test_help_shows_examples() -> None:
    code, out, _ = run_here("--help")
    assert code == 0
    assert "ffd-run portraits/" in out
    assert run_here("--version")[1] == f"ffd-run {ffd_runtime.__version__} (ffd-edge)\n"


def test_verbose_shows_the_card(portraits: Path, colour_model: Path) -> None:
    command = (portraits, "--model", colour_model)
    quiet, loud = (run_here(*command, *option) for option in ((), ("-v",)))
    assert quiet[1] == loud[1]
    assert '"temperature": 1.0' in loud[2]
    assert '"temperature"' not in quiet[2]


def test_report_and_annotated_copies_are_written(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    (portraits / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    before = {path: path.read_bytes() for path in portraits.iterdir()}
    page, shown = tmp_path / "night.html", tmp_path / "shown"
    code, out, _ = run_here(
        portraits, "--model", colour_model, "--report", page, "--annotate", shown, "--heatmap"
    )
    assert code == 3
    assert len(rows_of(out)) == 4
    assert {path: path.read_bytes() for path in portraits.iterdir()} == before
    assert sorted(path.name for path in shown.iterdir()) == [
        "0-red.png",
        "1-blue.png",
        "2-red.png",
    ]
    text = page.read_text()
    for name in ("0-red.png", "1-blue.png", "2-red.png", "broken.jpg"):
        assert name in text
    assert text.count("data:image/jpeg") >= 3


def test_report_of_a_resumed_run_counts_all_inputs(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    output, page = tmp_path / "rows.jsonl", tmp_path / "night.html"
    for number in range(20):
        shutil.copy(portraits / "0-red.png", portraits / f"more-{number}.png")
    command = (portraits, "--model", colour_model, "--output", output)
    limit = (resource.RLIMIT_FSIZE, (2000, 2000))
    code, _, err = run(*command, preexec_fn=lambda: resource.setrlimit(*limit))
    assert (code, "cannot write" in err) == (1, True)
    code, _, err = run(*command, "--resume", "--report", page)
    assert code == 0
    assert "resuming after" in err
    assert "23 inputs" in page.read_text()


def test_outputs_must_not_be_sources(portraits: Path, colour_model: Path, tmp_path: Path) -> None:
    sources = (portraits / "0-red.png", portraits)
    for options, said in (
        (("--report", portraits / "0-red.png"), "is also a SOURCE"),
        (("--report", tmp_path / "page.txt"), "must end with .html"),
        (("--annotate", portraits), "--annotate"),
        (("--heatmap",), "--heatmap needs --annotate DIR"),
    ):
        before = sorted(portraits.iterdir())
        code, _, err = run_here(*sources, "--model", colour_model, *options)
        assert code in (1, 2)
        assert said in err
        assert len(err.splitlines()) <= 2
        assert sorted(portraits.iterdir()) == before


def test_archives_and_web_addresses_are_classified(
    portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", portraits))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(portraits))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://me:secret@127.0.0.1:{server.server_port}"
        sources = [archive, f"{url}/1-blue.png", f"{url}/absent.png"]
        model = ("--model", colour_model)
        code, out, err = run(*sources, *model, "--allow-private", "--annotate", tmp_path / "shown")
        refused, lines, _ = run("-", *model, input=f"{url}/1-blue.png\n".encode())
        server.shutdown()
    assert code == 3
    # Members have the order of the archive, which is the folder's.
    rows = rows_of(out)
    assert [row["source"].startswith("http") for row in rows] == [False] * 3 + [True] * 2
    assert sorted((row["source"], row["label"]) for row in rows[:3]) + [
        (row["source"], row["label"]) for row in rows[3:]
    ] == [
        (f"{archive}!/0-red.png", "generated"),
        (f"{archive}!/1-blue.png", "groundtruth"),
        (f"{archive}!/2-red.png", "generated"),
        (f"http://***@127.0.0.1:{server.server_port}/1-blue.png", "groundtruth"),
        (f"http://***@127.0.0.1:{server.server_port}/absent.png", None),
    ]
    assert len(list((tmp_path / "shown").rglob("*.png"))) == 4
    # Private addresses are refused unless they are allowed.
    assert refused == 3
    assert rows_of(lines)[0]["error"]["code"] == "refused"
    assert "secret" not in out + err + lines

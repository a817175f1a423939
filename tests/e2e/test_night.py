"""Interrupt long runs: kills, signals, a full disk, a removed folder. No row may be lost."""

from __future__ import annotations

import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet
import pytest

from ffd_runtime.cli.cold_start import FRESH

from ..conftest import picture
from ..models import save_colour_model
from ..nightly import repeat
from ..runtime.encoded import FORMATS
from .test_run import rows_of, run, run_here, start

# Limit in seconds for a process that hangs.
WATCHDOG = 120


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 500 pictures; every tenth is damaged."""
    folder = tmp_path / "many"
    folder.mkdir()
    ok, encoded = cv2.imencode(".jpg", picture())
    assert ok
    good, broken = tmp_path / "good.jpg", tmp_path / "broken.jpg"
    good.write_bytes(encoded.tobytes())
    broken.write_bytes(encoded.tobytes()[:500])
    for number in range(500):
        os.link(broken if number % 10 == 3 else good, folder / f"{number:03}.jpg")
    return folder


def sources_in(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return [str(row["source"]) for row in pyarrow.parquet.read_table(path).to_pylist()]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [row["source"] for row in csv.DictReader(file)]
    return [row["source"] for row in rows_of(path.read_text())]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Five kills show that resuming works; more find rare moments.
KILLS = repeat(5, 20)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_killed_and_resumed_run_has_one_row_per_input(
    many: Path, colour_model: Path, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"rows.{ending}"
    partial = tmp_path / f"rows.{ending}.partial"
    # The folder is given twice: each file has two rows.
    command: tuple[object, ...] = (many, many, "--output", output, "--resume")
    command += ("--model", colour_model, "--batch", "3")
    if ending == "jsonl":
        command += ("--annotate", tmp_path / "shown")
    rng = random.Random(ending)
    for number in range(KILLS):
        process = start(*command)
        # Kill it while rows are written or, every third time, at a random time during the start.
        grown = size_of(partial) + rng.randrange(1, 6000)
        deadline = time.monotonic() + (rng.random() if number % 3 == 2 else WATCHDOG)
        while process.poll() is None and time.monotonic() < deadline and size_of(partial) < grown:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not output.exists()
    code, _, err = run_here(*command)
    assert code == 3, err
    files = sorted(map(str, many.iterdir()))
    assert sources_in(output) == files + files
    assert "1000 inputs: 900 generated, 0 photographs, 0 unsure, 100 errors" in err
    assert not list(tmp_path.glob("rows.*.partial*"))
    if ending == "jsonl":
        # A row exists only if its annotated copy exists.
        copies = [path.name for path in (tmp_path / "shown").glob("[!.]*")]
        assert len(copies) == 450
    code, _, err = run_here(*command)
    assert (code, "is complete: nothing to resume" in err) == (0, True)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_signal_leaves_complete_rows(
    many: Path, colour_model: Path, tmp_path: Path, number: int, code: int, said: str
) -> None:
    output = tmp_path / "rows.jsonl"
    command = (many, "--model", colour_model, "--batch", "2", "--output", output)
    # Under nohup, these tests ignore SIGHUP, and so would the command.
    process = start(*command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    partial = tmp_path / "rows.jsonl.partial"
    deadline = time.monotonic() + WATCHDOG
    while size_of(partial) < 2000 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == code
    assert err.decode().splitlines()[-1] == f"ffd-run: {said}"
    assert f"rows so far are in {partial}; resume with --resume" in err.decode()
    text = partial.read_text()
    assert text.endswith("\n")
    files = sorted(map(str, many.iterdir()))
    assert [row["source"] for row in rows_of(text)] == files[: len(rows_of(text))]
    # A run that would overwrite these rows is an error, also with another model.
    ended, _, err_text = run_here(*command)
    assert (ended, "continue it with --resume" in err_text) == (1, True)
    other = save_colour_model(tmp_path / "other.onnx", doc="another file")
    ended, _, err_text = run_here(*command, "--resume", "--model", other)
    assert (ended, ", not by " in err_text) == (1, True)
    assert partial.read_text() == text


def test_complete_file_of_another_run_is_not_resumed(
    many: Path, portraits: Path, colour_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    model = ("--model", colour_model, "--output", output)
    assert run_here(portraits, *model)[0] == 0
    code, _, err = run_here(portraits, *model, "--resume")
    assert (code, "is complete" in err) == (0, True)
    code, _, err = run_here(many, *model, "--resume")
    assert (code, "from other SOURCEs" in err) == (1, True)


def test_closed_terminal_does_not_end_the_run(
    many: Path, colour_model: Path, tmp_path: Path
) -> None:
    import pty

    output = tmp_path / "rows.jsonl"
    parent, child = pty.openpty()
    process = start(
        many,
        *("--model", colour_model, "--batch", "2", "--output", output),
        stdout=child,
        stderr=child,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(child)
    deadline = time.monotonic() + WATCHDOG
    while size_of(tmp_path / "rows.jsonl.partial") < 500 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.close(parent)
    process.wait(WATCHDOG)
    assert sources_in(output) == sorted(map(str, many.iterdir()))


def test_link_loop_is_an_error_row(portraits: Path, colour_model: Path, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    output = tmp_path / "rows.jsonl"
    code, _, err = run_here(loop, portraits, "--model", colour_model, "--output", output)
    assert code == 3, err
    assert len(sources_in(output)) == 4


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_full_disk_ends_the_run_and_loses_no_row(
    many: Path, colour_model: Path, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"rows.{ending}"
    command = (many, "--model", colour_model, "--output", output)
    # With a limit on file size, a write fails within a row, as on a full disk.
    code, _, err = run(*command, preexec_fn=limit_files)
    assert code == 1
    assert "cannot write" in err.splitlines()[-1]
    assert "rows so far are in" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not output.exists()
    code, _, err = run_here(*command, "--resume")
    assert code == 3, err
    assert sources_in(output) == sorted(map(str, many.iterdir()))


def test_removed_files_are_error_rows(many: Path, colour_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    files = sorted(map(str, many.iterdir()))
    process = start(many, "--model", colour_model, "--batch", "2", "--output", output)
    deadline = time.monotonic() + WATCHDOG
    while size_of(tmp_path / "rows.jsonl.partial") < 500 and time.monotonic() < deadline:
        time.sleep(0.002)
    shutil.rmtree(many)
    process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3
    rows = rows_of(output.read_text())
    assert [row["source"] for row in rows] == files
    kinds = Counter(row["error"]["code"] for row in rows if row["error"])
    assert kinds["not_found"] > 0
    assert kinds.keys() <= {"not_found", "truncated"}


def test_files_that_change_while_being_read_have_rows(
    many: Path, colour_model: Path, tmp_path: Path
) -> None:
    process = start(many, many, "--model", colour_model, "--output", tmp_path / "rows.jsonl")
    content = (tmp_path / "good.jpg").read_bytes()
    rng = random.Random(7)
    changed = 0
    # All names are links to one file, so each change affects the file that is being read.
    while process.poll() is None:
        (tmp_path / "good.jpg").write_bytes(content[: rng.randrange(len(content))])
        (tmp_path / "good.jpg").write_bytes(content)
        changed += 1
    assert process.returncode in (0, 3)
    assert changed > 10
    rows = rows_of((tmp_path / "rows.jsonl").read_text())
    assert len(rows) == 1000
    assert all((row["label"] is None) != (row["error"] is None) for row in rows)


THROWING = """
import sys, threading
import ffd_runtime.model.backends.onnxruntime as backend
calls = 0
def infer(self, images, infer=backend.OnnxRuntime.infer):
    global calls
    calls += 1
    if calls > 3:
        {what}
    return infer(self, images)
backend.OnnxRuntime.infer = infer
from ffd_runtime.cli.run import main
main()
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("raise backend.BackendError('the driver is gone')", "the driver is gone"),
        ("raise RuntimeError('a defect')", "unexpected RuntimeError: a defect"),
        ("sys.exit(9)", ""),
    ],
)
def test_exception_of_the_backend_ends_the_run(
    many: Path, colour_model: Path, tmp_path: Path, what: str, said: str
) -> None:
    output = tmp_path / "rows.jsonl"
    program = [sys.executable, "-c", THROWING.format(what=what)]
    done = subprocess.run(
        [*program, str(many), "--model", str(colour_model), "--output", str(output)],
        capture_output=True,
        timeout=WATCHDOG,
        text=True,
    )
    assert done.returncode == (1 if said else 9)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    rows = rows_of((tmp_path / "rows.jsonl.partial").read_text())
    assert [row["source"] for row in rows] == sorted(map(str, many.iterdir()))[: len(rows)]
    assert len(rows) == 48
    code, _, _ = run_here(many, "--model", colour_model, "--output", output, "--resume")
    assert code == 3
    assert len(sources_in(output)) == 500


def test_exit_of_a_worker_ends_the_run(many: Path, colour_model: Path, tmp_path: Path) -> None:
    # `patch` fails if the function has another name by now.
    program = """
from unittest.mock import patch
def preprocess(*arguments):
    raise SystemExit(9)
patch("ffd_runtime.core.pipeline.preprocess", preprocess).start()
from ffd_runtime.cli.run import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(many), "--model", str(colour_model)],
        capture_output=True,
        timeout=WATCHDOG,
        text=True,
    )
    assert done.returncode == 9


def test_blocked_worker_does_not_block_the_end(
    many: Path, colour_model: Path, tmp_path: Path
) -> None:
    program = """
import os, signal, threading, time
from unittest.mock import patch
def decode(*arguments):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(3600)
patch("ffd_runtime.core.pipeline.decode_with_header", decode).start()
from ffd_runtime.cli.run import main
main()
"""
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", program, str(many), "--model", str(colour_model)]
    done = subprocess.run(
        [*command, "--workers", "1", "--output", str(output)],
        capture_output=True,
        timeout=WATCHDOG,
        text=True,
    )
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1].endswith("terminated")
    # There are no rows, so there is no file and no message about rows.
    assert "rows so far" not in done.stderr
    assert not list(tmp_path.glob("rows*"))


def test_resume_requires_an_output_file() -> None:
    code, _, err = run_here("x", "--resume")
    assert (code, "--resume needs --output" in err) == (2, True)


def test_signal_ends_a_busy_run(many: Path, colour_model: Path) -> None:
    # Threads that run while the interpreter ends would abort it, with another exit code and a
    # message on stderr.
    program = """
import os, signal, sys, threading, time
from ffd_runtime.cli.run import main
def interrupt():
    while not any(thread.name == "ffd-read" for thread in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=interrupt, daemon=True).start()
main()
"""
    listed: dict[str, Any] = {"capture_output": True, "timeout": WATCHDOG, "text": True}
    sources = [str(many)] * 200
    done = subprocess.run(
        [sys.executable, "-c", program, *sources, "--model", str(colour_model)], **listed
    )
    assert done.returncode == 143
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "colour (colour",
        "-c: terminated",
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a file like a bad disk, an interrupted upload or an attacker."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 3, 20))):
        at = rng.randrange(len(changed))
        changed[at] ^= 1 << rng.randrange(8)
    kind = rng.randrange(5)
    if kind == 0:
        del changed[rng.randrange(len(changed)) :]
    elif kind == 1:
        at = rng.randrange(len(changed))
        del changed[at : at + rng.randrange(1, 64)]
    elif kind == 2:
        # Headers keep sizes in their first bytes, as 16 or 32 bits.
        at = rng.randrange(min(len(changed), 64))
        changed[at : at + 2] = rng.randbytes(2)
    elif kind == 3:
        at = rng.randrange(min(len(changed), 64))
        changed[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
    return bytes(changed)


def test_2000_mutated_images_have_2000_rows(colour_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mutated"
    folder.mkdir()
    rng = random.Random(2000)
    names = sorted(FORMATS)
    for number in range(2000):
        name = names[number % len(names)]
        # With an image extension, a file is not skipped if its signature is damaged.
        (folder / f"{number:04}-{name}.jpg").write_bytes(mutate(FORMATS[name], rng))
    output = tmp_path / "rows.jsonl"
    # A damaged header may state as many pixels as are allowed, in each of two workers.
    limits = ("--max-pixels", "20000000", "--workers", "2")
    process = start(folder, "--model", colour_model, "--output", output, *limits)
    _, err = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 3, err
    rows = rows_of(output.read_text())
    assert [row["source"] for row in rows] == sorted(map(str, folder.iterdir()))
    codes = Counter(row["error"]["code"] if row["error"] else "verdict" for row in rows)
    assert codes["verdict"] > 200
    assert {"corrupt", "truncated", "not_an_image", "too_large"} <= codes.keys()


def test_memory_is_bounded_by_the_limits(colour_model: Path, tmp_path: Path) -> None:
    """Peak memory of a separate process, as measured by the system."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    rng = random.Random(3)
    ok, encoded = cv2.imencode(".png", np.zeros((4000, 4000, 3), np.uint8))
    assert ok
    # A leak of each image exceeds the limit.
    for number in range(repeat(10, 20)):
        (folder / f"{number}.png").write_bytes(encoded.tobytes())
        (folder / f"{number}.bad.png").write_bytes(mutate(encoded.tobytes(), rng))

    def peak(*arguments: str) -> int:
        # Measured within the process: for a child, the system counts from the memory of its parent.
        options = [str(folder), "--model", str(colour_model), *arguments]
        done = subprocess.run(
            [sys.executable, "-c", FRESH, *options],
            capture_output=True,
            timeout=WATCHDOG,
            text=True,
        )
        return int(done.stderr.splitlines()[-1])

    refused = peak("--max-pixels", "1000", "--workers", "1")
    # 48 MB each as BGR, plus buffers of the decoder and of the colour conversion.
    assert peak("--workers", "2") < refused + 2 * 4 * 48 * 1024 * 1024

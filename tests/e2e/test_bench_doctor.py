"""ffd-bench and ffd-doctor as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ffd_runtime
from ffd_runtime.cli.bench import main as ffd_bench
from ffd_runtime.cli.doctor import main as ffd_doctor
from ffd_runtime.model.backends import find_embedded

from .in_process import invoke

MAIN = {"bench": ffd_bench, "doctor": ffd_doctor}


def command(name: str, *arguments: object) -> list[str]:
    code = f"from ffd_runtime.cli.{name} import main; main(prog_name='ffd-{name}')"
    return [sys.executable, "-P", "-c", code, *map(str, arguments)]


def run(name: str, *arguments: object, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command(name, *arguments),
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def run_here(name: str, *arguments: object) -> tuple[int, str, str]:
    """Like `run`, but in this process."""
    done = invoke(MAIN[name], f"ffd-{name}", *arguments)
    return done.exit_code, done.stdout, done.stderr


# It compares times of processes.
@pytest.mark.alone
def test_bench_prints_one_object_to_a_pipe(portraits: Path, colour_model: Path) -> None:
    (portraits / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, out, err = run(
        "bench", portraits, "--model", colour_model, "--device", "cpu", "--rounds", 1,
        "--batch", 2, "--batch", 1, "--batch", 2, "--workers", 3, "--cold-start",
    )  # fmt: skip
    assert code == 0, err
    (line,) = out.splitlines()
    found = json.loads(line)
    assert list(found) == [
        "schema", "ffd", "machine", "model", "backends", "images", "workers", "rounds",
        "stages", "end_to_end", "peak_memory_bytes", "cold_start",
    ]  # fmt: skip
    assert (found["schema"], found["ffd"]) == (1, ffd_runtime.__version__)
    assert found["machine"]["cpu"]
    assert "numpy" in found["machine"]["packages"]
    assert found["model"]["name"] == "colour"
    assert found["backends"]["auto"].startswith("onnxruntime")
    assert found["images"]["made"] is False
    assert (found["images"]["count"], found["images"]["unreadable"]) == (3, 1)
    assert (found["workers"], found["rounds"]) == (3, 1)
    assert [row["batch"] for row in found["end_to_end"]] == [1, 2]
    for row in found["end_to_end"]:
        assert set(row["floors"]) == {"slowest_stage", "sum_of_stages"}
    (cold,) = found["cold_start"]
    assert cold["ratio"] > 1
    assert cold["first_verdict_ms"] > cold["bare_ms"] > 0
    assert 1 << 25 < cold["peak_memory_bytes"] < 1 << 32


def test_bench_prints_tables_and_mentions_synthetic_images(colour_model: Path) -> None:
    code, out, err = run(
        "bench", "--model", colour_model, "--backend", "onnxruntime", "--batch", 1,
        "--rounds", 1, "--table",
    )  # fmt: skip
    assert code == 0, err
    assert "16 synthetic JPEGs made for this run, on average 1.05 megapixels" in out
    words = [line.split()[:3] for line in out.splitlines()]
    assert ["infer", "onnxruntime", "1"] in words
    assert "slowest stage ms" in out
    assert "peak memory" in out
    assert "\x1b" not in out


def test_errors_of_bench_are_one_line(tmp_path: Path, colour_model: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for arguments, code, message in (
        ((tmp_path, "--model", colour_model), 1, "no readable image among the sources (1"),
        (("--model", tmp_path / "absent.onnx"), 1, "no such file"),
        (("--backend", "abacus"), 2, "'abacus' is not one of 'auto', 'onnxruntime'"),
        (("--backend", "tensorrt"), 1, "tensorrt does not read embedded."),
        (("--seconds", "5", "--rounds", "2"), 2, "cannot be combined"),
        (("--seconds", "0"), 2, "Invalid value for '--seconds'"),
        (("--batch", "0"), 2, "Invalid value for '--batch'"),
    ):
        ended, out, err = run_here("bench", *arguments)
        assert (ended, out) == (code, ""), err
        assert err.splitlines()[-1].startswith("ffd-bench: error: ")
        assert message in err.splitlines()[-1]
        assert len(err.splitlines()) <= 2


def test_ctrl_c_exits_with_130_and_leaves_no_files(tmp_path: Path, colour_model: Path) -> None:
    process = subprocess.Popen(
        command("bench", "--model", colour_model, "--seconds", 600),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    assert process.stderr.readline().startswith(b"auto: onnxruntime")
    while not list(tmp_path.glob("ffd-bench-*/15.jpg")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert err.decode() == "ffd-bench: interrupted\n"
    assert not list(tmp_path.glob("ffd-bench-*"))


@pytest.fixture(scope="module")
def healthy() -> dict[str, Any]:
    code, out, err = run("doctor", "--json", FFD_TEST_SECRET="open-sesame")
    assert code == 0, err + out
    assert err == ""
    (line,) = out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_doctor_starts_every_backend(healthy: dict[str, Any]) -> None:
    assert healthy["ok"] is True
    assert healthy["ffd"] == ffd_runtime.__version__
    started = {(b["backend"], b["device"]): b for b in healthy["backends"]}
    for key in (("auto", "auto"), ("onnxruntime", "cpu")):
        facts = started[key]
        assert facts["outcome"] == "started"
        assert facts["description"].startswith("onnxruntime ")
        assert 0 <= facts["score"] <= 1
        assert facts["open_ms"] > 0
        assert facts["first_ms"] > 0
    assert started["openvino", "cpu"]["outcome"] in ("started", "absent")
    assert not [b for b in healthy["backends"] if b["backend"] == "tensorrt"]
    assert healthy["opencv"]["formats"]["jpg"] is True
    assert Path(healthy["model"]["path"]) == find_embedded()
    assert len(healthy["model"]["sha256"]) == 64
    for warning in healthy["warnings"]:
        assert warning["what"]
        assert warning["do"]


def test_doctor_does_not_print_the_environment(healthy: dict[str, Any]) -> None:
    text = json.dumps(healthy)
    assert "open-sesame" not in text
    assert os.environ["PATH"] not in text


def test_doctor_completes_on_a_broken_machine(tmp_path: Path) -> None:
    """OpenCV lacks GL, OpenVINO crashes its process, and onnxruntime is installed twice."""
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file')\n"
    )
    (tmp_path / "openvino.py").write_text("import os\nos.abort()\n")
    for name in ("onnxruntime", "onnxruntime_gpu"):
        metadata = tmp_path / f"{name}-1.20.0.dist-info"
        metadata.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.20.0\n"
        (metadata / "METADATA").write_text(text)
    path = os.pathsep.join((str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])))
    code, out, err = run("doctor", "--table", PYTHONPATH=path)
    assert code == 1, err
    assert "\x1b" not in out
    lines = out.splitlines()
    warnings = [index for index, line in enumerate(lines) if line.startswith("warning ")]
    missing = "libGL.so.1: cannot open shared object file: No such file"
    assert lines[warnings[0]].endswith(f"the embedded model does not run: {missing}")
    assert "libgl1" in lines[warnings[0] + 1]
    text = "\n".join(lines[warnings[0] :])
    assert "onnxruntime and onnxruntime-gpu are installed together" in text
    assert "openvino on cpu does not start: the process was killed by SIGABRT" in text
    # Warnings come last, each with advice.
    assert all(line.lstrip().startswith(("warning", "->")) for line in lines[warnings[0] :])


def test_help_and_version() -> None:
    for name in ("bench", "doctor"):
        code, out, _ = run_here(name, "--help")
        assert code == 0
        assert f"  ffd-{name}\n" in out
        version = f"ffd-{name} {ffd_runtime.__version__} (ffd-edge)\n"
        assert run_here(name, "--version")[1] == version

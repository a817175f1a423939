"""The probes and warnings of ffd-doctor, with processes that really crash, hang and fail."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.cli.diagnosis import find_warnings
from ffd_runtime.cli.probe_process import find_advice, run_probe
from ffd_runtime.cli.probes import make_test_image
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.machine import (
    cgroup_cores,
    cgroup_memory,
    describe_cpu,
    describe_memory,
    explain_int8,
    find_features,
    packages,
)
from ffd_runtime.image.decode import decode

from .fake_driver import install_driver, needs_compiler
from .test_imports import HEAVY, RUNTIME, loaded_by

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_vnni fma\n\n"
ORIN = "processor\t: 0\nFeatures\t: fp asimd crc32 asimdhp asimddp\nCPU part\t: 0xd42\n"


def test_doctor_imports_no_library_that_may_be_broken() -> None:
    code = "from ffd_runtime.cli.doctor import main\nmain(['--help'], standalone_mode=False)"
    assert not loaded_by(code) & {*HEAVY, *RUNTIME}
    assert not loaded_by("import ffd_runtime.cli.diagnosis") & {*HEAVY, *RUNTIME}


def test_features_of_processors() -> None:
    assert find_features(EPYC) == ["AVX2", "AVX-512", "AVX-512 VNNI"]
    assert find_features(ORIN) == ["NEON", "dotprod"]
    assert find_features("flags\t: sse2\n") == []
    assert find_features("") is None


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["AVX2", "AVX-512 VNNI", "AMX INT8"], "AMX"),
        (["AVX2", "AVX-VNNI"], "VNNI sums"),
        (["AVX2", "AVX-512"], "without VNNI"),
        (["NEON", "dotprod", "i8mm"], "i8mm"),
        (["NEON", "dotprod"], "dotprod sums"),
        (["NEON"], "slow: "),
        ([], "slow: "),
    ],
)
def test_int8_speed_depends_on_features(features: list[str], words: str) -> None:
    assert words in explain_int8(features)


def test_this_machine_is_described() -> None:
    cpu = describe_cpu()
    assert cpu["name"]
    assert 1 <= cpu["cores_usable"] <= cpu["cores_present"]
    memory = describe_memory()
    assert memory["total_bytes"] > 1 << 28
    assert memory["limit_bytes"] is None or memory["limit_bytes"] < memory["total_bytes"]


def cgroup(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_lowest_quota_of_cgroup_version_2_applies(tmp_path: Path) -> None:
    cgroup(
        tmp_path,
        cpu_dot_max="max 100000\n",
        pod__cpu_dot_max="250000 100000\n",
        pod__box__cpu_dot_max="max 100000\n",
        pod__box__memory_dot_max="max\n",
        pod__memory_dot_max="1073741824\n",
    )
    own = "0::/pod/box\n"
    assert cgroup_cores(tmp_path, own) == 2.5
    assert cgroup_memory(tmp_path, own) == 1 << 30
    assert cgroup_cores(tmp_path, "0::/\n") is None
    assert cgroup_memory(tmp_path, "0::/\n") is None


def test_quotas_of_cgroup_version_1_are_read_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu").symlink_to(tmp_path / "cpu,cpuacct")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    cgroup(tmp_path, memory__memory_dot_limit_in_bytes="536870912\n")
    own = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    assert cgroup_cores(tmp_path, own) == 1.5
    assert cgroup_memory(tmp_path, own) == 1 << 29
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cores(tmp_path, own) is None


@given(st.text(), st.text())
def test_any_content_of_system_files_is_accepted(info: str, own: str) -> None:
    features = find_features(info)
    assert features is None or explain_int8(features)
    # A path from the kernel contains neither NUL nor lone surrogates.
    own = own.replace("\0", "").encode("utf-8", "ignore").decode()
    assert cgroup_cores(Path("/nonexistent"), own) is None
    assert cgroup_memory(Path("/nonexistent"), own) is None


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("libGL.so.1: cannot open shared object file: No such file", "opencv-python-headless"),
        ("libgthread-2.0.so.0: cannot open shared object file", "apt install"),
        ("A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.0.0", "numpy<2"),
        ("numpy.core.multiarray failed to import", "upgrade OpenCV and onnxruntime"),
        ("AttributeError: _ARRAY_API not found", "numpy<2"),
    ],
)
def test_known_failures_have_advice(text: str, advice: str) -> None:
    found = find_advice(f"ImportError: {text}")
    assert found
    assert advice in found


def test_unknown_failures_have_no_advice() -> None:
    assert find_advice("the model returned nan instead of a probability") is None


def test_the_test_image_never_changes() -> None:
    image = decode(make_test_image())
    assert image.shape == (320, 320, 3)
    assert image[0, 0].tolist() == [60, 50, 70]
    assert image[150, 160].tolist() == [107, 147, 137]
    assert int(image.astype(int).sum()) == 33_284_066


def before(folder: Path) -> str:
    """A `PYTHONPATH` with a folder in front."""
    return os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))


def replace_modules(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Add modules that replace installed ones in every new process."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", before(folder))


def test_a_library_that_crashes_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_modules(tmp_path, monkeypatch, openvino="import ctypes\nctypes.string_at(0)\n")
    facts = run_probe("library", "openvino")
    assert facts["outcome"] == "crashed"
    assert facts["reason"].startswith("the process was killed by SIGSEGV")


def test_a_crash_after_the_result_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import atexit, os\natexit.register(os.abort)\n__version__ = '1'\n"
        "class Core:\n    available_devices = ()\n"
    )
    replace_modules(tmp_path, monkeypatch, openvino=code)
    facts = run_probe("library", "openvino")
    assert facts["outcome"] == "crashed"
    assert "SIGABRT" in facts["reason"]


def test_a_library_that_hangs_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_modules(tmp_path, monkeypatch, openvino="import time\ntime.sleep(600)\n")
    facts = run_probe("library", "openvino", seconds=1)
    assert facts["outcome"] == "timeout"
    assert facts["reason"] == "no result within 1 s, so it was stopped"


def test_an_absent_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise ModuleNotFoundError(\"No module named 'openvino'\", name='openvino')\n"
    replace_modules(tmp_path, monkeypatch, openvino=code)
    # The library itself, and the backend, which has its own message.
    for facts in (run_probe("library", "openvino"), run_probe("start", "openvino", "cpu")):
        assert facts["outcome"] == "absent"
        assert facts["reason"] == "openvino is not installed"
        assert facts["do"] == install_hint("openvino")


def test_output_of_a_library_that_fails_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print('noise', end='')\nraise ImportError('libnvinfer.so.10: cannot open')\n"
    replace_modules(tmp_path, monkeypatch, tensorrt=code)
    facts = run_probe("library", "tensorrt")
    assert facts["outcome"] == "failed"
    assert facts["reason"] == "libnvinfer.so.10: cannot open"


def test_an_absent_device_is_refused() -> None:
    facts = run_probe("start", "onnxruntime", "cuda:99")
    assert facts["outcome"] == "refused"
    assert "NVIDIA's driver offers" in facts["reason"]


@needs_compiler
def test_facts_of_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake driver that works, and one that fails as after an incomplete update."""
    answers = []
    for code in (0, 803):
        install_driver(tmp_path, monkeypatch, code)
        answers.append(run_probe("gpu"))
    works, fails = answers
    assert works["cuda"] == "12.4"
    assert works["devices"] == [
        {"name": "one", "compute_capability": "8.7", "memory_bytes": 7 << 30},
        {"name": "two", "compute_capability": "8.8", "memory_bytes": 8 << 30},
    ]
    assert fails["devices"] == []
    assert (fails["reason"], fails["error"]) == ("driver mismatch (error 803)", 803)


def test_packages_are_read_from_metadata_without_an_import(tmp_path: Path) -> None:
    for name in ("onnxruntime-1.20.0", "opencv_python_headless-4.11.0"):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        project, version = name.split("-")
        text = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)
    (tmp_path / "damaged.dist-info").mkdir()
    code = (
        "from ffd_runtime.core.machine import packages\nimport json, sys\n"
        "print(json.dumps(packages()), 'torch' in sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": before(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found, imported = done.stdout.splitlines()
    assert json.loads(found) == {
        **packages(),
        "onnxruntime": "1.20.0",
        "opencv-python-headless": "4.11.0",
    }
    assert imported == "False"


SOUND: dict[str, Any] = {
    "packages": {"numpy": "2.4.0", "onnxruntime-gpu": "1.31.1", "opencv-python": "5.0.0"},
    "cpu": {"cores_usable": 8, "cores_quota": None},
    "gpu": {"outcome": "started", "driver": None, "cuda": None, "devices": [], "pci": 0},
    "opencv": {"outcome": "started", "formats": {"jpg": True, "webp": True, "avif": True}},
    "onnxruntime": {"outcome": "started", "cuda": "13.0"},
    "engines": {
        "tensorrt": {"outcome": "absent"},
        "tensorrt_lean": {"outcome": "absent"},
        "tensorrt_rtx": {"outcome": "absent"},
        "cuda": {"outcome": "absent"},
    },
    "backends": [
        {"backend": "auto", "device": "auto", "outcome": "started", "said": []},
        {"backend": "onnxruntime", "device": "cpu", "outcome": "started", "log_odds": -13.0},
        {"backend": "openvino", "device": "cpu", "outcome": "started", "log_odds": -13.01},
    ],
}
GPU = {"outcome": "started", "driver": "550.54", "cuda": "12.4", "devices": [{}], "pci": 1}
FAILED: dict[str, Any] = {"outcome": "failed", "reason": "boom", "do": None, "said": []}


def warn(**changes: Any) -> list[dict[str, str]]:
    report = copy.deepcopy(SOUND)
    for path, value in changes.items():
        *above, last = path.split("__")
        place: Any = report
        for part in above:
            place = place[int(part) if part.isdecimal() else part]
        place[int(last) if last.isdecimal() else last] = value
    return list(find_warnings(report))


def test_a_sound_machine_has_no_warnings() -> None:
    assert warn() == []
    # A container image with CUDA on a machine without a GPU is not a problem.
    no_gpu = {**GPU, "devices": [], "pci": 0, "reason": "no CUDA-capable device", "error": 100}
    assert warn(gpu=no_gpu) == []
    assert warn(gpu={**GPU, "cuda": "13.0"}) == []


@pytest.mark.parametrize(
    ("changes", "what", "do"),
    [
        ({"packages__onnxruntime": "1.20"}, "onnxruntime-gpu and onnxruntime", "uninstall"),
        ({"packages__opencv-python-headless": "5"}, "OpenCV files", "uninstall"),
        ({"opencv__formats__avif": False}, "does not read avif", "--upgrade opencv-python"),
        ({"opencv": FAILED}, "OpenCV cannot be loaded: boom", "reinstall"),
        ({"gpu": GPU}, "CUDA 12.4, but this onnxruntime needs CUDA 13.0", "newer NVIDIA driver"),
        (
            {"gpu": {**GPU, "devices": [], "reason": "driver mismatch (error 803)", "error": 803}},
            "does not start: driver mismatch",
            "restart",
        ),
        (
            {
                "gpu": {**GPU, "devices": [], "pci": 0, "reason": "unknown", "error": 999},
                "backends__0__said": ["NVIDIA's driver does not start: unknown"],
            },
            "does not start: unknown",
            "group video",
        ),
        ({"gpu__pci": 1}, "this process finds no driver", "install NVIDIA's driver"),
        ({"gpu": {**FAILED, "pci": 0}}, "driver cannot be queried: boom", "driver"),
        ({"cpu__cores_quota": 1.5}, "the time of 1.5 cores but sees 8", "cpuset"),
        ({"backends__0": FAILED}, "the embedded model does not run: boom", "reinstall"),
        ({"backends__0__said": ["no cuDNN; pip install x"]}, "no cuDNN", "--device cpu"),
        ({"backends__2__outcome": "failed", "backends__2__reason": "x", "backends__2__do": "y"},
         "openvino on cpu does not start: x", "y"),
        ({"backends__2__log_odds": 4.0}, "log-odds of 4.00", "report"),
        ({"backends__2__log_odds": float("nan")}, "log-odds of nan", "report"),
        ({"engines__tensorrt": {"outcome": "started"}}, "without cuda-bindings", "cuda-bindings>="),
        ({"engines__cuda": {**FAILED, "reason": "CUDA failed: cudaErrorInsufficientDriver"}},
         "cuda is installed but does not start", "newer NVIDIA driver"),
        ({"engines__cuda": FAILED}, "cuda is installed but does not start: boom", "reinstall"),
    ],
)  # fmt: skip
def test_each_problem_has_one_warning(changes: dict[str, Any], what: str, do: str) -> None:
    (warning,) = warn(**changes)
    assert what in warning["what"]
    assert do in warning["do"]


def test_an_absent_or_refused_backend_is_not_a_problem() -> None:
    for outcome in ("absent", "refused"):
        assert warn(backends__2__outcome=outcome) == []


def test_a_reason_is_reported_once() -> None:
    other = {**FAILED, "backend": "onnxruntime", "device": "cpu"}
    (warning,) = warn(backends__0=FAILED, backends__1=other)
    assert "the embedded model does not run" in warning["what"]

"""Engines built by TensorRT for RTX without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.progress import Progress, TaskID

from ffd_export import engine_build, engine_builder, engine_file
from ffd_export.engine_build import build_engine
from ffd_export.engine_builder import require_buildable
from ffd_export.export_options import ExportOptions
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_runtime.core.errors import BackendError, DeviceError, EngineError, ModelError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.model.backends import EMBEDDED, open_backend
from ffd_runtime.model.devices import Gpu, count_gpus
from ffd_runtime.model.engine_manifest import EngineManifest, manifest_path

from .conftest import error_of, run

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt_rtx, which is there for x86-64 Linux",
)


no_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")


BOTH = ExportOptions(engine="rtx", compute_capability=("8.6", "8.9"))


def for_gpu(capability: str) -> ExportOptions:
    return ExportOptions(engine="rtx", compute_capability=(capability,))


def rtx() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx


@needs_rtx
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (None, {"float": 51}),
        ("embedded.fp16.onnx", {"half": 51}),
        ("embedded.int8-tensorrt.onnx", {"int8": 49, "float": 2}),
    ],
)
def test_engines_are_built_without_a_gpu(
    exports: Path, tmp_path: Path, name: str | None, layers: dict[str, int]
) -> None:
    source = exports / name if name else EMBEDDED
    outcome = run(
        source, "--engine", "rtx", "--compute-capability", "8.6,8.9", "--output", tmp_path,
        "--max-batch", 24,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    path = tmp_path / f"{source.stem}.rtx.engine"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, path.name + ".json"}
    manifest = EngineManifest.from_json(manifest_path(path).read_text())
    assert manifest.builder == "tensorrt_rtx"
    assert manifest.compute_capabilities == ("8.6", "8.9")
    assert manifest.batch == (1, 16, 24)
    assert dict(manifest.layers) == layers
    assert len(manifest.float_layers) == (2 if "int8" in layers else 0)
    assert manifest.card.metrics["engine_parity"] == {"verified": "not verified"}
    (row,) = map(json.loads, outcome.stdout.splitlines())
    assert row["sha256"] == manifest.engine_sha256
    assert row["layers"] == layers
    assert "not verified on a GPU" in outcome.stderr
    # The command in the manifest builds the engine again.
    command = shlex.split(manifest.command)
    assert command[:2] == ["ffd-export", source.name]
    assert command[-2:] == ["--verify", "DIR"]
    here = ("--verify", "none", "--compute-capability", "8.6,8.9", "--output", tmp_path / "again")
    again = run(source, *command[2:-2], *here)
    assert again.exit_code == 0, again.output
    # Most of an engine's bytes are weights. In FP16 they take half.
    size = {"float": 13.4e6, "half": 6.7e6, "int8": 3.4e6}[next(iter(layers))]
    assert size < path.stat().st_size < 4 * size


@needs_rtx
def test_export_of_an_onnx_needs_no_torch(tmp_path: Path) -> None:
    absent = "torch torchvision timm lightning sklearn scipy safetensors matplotlib onnxscript"
    script = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent.split()!r}))\n"
        "from ffd_export.cli.export import main\nmain()"
    )
    given = ["--fp16", "--verify", "none", "--engine", "rtx", "--compute-capability", "8.9"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(EMBEDDED), *given, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "embedded.fp16.rtx.engine").is_file()


@needs_rtx
def test_an_engine_for_several_gpus() -> None:
    content = EMBEDDED.read_bytes()
    one = build_engine(rtx(), content, 299, for_gpu("8.9"))
    two = build_engine(rtx(), content, 299, BOTH)
    assert one.compute_capabilities == ("8.9",)
    assert two.compute_capabilities == ("8.6", "8.9")
    assert one.gpu is None
    assert one.content != two.content


@needs_rtx
def test_rtx_builds_for_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX would otherwise build for a default list without Turing."""
    content = EMBEDDED.read_bytes()
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("RTX 4090", "8.9"))
    own = build_engine(rtx(), content, 299, ExportOptions())
    named = build_engine(rtx(), content, 299, for_gpu("8.9"))
    assert own.compute_capabilities == ("8.9",)
    assert own.gpu == "RTX 4090"
    assert abs(len(own.content) - len(named.content)) < 1000
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("H100", "9.0"))
    with pytest.raises(EngineError, match=r"compute capability 9\.0: .* builds for"):
        build_engine(rtx(), content, 299, ExportOptions())


@needs_rtx
def test_build_phases_are_reported() -> None:
    class Listener(Progress):
        seen: ClassVar[set[str]] = set()
        steps = 0

        def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
            self.seen.add(description)
            return super().add_task(description, *args, **options)

        def update(self, *args: Any, **options: Any) -> None:
            self.steps += 1

    listener = Listener(disable=True)
    build_engine(rtx(), EMBEDDED.read_bytes(), 299, BOTH, listener)
    assert "Building engine" in listener.seen
    assert listener.steps > 10
    assert not listener.tasks


@needs_rtx
def test_errors_quote_tensorrt() -> None:
    with pytest.raises(ModelError, match="TensorRT cannot parse the ONNX: .*Failed to parse"):
        build_engine(rtx(), b"not an ONNX", 299, BOTH)
    with pytest.raises(EngineError, match=r"builds for .*8\.9"):
        build_engine(rtx(), EMBEDDED.read_bytes(), 299, for_gpu("3.5"))


@needs_rtx
def test_ctrl_c_cancels_a_build(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading\n"
        "import tensorrt_rtx as trt\n"
        "from ffd_export.engine_build import build_engine\n"
        "from ffd_export.export_options import ExportOptions\n"
        "from rich.progress import Progress\n"
        "class Interrupt(Progress):\n"
        "    sent = False\n"
        "    def update(self, task_id, **options):\n"
        "        if not self.sent:\n"
        "            self.sent = True\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        import time; time.sleep(0.05)\n"
        "bar = Interrupt(disable=True)\n"
        "options = ExportOptions(engine='rtx', compute_capability=('8.6', '8.9'))\n"
        "try:\n"
        "    build_engine(trt, open(sys.argv[1], 'rb').read(), 299, options, bar)\n"
        "except KeyboardInterrupt:\n"
        "    print('cancelled', *(t.name for t in threading.enumerate() if 'ffd' in t.name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(EMBEDDED)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "cancelled\n", done.stderr


@needs_rtx
def test_ctrl_c_ends_the_command_without_files(tmp_path: Path) -> None:
    command = [
        sys.executable, "-c", "from ffd_export.cli.export import main; main()",
        str(EMBEDDED), "--engine", "rtx", "--compute-capability", "8.6,8.9",
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline().startswith("exporting")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()


@needs_rtx
def test_fp32_layers_in_an_fp16_model_fail_the_build(exports: Path, tmp_path: Path) -> None:
    """The parsed network of an ONNX with an FP16 card and FP32 layers is rejected."""
    model, card = read_onnx(EMBEDDED)
    mislabelled = tmp_path / "mislabelled.onnx"
    mislabelled.write_bytes(to_bytes(model, card.replace(precision="fp16")))
    error = error_of(mislabelled, "--engine", "rtx", "--compute-capability", "8.9")
    assert "only 0 of 51 convolution and GEMM layers are half" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mislabelled.onnx"]


@needs_rtx
@no_gpu
def test_an_engine_without_a_gpu_fails_with_the_reason(exports: Path, tmp_path: Path) -> None:
    outcome = run(
        exports / "embedded.fp16.onnx", "--engine", "rtx", "--compute-capability", "8.9",
        "--output", tmp_path,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    path = tmp_path / "embedded.fp16.rtx.engine"
    with pytest.raises(DeviceError, match=r"driver offers no GPU 0.*: run its ONNX"):
        open_backend(path)
    with pytest.raises(DeviceError, match="which needs a GPU"):
        open_backend(path, device="cpu")
    with pytest.raises(BackendError, match="onnxruntime does not read"):
        open_backend(path, "onnxruntime")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(EngineError, match="is not the one that .* describes"):
        open_backend(path)


@no_gpu
def test_unsupported_options_fail_before_any_work(tmp_path: Path) -> None:
    for arguments, message in (
        (("--engine", "tensorrt"), "times its kernels on a GPU"),
        (("--engine", "rtx"), "name the target GPUs"),
        (("--engine", "rtx", "--compute-capability", "abc"), "builds for 7.5, 8.0, 8.6"),
        (("--engine", "rtx", "--compute-capability", "9.0"), "builds for 7.5, 8.0, 8.6"),
        (
            ("--engine", "rtx", "--compute-capability", "8.9,9.0"),
            "another GPU, use --engine",
        ),
        (("--engine", "rtx", "--version-compatible"), "are options of --engine tensorrt"),
    ):
        outcome = run(EMBEDDED, *arguments, "--output", tmp_path / "out")
        assert outcome.exit_code == 1, outcome.output
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("ffd-export: error: ")
        assert message in line
    assert not (tmp_path / "out").exists()


@needs_rtx
def test_unsupported_gpus_fail_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_builder, "count_gpus", lambda: 1)
    monkeypatch.setattr(engine_builder, "describe_gpu", lambda index: Gpu("NVIDIA H100", "9.0"))
    monkeypatch.setattr(engine_file, "build_engine", lambda *_: pytest.fail("an engine was built"))
    outcome = run(EMBEDDED, "--engine", "rtx", "--output", tmp_path / "out")
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert "does not support NVIDIA H100 (compute capability 9.0; supported are 7.5, 8.0" in line
    assert "--engine tensorrt" in line
    assert not (tmp_path / "out").exists()
    # It builds for GPUs of other machines. With --engine auto, the reason is reported.
    assert engine_builder.open_builder("rtx", BOTH).module
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = engine_builder.find_builder(ExportOptions(), ("tensorrt", "rtx"))
    assert found.module is None
    assert "does not support NVIDIA H100" in found.unavailable
    monkeypatch.setattr(engine_builder, "describe_gpu", lambda index: Gpu("NVIDIA RTX 4090", "8.9"))
    assert engine_builder.find_builder(ExportOptions(), ("tensorrt", "rtx")).kind == "rtx"


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(fp16=True, version_compatible=True),
        ExportOptions(fp16=True, hardware_compatibility="ampere_plus"),
    ],
)
def test_auto_does_not_try_a_builder_without_the_compatibility(
    options: ExportOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_builder, "count_gpus", lambda: 1)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    builder = engine_builder.choose_builder(options, converts=True)
    assert builder.module is None
    assert builder.unavailable == "tensorrt cannot be imported here"


def test_a_missing_builder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    outcome = run(
        EMBEDDED, "--engine", "rtx", "--compute-capability", "8.9", "--output", tmp_path / "out"
    )
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert install_hint("rtx") in line
    assert not (tmp_path / "out").exists()


@no_gpu
def test_fp16_without_a_gpu_names_the_command_for_the_engine(exports: Path, tmp_path: Path) -> None:
    outcome = run(EMBEDDED, "--fp16", "--verify", "none", "--output", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("no engine")]
    assert "ffd-export embedded.fp16.onnx --engine tensorrt" in line


def test_builders_accept_a_gpu_or_compute_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "count_gpus", lambda: 1)
    require_buildable("rtx", ExportOptions())
    require_buildable("tensorrt", ExportOptions())
    require_buildable("rtx", BOTH)


@pytest.mark.skipif(count_gpus() == 0, reason="needs a GPU")
def test_an_engine_runs_on_the_gpu(exports: Path, tmp_path: Path, portraits: Path) -> None:
    outcome = run(
        exports / "embedded.fp16.onnx", "--engine", "rtx", "--output", tmp_path, "--verify",
        portraits,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    (row,) = map(json.loads, outcome.stdout.splitlines())
    assert row["parity"]["largest_difference"] < 1e-2

"""The builder: real engines by TensorRT for RTX without a GPU, and the API of every TensorRT."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ffd_export import engine_build, engine_builder, engine_file
from ffd_export.cli.export import main
from ffd_export.engine_build import build_engine
from ffd_export.engine_builder import require_buildable
from ffd_export.engine_layers import count_kernels
from ffd_export.engine_options import EngineOptions
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_runtime.core.errors import BackendError, DeviceError, EngineError, ModelError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.model.backends import EMBEDDED, open_backend
from ffd_runtime.model.devices import Gpu, count_gpus
from ffd_runtime.model.engine_manifest import EngineManifest, manifest_path

from .tensorrt_stub import VERSIONS, Stub

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt_rtx, which is there for x86-64 Linux",
)
no_gpu = pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
BOTH = EngineOptions(compute_capabilities=("8.6", "8.9"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="ffd-export")


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
def test_real_engines_are_built_without_a_gpu(
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
    # The command in the manifest builds it anew.
    command = shlex.split(manifest.command)
    assert command[:2] == ["ffd-export", source.name]
    assert command[-2:] == ["--verify", "DIR"]
    here = ("--verify", "none", "--compute-capability", "8.6,8.9", "--output", tmp_path / "again")
    again = run(source, *command[2:-2], *here)
    assert again.exit_code == 0, again.output
    # Weights are the engine's bulk: half of the bytes for FP16.
    size = {"float": 13.4e6, "half": 6.7e6, "int8": 3.4e6}[next(iter(layers))]
    assert size < path.stat().st_size < 4 * size


@needs_rtx
def test_a_device_needs_no_torch(tmp_path: Path) -> None:
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
def test_one_engine_serves_several_gpus() -> None:
    content = EMBEDDED.read_bytes()
    one = build_engine(rtx(), content, 299, EngineOptions(compute_capabilities=("8.9",)))
    two = build_engine(rtx(), content, 299, BOTH)
    assert one.compute_capabilities == ("8.9",)
    assert two.compute_capabilities == ("8.6", "8.9")
    assert one.gpu is None
    assert one.content != two.content


@needs_rtx
def test_the_gpu_that_is_here_is_named_to_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's default is a list of GPUs of its own, in which Turing is not."""
    content = EMBEDDED.read_bytes()
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("RTX 4090", "8.9"))
    own = build_engine(rtx(), content, 299, EngineOptions())
    named = build_engine(rtx(), content, 299, EngineOptions(compute_capabilities=("8.9",)))
    assert own.compute_capabilities == ("8.9",)
    assert own.gpu == "RTX 4090"
    assert abs(len(own.content) - len(named.content)) < 1000
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("H100", "9.0"))
    with pytest.raises(EngineError, match=r"compute capability 9\.0: .* builds for"):
        build_engine(rtx(), content, 299, EngineOptions())


@needs_rtx
def test_the_builders_phases_are_told() -> None:
    class Listener:
        def __init__(self) -> None:
            self.under_way: set[str] = set()
            self.seen: set[str] = set()
            self.steps = 0

        def begin(self, phase: str, steps: int) -> None:
            self.under_way.add(phase)
            self.seen.add(phase)

        def step(self, phase: str, done: int) -> None:
            self.steps += 1

        def end(self, phase: str) -> None:
            self.under_way.discard(phase)

    listener = Listener()
    build_engine(rtx(), EMBEDDED.read_bytes(), 299, BOTH, listener)
    assert "Building engine" in listener.seen
    assert listener.steps > 10
    assert not listener.under_way


@needs_rtx
def test_tensorrts_own_words_are_quoted() -> None:
    with pytest.raises(ModelError, match="TensorRT cannot parse the ONNX: .*Failed to parse"):
        build_engine(rtx(), b"not an ONNX", 299, BOTH)
    with pytest.raises(EngineError, match=r"builds for .*8\.9"):
        build_engine(
            rtx(), EMBEDDED.read_bytes(), 299, EngineOptions(compute_capabilities=("3.5",))
        )


@needs_rtx
def test_ctrl_c_cancels_the_build(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading\n"
        "import tensorrt_rtx as trt\n"
        "from ffd_export.engine_build import build_engine\n"
        "from ffd_export.engine_options import EngineOptions\n"
        "class Interrupt:\n"
        "    def begin(self, phase, steps): pass\n"
        "    def end(self, phase): pass\n"
        "    sent = False\n"
        "    def step(self, phase, done):\n"
        "        if not self.sent:\n"
        "            self.sent = True\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        import time; time.sleep(0.05)\n"
        "options = EngineOptions(compute_capabilities=('8.6', '8.9'))\n"
        "try:\n"
        "    build_engine(trt, open(sys.argv[1], 'rb').read(), 299, options, Interrupt())\n"
        "except KeyboardInterrupt:\n"
        "    print('cancelled', *(t.name for t in threading.enumerate() if 'ffd' in t.name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(EMBEDDED)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "cancelled\n", done.stderr


@needs_rtx
def test_ctrl_c_ends_the_command_and_leaves_nothing(tmp_path: Path) -> None:
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
def test_a_layer_that_is_float_fails_the_export(exports: Path, tmp_path: Path) -> None:
    """An ONNX whose card says FP16 and whose layers are FP32 is refused, by TensorRT's parse."""
    model, card = read_onnx(EMBEDDED)
    liar = tmp_path / "liar.onnx"
    liar.write_bytes(to_bytes(model, card.replace(precision="fp16")))
    outcome = run(liar, "--engine", "rtx", "--compute-capability", "8.9")
    assert outcome.exit_code == 1
    last = outcome.stderr.splitlines()[-1]
    assert "only 0 of 51 convolution and GEMM layers are half" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["liar.onnx"]


@needs_rtx
@no_gpu
def test_an_engine_says_why_it_does_not_run_here(exports: Path, tmp_path: Path) -> None:
    outcome = run(
        exports / "embedded.fp16.onnx", "--engine", "rtx", "--compute-capability", "8.9",
        "--output", tmp_path,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    path = tmp_path / "embedded.fp16.rtx.engine"
    with pytest.raises(DeviceError, match=r"driver offers no GPU 0 here: run its ONNX"):
        open_backend(path)
    with pytest.raises(DeviceError, match="which needs a GPU"):
        open_backend(path, device="cpu")
    with pytest.raises(BackendError, match="onnxruntime does not read"):
        open_backend(path, "onnxruntime")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(EngineError, match="is not the one that .* describes"):
        open_backend(path)


@no_gpu
def test_what_cannot_end_well_ends_at_once(tmp_path: Path) -> None:
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
def test_a_gpu_that_rtx_does_not_support_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_builder, "count_gpus", lambda: 1)
    monkeypatch.setattr(engine_builder, "describe_gpu", lambda index: Gpu("NVIDIA H100", "9.0"))
    monkeypatch.setattr(engine_file, "build_engine", lambda *_: pytest.fail("it was built"))
    outcome = run(EMBEDDED, "--engine", "rtx", "--output", tmp_path / "out")
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert "does not support NVIDIA H100 (compute capability 9.0; supported are 7.5, 8.0" in line
    assert "--engine tensorrt" in line
    assert not (tmp_path / "out").exists()
    # For GPUs of other machines it builds; and where no engine was asked for, it says why not.
    assert engine_builder.open_builder("rtx", BOTH).module
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = engine_builder.find_builder(EngineOptions(), ("tensorrt", "rtx"))
    assert found.module is None
    assert "does not support NVIDIA H100" in found.unavailable
    monkeypatch.setattr(engine_builder, "describe_gpu", lambda index: Gpu("NVIDIA RTX 4090", "8.9"))
    assert engine_builder.find_builder(EngineOptions(), ("tensorrt", "rtx")).kind == "rtx"


def test_without_the_builder_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    outcome = run(
        EMBEDDED, "--engine", "rtx", "--compute-capability", "8.9", "--output", tmp_path / "out"
    )
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert install_hint("rtx") in line
    assert not (tmp_path / "out").exists()


@no_gpu
def test_fp16_says_which_engine_was_skipped(exports: Path, tmp_path: Path) -> None:
    outcome = run(EMBEDDED, "--fp16", "--verify", "none", "--output", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("no engine")]
    assert "ffd-export embedded.fp16.onnx --engine tensorrt" in line


EVERYTHING = EngineOptions(
    max_batch=8,
    opt_batch=4,
    workspace=512,
    optimization_level=4,
    version_compatible=True,
    lean_runtime=False,
    hardware_compatibility="ampere_plus",
)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_builder_uses_only_what_a_version_has(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))
    stub = Stub(version)
    import dataclasses

    options = dataclasses.replace(EVERYTHING, timing_cache=tmp_path)
    for _ in range(2):  # The second time there is a timing cache.
        made = build_engine(stub, b"onnx", 299, options)
    assert made.content == b"an engine"
    assert made.built_layers == {"half": 1}
    (cache,) = tmp_path.iterdir()
    assert version in cache.name
    assert cache.read_bytes() == b"timings"
    assert {
        "BuilderFlag.TF32",
        "BuilderFlag.VERSION_COMPATIBLE",
        "BuilderFlag.EXCLUDE_LEAN_RUNTIME",
        "IBuilderConfig.hardware_compatibility_level",
        "IBuilderConfig.set_timing_cache",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    } <= stub.touched
    # Nothing that a later version took away, whichever version this is.
    assert stub.touched <= everything_in("11.4.0.106")
    same = dataclasses.replace(options, hardware_compatibility="same_compute_capability")
    if version == "10.3.0":
        with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 does not support it"):
            build_engine(stub, b"onnx", 299, same)
    else:
        build_engine(stub, b"onnx", 299, same)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_what_is_installed_has_it_too(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))
    stub = Stub(VERSIONS[-1])
    build_engine(stub, b"onnx", 299, EngineOptions(timing_cache=tmp_path))
    for name in sorted(stub.touched - {"EngineInspector.get_engine_information"}):
        owner, _, member = name.partition(".")
        # TensorRT for RTX has no inspector; the builder does without.
        if owner != "EngineInspector" and member != "JSON":
            assert hasattr(trt, owner), name
            assert not member or hasattr(getattr(trt, owner), member), name


@pytest.mark.parametrize("compatible", [True, False])
def test_the_inspector_may_load_the_lean_runtime_of_a_version_compatible_engine(
    monkeypatch: pytest.MonkeyPatch, compatible: bool
) -> None:
    """Without leave TensorRT loads no engine that holds code, and the inspector says nothing."""
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))
    stub = Stub("10.16.1.11")
    engine = stub.answers["Runtime.deserialize_cuda_engine"]
    runtimes: list[Any] = []

    class Runtime(stub.Runtime):  # type: ignore[name-defined,misc]
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            runtimes.append(self)
            return engine if self.engine_host_code_allowed or not compatible else None

    monkeypatch.setitem(stub._classes, "Runtime", Runtime)
    made = build_engine(stub, b"onnx", 299, EngineOptions(version_compatible=compatible))
    assert made.built_layers == {"half": 1}
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [compatible]


def test_the_stub_refuses_what_a_version_lacks() -> None:
    stub = Stub("11.4.0.106")
    with pytest.raises(AttributeError, match="has no BuilderFlag.FP16"):
        _ = stub.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="has no IBuilderConfig.int8_calibrator"):
        stub.IBuilderConfig().int8_calibrator = None
    assert Stub("10.12.0.36").BuilderFlag.FP16


def everything_in(version: str) -> set[str]:
    from .tensorrt_stub import FOLDER

    classes = json.loads((FOLDER / f"{version}.json").read_text())["classes"]
    return {*classes, *(f"{owner}.{name}" for owner in classes for name in classes[owner])}


def test_kernels_are_counted_by_type() -> None:
    layers = [
        {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major Int8 format"}]},
        {"LayerType": "CaskGemmConvolution", "Inputs": [{"Format/Datatype": "FP16 where % 8"}]},
        {"LayerType": "gemm", "Inputs": [{"Format": "Row major", "Datatype": "Float"}]},
        {"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
    ]
    assert count_kernels(layers) == {"int8": 1, "half": 1, "float": 1}


def test_a_builder_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))
    stub = Stub(VERSIONS[0])
    stub.answers["Builder.build_serialized_network"] = None
    with pytest.raises(ModelError, match="cannot build the engine"):
        build_engine(stub, b"onnx", 299, EngineOptions())
    assert not any(thread.name == "ffd-build" for thread in threading.enumerate())


def test_a_damaged_timing_cache_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))
    stub = Stub("10.16.1.11")
    stub.answers["IBuilderConfig.set_timing_cache"] = False
    made = build_engine(stub, b"onnx", 299, EngineOptions(timing_cache=tmp_path))
    assert made.content == b"an engine"


def test_a_gpu_is_needed_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "count_gpus", lambda: 1)
    require_buildable("rtx", EngineOptions())
    require_buildable("tensorrt", EngineOptions())
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

"""The engine builder uses only names that each version of TensorRT has."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ffd_export import engine_build
from ffd_export.engine_build import build_engine
from ffd_export.engine_layers import count_kernels
from ffd_export.export_options import ExportOptions
from ffd_runtime.core.errors import EngineError, ModelError
from ffd_runtime.model.devices import Gpu

from .tensorrt_stub import VERSIONS, Stub

EVERYTHING = ExportOptions(
    engine="tensorrt",
    max_batch=8,
    opt_batch=4,
    workspace=512,
    optimization_level=4,
    version_compatible=True,
    exclude_lean_runtime=True,
    hardware_compatibility="ampere_plus",
)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "describe_gpu", lambda index: Gpu("GPU of the test", "8.9"))


def cached_in(folder: Path) -> ExportOptions:
    return ExportOptions(engine="tensorrt", timing_cache=folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_builder_uses_names_of_every_version(version: str, tmp_path: Path) -> None:
    stub = Stub(version)
    import dataclasses

    options = dataclasses.replace(EVERYTHING, timing_cache=tmp_path)
    for _ in range(2):  # The second build finds a timing cache.
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
    # No version may use names that the latest version has removed.
    assert stub.touched <= all_names("11.4.0.106")
    same = dataclasses.replace(options, hardware_compatibility="same_compute_capability")
    if version == "10.3.0":
        with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 does not support it"):
            build_engine(stub, b"onnx", 299, same)
    else:
        build_engine(stub, b"onnx", 299, same)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_installed_module_has_all_used_names(module: str, tmp_path: Path) -> None:
    trt = pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)
    stub = Stub(VERSIONS[-1])
    build_engine(stub, b"onnx", 299, cached_in(tmp_path))
    for name in sorted(stub.touched - {"EngineInspector.get_engine_information"}):
        owner, _, member = name.partition(".")
        # TensorRT for RTX has no engine inspector, and the builder does not need it.
        if owner != "EngineInspector" and member != "JSON":
            assert hasattr(trt, owner), name
            assert not member or hasattr(getattr(trt, owner), member), name


@pytest.mark.parametrize("compatible", [True, False])
def test_the_inspector_loads_version_compatible_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compatible: bool
) -> None:
    """TensorRT loads engines with host code only if that is allowed."""
    stub = Stub("10.16.1.11")
    engine = stub.answers["Runtime.deserialize_cuda_engine"]
    runtimes: list[Any] = []

    class Runtime(stub.Runtime):  # type: ignore[name-defined,misc]
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            runtimes.append(self)
            return engine if self.engine_host_code_allowed or not compatible else None

    monkeypatch.setitem(stub._classes, "Runtime", Runtime)
    options = ExportOptions(engine="tensorrt", version_compatible=compatible, timing_cache=tmp_path)
    made = build_engine(stub, b"onnx", 299, options)
    assert made.built_layers == {"half": 1}
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [compatible]


def test_the_stub_lacks_removed_names() -> None:
    stub = Stub("11.4.0.106")
    with pytest.raises(AttributeError, match="has no BuilderFlag.FP16"):
        _ = stub.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="has no IBuilderConfig.int8_calibrator"):
        stub.IBuilderConfig().int8_calibrator = None
    assert Stub("10.12.0.36").BuilderFlag.FP16


def all_names(version: str) -> set[str]:
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


def test_a_failed_build_ends_its_thread(tmp_path: Path) -> None:
    stub = Stub(VERSIONS[0])
    stub.answers["Builder.build_serialized_network"] = None
    with pytest.raises(ModelError, match="cannot build the engine"):
        build_engine(stub, b"onnx", 299, cached_in(tmp_path))
    assert not any(thread.name.startswith("ffd-build") for thread in threading.enumerate())


def test_ctrl_c_during_a_callback_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT discards an exception of its logger, which it calls while it parses."""
    stub = Stub(VERSIONS[-1])

    class Parser(stub.OnnxParser):  # type: ignore[name-defined,misc]
        def parse(self, onnx: bytes) -> bool:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return True

    monkeypatch.setitem(stub._classes, "OnnxParser", Parser)
    with pytest.raises(KeyboardInterrupt):
        build_engine(stub, b"onnx", 299, cached_in(tmp_path))
    assert not any(thread.name.startswith("ffd-build") for thread in threading.enumerate())


def test_a_damaged_timing_cache_is_replaced(tmp_path: Path) -> None:
    stub = Stub("10.16.1.11")
    stub.answers["IBuilderConfig.set_timing_cache"] = False
    made = build_engine(stub, b"onnx", 299, cached_in(tmp_path))
    assert made.content == b"an engine"

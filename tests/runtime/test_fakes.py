"""The fakes of CUDA and TensorRT, and what the backend calls, against the real packages' APIs.

cuda-bindings and TensorRT for RTX can be imported without a GPU. Of TensorRT, which cannot be
installed everywhere, the members and return types of several versions are in tests/export.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ffd_runtime.model.backends.tensorrt as backend

from . import fake_tensorrt
from .fake_cuda import FakeCuda, Handle, cudaStream_t, get_cuda_native_handle

FOLDER = Path(backend.__file__).parent
MODULES = ("tensorrt.py", "cuda.py", "lanes.py", "kernel_cache.py")
TREES = [ast.parse((FOLDER / name).read_text()) for name in MODULES]
BINDINGS = Path(__file__).parent.parent / "export" / "tensorrt_api"
# What the fakes have for the tests, beside what they stand for.
OWN = {"require_device", "say", "compile", "compute"}


def members(*names: str) -> set[str]:
    """What the backend reads from, or sets on, variables or attributes of these names."""
    return {
        node.attr
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (getattr(node.value, "id", None) or getattr(node.value, "attr", None)) in names
    }


CUDA = sorted(name for name in members("api", "runtime") if name.startswith("cuda"))


def cuda_runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime")


def calls() -> dict[str, Callable[..., Any]]:
    """The fake's calls by name."""
    return {
        name: call
        for name, call in vars(FakeCuda).items()
        if name.startswith("cuda") and inspect.isfunction(call)
    }


def test_the_fake_has_all_that_the_backend_calls() -> None:
    assert len(CUDA) > 20
    assert [name for name in CUDA if not hasattr(FakeCuda, name)] == []


@pytest.mark.parametrize("name", sorted(calls()))
def test_a_call_of_the_fake_is_cudas(name: str) -> None:
    """Its arguments, and how many values it returns after the error, as its documentation says."""
    documentation = getattr(cuda_runtime(), name).__doc__
    form = re.search(rf"^{name}\((.*)\)", documentation, re.M)
    assert form, documentation
    arguments = [part.split(":")[0].split()[-1] for part in form[1].split(",") if part.strip()]
    fake = calls()[name]
    assert [*inspect.signature(fake).parameters][1:] == arguments
    returned = re.search(r"Returns\n\s*-+\n(.*?)(?:\n\s*\n|\Z)", documentation, re.S)
    assert returned, documentation
    lines = [line for line in returned[1].splitlines() if line.strip()]
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    documented = [line for line in lines if line[margin : margin + 1].strip()]
    assert len(answer(name)) == len(documented), returned[1]


def answer(name: str) -> tuple[Any, ...]:
    """What the fake's call returns."""
    fake: Any = FakeCuda()
    if name == "cudaGetErrorString":
        return tuple(fake.cudaGetErrorString(fake.cudaError_t.cudaErrorInvalidValue))
    if name not in ("cudaGetLastError", "cudaPeekAtLastError"):
        fake.broken = fake.cudaError_t.cudaErrorIllegalAddress
    given = [0] * (len(inspect.signature(calls()[name]).parameters) - 1)
    return tuple(getattr(fake, name)(*given))


@pytest.mark.parametrize("kind", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"])
def test_the_fakes_numbers_are_cudas(kind: str) -> None:
    runtime = cuda_runtime()
    for member in getattr(FakeCuda, kind):
        real = getattr(getattr(runtime, kind), member.name)
        assert int(real) == int(member), member
        if kind == "cudaError_t":
            assert runtime.cudaGetErrorString(real)[1] == FakeCuda().cudaGetErrorString(member)[1]
    for name in ("cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming"):
        assert int(getattr(runtime, name)) == getattr(FakeCuda, name)


@pytest.mark.parametrize("kind", ["cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t"])
def test_handles_are_objects(kind: str) -> None:
    runtime = cuda_runtime()
    utils = pytest.importorskip("cuda.bindings.utils")
    for made, native in (
        (getattr(runtime, kind), utils.get_cuda_native_handle),
        (getattr(FakeCuda, kind), get_cuda_native_handle),
    ):
        assert not issubclass(made, int)
        assert native(made(1234)) == 1234
        assert made(1234) == made(1234)
        with pytest.raises(TypeError):
            native(1234)
    # What cuda-bindings has deprecated, the fake does not have any more.
    with pytest.raises(TypeError, match="deprecated"):
        int(getattr(FakeCuda, kind)(1234))


def test_the_fake_answers_mistakes_as_cuda_does() -> None:
    fake = FakeCuda(devices=2)
    errors = fake.cudaError_t
    _, stream = fake.cudaStreamCreateWithFlags(1)
    _, address = fake.cudaMalloc(10)
    assert isinstance(stream, Handle)
    assert address % 256 == 0
    # Freed once, it cannot be freed again; an error stays until it is fetched.
    assert fake.cudaFree(address) == (errors.cudaSuccess,)
    assert fake.cudaFree(address) == (errors.cudaErrorInvalidValue,)
    assert fake.cudaPeekAtLastError() == (errors.cudaErrorInvalidValue,)
    assert fake.cudaGetLastError() == (errors.cudaErrorInvalidValue,)
    assert fake.cudaGetLastError() == (errors.cudaSuccess,)
    assert fake.cudaStreamDestroy(cudaStream_t(99)) == (errors.cudaErrorInvalidResourceHandle,)
    assert fake.cudaSetDevice(2) == (errors.cudaErrorInvalidDevice,)
    # Each thread has a device, and errors, of its own.
    fake.cudaSetDevice(1)
    seen: list[Any] = []
    thread = threading.Thread(
        target=lambda: seen.append((fake.current_device(), fake.cudaGetLastError()))
    )
    thread.start()
    thread.join()
    assert seen == [(0, (errors.cudaSuccess,))]
    assert fake.cudaGetLastError() == (errors.cudaErrorInvalidDevice,)
    # Nothing clears an error that destroyed the context.
    fake.broken = errors.cudaErrorIllegalAddress
    for _ in range(2):
        assert fake.cudaGetLastError() == (errors.cudaErrorIllegalAddress,)
        assert fake.cudaMalloc(10) == (errors.cudaErrorIllegalAddress, None)
    assert len(fake.faults) == 2


def returns(kind: type) -> dict[str, Any]:
    """The methods of a fake class that stand for TensorRT's, and what they say they return."""
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: str(inspect.signature(method).return_annotation)
        for name, method in methods
        if not name.startswith("_") and name not in OWN
    }


@pytest.mark.parametrize("path", sorted(BINDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_tensorrt_has_what_is_called_and_returns_what_the_fake_does(path: Path) -> None:
    engine, context = members("engine", "_engine"), members("context", "_context")
    assert "create_execution_context" in engine
    assert {"set_device_memory", "execute_async_v3", "set_tensor_address"} <= context
    classes = json.loads(path.read_text())["classes"]
    runtime = {name for name in members("runtime") if not name.startswith("cuda")}
    assert {"deserialize_cuda_engine", "engine_host_code_allowed"} <= runtime
    assert runtime <= classes["Runtime"].keys()
    assert engine - {"create_runtime_config"} <= classes["ICudaEngine"].keys()
    assert context <= classes["IExecutionContext"].keys()
    for name, returned in returns(fake_tensorrt.IExecutionContext).items():
        kind, _, real = classes["IExecutionContext"][name].partition(" ")
        assert kind == "method"
        # Where the signature is overloaded, the bindings' first line does not say.
        assert real in ("", returned), name


def test_tensorrt_for_rtx_has_what_is_called_and_returns_what_the_fake_does() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    assert rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    assert rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    for owner, names in (
        ("ICudaEngine", ("engine", "_engine")),
        ("IExecutionContext", ("context", "_context")),
        ("IRuntimeConfig", ("config",)),
        ("IRuntimeCache", ("_cache",)),
    ):
        used = members(*names) - {"open", "close", "save"}
        assert used
        for name in used:
            assert hasattr(getattr(rtx, owner), name), f"{owner}.{name}"
    for fake, owner in (
        (fake_tensorrt.RtxContext, rtx.IExecutionContext),
        (fake_tensorrt.IRuntimeConfig, rtx.IRuntimeConfig),
        (fake_tensorrt.IRuntimeCache, rtx.IRuntimeCache),
    ):
        for name, returned in returns(fake).items():
            line = getattr(owner, name).__doc__.splitlines()[0]
            real = re.search(r"-> (?:\w+(?:\.|::))*(\w+)$", line)
            if real and real[1] in ("bool", "None"):
                assert real[1] == returned, line
    fake_module: Any = fake_tensorrt.make_module(
        "tensorrt_rtx", "1", fake_tensorrt.ICudaEngine(FakeCuda())
    )
    known = set(fake_module.ComputeCapability.__members__)
    assert known <= set(rtx.ComputeCapability.__members__)


def test_the_gpus_of_the_documentation_are_those_of_the_installed_version() -> None:
    from ffd_runtime.model.engine_manifest import RTX_COMPUTE_CAPABILITIES, list_rtx_gpus

    rtx = pytest.importorskip("tensorrt_rtx")
    assert set(RTX_COMPUTE_CAPABILITIES) <= set(list_rtx_gpus(rtx))

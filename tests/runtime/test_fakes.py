"""Compare the fakes of CUDA and TensorRT, and the calls of the backend, with the real APIs.

cuda-bindings and TensorRT for RTX can be imported without a GPU. TensorRT cannot be installed
everywhere, so tests/export stores the members and return types of several versions.
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
# Methods of the fakes that only tests use.
OWN = {"require_device", "say", "compile", "compute"}


def members(*names: str) -> set[str]:
    """Return the attributes that the backend uses of variables or attributes with these names."""
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
    """Return the calls of the fake by name."""
    return {
        name: call
        for name, call in vars(FakeCuda).items()
        if name.startswith("cuda") and inspect.isfunction(call)
    }


def test_the_fake_has_every_call_of_the_backend() -> None:
    assert len(CUDA) > 20
    assert [name for name in CUDA if not hasattr(FakeCuda, name)] == []


@pytest.mark.parametrize("name", sorted(calls()))
def test_calls_have_the_arguments_and_results_of_cuda(name: str) -> None:
    """The documentation states the arguments, and the values that follow the error code."""
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
    """Return the result of a call of the fake."""
    fake: Any = FakeCuda()
    if name == "cudaGetErrorString":
        return tuple(fake.cudaGetErrorString(fake.cudaError_t.cudaErrorInvalidValue))
    if name not in ("cudaGetLastError", "cudaPeekAtLastError"):
        fake.broken = fake.cudaError_t.cudaErrorIllegalAddress
    given = [0] * (len(inspect.signature(calls()[name]).parameters) - 1)
    return tuple(getattr(fake, name)(*given))


@pytest.mark.parametrize("kind", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"])
def test_constants_equal_those_of_cuda(kind: str) -> None:
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
    # The fake does not support what cuda-bindings has deprecated.
    with pytest.raises(TypeError, match="deprecated"):
        int(getattr(FakeCuda, kind)(1234))


def test_the_fake_returns_the_errors_of_cuda() -> None:
    fake = FakeCuda(devices=2)
    errors = fake.cudaError_t
    _, stream = fake.cudaStreamCreateWithFlags(1)
    _, address = fake.cudaMalloc(10)
    assert isinstance(stream, Handle)
    assert address % 256 == 0
    # Memory cannot be freed twice; an error stays until it is fetched.
    assert fake.cudaFree(address) == (errors.cudaSuccess,)
    assert fake.cudaFree(address) == (errors.cudaErrorInvalidValue,)
    assert fake.cudaPeekAtLastError() == (errors.cudaErrorInvalidValue,)
    assert fake.cudaGetLastError() == (errors.cudaErrorInvalidValue,)
    assert fake.cudaGetLastError() == (errors.cudaSuccess,)
    assert fake.cudaStreamDestroy(cudaStream_t(99)) == (errors.cudaErrorInvalidResourceHandle,)
    assert fake.cudaSetDevice(2) == (errors.cudaErrorInvalidDevice,)
    # Each thread has its own device and errors.
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
    """Return the methods of a fake class that TensorRT also has, with their return types."""
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: str(inspect.signature(method).return_annotation)
        for name, method in methods
        if not name.startswith("_") and name not in OWN
    }


@pytest.mark.parametrize("path", sorted(BINDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_tensorrt_has_the_members_and_return_types_of_the_fake(path: Path) -> None:
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
        # The first line of an overloaded method's docstring has no signature.
        assert real in ("", returned), name


def test_tensorrt_for_rtx_has_the_members_and_return_types_of_the_fake() -> None:
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


def test_the_installed_version_supports_the_documented_gpus() -> None:
    from ffd_runtime.model.engine_manifest import RTX_COMPUTE_CAPABILITIES, list_rtx_gpus

    rtx = pytest.importorskip("tensorrt_rtx")
    assert set(RTX_COMPUTE_CAPABILITIES) <= set(list_rtx_gpus(rtx))

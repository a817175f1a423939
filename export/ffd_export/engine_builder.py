"""Choose the TensorRT package that builds an engine, and reject unsupported options."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ffd_runtime.core.errors import BackendError, DeviceError, EngineError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.text import first_line
from ffd_runtime.model.devices import count_gpus, describe_gpu, explain_missing_gpu
from ffd_runtime.model.engine_manifest import require_rtx_gpu

from .engine_build import find_capability
from .export_options import ExportOptions

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class EngineBuilder:
    """A TensorRT package and the options to build with.

    Attributes:
        kind: `tensorrt` or `rtx`.
        options: how to build.
        module: the imported package; None if no engine is built.
        unavailable: why an engine that `--engine auto` asks for cannot be built here.
    """

    kind: str
    options: ExportOptions
    module: Any = None
    unavailable: str = ""

    @property
    def can_verify(self) -> bool:
        """Whether this machine can run the engine that it builds."""
        return bool(self.module and not self.options.compute_capability and count_gpus())

    def command(self, onnx: str) -> str:
        """Return the command that builds the engine again, in the folder of the ONNX."""
        path = f"./{onnx}" if onnx.startswith("-") else onnx
        arguments = ["--engine", self.kind, *self.options.engine_arguments(), "--verify", "DIR"]
        return shlex.join(["ffd-export", path, *arguments])


def choose_builder(options: ExportOptions, converts: bool) -> EngineBuilder:
    """Return the builder that `--engine` names, or one that `auto` finds.

    `auto` builds only from a converted model.

    Raises:
        FfdError: see `open_builder`.
    """
    if options.names_engine:
        return open_builder(options.engine, options)
    if options.engine == "none" or not converts or not options.for_tensorrt:
        return EngineBuilder("tensorrt", options)
    # Triton does not serve engines of TensorRT for RTX, which has no such compatibility.
    only_tensorrt = (
        options.triton or options.version_compatible or options.hardware_compatibility != "none"
    )
    return find_builder(options, ("tensorrt",) if only_tensorrt else ("tensorrt", "rtx"))


def open_builder(kind: str, options: ExportOptions) -> EngineBuilder:
    """Import a TensorRT package, `tensorrt` or `rtx`.

    Raises:
        BackendError: the package is not installed or cannot be imported.
        DeviceError: there is no GPU to build for, or the package does not support it.
        EngineError: the package does not support an option.
    """
    require_buildable(kind, options)
    try:
        module = import_module(MODULES[kind])
    except Exception as error:  # the package raises whatever its loader raised
        raise BackendError(
            f"--engine {kind} needs {MODULES[kind]}, which cannot be imported "
            f"({first_line(error)}): {install_hint(kind)}, or use JetPack's package"
        ) from None
    for capability in options.compute_capability:
        find_capability(module, capability)
    if kind == "rtx" and not options.compute_capability:
        require_rtx_gpu(module, describe_gpu(0))
    return EngineBuilder(kind, options, module)


def find_builder(options: ExportOptions, kinds: tuple[str, ...]) -> EngineBuilder:
    """Return the first builder that works on this machine, or one with the reason why none does."""
    if not count_gpus():
        reason = explain_missing_gpu("this machine has no GPU")
        return EngineBuilder("tensorrt", options, unavailable=reason)
    names = " and ".join(MODULES[kind] for kind in kinds)
    reason = f"{names} cannot be imported here"
    for kind in kinds:
        try:
            return open_builder(kind, options)
        except DeviceError as error:
            reason = str(error)
        except BackendError:
            continue
    return EngineBuilder("tensorrt", options, unavailable=reason)


def require_buildable(kind: str, options: ExportOptions) -> None:
    """Reject options that a builder does not support, before any work.

    Raises:
        DeviceError: there is no GPU to build for.
        EngineError: the builder does not support an option.
    """
    if kind == "rtx":
        if options.version_compatible or options.hardware_compatibility != "none":
            raise EngineError(
                "--version-compatible and --hardware-compatibility are options of --engine "
                "tensorrt: with --engine rtx, name the GPUs by --compute-capability"
            )
        if not options.compute_capability and not count_gpus():
            reason = explain_missing_gpu("this machine has no GPU to build for")
            raise DeviceError(
                f"--engine rtx: {reason}; name the target GPUs, such as "
                "--compute-capability 8.6,8.9"
            )
    elif not count_gpus():
        reason = explain_missing_gpu("NVIDIA's driver offers none here")
        raise DeviceError(
            f"--engine tensorrt: TensorRT times its kernels on a GPU, and {reason}; build the "
            "engine on the device, from the ONNX"
        )

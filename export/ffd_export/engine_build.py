"""Build TensorRT engines from an ONNX, with `tensorrt` 10 and 11 or with `tensorrt_rtx`.

The module is handed in; what differs between the two, and between versions, is decided here and
nowhere else. Types come from the ONNX (the network is strongly typed): TensorRT 11 knows no other
way, and in 10 it is the one in which FP16 cannot quietly become FP32.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ffd_runtime.core.errors import BackendError, DeviceError, EngineError, ModelError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.model.backends.tensorrt_log import remembering_logger
from ffd_runtime.model.devices import Gpu, count_gpus, describe_gpu
from ffd_runtime.model.engine_manifest import COMPATIBILITIES, list_rtx_gpus, require_rtx_gpu

from .atomic_files import write_files
from .layers import LayerTypes

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
MIB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Attributes:
        max_batch: the largest batch that the engine takes; the smallest is 1.
        opt_batch: the batch to be fastest at; None for 16, ffd-run's own, or `max_batch`.
        workspace: MiB of GPU memory for a layer's scratch; None for all there is.
        optimization_level: 0 (quickest build) to 5 (fastest engine); None for TensorRT's default.
        timing_cache: file that keeps timings between builds; None for none.
        version_compatible: whether later versions of TensorRT may run it.
        lean_runtime: whether a version-compatible engine holds the runtime that those need.
        hardware_compatibility: one of `COMPATIBILITIES`.
        compute_capabilities: GPUs to build for without having them, for TensorRT for RTX.
    """

    max_batch: int = 32
    opt_batch: int | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    lean_runtime: bool = True
    hardware_compatibility: str = "none"
    compute_capabilities: tuple[str, ...] = ()

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch."""
        return 1, min(self.opt_batch or 16, self.max_batch), self.max_batch

    def arguments(self) -> list[str]:
        """As they stand on ffd-export's command line, but for the GPUs, which may be others."""
        given: list[tuple[str, object]] = [("--max-batch", self.max_batch)]
        for option, value in (
            ("--opt-batch", self.opt_batch),
            ("--workspace", self.workspace),
            ("--optimization-level", self.optimization_level),
        ):
            if value is not None:
                given.append((option, value))
        if self.hardware_compatibility != "none":
            given.append(("--hardware-compatibility", self.hardware_compatibility))
        flags = ["--version-compatible"] if self.version_compatible else []
        if self.version_compatible and not self.lean_runtime:
            flags.append("--exclude-lean-runtime")
        return [*(str(part) for pair in given for part in pair), *flags]


class Progress(Protocol):
    """Is told of the builder's phases; they nest."""

    def begin(self, phase: str, steps: int) -> None:
        """A phase of so many steps begins."""

    def step(self, phase: str, done: int) -> None:
        """So many of its steps are done."""

    def end(self, phase: str) -> None:
        """It has ended."""


@dataclass(frozen=True)
class Engine:
    """A built engine and the facts of its building.

    Attributes:
        content: the engine's bytes.
        builder_version: of the module.
        gpu: the GPU that it was built on, if one was needed.
        compute_capabilities: that it is for.
        layers: of the parsed network.
        built_layers: of the engine, by type, where the inspector could be asked.
    """

    content: bytes
    builder_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    layers: LayerTypes
    built_layers: Mapping[str, int] | None


@dataclass(frozen=True)
class Builder:
    """What builds engines, or why nothing does.

    Attributes:
        kind: `tensorrt` or `rtx`.
        options: how to build.
        module: `tensorrt` or `tensorrt_rtx`; None where no engine is to be built.
        missing: why there is no module, where there could have been one.
    """

    kind: str
    options: EngineOptions
    module: Any = None
    missing: str = ""

    @property
    def suffix(self) -> str:
        """What an engine's name ends with."""
        return ".engine" if self.kind == "tensorrt" else ".rtx.engine"

    @property
    def verifies(self) -> bool:
        """Whether an engine can be run where it is built."""
        return (
            self.module is not None and not self.options.compute_capabilities and count_gpus() > 0
        )

    def command(self, onnx: str) -> str:
        """What builds the engine anew for the GPU of the machine, where its ONNX is."""
        path = f"./{onnx}" if onnx.startswith("-") else onnx
        arguments = ["--engine", self.kind, *self.options.arguments(), "--verify", "DIR"]
        return shlex.join(["ffd-export", path, *arguments])


def open_builder(kind: str, options: EngineOptions) -> Builder:
    """The builder that was asked for.

    Args:
        kind: `tensorrt` or `rtx`.
        options: how it is going to build.

    Raises:
        BackendError: it is not installed, or cannot be loaded.
        DeviceError: it needs a GPU and there is none, or it does not support the one here.
        EngineError: an option is not of this builder.
    """
    require_buildable(kind, options)
    try:
        module = import_module(MODULES[kind])
    except Exception as error:  # its own __init__ raises what the loader said, or worse
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"--engine {kind} needs {MODULES[kind]}, which cannot be imported ({reason}): "
            f"{install_hint(kind)}, or use the one of JetPack"
        ) from None
    for capability in options.compute_capabilities:
        _find_capability(module, capability)
    if kind == "rtx" and not options.compute_capabilities:
        require_rtx_gpu(module, describe_gpu(0))
    return Builder(kind, options, module)


def find_builder(options: EngineOptions, kinds: tuple[str, ...]) -> Builder:
    """The first of the builders that is here, if a GPU is."""
    if not count_gpus():
        return Builder("tensorrt", options, missing="there is no GPU here")
    names = " or ".join(MODULES[kind] for kind in kinds)
    missing = f"there is no {names} here"
    for kind in kinds:
        try:
            return open_builder(kind, options)
        except DeviceError as error:
            missing = str(error)
        except BackendError:
            continue
    return Builder("tensorrt", options, missing=missing)


def require_buildable(engine: str, options: EngineOptions) -> None:
    """Refuse before any work what cannot end well.

    Raises:
        DeviceError: a GPU is needed and there is none.
        EngineError: an option is not of this builder.
    """
    if engine == "rtx":
        if options.version_compatible or options.hardware_compatibility != "none":
            raise EngineError(
                "--version-compatible and --hardware-compatibility are TensorRT's: "
                "with --engine rtx name the GPUs by --compute-capability"
            )
        if not options.compute_capabilities and not count_gpus():
            raise DeviceError(
                "--engine rtx: there is no GPU here to build for; name the GPUs that it is for, "
                "such as --compute-capability 8.6,8.9"
            )
    elif not count_gpus():
        raise DeviceError(
            "--engine tensorrt: TensorRT times its kernels on the GPU, and NVIDIA's driver offers "
            "none here; build on the device, from the ONNX"
        )


def build_engine(
    trt: Any,
    onnx: bytes,
    size: int,
    options: EngineOptions,
    progress: Progress | None = None,
    require: Callable[[LayerTypes], None] = lambda layers: None,
) -> Engine:
    """Build.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        onnx: an ONNX of the graph contract.
        size: side of its input, in pixels.
        options: how.
        progress: is told of the phases, from another thread.
        require: refuses layers of the parsed network, before minutes of building.

    Raises:
        BackendError: TensorRT does not start; the message quotes it.
        ModelError: it cannot parse or build the network; the message quotes it.
        KeyboardInterrupt: Ctrl-C; the build was cancelled and has ended.
    """
    logger = remembering_logger(trt)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind11: the factory gave no object
        raise BackendError(f"TensorRT does not start: {error}{logger.quote()}") from None
    network, parser = _parse(trt, builder, onnx, logger)
    layers = types_of_network(trt, network)
    require(layers)
    gpu = None if options.compute_capabilities else describe_gpu(0)
    targets = options.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    config = builder.create_builder_config()
    _configure(trt, config, options)
    if trt.__name__ == "tensorrt_rtx":
        # Its default is a list of its own, in which this machine's GPU need not be.
        _name_gpus(trt, config, targets, logger)
    _add_profile(builder, config, size, options.batch)
    cache_path = _timing_cache_path(trt, options, gpu)
    cache = _load_timing_cache(config, cache_path)
    plan = _run(trt, builder, network, config, progress)
    if plan is None:
        raise ModelError(f"TensorRT cannot build the engine{logger.quote()}")
    if cache is not None and cache_path:
        _save_timing_cache(config, cache_path)
    del parser  # It owned the weights until here.
    content = bytes(plan)
    return Engine(
        content=content,
        builder_version=trt.__version__,
        gpu=gpu.name if gpu else None,
        compute_capabilities=targets,
        layers=layers,
        built_layers=(
            inspect_engine(trt, content, logger, options.version_compatible) if gpu else None
        ),
    )


def _parse(trt: Any, builder: Any, onnx: bytes, logger: Any) -> tuple[Any, Any]:
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        faults = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise ModelError(f"TensorRT cannot parse the ONNX: {'; '.join(faults[:3])}")
    return network, parser


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    # On by default, it would run an FP32 layer in 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # The inspector then names every layer's types; the kernels stay the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if not options.lean_runtime:
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.hardware_compatibility != "none":
        name = options.hardware_compatibility.upper()
        level = getattr(trt.HardwareCompatibilityLevel, name, None)
        if level is None:
            raise EngineError(
                f"--hardware-compatibility {options.hardware_compatibility}: TensorRT "
                f"{trt.__version__} does not have it; use one of {', '.join(COMPATIBILITIES)}"
            )
        config.hardware_compatibility_level = level


def _name_gpus(trt: Any, config: Any, capabilities: tuple[str, ...], logger: Any) -> None:
    config.num_compute_capabilities = len(capabilities)
    for place, capability in enumerate(capabilities):
        if not config.set_compute_capability(_find_capability(trt, capability), place):
            raise EngineError(
                f"TensorRT for RTX refuses compute capability {capability}{logger.quote()}"
            )


def _find_capability(trt: Any, text: str) -> Any:
    """The member of `ComputeCapability` for a text such as `8.9`."""
    known = list_rtx_gpus(trt)
    if text not in known:
        raise EngineError(
            f"compute capability {text}: TensorRT for RTX {trt.__version__} builds for "
            f"{', '.join(known)}; for another GPU use --engine tensorrt on a machine that has it"
        )
    return trt.ComputeCapability.__members__[f"SM{text.replace('.', '')}"]


def _add_profile(builder: Any, config: Any, size: int, batch: tuple[int, int, int]) -> None:
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((count, size, size, 3) for count in batch))
    config.add_optimization_profile(profile)


def _timing_cache_path(trt: Any, options: EngineOptions, gpu: Gpu | None) -> Path | None:
    """A file for each version and GPU: TensorRT refuses the timings of another."""
    # TensorRT for RTX compiles kernels where the engine runs, and times nothing here.
    if options.timing_cache is None or gpu is None or trt.__name__ != "tensorrt":
        return None
    key = re.sub(r"[^\w.]+", "-", f"{trt.__version__}-{gpu.name}-{gpu.compute_capability}")
    return options.timing_cache / f"timing-{key}.cache"


def _load_timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    content = b""
    with suppress(OSError):
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # Damaged, or another's: begin anew.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _save_timing_cache(config: Any, path: Path) -> None:
    # The engine is what was asked for; that the next build takes longer is no error.
    with suppress(Exception):
        write_files({path: bytes(config.get_timing_cache().serialize())})


def _run(trt: Any, builder: Any, network: Any, config: Any, progress: Progress | None) -> Any:
    """Build in a thread of its own, so that Ctrl-C reaches Python while TensorRT works."""
    monitor = _make_monitor(trt, progress)
    config.progress_monitor = monitor
    made: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            made.append(builder.build_serialized_network(network, config))
        except BaseException as error:
            failed.append(error)
        finally:
            ended.set()

    # Not Thread.join: in Python 3.11 an interrupted join takes the thread for ended.
    ended = threading.Event()
    thread = threading.Thread(target=work, name="ffd-build")
    try:
        thread.start()
        while not ended.wait(0.1):
            pass
    except KeyboardInterrupt:
        monitor.cancelled = True
        if thread.ident is not None:
            ended.wait()
        raise
    if failed:
        raise ModelError(f"TensorRT failed: {failed[0]}") from failed[0]
    return made[0]


def _make_monitor(trt: Any, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if progress:
                progress.begin(name, steps)

        def step_complete(self, name: str, step: int) -> bool:
            if progress:
                progress.step(name, step + 1)
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            if progress:
                progress.end(name)

    return Monitor()


def types_of_network(trt: Any, network: Any) -> LayerTypes:
    """Convolution and matrix layers of a parsed network by type.

    INT8 is a layer whose activation and weights both come out of dequantise layers that read int8:
    the pair that TensorRT turns into an 8-bit kernel.
    """
    kinds = trt.LayerType
    counted = (kinds.CONVOLUTION, kinds.DECONVOLUTION, kinds.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    dequantised = {
        layer.get_output(0).name
        for layer in layers
        if layer.type == kinds.DEQUANTIZE and layer.get_input(0).dtype == trt.DataType.INT8
    }
    names = {trt.DataType.HALF: "half", trt.DataType.FLOAT: "float"}
    found = {}
    for layer in layers:
        if layer.type not in counted:
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)][:2]
        if len(inputs) == 2 and all(tensor.name in dequantised for tensor in inputs):
            found[layer.name] = "int8"
        else:
            kind = inputs[0].dtype
            found[layer.name] = names.get(kind, str(kind).rpartition(".")[2].lower())
    return LayerTypes(found)


def inspect_engine(
    trt: Any, content: bytes, logger: Any, version_compatible: bool = False
) -> dict[str, int] | None:
    """Convolution and GEMM kernels of an engine by type, as its inspector names them.

    Needs the GPU. None where the inspector does not answer in the form that is known (TensorRT's
    documentation, "Engine Inspector"): it is a second witness, not a contract.

    Args:
        trt: the module that built the engine.
        content: the engine, built in this process.
        logger: of the module.
        version_compatible: whether the engine may hold the lean runtime.
    """
    with suppress(AttributeError, ValueError, KeyError, TypeError, IndexError):
        runtime = trt.Runtime(logger)
        # TensorRT refuses to load the lean runtime, which is code, unless it is allowed to.
        runtime.engine_host_code_allowed = version_compatible
        engine = runtime.deserialize_cuda_engine(content)
        inspector = engine.create_engine_inspector()
        told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return count_kernels(json.loads(told)["Layers"])
    return None


def count_kernels(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Kernels by the type of their first input, of layers as the engine inspector lists them."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = f"{layer['LayerType']} {layer.get('ParameterType', '')}".lower()
        if not any(word in kind for word in ("conv", "gemm", "matrixmultiply", "matmul")):
            continue
        told = json.dumps(layer["Inputs"][0]).lower()
        words = {"int8": ("int8",), "half": ("half", "fp16"), "float": ("float", "fp32")}
        name = next((n for n, signs in words.items() if any(s in told for s in signs)), "other")
        counts[name] = counts.get(name, 0) + 1
    return counts


def default_timing_cache() -> Path:
    """The user's cache folder for timings."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "ffd"
